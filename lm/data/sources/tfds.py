"""Data sets of TensorFlow Datasets prepared as ArrayRecord; needs no TensorFlow."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm.data import files
from lm.data.sources import base
from lm.errors import DataError

CHUNK = 256  # Records per read.
EDGE = 2**16  # Bytes that are hashed at each end of a shard.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.Source):
    """Records of one split, in the order of its files. Nothing is downloaded.

    Bytes are decoded as strict UTF-8; numbers (class labels too) become int, float or
    bool; arrays of one dimension become lists, which `lists` allows. The fingerprint
    covers name, version, split and, for every shard, its size and its two ends; hashing
    whole shards of many gigabytes would take too long.

    Args:
      dataset: such as `wikipedia/20230601.en`, with `:1.0.0` for one version.
      split: its split, such as `train` or `train[:90%]`.
      data_dir: the folder of data sets; None is tfds' default (`$TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`).
      columns: the features to take, or {field: feature} to rename them. A dotted
        path selects within features and lists: {"answer": "answers.text.0"}.
      lists: whether a feature may be a list, of texts or of numbers.
    """

    dataset: str
    split: str = "train"
    data_dir: str | None = None
    columns: tuple[str, ...] | dict[str, str] = ("text",)
    lists: bool = False

    neutral = ("weight", "data_dir")

    @property
    def place(self) -> str:
        return f"{self.dataset}:{self.split}"

    def check(self) -> None:
        builder = self.builder()
        features = sorted(builder.info.features)
        heads = {
            name: path if path in features else path.partition(".")[0]
            for name, path in base.columns_of(self.columns).items()
        }
        missing = base.missing_column(heads, features, self.place)
        if missing is not None:
            raise missing
        self.shards(builder)
        self.rows(builder)

    def content(self) -> Iterator[str]:
        builder = self.builder()
        yield builder.info.full_name
        for path in self.shards(builder):
            size = path.stat().length
            with path.open("rb") as file:
                digest = hashlib.sha256(file.read(EDGE))
                file.seek(max(0, size - EDGE))
                digest.update(file.read())
            yield f"{size} {digest.hexdigest()}"

    def read(self) -> Iterator[base.Record | DataError]:
        columns = base.columns_of(self.columns)
        rows = self.rows(self.builder())
        for start in range(0, len(rows), CHUNK):
            numbers = range(start, min(start + CHUNK, len(rows)))
            try:
                chunk = rows.__getitems__(list(numbers))
            except Exception as error:  # array_record raises errors of many types.
                raise self.damaged(
                    f"{self.place}[{start}]", f"an unreadable shard ({error})"
                ) from error
            for number, row in zip(numbers, chunk):
                where = f"{self.place}[{number}]"
                yield record(row, columns, where, self.lists)

    def builder(self) -> Any:
        """Opens the prepared data set from its files, without its generating code."""
        from tensorflow_datasets.core import read_only_builder

        only_features_of_tfds()
        try:
            return read_only_builder.builder_from_files(
                self.dataset, data_dir=self.data_dir
            )
        except ValueError as error:
            raise DataError(
                f"dataset {self.dataset}",
                f"nothing prepared in {self.data_dir or 'the default data_dir'}",
                "a data set prepared as ArrayRecord",
                self.how_to_prepare(),
            ) from error

    def shards(self, builder: Any) -> list[Any]:
        """Returns the files of the split; raises a DataError if one is missing."""
        try:
            shards = builder.info.splits[self.split].filepaths
        except (ValueError, KeyError) as error:
            raise DataError(
                f"dataset {self.dataset}",
                f"split {self.split!r}",
                f"one of {', '.join(builder.info.splits)}, or a part as in [:90%]",
            ) from error
        for path in shards:
            if not path.is_file():
                raise self.damaged(str(path), "no such file")
        return shards

    def rows(self, builder: Any) -> Any:
        try:
            return builder.as_data_source(self.split)
        except NotImplementedError as error:
            raise DataError(
                f"dataset {self.dataset}",
                f"files of format {builder.info.file_format.value}",
                "array_record",
                dataclasses.replace(self, data_dir="ANOTHER").how_to_prepare(),
            ) from error

    def damaged(self, where: str, found: str) -> DataError:
        fix = f"delete the data set's folder, then {self.how_to_prepare()}"
        return DataError(where, found, "the shards as they were prepared", fix)

    def how_to_prepare(self) -> str:
        place = "" if self.data_dir is None else f", data_dir={self.data_dir!r}"
        # Without TensorFlow tfds knows the text data sets once their module is loaded.
        return (
            'run python -c "import tensorflow_datasets as tfds, '
            f"tensorflow_datasets.text; tfds.builder({self.dataset!r}, "
            f"file_format='array_record'{place}).download_and_prepare()\" (data sets "
            "made with Beam, as wikipedia is, need apache-beam, in an environment "
            "of its own)"
        )


@functools.cache
def only_features_of_tfds() -> None:
    """Keeps tfds from importing the modules that a features.json names as classes."""
    from tensorflow_datasets.core.features.feature import FeatureConnector

    find = FeatureConnector.cls_from_name

    def find_own(name: str) -> Any:
        if not name.startswith("tensorflow_datasets."):
            raise DataError(
                "features.json",
                f"the feature {name[:80]!r}, code of its own",
                "features of tensorflow_datasets",
                "prepare the data set with features of tensorflow_datasets.",
            )
        return find(name)

    FeatureConnector.cls_from_name = staticmethod(find_own)


def record(
    row: dict[str, Any], columns: dict[str, str], where: str, lists: bool
) -> base.Record | DataError:
    """Makes a record of the selected features; bytes are decoded."""
    fields = {}
    for field, path in columns.items():
        value = base.value_at(row, path)
        if value is base.ABSENT:  # or within an array
            head = path.partition(".")[0]
            value = base.value_at({head: plain(row.get(head))}, path)
        fields[field] = decoded(plain(value), f"{where} {path!r}")
        if isinstance(fields[field], DataError):
            return fields[field]
    return base.take(fields, {name: name for name in fields}, where, lists)


def plain(value: Any) -> Any:
    """Converts numpy arrays to lists and numpy numbers to Python's, recursively."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [*map(plain, value)] if isinstance(value, list | tuple) else value


def decoded(value: Any, where: str) -> Any:
    """Decodes bytes to text, recursively; returns the first DataError if any."""
    if isinstance(value, bytes):
        return files.decode(value, where)
    if isinstance(value, list):
        items = [decoded(item, where) for item in value]
        return next((item for item in items if isinstance(item, DataError)), items)
    return value
