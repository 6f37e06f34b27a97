r"""ARPA files of n-gram models, the format of SRILM, KenLM and others.

    \data\
    ngram 1=4               how many n-grams of each order

    \1-grams:
    -0.9   the   -0.3       log10 p, n-gram, log10 of the back-off weight (or none)

    \end\

The first field and the last are set off by tabs, the words by spaces. A number is
written as the shortest text that is the same float32, so that a file that was written
here is read and written again to the byte. The n-grams stand in the order of their
last word but one, the word before it and so on, the last word at the end, words in the
order of the unigrams.
"""

import array
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import ConfigError, DataError
from lm.host import storage
from lm.ops import backoff

MOST = 6  # the highest order of lm.models.ngram
ROLES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
TEXT = {"sources": [{"name": "builtin"}]}
COUNT = re.compile(rb"ngram\s+(\d+)\s*=\s*(\d+)")
Entries = tuple[np.ndarray, np.ndarray]  # symbols (N, n), log10 values (N,)


class Arpa(NamedTuple):
    """The content of an ARPA file.

    Attributes:
      words: of the unigrams, in their order.
      grams: of each order, the symbols as rows of `words`, and log10 p.
      backoffs: of each order but the highest, the same with the back-off weights.
    """

    words: list[str]
    grams: list[Entries]
    backoffs: list[Entries]


# ── In ──────────────────────────────────────────────────────────────────────────────


class _Lines:
    """The stripped lines of a file, with the number of the line read last."""

    def __init__(self, path: Path):
        self.path, self.number = path, 0
        self._lines = self._read()

    def _read(self) -> Iterator[bytes]:
        opened = gzip.open if self.path.suffix == ".gz" else open
        try:
            with io.BufferedReader(opened(self.path, "rb"), 1 << 20) as file:
                for line in file:
                    self.number += 1
                    yield line.strip()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self.broken(f"damaged gzip data ({error})", "a whole file") from error
        except OSError as error:
            found = f"a file that cannot be read ({error.strerror})"
            raise DataError(str(self.path), found, "an ARPA file") from error

    def next(self, expected: str) -> bytes:
        """Reads the next line that is not blank."""
        for line in self._lines:
            if line:
                return line
        self.number += 1
        raise self.broken("the end of the file", expected)

    def broken(self, found: str, expected: str, line: int | None = None) -> DataError:
        return DataError(f"{self.path}:{line or self.number}", found, expected)


def read(path: Path) -> Arpa:
    """Reads a file; decompresses `.gz`.

    Raises:
      DataError: the file is not ARPA, is truncated, or is inconsistent.
    """
    lines = _Lines(path)
    line = lines.next(r"\data\ ")
    while line != rb"\data\ ".strip():
        line = lines.next(r"\data\ before the end, as in an ARPA file")
    counts: list[int] = []
    line = lines.next("ngram 1=COUNT")
    while match := COUNT.fullmatch(line):
        if int(match[1]) != len(counts) + 1:
            raise lines.broken(_show(line), f"ngram {len(counts) + 1}=COUNT")
        counts.append(int(match[2]))
        line = lines.next(r"\1-grams:")
    if not 1 <= len(counts) <= MOST:
        found = f"{len(counts)} orders"
        raise lines.broken(found, f"1 to {MOST} lines ngram N=COUNT", lines.number)
    ids: dict[bytes, int] = {}
    grams, backoffs = [], []
    for n, count in enumerate(counts, 1):
        if line != b"\\%d-grams:" % n:
            raise lines.broken(_show(line), rf"\{n}-grams:")
        first, symbols, values, weights = _section(lines, n, count, ids)
        rows = np.frombuffer(symbols, np.int32).reshape(-1, n)
        _check_once(lines, first, rows)
        kept = np.frombuffer(weights, np.float32)
        grams.append((rows, np.frombuffer(values, np.float32)))
        backoffs.append((rows, kept))
        line = lines.next(r"\end\ " if n == len(counts) else rf"\{n + 1}-grams:")
    if line != rb"\end\ ".strip():
        raise lines.broken(_show(line), r"\end\ ")
    return Arpa([word.decode() for word in ids], grams, backoffs[:-1])


def _section(
    lines: _Lines, n: int, count: int, ids: dict[bytes, int]
) -> tuple[array.array, ...]:
    """Reads the n-grams of one order: line numbers, symbols, log10 p and weights.

    Args:
      ids: word -> id; the section of unigrams adds its words.
    """
    numbers, symbols = array.array("q"), array.array("i")
    values, weights = array.array("f"), array.array("f")
    for _ in range(count):
        line = lines.next(f"{count} {n}-grams")
        fields = line.split()
        if not n + 1 <= len(fields) <= n + 2:
            expected = f"log10 p, {n} words and perhaps a weight ({count} {n}-grams)"
            raise lines.broken(_show(line), expected)
        try:
            value = float(fields[0])
            weight = float(fields[n + 1]) if len(fields) == n + 2 else 0.0
        except ValueError:
            raise lines.broken(_show(line), "numbers first and last") from None
        if not (value <= 0 and math.isfinite(value) and math.isfinite(weight)):
            raise lines.broken(_show(line), "a finite log10 p of at most 0") from None
        if n == 1:
            _check_word(lines, fields[1])
            ids.setdefault(fields[1], len(ids))
        try:
            symbols.extend([ids[word] for word in fields[1 : n + 1]])
        except KeyError as error:
            found = f"the word {_show(error.args[0])}"
            raise lines.broken(found, "words that are unigrams") from None
        numbers.append(lines.number)
        values.append(value)
        weights.append(weight)
    return numbers, symbols, values, weights


