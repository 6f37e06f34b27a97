"""Bracketed trees of sentences, in the form of the Penn Treebank."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from lm.data import files, trees
from lm.data.sources import base
from lm.errors import DataError

BOUNDS = {"horizontal": "[0, 100]", "vertical": "[1, 100]"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.FileSource):
    """Trees from files, one or more lines to a tree (see lm/data/trees.py).

    A record has three fields: `text`, the words with spaces between them; `tree`, the
    tree in brackets; and `grammar`, the tree made binary, its brackets as tokens:
    "(S (NP the ) (VP sleeps ) )". A bracket too many or too few is an error that names
    the line; the trees after it are read.

    Args:
      files: as for other sources of files; or
      items: trees given in the config.
      leaves: the words of the trees: their "words", or the "tags" above them.
      functions: whether labels keep their functions (NP-SBJ), and trees their traces.
      horizontal, vertical: how trees become binary.
    """

    files: str | tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    leaves: Literal["words", "tags"] = "words"
    functions: bool = False
    horizontal: int = 2
    vertical: int = 1

    def check_suffix(self, path: Path, suffix: str) -> None:
        """Accepts every name: .mrg, .ptb, .tree, .txt and others are in use."""

    def paths(self) -> list[Path]:
        return [] if self.items and not self.files else super().paths()

    def read(self) -> Iterator[base.Record | DataError]:
        for number, text in enumerate(self.items):
            yield from self._records([(1, text)], f"items[{number}]")
        for path in self.paths():
            broken: list[DataError] = []
            yield from self._records(_decoded(path, broken), str(path))
            yield from broken

    def _records(
        self, lines: Iterable[tuple[int, str]], name: str
    ) -> Iterator[base.Record | DataError]:
        for item in trees.read(lines, name):
            if isinstance(item, DataError):
                yield item
            elif (record := self._record(f"{name}:{item[0]}", item[1])) is not None:
                yield record

    def _record(self, where: str, tree: trees.Tree) -> base.Record | DataError | None:
        kept = tree if self.functions else trees.clean(tree)
        if kept is None:  # nothing but traces
            return None
        if self.leaves == "tags":
            kept = _tags_as_words(kept)
        try:
            made = trees.binary(kept, self.horizontal, self.vertical)
        except ValueError as fault:
            return DataError(where, str(fault), "labels without these marks")
        fields = {
            "text": " ".join(word for _, word in trees.tags(kept)),
            "tree": str(kept),
            "grammar": trees.tokens(made),
        }
        return base.make_record(fields, where)


def _decoded(path: Path, broken: list[DataError]) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file; at one that is no text it adds the error and ends."""
    for number, raw in enumerate(files.read_lines(path), 1):
        text = files.decode(raw, path, number)
        if isinstance(text, DataError):
            broken.append(text)
            return
        yield number, text


def _tags_as_words(tree: trees.Tree) -> trees.Tree:
    if tree.is_tag:
        return trees.Tree(tree.label, (tree.label,))
    return trees.Tree(tree.label, tuple(map(_tags_as_words, tree.nodes())))
