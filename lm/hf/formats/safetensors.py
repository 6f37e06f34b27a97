"""Reads and writes safetensors files (huggingface/safetensors).

8 bytes hold the length N of the header, little-endian. N bytes hold the header, JSON:
{name: {"dtype", "shape", "data_offsets": [begin, end]}}, with "__metadata__" if any.
The data follow, without gaps. A model in several files has an index:
{"weight_map": {name: file}}.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lm.hf.formats.files import (
    MAX_JSON,
    beside,
    check_shape,
    map_bytes,
    parse_json,
    read_json,
    refuse,
)

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FIELDS = {"dtype", "shape", "data_offsets"}
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns name -> tensor, each a read-only view of the mapped file.

    Raises:
      CheckpointError: the header is damaged, or does not describe the whole file.
    """
    data = map_bytes(path)
    if len(data) < 8:
        refuse(path, f"{len(data)} bytes", "the 8 bytes of a header's length")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > len(data) - 8:
        expected = f"at most the {len(data) - 8:,} bytes after it"
        refuse(path, f"a header of {length:,} bytes", expected)
    if length > MAX_JSON:
        refuse(path, f"a header of {length:,} bytes", f"at most {MAX_JSON:,}")
    header = parse_json(data[8 : 8 + length].tobytes(), path)
    header.pop("__metadata__", None)
    body = data[8 + length :]
    spans = {name: _span(name, entry, path) for name, entry in header.items()}
    _check_cover(spans, len(body), path)
    return {
        name: body[begin:end].view(dtype).reshape(shape)
        for name, (begin, end, dtype, shape) in spans.items()
    }


def read_sharded(index: Path) -> dict[str, np.ndarray]:
    """Returns name -> tensor of a model in several files.

    Raises:
      CheckpointError: a file is absent, damaged or outside the folder, or holds other
        tensors than the index lists.
    """
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        refuse(index, "no weight_map", "the file of each tensor")
    paths: dict[Any, Path] = {}
    for file in files.values():
        if not isinstance(file, str) or file not in paths:
            paths[str(file)] = beside(index.parent, file, index)
    tensors: dict[str, np.ndarray] = {}
    for file, path in sorted(paths.items()):
        held = read(path)
        listed = {name for name, where in files.items() if where == file}
        if held.keys() != listed:
            odd = sorted(held.keys() ^ listed)
            found = f"{odd[0]!r} and {len(odd) - 1} more" if odd[1:] else f"{odd[0]!r}"
            refuse(path, f"{found}, in one of index and file", "the index's tensors")
        tensors |= held
    return tensors


def _span(name: str, entry: Any, path: Path) -> tuple[int, int, np.dtype, tuple]:
    """Returns (begin, end, dtype, shape) of an entry of the header, checked."""

    def whole(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**63

    where = f"{path}: {name[:120]!r}"
    if not isinstance(entry, dict) or entry.keys() != {
        "dtype",
        "shape",
        "data_offsets",
    }:
        refuse(where, "other fields", "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        fix = "convert it to F32 or BF16 where it was made."
        refuse(where, f"dtype {str(dtype)[:40]!r}", f"one of {', '.join(DTYPES)}", fix)
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(whole, shape)):
        refuse(where, f"shape {str(shape)[:80]}", "up to 8 sizes")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(map(whole, offsets))
        or offsets[0] > offsets[1]
    ):
        refuse(where, f"offsets {str(offsets)[:80]}", "begin and end")
    begin, end = offsets
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != size:
        refuse(where, f"{end - begin:,} bytes", f"{size:,} for {dtype} {tuple(shape)}")
    check_shape(shape, where)
    return begin, end, DTYPES[dtype], tuple(shape)


def _check_cover(spans: Mapping[str, tuple], size: int, path: Path) -> None:
    """Refuses tensors that overlap, leave gaps or do not fill the file."""
    at = 0
    for name, (begin, end, *_) in sorted(spans.items(), key=lambda s: s[1][:2]):
        if begin != at:
            kind = "an overlap" if begin < at else "a gap"
            where = f"{path}: {name[:120]!r}"
            refuse(where, f"{kind}: it begins at {begin:,}", f"{at:,}, without gaps")
        at = end
    if at != size:
        refuse(path, f"{size:,} bytes of data", f"{at:,}, as the header says")


def write(
    directory: Path,
    shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    value: Callable[[str], np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes a model into one file, or into several and an index.

    Args:
      directory: an existing folder, whose files of these names are replaced.
      shapes: name -> dtype and shape of the tensor, in the order of writing.
      value: name -> tensor; called once for each tensor, whose array is not kept.
      shard_bytes: the most bytes of a file, unless one tensor alone has more.

    Returns:
      The names of the files.
    """
    shards = _split(shapes, shard_bytes)
    names = ["model.safetensors"]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for file, shard in zip(names, shards, strict=True):
        _write_file(directory / file, {name: shapes[name] for name in shard}, value)
    if len(shards) > 1:
        places = {n: file for file, shard in zip(names, shards) for n in shard}
        total = sum(_bytes(*shapes[name]) for name in shapes)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        names.append(INDEX)
    return names


def _write_file(
    path: Path,
    shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    value: Callable[[str], np.ndarray],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in shapes.items():
        end = at + _bytes(dtype, shape)
        entry = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        header[name], at = entry, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # Aligns the data to 8 bytes.
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in shapes.items():
            array = np.asarray(value(name), order="C")
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name}: {array.dtype} {array.shape}, not {shape}")
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _split(
    shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, (dtype, shape) in shapes.items():
        more = _bytes(dtype, shape)
        if shards[-1] and size + more > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    return shards


def _bytes(dtype: np.dtype, shape: Iterable[int]) -> int:
    return math.prod(shape) * dtype.itemsize
