"""Reads files that may be damaged or hostile; refuses what is not as it should be.

Only regular files are opened, since a pipe or a device may block or never end. They
have a limit of size, JSON also one of depth, and its structure can be checked.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.errors import Refusal, StorageError
from lm.host import storage
from lm.host.storage import check_regular as check_regular

LIMIT = 2**26  # bytes of a JSON file; a config.json may name ten thousand files
DEPTH = 64  # levels of JSON


def read_bytes(
    path: Path, *, limit: int = LIMIT, error: type[Refusal] = StorageError
) -> bytes:
    """Reads a regular file as a whole.

    Raises:
      Refusal: of class `error`: it is absent, not regular, or larger than `limit`.
      StorageError: the system cannot read it.
    """
    size = check_regular(path, error)
    if size is None:
        raise error(str(path), "no such file", "a file", "check the path")
    if size > limit:
        raise error(str(path), f"{size:,} bytes", f"at most {limit:,} bytes")
    with storage.refusing(path), open(path, "rb") as file:
        data = storage.steady(file.read, limit + 1)
    if len(data) > limit:
        raise error(str(path), f"more than {limit:,} bytes", "a file that ends")
    return data


def read_text(
    path: Path, *, limit: int = LIMIT, error: type[Refusal] = StorageError
) -> str:
    """Reads a regular file of UTF-8; errors as of `read_bytes` and `decode`."""
    return decode(read_bytes(path, limit=limit, error=error), path, error)


def decode(data: bytes, path: Path | str, error: type[Refusal]) -> str:
    """Decodes UTF-8.

    Raises:
      Refusal: of class `error`: a byte is not UTF-8; names `path` and the offset.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as wrong:
        found = f"a byte that is not UTF-8 at offset {wrong.start}"
        raise error(str(path), found, "UTF-8 text") from None


def read_json(
    path: Path,
    like: Any = None,
    *,
    limit: int = LIMIT,
    error: type[Refusal] = StorageError,
    expected: str = "JSON as it was written",
) -> Any:
    """Reads a file of JSON; arguments and errors as of `read_text`, `parse_json`."""
    text = read_text(path, limit=limit, error=error)
    return parse_json(text, path, like, error, expected)


def parse_json(
    text: str,
    where: Path | str,
    like: Any = None,
    error: type[Refusal] = StorageError,
    expected: str = "JSON as it was written",
) -> Any:
    """Parses JSON without NaN and infinity, at most DEPTH levels deep.

    Args:
      where: the source of the text, for the error.
      like: an example of the structure (`check_shape`); None accepts any.
      error: the class of the refusal.
      expected: what the file should be, for the error.

    Raises:
      Refusal: of class `error`: the text is no such JSON.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise error(
            str(where), "JSON nested too deeply", f"at most {DEPTH} levels"
        ) from None
    except ValueError as wrong:
        raise error(str(where), f"no JSON ({wrong})", expected) from None
    _check_depth(value, where, error)
    if isinstance(like, Mapping) and not isinstance(value, dict):
        raise error(str(where), _show(value), expected)
    if like is not None:
        check_shape(value, like, where, error)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_depth(value: Any, where: Path | str, error: type[Refusal]) -> None:
    level = [value]
    for _ in range(DEPTH):
        inner = [v for v in level if isinstance(v, list | dict)]
        level = [x for v in inner for x in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return
    raise error(str(where), "JSON nested too deeply", f"at most {DEPTH} levels")


def check_shape(
    value: Any, like: Any, where: Path | str, error: type[Refusal], path: str = ""
) -> None:
    """Checks that a value has the structure of an example.

    Args:
      value: parsed JSON.
      like: the example. For a dict, the value is a dict with at least its keys; for a
        list or tuple, a list whose items all have the structure of its first item, if
        there is one; for a number, text or truth value, a value of that type. None
        accepts any value.
      where: the file, for the error.
      error: the class of the refusal.
      path: the path of the value within the file.

    Raises:
      Refusal: names the first part that differs.
    """
    place = f"{where}: {path}" if path else str(where)
    if isinstance(like, Mapping):
        if not isinstance(value, dict):
            raise error(place, _show(value), "an object")
        for key, inner in like.items():
            if key not in value:
                raise error(place, f"no {key!r}", f"{', '.join(map(str, like))}")
            check_shape(value[key], inner, where, error, f"{path}.{key}".strip("."))
    elif isinstance(like, list | tuple):
        if not isinstance(value, list):
            raise error(place, _show(value), "a list")
        for number, item in enumerate(value if like else ()):
            check_shape(item, like[0], where, error, f"{path}.{number}".strip("."))
    elif like is not None:
        names = {bool: "true or false", str: "a text", int: "a whole number"}
        types = (float, int) if isinstance(like, float) else (type(like),)
        if type(value) not in types:
            raise error(place, _show(value), names.get(type(like), "a number"))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
