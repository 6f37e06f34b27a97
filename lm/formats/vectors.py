"""What the formats of word vectors share: lines, numbers, and the run of a file."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import ConfigError, DataError
from lm.ops.subwords import buckets_of

UNKNOWN = "<unk>"
TEXT = {"sources": [{"name": "builtin"}]}
PARSED = 4096  # lines whose numbers are parsed at a time


class Vectors(NamedTuple):
    """Words and their vectors, in the order of a file.

    Attributes:
      words: each once.
      table: (W, D) float32; of fastText the words' own rows, which are a part of their
        vectors.
      grams: (buckets, D) of fastText; None: the words have no n-grams.
      least, most: characters of an n-gram.
      out: (W, D) the output vectors, where the file has them.
      counts: (W,) of the words, where the file has them.
      skipgram: whether contexts predict words one by one (False: CBOW).
    """

    words: list[str]
    table: np.ndarray
    grams: np.ndarray | None = None
    least: int = 3
    most: int = 6
    out: np.ndarray | None = None
    counts: np.ndarray | None = None
    skipgram: bool = True

    def vector(self, word: str, row: int | None = None) -> np.ndarray | None:
        """Computes the vector of a word, also of an unknown one if it has n-grams.

        Args:
          row: of the word; None: it is none of `words`.

        Returns:
          (D,), the mean of its rows; None if there are none.
        """
        rows = [] if row is None else [self.table[row]]
        if self.grams is not None and word != "</s>":
            ids = buckets_of(word, self.least, self.most, len(self.grams))
            rows += [self.grams[i] for i in ids]
        return np.asarray(np.mean(rows, axis=0, dtype=np.float32)) if rows else None

    def composed(self) -> np.ndarray:
        """Computes the vectors of all words, (W, D)."""
        if self.grams is None:
            return self.table
        found = np.empty_like(self.table)
        for row, word in enumerate(self.words):
            found[row] = self.vector(word, row)
        return found


# ── In ──────────────────────────────────────────────────────────────────────────────


def opened(path: Path) -> io.BufferedReader:
    """Opens a file for reading; decompresses `.gz`.

    Raises:
      DataError: there is no such file, or it cannot be read.
    """
    try:
        packed = path.suffix == ".gz"
        raw: Any = (gzip.open if packed else open)(path, "rb")  # The caller closes it.
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror})"
        raise DataError(str(path), found, "a file of word vectors") from error
    return io.BufferedReader(raw, 1 << 20)


def damaged(path: Path, error: Exception) -> DataError:
    """Makes the error for a file whose reading fails midway."""
    return DataError(str(path), f"damaged data ({error})", "a whole file")


READING = (EOFError, gzip.BadGzipFile, zlib.error, OSError)


def read_lines(
    path: Path, lines: Iterator[bytes], first: int, width: int | None
) -> tuple[list[str], np.ndarray]:
    """Reads lines of a word and its numbers; the word may hold spaces.

    Args:
      first: the number of the first line.
      width: how many numbers each line has; None: as many as the first one, whose word
        is all that does not read as a number, at least the first field.

    Raises:
      DataError: names the line that is not as the others.
    """
    words: list[str] = []
    seen: dict[str, int] = {}
    parts: list[np.ndarray] = []
    waiting: list[list[bytes]] = []

    def parse() -> None:
        if not waiting:
            return
        try:
            found = np.asarray(waiting, dtype=object).astype(np.float32)
        except ValueError:
            found = None
        if found is None or not np.isfinite(found).all():
            start = number - len(waiting) + 1
            for at, fields in enumerate(waiting):
                check_numbers(path, start + at, fields)
        parts.append(found if found is not None else np.zeros(0))
        waiting.clear()

    number = first - 1
    for number, line in enumerate(lines, first):
        fields = line.rstrip(b"\r\n").rstrip(b" ").split(b" ")
        if width is None:
            width = count_numbers(fields)
        if len(fields) <= width:
            found = f"{len(fields) - 1} numbers"
            if not line.endswith(b"\n"):
                found += " at the end of the file"
            number -= 1
            parse()
            raise DataError(f"{path}:{number + 1}", found, f"a word and {width}")
        name, numbers = b" ".join(fields[:-width]), fields[-width:]
        try:
            word = name.decode()
        except UnicodeDecodeError:
            raise DataError(
                f"{path}:{number}", f"the word {name!r:.60}", "words in UTF-8"
            ) from None
        extra = count_numbers(fields) - width
        if " " in word and extra > 0:
            raise DataError(
                f"{path}:{number}", f"{width + extra} numbers", f"a word and {width}"
            )
        if word in seen:
            found = f"the word {word!r:.60} again (first on line {seen[word]})"
            raise DataError(f"{path}:{number}", found, "each word once")
        if not word:
            raise DataError(f"{path}:{number}", "no word", "a word and numbers")
        seen[word] = number
        words.append(word)
        waiting.append(numbers)
        if len(waiting) == PARSED:
            parse()
    parse()
    table = np.concatenate(parts) if parts else np.zeros((0, width or 0), np.float32)
    return words, table.astype(np.float32)


def count_numbers(fields: list[bytes]) -> int:
    """Counts the fields from the right that read as numbers, the first one aside."""
    count = 0
    for field in reversed(fields[1:]):
        try:
            float(field)
        except ValueError:
            break
        count += 1
    return count


def check_numbers(path: Path, line: int, fields: list[bytes]) -> None:
    """Raises a DataError for a field that is no finite number."""
    for field in fields:
        try:
            finite = bool(np.isfinite(float(field)))
        except ValueError:
            finite = False
        if not finite:
            found = field.decode(errors="replace")
            raise DataError(f"{path}:{line}", f"{found!r:.60}", "a finite number")


def workdir(found: Vectors) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Makes the config, vocabulary and parameters of a run with a file's vectors.

    Raises:
      DataError: a word cannot be a token.
    """
    for number, word in enumerate(found.words):
        if word.split() != [word]:
            raise DataError(
                f"word {number + 1} of the file",
                repr(word),
                "words without white space, to make a vocabulary of them",
                "init.source takes the vectors of such a file by word",
            )
    words = list(found.words)
    extra = [] if UNKNOWN in words else [UNKNOWN]

    def grown(rows: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [rows, np.zeros((len(extra), *rows.shape[1:]), rows.dtype)]
        )

    table = grown(found.table)
    out = np.zeros_like(table) if found.out is None else grown(found.out)
    counts = np.zeros(len(words)) if found.counts is None else found.counts
    heads = {"out": {"embedding": out}}
    objective: dict[str, Any] = {
        "name": "word2vec",
        "architecture": "skipgram" if found.skipgram else "cbow",
    }
    if found.grams is not None:
        heads["grams"] = {"embedding": found.grams}
        objective |= {
            "buckets": len(found.grams),
            "min_n": found.least,
            "max_n": found.most,
        }
    optim = {"name": "sgd", "lr": 0.025, "weight_decay": 0.0, "clip": 0.0}
    config = {
        "steps": 1,
        "batch_size": 8,
        "seq_len": 1024,
        "tokenizer": {"name": "word", "kind": "word"},
        "model": {"name": "word_vectors", "d_model": table.shape[1]},
        "objective": objective,
        "update": {"name": "rows"},
        "optim": optim,
        # The frequencies of words are those of the data, which are only a stand-in.
        "data": TEXT | {"pack": True, "max_unknown": 1.0},
        "evals": {"words": {"evaluator": "word_vectors", "data": TEXT}},
    }
    params = {
        "counts": grown(counts.astype(np.float32)),
        "embed": {"embedding": table},
        "heads": heads,
    }
    return config, [*words, *extra], params


