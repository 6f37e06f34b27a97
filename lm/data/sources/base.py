"""The base of all sources: options, the held-out part, and sources of files."""

import collections
import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from lm.data import files
from lm.errors import ConfigError, DataError

BOUNDS = {"weight": "(0, inf)", "holdout": "(0, 1)"}


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One raw item of a source.

    Args:
      fields: its values by name. `text` is a str; the others are str, int, float or
        bool; where the source's `lists` allows it, any may be a tuple of one or more of
        them: words, tags, ids, numbers.
      where: its origin for error messages, such as file and line (`train.tsv:17`).
    """

    fields: dict[str, Any]
    where: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A stream of records in a fixed order; a subclass implements `read`.

    Args:
      weight: its share in a mixture, relative to the weights of the other sources.
      part: all of its records, those not held out, or those held out.
      holdout: the share of records that is held out, spread evenly over the source.
    """

    weight: float = 1.0
    part: Literal["all", "train", "heldout"] = "all"
    holdout: float = 0.05

    # Options that do not change the records, and so stay out of the fingerprint.
    neutral: ClassVar[tuple[str, ...]] = ("weight",)

    @property
    def place(self) -> str:
        """The name of the source in errors about it as a whole."""
        return f"source {type(self).__module__.rpartition('.')[2]}"

    def check(self) -> None:
        """Checks what can be checked without reading the whole source.

        Raises:
          ConfigError: the options do not go together.
          DataError: a file or a column is missing.
        """

    def read(self) -> Iterator[Record | DataError]:
        """Yields all records in order, held out or not."""
        raise NotImplementedError

    def content(self) -> Iterator[str]:
        """Yields digests of the contents, for the fingerprint."""
        yield from ()

    def fingerprint(self) -> str:
        """Returns a sha256 of the contents and of the options that change the records.

        Paths and names of files are no part of it.
        """
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in self.neutral
        }
        if self.part == "all":
            del options["holdout"]
        facts = [type(self).__module__, options, list(self.content())]
        text = json.dumps(facts, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()

    def records(self) -> Iterator[Record | DataError]:
        """Yields the records of `part`; for one that cannot be read, its error.

        Record i is held out if floor((i + 1) holdout) > floor(i holdout). Unreadable
        records are counted too, so leaving them out moves no other record.

        Raises:
          DataError: the part has no record with anything in it, or the rest of a file
            cannot be read at all.
        """
        total, kept, filled = 0, 0, False
        bad, first_bad = 0, None
        for total, item in enumerate(self.read(), 1):
            if self.part != "all":
                before, after = (total - 1) * self.holdout, total * self.holdout
                held_out = math.floor(after) > math.floor(before)
                if held_out != (self.part == "heldout"):
                    continue
            kept += 1
            if isinstance(item, DataError):
                bad += 1
                first_bad = first_bad or item
            elif not filled:
                filled = any(str(value).strip() for value in item.fields.values())
            yield item
        if filled:
            return
        if total and not kept:
            raise self._none_in_part(total)
        if first_bad is not None:
            others = " and the others blank" * (bad < kept)
            raise DataError(
                self.place,
                f"{kept} records, {bad} of them unreadable{others}; the first at "
                f"{first_bad.where}: {first_bad.found}",
                first_bad.expected,
                first_bad.fix,
            )
        raise DataError(
            self.place,
            f"{kept} records, all of them blank" if kept else "no records",
            "at least one with text in it",
        )

    def more_records(self) -> str | None:
        """Returns a fix that makes more records of the same data; None without one."""
        return None

    def _none_in_part(self, total: int) -> DataError:
        """Makes the error for a part without records; its fix would work."""
        fixes = []
        if self.part == "heldout" and total > 1:
            fixes.append(f"raise holdout above {1 / total:.3g} in all its sources")
        fixes.append(self.more_records() or "add records")
        return DataError(
            self.place,
            f"no record in part={self.part!r} ({total} in all, holdout={self.holdout})",
            "at least one",
            ", or ".join(fixes),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """A source of files.

    Args:
      files: paths and globs (`**` goes into folders), `.gz` unpacked on the way.
        Patterns are read in the order given, the files of one glob sorted by name. A
        glob passes over names that begin with a dot.
    """

    files: str | tuple[str, ...]

    neutral: ClassVar[tuple[str, ...]] = ("weight", "files")

    @property
    def place(self) -> str:
        return self.files if isinstance(self.files, str) else ", ".join(self.files)

    def paths(self) -> list[Path]:
        """Returns the files in reading order."""
        patterns = (self.files,) if isinstance(self.files, str) else self.files
        if not any(patterns):
            raise ConfigError(
                super().place, "no files", "a path or a glob", 'set files="data/*.txt"'
            )
        found = [path for pattern in patterns for path in files.find_files(pattern)]
        for path, times in collections.Counter(found).items():
            if times > 1:
                raise DataError(
                    str(path), f"a file that files name {times} times", "each file once"
                )
        return found

    def check(self) -> None:
        for path in self.paths():
            self.check_suffix(path, Path(path.name.lower().removesuffix(".gz")).suffix)
            next(files.read_lines(path), None)

    def check_suffix(self, path: Path, suffix: str) -> None:
        """Raises a DataError for a file that is of another kind by its name."""
        raise NotImplementedError

    def content(self) -> Iterator[str]:
        for path in self.paths():
            try:
                with path.open("rb") as file:
                    yield hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise files.unreadable(path, error) from error


Columns = tuple[str, ...] | Mapping[str, str]


def columns_of(columns: Columns) -> dict[str, str]:
    """Returns field name -> column name; a tuple keeps the columns' names."""
    if not columns or isinstance(columns, str) or len(set(columns)) < len(columns):
        raise ConfigError("columns", repr(columns), "the columns' names, each once")
    return dict(columns if isinstance(columns, Mapping) else zip(columns, columns))


def missing_column(
    wanted: Mapping[str, str], found: Iterable[str], where: str
) -> DataError | None:
    """Makes the error for the first column that is absent; None if none is."""
    found = list(found)
    for field, column in wanted.items():
        if column not in found:
            near = difflib.get_close_matches(column, found, 1)
            known = ", ".join(f"{name[:40]!r}" for name in found[:20])
            return DataError(
                where,
                f"columns {known or 'none'}",
                f"a column {column!r}",
                f"did you mean {near[0]!r}? Set columns={{{field!r}: {near[0]!r}, ...}}"
                if near
                else f"name one of them in columns={{{field!r}: ..., ...}}",
            )
    return None


ABSENT = object()


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Returns the value at a dotted path, such as `answers.text.0`, or ABSENT.

    A key that has the dots in its own name comes first. Lists are counted from 0.
    """
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else ABSENT
        else:
            return ABSENT
    return value


def take(
    row: Mapping[str, Any], columns: Mapping[str, str], where: str, lists: bool
) -> Record | DataError:
    """Makes a record of the wanted columns of an object, or the error for one of them.

    Args:
      columns: field name -> key, or dotted path into the objects and lists of a key.
      lists: whether a value may be a list.
    """
    fields = {name: value_at(row, path) for name, path in columns.items()}
    for name, path in columns.items():
        if fields[name] is ABSENT:
            head = path.partition(".")[0]
            missing = missing_column({name: head}, row, where)
            if missing is not None:
                return missing
            known = f"{type(row[head]).__name__} {row[head]!r:.60}"
            return DataError(
                where,
                f"no {path!r}, and {head!r} is a {known}",
                f"a value at {path!r}",
                "name a path that every record has, or set data.on_bad=skip",
            )
    return make_record(fields, where, lists)


def make_record(
    fields: dict[str, Any], where: str, lists: bool = False
) -> Record | DataError:
    """Makes a record of these values, or the error for the first that cannot be in one.

    With `lists` a value may be a list, one or more texts or one or more numbers; it
    becomes a tuple.
    """
    made = dict(fields)
    for name, value in fields.items():
        several = lists and isinstance(value, list | tuple)
        if several and not value:
            return DataError(where, f"{name!r} with an empty list", "a text or more")
        items = value if several else (value,)
        texts = name == "text" or (several and isinstance(items[0], str))
        numbers = several and not texts
        for item in items:
            error = _unfit(name, item, where, only_text=texts, only_number=numbers)
            if error is not None:
                return error
        if several:
            made[name] = tuple(value)
    return Record(made, where)


def _unfit(
    name: str, value: Any, where: str, *, only_text: bool, only_number: bool
) -> DataError | None:
    """Makes the error for a value that no record may hold; None for others."""
    if isinstance(value, str) and not only_number:
        at = bad_character(value)
        if at is None:
            return None
        found = f"{name!r} with U+{ord(value[at]):04X} at character {at + 1}"
        return DataError(where, found, "text without NULs and lone surrogates")
    if only_text or not isinstance(value, int | float):
        kinds = "a text" if only_text else "a text or a number"
        expected = "a number, as its first item is" if only_number else kinds
        found = f"{name!r} of type {type(value).__name__}"
        fix = None
        if isinstance(value, list | tuple) and not (only_text or only_number):
            fix = "for lists set lists=True"
        elif isinstance(value, dict):
            fix = f"name what is wanted of it by a path: columns={{...: '{name}.KEY'}}"
        return DataError(where, found, expected, fix)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            found = f"{name!r}, a number of {value.bit_length()} bits"
            return DataError(where, found, "a whole number of 64 bits")
    elif not math.isfinite(value):
        return DataError(where, f"{name!r} = {value}", "a finite number")
    return None


def bad_character(text: str) -> int | None:
    """Returns the index of the first NUL or lone surrogate; None without one."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return error.start
    return text.index("\0") if "\0" in text else None


def column_of(record: Record, column: str) -> Any:
    """Returns the value of a field; DataError where the record has no such field."""
    if column not in record.fields:
        raise DataError(
            record.where,
            f"columns {', '.join(map(str, record.fields))}",
            f"a column {column!r}",
            "name the source's columns in data.sources, or the objective's",
        )
    return record.fields[column]