def _check_once(lines: _Lines, numbers: array.array, rows: np.ndarray) -> None:
    """Raises a DataError for an n-gram that occurs twice."""
    order = np.lexsort(rows.T[::-1])
    same = (rows[order][1:] == rows[order][:-1]).all(axis=1)
    if same.any():
        pair = order[np.flatnonzero(same)[0] :][:2]
        first, again = sorted(numbers[int(i)] for i in pair)
        found = f"an n-gram again (first on line {first})"
        raise lines.broken(found, "every n-gram once", again)


def _check_word(lines: _Lines, raw: bytes) -> None:
    """Raises a DataError for a word that a vocabulary cannot hold."""
    try:
        word = raw.decode()
    except UnicodeDecodeError:
        raise lines.broken(_show(raw), "words in UTF-8") from None
    if word.split() != [word]:
        raise lines.broken(f"the word {word!r}", "words without white space")


def _show(raw: bytes) -> str:
    text = raw.decode(errors="replace")
    return repr(text if len(text) <= 60 else text[:60] + "...")


def workdir(found: Arpa) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Makes the config, vocabulary and parameters of a run with the file's model.

    A file does not record its smoothing; `model.smoothing` is only for a new fit.
    """
    missing = [name for name in ROLES.values() if name not in found.words]
    words = [*found.words, *missing]
    config: dict[str, Any] = {
        "job": "fit",
        "steps": 1,
        "batch_size": 8,
        "seq_len": 1024,
        "tokenizer": {"name": "word", "kind": "word"},
        "model": {
            "name": "ngram",
            "order": len(found.grams),
            "smoothing": "kneser_ney",
        },
        "objective": {
            "name": "causal_lm",
            "bos": "<s>" not in missing,
            "eos": "</s>" not in missing,
        },
        "data": TEXT,
        "evals": {"builtin": {"evaluator": "mean", "data": TEXT}},
    }
    known = np.array([word != "<s>" for word in words])
    (symbols, values), *longer = found.grams
    # <s> is never predicted; its log10 p in the file is a placeholder.
    first = symbols, np.where(known[symbols[:, 0]], values, -99)
    params = backoff.make(len(words), [first, *longer], found.backoffs)
    return config, words, {"vocabulary": known} | params


# ── Out ─────────────────────────────────────────────────────────────────────────────


def write(path: Path, config: Any, codec: Any, params: dict[str, Any]) -> str:
    """Writes a run's table, compressed for `.gz`; returns a summary for the log.

    Raises:
      ConfigError: the run has no back-off table, or tokens that ARPA cannot spell.
    """
    if "unigrams" not in params:
        raise ConfigError(
            "--workdir",
            f"model {config.model.name} without a back-off table",
            "an n-gram model whose smoothing is not add_k",
        )
    names = _names(codec)
    tree = {"contexts": {}, "grams": {}} | params
    grams, backoffs = backoff.unmake(tree)
    levels = backoff.contexts_of(tree)
    rows, values = grams[0]
    bos = np.arange(len(rows)) == (-1 if codec.bos_id is None else codec.bos_id)
    real = (values > -99) | bos
    grams[0] = rows[real], np.where(bos, 0, values)[real]
    parts = ["\\data\\\n"]
    parts += [f"ngram {n}={len(ids)}\n" for n, (ids, _) in enumerate(grams, 1)]
    for n, (ids, values) in enumerate(grams, 1):
        columns = [_digits(values), _texts(ids, names)]
        if n < len(grams):
            at = backoff.rows_of(levels, ids)
            own = np.append(backoffs[n - 1][1], np.float32(0))
            columns.append(_digits(own[at]))  # -1 selects the 0.
        parts.append(f"\n\\{n}-grams:\n")
        parts += ["\t".join(line) + "\n" for line in zip(*columns)]
    parts.append("\n\\end\\\n")
    data = "".join(parts).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, 6, mtime=0)
    storage.write_bytes(path, data)
    return ", ".join(f"{len(ids):,} {n}-grams" for n, (ids, _) in enumerate(grams, 1))


def _names(codec: Any) -> list[str]:
    """Returns the name of each token; special tokens get their ARPA names."""
    names = [codec.token(i) for i in range(codec.vocab_size)]
    for role, name in ROLES.items():
        if (token := getattr(codec, f"{role}_id")) is not None:
            names[token] = name
    seen: dict[str, int] = {}
    for token, name in enumerate(names):
        if not name or any(c in name for c in " \t\n\r\v\f"):
            found = f"token {token}, {name!r}, with white space"
            raise ConfigError("tokenizer", found, "tokens that ARPA can spell")
        if name in seen:
            found = f"tokens {seen[name]} and {token}, both {name!r}"
            raise ConfigError("tokenizer", found, "a name for each token")
        seen[name] = token
    return names


def _texts(ids: np.ndarray, names: list[str]) -> list[str]:
    return [" ".join([names[i] for i in row]) for row in ids.tolist()]


def _digits(values: np.ndarray) -> list[str]:
    """Returns the shortest text of each value that reads back as the same float32."""
    values = np.asarray(values, np.float32)
    texts = values.astype(str).tolist()
    return ["0" if text in ("0.0", "-0.0") else text for text in texts]