# ── Out ─────────────────────────────────────────────────────────────────────────────


def of_run(config: Any, codec: Any, params: dict[str, Any]) -> Vectors:
    """Returns the vectors of a run's words, special tokens but </s> left out.

    The vectors of GloVe are the sums of both tables.

    Raises:
      ConfigError: the model has no table of vectors at its place, or a word cannot be
        written.
    """
    if "embedding" not in params.get("embed", {}):
        raise ConfigError(
            "--workdir",
            f"model {config.model.name}, without a table embed/embedding",
            "a run with word vectors, such as of model word_vectors",
        )
    names = [codec.token(i) for i in range(codec.vocab_size)]
    left_out = {i for i in codec.special_ids if names[i] != "</s>"}
    ids = np.asarray([i for i in range(len(names)) if i not in left_out], np.int64)
    words = [names[i] for i in ids]
    for word in words:
        if word.split() != [word]:
            bad = f"the token {word!r}, with white space"
            raise ConfigError("tokenizer", bad, "words that the format can spell")
    heads = params.get("heads", {})
    table = np.asarray(params["embed"]["embedding"])[ids]
    out = heads.get("out", {}).get("embedding")
    out = None if out is None else np.asarray(out)[ids]
    objective = config.objective
    if objective.name == "glove" and out is not None:
        table, out = table + out, None
    counts = params.get("counts")
    found = Vectors(
        words,
        table,
        out=out,
        counts=None if counts is None else np.asarray(counts)[ids],
    )
    if "grams" not in heads:
        return found
    return found._replace(
        grams=np.asarray(heads["grams"]["embedding"]),
        least=objective.min_n,
        most=objective.max_n,
        skipgram=objective.architecture == "skipgram",
    )


def text_of(words: list[str], table: np.ndarray) -> Iterator[bytes]:
    """Yields lines of a word and its numbers.

    A number is the shortest text that reads back as the same float32.
    """
    for word, row in zip(words, np.asarray(table, np.float32)):
        yield f"{word} {' '.join(row.astype(str).tolist())}\n".encode()
