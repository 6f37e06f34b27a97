"""Reads TensorFlow 1 checkpoints (`bert_model.ckpt.index`, `.data-00000-of-00001`).

The index is a LevelDB table (google/leveldb, doc/table_format.md) whose values are
protocol buffers: under "" a BundleHeaderProto, under each name a BundleEntryProto
(tensorflow/core/protobuf/tensor_bundle.proto). The data files hold the bytes.
"""

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lm.hf.formats.crc32c import crc32c, masked
from lm.hf.formats.files import check_shape, map_bytes, read_bytes, refuse

MAX_INDEX = 4 * 2**20
MAGIC = 0xDB4775248B80FB57
FOOTER, TRAILER = 48, 5
# tensorflow/core/framework/types.proto
DTYPES = {
    **{1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4")},
    **{9: np.dtype("<i8"), 14: np.dtype(ml_dtypes.bfloat16), 19: np.dtype("<f2")},
}


def read(index: Path) -> dict[str, np.ndarray]:
    """Returns name -> tensor, a read-only view of the file, checked by its checksum.

    Args:
      index: the file "<prefix>.index"; its data files are in the same folder.

    Raises:
      CheckpointError: a file is damaged, cut short or of another kind.
    """
    entries = dict(_table(read_bytes(index, MAX_INDEX), index))
    header = _message(entries.pop(b"", b""), index)
    shards = _number(header, 1, index, 1)
    if not 1 <= shards <= 4096 or header.get(2, 0) != 0:
        refuse(index, "a header of other data files", "1 to 4096, little-endian")
    prefix = index.name.removesuffix(".index")
    files: dict[int, np.ndarray] = {}
    tensors = {}
    for key, value in entries.items():
        name = key.decode(errors="replace")
        where = f"{index}: {name[:120]!r}"
        entry = _message(value, index)
        shard = _number(entry, 3, where)
        if shard >= shards:
            refuse(where, f"data file {shard}", f"one below {shards}")
        path = index.parent / f"{prefix}.data-{shard:05}-of-{shards:05}"
        if shard not in files:
            files[shard] = map_bytes(path)
        tensors[name] = _tensor(entry, files[shard], where, path)
    return tensors


def _tensor(
    entry: dict[int, Any], data: np.ndarray, where: str, path: Path
) -> np.ndarray:
    number = _number(entry, 1, where)
    dtype, shape = DTYPES.get(number), _shape(entry.get(2, b""), where)
    begin, size = _number(entry, 4, where), _number(entry, 5, where)
    if dtype is None or 7 in entry:
        found = "slices" if dtype else f"dtype number {number}"
        refuse(where, found, "a whole tensor of numbers")
    check_shape(shape, where)
    if math.prod(shape) * dtype.itemsize != size:
        refuse(where, f"{size:,} bytes", f"those of {dtype} {shape}")
    if begin + size > len(data):
        refuse(path, f"{len(data):,} bytes", f"{begin + size:,}, as {where} says")
    part = data[begin : begin + size]
    if 6 in entry and masked(crc32c(part)) != entry[6]:
        refuse(path, f"damaged bytes of {where}", "those of its checksum")
    return part.view(dtype).reshape(shape)


def _shape(data: bytes, where: str) -> tuple[int, ...]:
    sizes = []
    for field, value in fields(data, where):
        if field == 3 and value:
            refuse(where, "an unknown rank", "a shape")
        if field == 2:
            size = _number(_message(value, where), 1, where)
            if size >= 2**40:
                refuse(where, "a negative or huge size", "a shape")
            sizes.append(size)
    if len(sizes) > 8:
        refuse(where, f"{len(sizes)} sizes", "up to 8")
    return tuple(sizes)


def _table(data: bytes, path: Path) -> list[tuple[bytes, bytes]]:
    """Returns all (key, value) of a LevelDB table, in order."""
    if len(data) < FOOTER or int.from_bytes(data[-8:], "little") != MAGIC:
        refuse(path, "no magic number at its end", "the index of a TF checkpoint")
    footer = data[-FOOTER:-8]
    at = _handle(footer, 0, path)[2]  # The handle of the metaindex comes first.
    start, size, _ = _handle(footer, at, path)
    pairs = []
    for _, handle in _block(data, start, size, path):
        begin, length, _ = _handle(handle, 0, path)
        pairs += _block(data, begin, length, path)
        if len(pairs) > 100_000:
            refuse(path, "more than 100,000 tensors", "the index of a model")
    keys = [key for key, _ in pairs]
    if sorted(set(keys)) != keys:
        refuse(path, "names out of order", "each name once, in order")
    return pairs


def _block(data: bytes, start: int, size: int, path: Path) -> list[tuple[bytes, bytes]]:
    end = start + size
    if end + TRAILER > len(data):
        refuse(path, f"{len(data):,} bytes", f"a block up to {end + TRAILER:,}")
    checked = np.frombuffer(data, np.uint8, size + 1, start)
    if masked(crc32c(checked)) != int.from_bytes(data[end + 1 : end + 5], "little"):
        refuse(path, f"a damaged block at {start:,}", "the bytes of its checksum")
    if data[end] != 0:
        fix = "save it again with TensorFlow, which does not compress an index."
        refuse(path, "a compressed block", "blocks as they are", fix)
    block = data[start:end]
    restarts = int.from_bytes(block[-4:], "little")
    last = size - 4 - 4 * restarts
    if size < 4 or last < 0:
        refuse(path, f"a broken block at {start:,}", "entries and restarts")
    pairs, at, key = [], 0, b""
    while at < last:
        shared, at = _varint(block, at, path)
        unshared, at = _varint(block, at, path)
        length, at = _varint(block, at, path)
        if shared > len(key) or unshared > 4096 or at + unshared + length > last:
            refuse(path, f"a broken entry in the block at {start:,}", "key and value")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        if len(key) > 4096:
            refuse(path, "a name of more than 4,096 bytes", "shorter ones")
        pairs.append((key, block[at : at + length]))
        at += length
    return pairs


def _handle(data: bytes, at: int, path: Path) -> tuple[int, int, int]:
    start, at = _varint(data, at, path)
    size, at = _varint(data, at, path)
    return start, size, at


def _varint(data: bytes, at: int, where: Any) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            refuse(where, "a number that does not end", "a number")
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _message(data: bytes, where: Any) -> dict[int, Any]:
    """Returns number -> value of a protocol buffer; of repeated fields the last."""
    return dict(fields(data, where))


def _number(message: dict[int, Any], field: int, where: Any, absent: int = 0) -> int:
    """Returns a field of a message that is a number."""
    value = message.get(field, absent)
    if not isinstance(value, int):
        refuse(where, f"field {field} of another wire type", "a number")
    return value


def fields(data: Any, where: Any) -> list[tuple[int, Any]]:
    """Returns the (number, value) of each field of a protocol buffer, in order.

    A value is an int, or bytes for a field that has a length.
    """
    if not isinstance(data, bytes):
        refuse(where, "a number in place of a message", "a protocol buffer")
    found: list[tuple[int, Any]] = []
    at = 0
    value: int | bytes
    while at < len(data):
        tag, at = _varint(data, at, where)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at, where)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        elif kind == 2:
            size, at = _varint(data, at, where)
            value, at = data[at : at + size], at + size
        else:
            refuse(where, f"a field of type {kind}", "a protocol buffer")
        if at > len(data):
            refuse(where, "a field beyond the end", "a protocol buffer")
        found.append((tag >> 3, value))
    return found
