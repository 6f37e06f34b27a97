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

CHUNK = 256  # records fetched at a time
EDGE = 2**16  # bytes hashed at either end of a shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.Source):
    """Records of one split, in the order of its files. Nothing is downloaded.

    Bytes are decoded as strict UTF-8; numbers (class labels too) become int or float;
    arrays make a bad record. The fingerprint covers name, version, split and, for every
    shard, its size and its two ends, not each of what may be many gigabytes.

    Args:
      dataset: such as `wikipedia/20230601.en`, with `:1.0.0` for one version.
      split: its split, such as `train` or `train[:90%]`.
      data_dir: where data sets lie; None is tfds' own place (`$TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`).
      columns: the features to take, or {field: feature} to give them other names.
    """

    dataset: str
    split: str = "train"
    data_dir: str | None = None
    columns: tuple[str, ...] | dict[str, str] = ("text",)

    neutral = ("weight", "data_dir")

    @property
    def place(self) -> str:
        return f"{self.dataset}:{self.split}"

    def check(self) -> None:
        builder = self.builder()
        missing = base.missing_column(
            base.columns_of(self.columns), sorted(builder.info.features), self.place
        )
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
            except Exception as error:  # array_record raises whatever its C++ makes
                raise self.damaged(
                    f"{self.place}[{start}]", f"an unreadable shard ({error})"
                ) from error
            for number, row in zip(numbers, chunk):
                yield record(row, columns, f"{self.place}[{number}]")

    def builder(self) -> Any:
        """The data set as it lies on the disk, without the code that made it."""
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
        """The files of the split."""
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
    row: dict[str, Any], columns: dict[str, str], where: str
) -> base.Record | DataError:
    fields = {}
    for field, column in columns.items():
        value = row[column]
        if isinstance(value, bytes):
            value = files.decode(value, f"{where} {column!r}")
            if isinstance(value, DataError):
                return value
        fields[field] = value.item() if isinstance(value, np.generic) else value
    return base.make_record(fields, where)
