"""Reads `flax_model.msgpack`: nested maps of arrays (flax.serialization).

An array is MessagePack's extension 1, the packed triple (shape, dtype name, bytes);
above 1 GB it is a map of chunks. Arrays are views of the mapped file. Everything else
in the file is bounded, and nothing of it is run.
"""

import math
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lm.errors import CheckpointError
from lm.hf.formats.files import map_bytes, refuse

DTYPES = {
    name: np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "uint8", "bool")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
MAX_DEPTH, MAX_ITEMS = 32, 200_000
CHUNKED = "__msgpack_chunked_array__"
# First byte -> (kind, format of the size or value that follows).
SIZED = {
    **{0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I")},
    **{0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"), 0xC9: ("ext", ">I")},
    **{0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I")},
    **{0xDC: ("array", ">H"), 0xDD: ("array", ">I")},
    **{0xDE: ("map", ">H"), 0xDF: ("map", ">I")},
    **{0xCA: ("number", ">f"), 0xCB: ("number", ">d")},
    **{0xCC: ("number", ">B"), 0xCD: ("number", ">H")},
    **{0xCE: ("number", ">I"), 0xCF: ("number", ">Q")},
    **{0xD0: ("number", ">b"), 0xD1: ("number", ">h")},
    **{0xD2: ("number", ">i"), 0xD3: ("number", ">q")},
}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns path, such as "bert/pooler/dense/kernel" -> array, read-only.

    Raises:
      CheckpointError: the file is cut short, is no such map, or exceeds the limits.
    """
    reader = _Reader(map_bytes(path), str(path))
    tree = reader.value(0)
    if reader.at != len(reader.data):
        refuse(path, f"{len(reader.data) - reader.at:,} bytes after the map", "none")
    if not isinstance(tree, dict):
        refuse(path, "no map", "a map of parameters")
    # transformers writes the parameters alone, Flax a train state around them.
    while tree.keys() == {"params"} and isinstance(tree["params"], dict):
        tree = tree["params"]
    arrays: dict[str, np.ndarray] = {}
    _flatten(tree, (), arrays, path)
    return arrays


def _flatten(tree: dict, above: tuple, arrays: dict, path: Path) -> None:
    for key, value in tree.items():
        name = "/".join((*above, key))
        if isinstance(value, dict) and CHUNKED in value:
            value = _join_chunks(value, f"{path}: {name!r}")
        if isinstance(value, dict):
            _flatten(value, (*above, key), arrays, path)
        elif isinstance(value, np.ndarray) and name not in arrays:
            arrays[name] = value
        else:
            refuse(f"{path}: {name[:120]!r}", f"a {type(value).__name__}", "an array")


def _join_chunks(value: dict, where: str) -> np.ndarray:
    try:
        shape = tuple(value["shape"][str(i)] for i in range(len(value["shape"])))
        chunks = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
        return np.concatenate([chunk.ravel() for chunk in chunks]).reshape(shape)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        refuse(where, "chunks that do not make an array", "shape and chunks")


class _Reader:
    """Reads one value after another from `data`."""

    def __init__(self, data: np.ndarray, where: str):
        self.data, self.where, self.at, self.items = data, where, 0, 0

    def take(self, count: int) -> np.ndarray:
        """Takes the next `count` bytes, as a view."""
        if count > len(self.data) - self.at:
            found = f"{len(self.data):,} bytes"
            refuse(self.where, found, f"at least {self.at + count:,}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        """Reads a number of the given format of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)).tobytes())[0]

    def value(self, depth: int) -> Any:
        """Reads a value of any type, `depth` levels deep."""
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            limits = f"at most {MAX_ITEMS:,}, {MAX_DEPTH} deep"
            refuse(self.where, "more or deeper nested items", limits)
        byte = self.number(">B")
        if byte < 0x80:
            return byte
        if byte < 0x90:
            return self.map(byte & 0x0F, depth)
        if byte < 0xA0:
            return self.array(byte & 0x0F, depth)
        if byte < 0xC0:
            return self.text(byte & 0x1F)
        if byte >= 0xE0:
            return byte - 0x100
        if byte in CONSTANTS:
            return CONSTANTS[byte]
        if 0xD4 <= byte <= 0xD8:
            return self.extension(1 << (byte - 0xD4))
        if byte not in SIZED:
            refuse(self.where, f"byte {byte:#x} at {self.at - 1:,}", "MessagePack")
        kind, form = SIZED[byte]
        size = self.number(form)
        match kind:
            case "map":
                return self.map(size, depth)
            case "array":
                return self.array(size, depth)
            case "str":
                return self.text(size)
            case "bin":
                return self.take(size)
            case "ext":
                return self.extension(size)
        return size

    def map(self, size: int, depth: int) -> dict[str, Any]:
        """Reads `size` pairs of a text and a value."""
        found: dict[str, Any] = {}
        for _ in range(size):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in found:
                refuse(self.where, f"the key {str(key)[:80]!r}", "texts, each once")
            found[key] = self.value(depth + 1)
        return found

    def array(self, size: int, depth: int) -> list[Any]:
        """Reads `size` values."""
        return [self.value(depth + 1) for _ in range(size)]

    def text(self, size: int) -> str:
        """Reads a text of `size` bytes."""
        if size > 4096:
            refuse(self.where, f"a text of {size:,} bytes", "at most 4,096")
        try:
            return self.take(size).tobytes().decode()
        except UnicodeDecodeError:
            refuse(self.where, "a text that is not UTF-8", "UTF-8")

    def extension(self, size: int) -> np.ndarray:
        """Reads an extension of `size` bytes, which must hold an array."""
        code, inner = self.number(">b"), _Reader(self.take(size), self.where)
        if code not in (1, 3):
            refuse(self.where, f"an extension of type {code}", "arrays, type 1")
        try:
            shape, dtype, data = inner.value(MAX_DEPTH - 2)
            name = dtype if isinstance(dtype, str) else bytes(dtype).decode()
            if any(type(size) is not int or size < 0 for size in shape):
                raise ValueError
            if math.prod(shape) * DTYPES[name].itemsize != len(data):
                raise ValueError
            return data.view(DTYPES[name]).reshape(shape)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            refuse(self.where, "an array that is none", "shape, dtype and bytes")
