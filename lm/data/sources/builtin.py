"""English text from CPython's standard library: the topics of the Python manual."""

import dataclasses
import hashlib
from collections.abc import Iterator

from lm.data.sources import base
from lm.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(base.Source):
    """The pages of `help("topics")`, one document (`text`) each, in sorted order.

    About half a million characters, which differ from one Python version to the next;
    the fingerprint covers the text itself.
    """

    place = "pydoc_data.topics"

    def check(self) -> None:
        topics()

    def content(self) -> Iterator[str]:
        for name, text in topics():
            yield hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()

    def read(self) -> Iterator[base.Record]:
        for name, text in topics():
            yield base.Record({"text": text}, f"{self.place}[{name!r}]")


def topics() -> list[tuple[str, str]]:
    """Returns the name and the text of every topic, sorted by name."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError as error:
        raise DataError(
            Source.place,
            "a Python without its manual's topics",
            "the whole standard library",
            "install it (Debian: libpython3-stdlib), or name a text source",
        ) from error
    return sorted(found.items())
