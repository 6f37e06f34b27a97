"""Part: the refusals. Every foreseen failure is one line and one exit code."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Refusal(Exception):
    """A failure that is the input's, not the program's: one line, one exit code.

    Args:
      where: the field, file or place (`optim.lr`, `train.tsv:17`).
      found: what stands there.
      expected: what should stand there.
      fix: what the user can do about it; None where `expected` says it all.
    """

    kind = "bug"
    exit_code = 1

    def __init__(self, where: str, found: str, expected: str, fix: str | None = None):
        self.where, self.found, self.expected, self.fix = where, found, expected, fix
        tail = "" if fix is None else f" Fix: {fix}"
        super().__init__(f"{where}: found {found}, expected {expected}.{tail}")

    def line(self) -> str:
        """Returns the refusal as one line that is safe to print anywhere."""
        where, found = shorten(self.where, 300), shorten(self.found, 4000)
        tail = "" if self.fix is None else f" Fix: {self.fix}"
        text = f"{where}: found {found}, expected {self.expected}.{tail}"
        return f"error[{self.kind}] {escape(' '.join(text.split()))}"


def escape(text: str) -> str:
    """Escapes what a terminal would act on: control characters, lone surrogates.

    Line ends and letters of any script stay. Python carries a byte 0xff that was no
    UTF-8 as a surrogate, which becomes \\udcff.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
        for c in text
    )


def shorten(text: str, most: int) -> str:
    """Cuts the middle out of a text that is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


class ConfigError(Refusal):
    """A flag, a field or a rule between fields."""

    kind, exit_code = "config", 2


class Rule(NamedTuple):
    """A condition on a config, with the error for a config that breaks it."""

    holds: bool
    where: str
    found: Any
    expected: str
    fix: str | None = None


def require(rules: Iterable[Rule]) -> None:
    """Checks conditions in their order.

    Raises:
      ConfigError: the first one that does not hold.
    """
    for holds, where, found, expected, fix in rules:
        if not holds:
            raise ConfigError(where, str(found), expected, fix)


class DataError(Refusal):
    """A source, a record or a tokenizer."""

    kind, exit_code = "data", 3


class CheckpointError(Refusal):
    """A checkpoint that is damaged, or that does not fit this run."""

    kind, exit_code = "checkpoint", 4


class StorageError(Refusal):
    """A disk, a permission or memory."""

    kind, exit_code = "storage", 5


class NumericalError(Refusal):
    """A loss or a gradient that is not finite."""

    kind, exit_code = "numerical", 6


class WorkdirError(Refusal):
    """A workdir that another run holds."""

    kind, exit_code = "workdir", 7


class PeerError(Refusal):
    """Another process of the run is lost, or did not answer within the limit."""

    kind, exit_code = "peer", 8
