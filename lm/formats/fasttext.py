"""Files of fastText: `.bin` of version 12, and `.vec`, which is word2vec's text.

A `.bin` has, little-endian, a header of 14 int32 (a magic number, the version, then
dim ws epoch minCount neg wordNgrams loss model bucket minn maxn lrUpdateRate) and the
float64 t; the dictionary (int32 entries, words, labels; int64 tokens, pruned; for each
entry its word, a zero byte, an int64 count and an int8 type); and two matrices, each a
byte (quantised), int64 rows and columns, and float32: the input has the rows of the
words and then of the buckets of n-grams, the output those of the words.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lm.errors import DataError
from lm.formats import vectors as common
from lm.formats import word2vec
from lm.formats.vectors import Vectors
from lm.formats.vectors import workdir as workdir
from lm.host import storage

VECTORS = True  # A model's table can start from them (`init.source`).
MAGIC, VERSION = 793712314, 12
HEADER = struct.Struct("<14id")
COUNTS = struct.Struct("<3i2q")
ENTRY = struct.Struct("<qb")
MATRIX = struct.Struct("<?2q")
LOSSES, CBOW, SKIPGRAM = {"hs": 1, "ns": 2}, 1, 2
LONGEST = 1 << 16  # bytes of a word


def read(path: Path) -> Vectors:
    """Reads a `.bin` or, by its content, a `.vec`.

    Raises:
      DataError: the file is damaged, of another version, quantised or pruned, or
        that of a classifier.
    """
    try:
        with common.opened(path) as file:
            if file.peek(4)[:4] != struct.pack("<i", MAGIC):
                if path.suffix == ".bin":
                    found = f"a file that begins with {file.peek(4)[:4]!r}"
                    expected = f"a .bin of fastText ({struct.pack('<i', MAGIC)!r})"
                    fix = "read it as word2vec:FILE"
                    raise DataError(str(path), found, expected, fix)
                return word2vec.read(path)
            return _read(path, file)
    except common.READING as error:
        raise common.damaged(path, error) from error


def _read(path: Path, file: BinaryIO) -> Vectors:
    _, version, dim, *_, loss, kind, buckets, least, most, _, _ = _take(
        path, file, HEADER, "the header"
    )
    if version != VERSION:
        raise DataError(str(path), f"version {version}", f"version {VERSION}")
    size, words_in, labels, _, pruned = _take(path, file, COUNTS, "the dictionary")
    if labels or kind not in (CBOW, SKIPGRAM):
        found = f"a classifier with {labels} labels"
        raise DataError(str(path), found, "word vectors (cbow or skipgram)")
    if pruned > 0:
        raise DataError(str(path), "pruned n-grams", "all of them")
    if not (dim > 0 and buckets >= 0 and 0 <= size == words_in):
        found = f"{dim} dimensions, {buckets} buckets, {words_in} of {size} entries"
        raise DataError(str(path), found, "sizes that can be")
    words: list[str] = []
    counts = np.zeros(size, np.float64)
    for number in range(size):
        where = f"the dictionary, word {number + 1} of {size}"
        words.append(_word(path, file, where))
        counts[number], _ = _take(path, file, ENTRY, where)
    if len({*words}) < len(words):
        raise DataError(str(path), "a word twice", "each word once")
    source = _matrix(path, file, "input", (size + buckets, dim))
    out = _matrix(path, file, "output", (size, dim))
    if file.read(1):
        raise DataError(str(path), "more after the output matrix", "its end")
    table, grams = source[:size], source[size:]
    return Vectors(
        words,
        table,
        grams=grams if most and buckets else None,
        least=max(least, 1),
        most=max(most, 1),
        out=out if loss == LOSSES["ns"] else None,
        counts=counts,
        skipgram=kind == SKIPGRAM,
    )


def _take(path: Path, file: BinaryIO, form: struct.Struct, what: str) -> tuple:
    data = file.read(form.size)
    if len(data) < form.size:
        raise _truncated(path, what, len(data), form.size)
    return form.unpack(data)


def _truncated(path: Path, what: str, found: int, size: int) -> DataError:
    return DataError(
        f"{path}: {what}", f"the end of the file after {found} bytes", f"{size} bytes"
    )


def _word(path: Path, file: BinaryIO, where: str) -> str:
    """Reads up to the zero byte that ends a word."""
    found = bytearray()
    while (byte := file.read(1)) != b"\0":
        if not byte:
            raise _truncated(path, where, len(found), len(found) + 1)
        if len(found) > LONGEST:
            raise DataError(f"{path}: {where}", "no end", "a word and a zero byte")
        found += byte
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: {where}", f"{bytes(found[:40])!r}", "a word in UTF-8"
        ) from None


def _matrix(
    path: Path, file: BinaryIO, name: str, shape: tuple[int, int]
) -> np.ndarray:
    what = f"the {name} matrix"
    quantised, rows, columns = _take(path, file, MATRIX, what)
    if quantised:
        raise DataError(f"{path}: {what}", "a quantised matrix", "float32")
    if (rows, columns) != shape:
        raise DataError(f"{path}: {what}", f"{rows} x {columns}", f"{shape}")
    data = file.read(4 * rows * columns)
    if len(data) < 4 * rows * columns:
        raise _truncated(path, what, len(data), 4 * rows * columns)
    found = np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        expected = "finite numbers"
        raise DataError(f"{path}: {what}", f"row {row}, not finite", expected)
    return found


def write(path: Path, config: Any, codec: Any, params: dict[str, Any]) -> str:
    """Writes a `.bin`, or `.vec` where the name ends so; returns a summary.

    The output of hierarchical softmax is left at 0, since its tree is another one.

    Raises:
      ConfigError: the run has no word vectors, or a word that cannot be written.
    """
    if path.suffix == ".vec":
        return word2vec.write(path, config, codec, params)
    found = common.of_run(config, codec, params)
    size, dim = found.table.shape
    grams = np.zeros((0, dim)) if found.grams is None else found.grams
    objective = config.objective
    counts = np.ones(size) if found.counts is None else found.counts
    sign = -1  # No n-gram is pruned.
    header = HEADER.pack(
        *(MAGIC, VERSION, dim, objective.get("window", 5), 5),
        *(config.tokenizer.get("min_count", 1), objective.get("negatives", 5), 1),
        *(LOSSES["hs" if found.out is None else "ns"],),
        *(SKIPGRAM if found.skipgram else CBOW, len(grams)),
        *((found.least, found.most) if len(grams) else (0, 0)),
        *(100, objective.get("subsample", 1e-4)),
    )
    parts = [header, COUNTS.pack(size, size, 0, int(counts.sum()), sign)]
    for word, count in zip(found.words, counts):
        parts += [word.encode() + b"\0", ENTRY.pack(int(count), 0)]
    out = np.zeros((size, dim)) if found.out is None else found.out
    for matrix in (np.concatenate([found.table, grams]), out):
        parts.append(MATRIX.pack(False, *matrix.shape))
        parts.append(np.asarray(matrix, "<f4").tobytes())
    storage.write_bytes(path, b"".join(parts))
    return f"{size:,} words and {len(grams):,} buckets, {dim} dimensions"
