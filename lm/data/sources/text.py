"""Plain text files, cut into documents by a declared rule."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lm.data import files
from lm.data.sources import base
from lm.errors import ConfigError, DataError

# WikiText: "= Title =" between blank lines opens an article, "= = Part = =" does not.
HEADING = re.compile(rb" ?= [^=](?:.*[^=])? = ?\n")

OTHER_SOURCE = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
NOT_TEXT = {".7z", ".arrow", ".bz2", ".doc", ".docx", ".epub", ".npy", ".npz"}
NOT_TEXT |= {".parquet", ".pdf", ".pkl", ".tar", ".tgz", ".xz", ".zip", ".zst"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.FileSource):
    """Documents in the field `text`. A blank line has only ASCII white space.

    Args:
      split: what a document is.
        `blank_line`: lines up to the next blank line.
        `line`: every line that is not blank.
        `every_line`: every line; a blank one is a document without a token.
        `file`: a whole file.
        `heading`: the lines from one WikiText title line, ` = Title = ` between blank
        lines, to the next; the lines before the first title are a document too.
        The last two keep every line: their documents concatenated equal the files.
      folder: the field that gets the name of the folder of a record's file, such as a
        label; None: no such field.
      held: what `part` divides: `records` divides the records, `end` holds out the last
        fraction `holdout` of the characters of each file and needs split="file".
    """

    split: Literal["blank_line", "line", "every_line", "file", "heading"] = "blank_line"
    folder: str | None = None
    held: Literal["records", "end"] = "records"

    # The names that records get from their folders are in `content`.
    neutral = (*base.FileSource.neutral, "folder")

    def check(self) -> None:
        if self.held == "end" and self.split != "file":
            raise ConfigError(
                self.place, f"held='end' with split={self.split!r}", "split='file'"
            )
        if self.folder is not None and self.folder in ("", "text"):
            expected = "another name: the field 'text' holds the text"
            raise ConfigError(self.place, f"folder={self.folder!r}", expected)
        super().check()

    def content(self) -> Iterator[str]:
        yield from super().content()
        if self.folder is not None:
            yield self.folder
            yield from (_folder_of(path) for path in self.paths())

    def records(self) -> Iterator[base.Record | DataError]:
        if self.held == "records" or self.part == "all":
            yield from super().records()
            return
        for item in dataclasses.replace(self, part="all").records():
            if isinstance(item, base.Record):
                text = item.fields["text"]
                cut = int(len(text) * (1 - self.holdout))
                text = text[:cut] if self.part == "train" else text[cut:]
                fields = item.fields | {"text": text}
                item = base.Record(fields, f"{item.where} ({self.part})")
            yield item

    def check_suffix(self, path: Path, suffix: str) -> None:
        if suffix in OTHER_SOURCE:
            raise DataError(
                str(path),
                f"a {suffix} file in a text source",
                "plain text",
                f'set name="{OTHER_SOURCE[suffix]}" and its columns',
            )
        if suffix in NOT_TEXT:
            raise DataError(
                str(path), f"a {suffix} file", "plain text or .gz", "convert it"
            )

    def read(self) -> Iterator[base.Record | DataError]:
        for path in self.paths():
            named = {} if self.folder is None else {self.folder: _folder_of(path)}
            for line, raw in self.documents(path):
                text = files.decode(raw, path, line)
                if isinstance(text, DataError):
                    yield text
                else:
                    if self.split in ("line", "every_line", "blank_line"):
                        text = text.removesuffix("\n")
                    yield base.Record({"text": text} | named, f"{path}:{line}")

    def more_records(self) -> str | None:
        """Returns a fix that names another `split` and its record count, or None."""
        counts = {}
        for split in ("blank_line", "line"):
            other = dataclasses.replace(self, split=split, held="records", part="all")
            counts[split] = sum(1 for _ in other.read())
        own = sum(1 for _ in self.read())
        split = next((s for s in counts if counts[s] * self.holdout >= 1), "line")
        if counts[split] <= own:
            return None
        return (
            f"set split={split!r} ({counts[split]:,} records) in all its sources, in a "
            f"config that ships by :text=FILE,split={split}"
        )

    def documents(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Yields the first line number and the bytes of every document."""
        lines = enumerate(files.read_lines(path), 1)
        if self.split == "every_line":
            return lines
        if self.split == "line":
            return ((number, raw) for number, raw in lines if not raw.isspace())
        if self.split == "blank_line":
            return paragraphs(lines, path)
        return articles(lines, path, titles=self.split == "heading")


def _folder_of(path: Path) -> str:
    return path.absolute().parent.name


def paragraphs(
    lines: Iterator[tuple[int, bytes]], path: Path
) -> Iterator[tuple[int, bytes]]:
    """Yields runs of consecutive non-blank lines, with their first line numbers."""
    document: list[bytes] = []
    start = size = 0
    for number, raw in lines:
        if not raw.isspace():
            if not document:
                start, size = number, 0
            document.append(raw)
            size += len(raw)
            files.check_size(size, path, start)
        elif document:
            yield start, b"".join(document)
            document = []
    if document:
        yield start, b"".join(document)


def articles(
    lines: Iterator[tuple[int, bytes]], path: Path, *, titles: bool
) -> Iterator[tuple[int, bytes]]:
    """Yields runs of lines that begin with a title; the whole file without `titles`."""
    document: list[bytes] = []
    start, size = 1, 0
    for number, raw in lines:
        if titles and raw.isspace() and ends_with_title(document):
            *before, title = document
            if not is_blank(before):
                yield start, b"".join(before)
                document, start, size = [title], number - 1, len(title)
        document.append(raw)
        size += len(raw)
        files.check_size(size, path, start)
    if not is_blank(document):
        yield start, b"".join(document)


def ends_with_title(lines: list[bytes]) -> bool:
    """Checks whether the last line is a title, given that a blank line follows."""
    after_blank = len(lines) < 2 or lines[-2].isspace()
    return bool(lines) and after_blank and HEADING.fullmatch(lines[-1]) is not None


def is_blank(lines: list[bytes]) -> bool:
    return all(map(bytes.isspace, lines))
