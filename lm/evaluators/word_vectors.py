"""Evaluates vectors of words: similarity, analogies and nearest neighbours."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.errors import DataError, Rule
from lm.evaluators import base
from lm.host import storage
from lm.metrics import regression, statistics
from lm.metrics import vectors as measures
from lm.objectives.base import Objective

BOUNDS = {
    "most_frequent": "[1, inf)",
    "resamples": "[1, 1000000]",
    "nearest": "[1, 1000]",
}
SIMILARITY = ("spearman", "low", "high", "coverage")
ANALOGIES = ("add", "add_low", "add_high", "mul", "mul_low", "mul_high", "coverage")
CHUNK = 1 << 17  # rows of tables gathered at a time


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Compares the vectors of words with the judgements of people.

    It needs a model with vectors of tokens, word vectors or the embedding table of any
    other. A word is covered if it is a token of the vocabulary, or if the objective can
    make its vector from n-grams. For each file, NAME being its name without ending,
    yields

        NAME_spearman, NAME_low, NAME_high   of a file in `pairs`: the rank correlation
                                             of the cosines with the judgements, over
                                             the pairs that are covered, and its 95 %
                                             interval by resampling of the pairs
        NAME_add, NAME_mul                   of a file in `analogies`: the share of
                                             right answers by 3CosAdd and 3CosMul, with
                                             Wilson's 95 % interval as _low and _high;
                                             the log has them by category
        NAME_coverage                        share of the pairs or questions that are
                                             covered; the others are left out

    The answers to analogies are sought among the `most_frequent` tokens that are whole
    words, and a question with a word outside of them is not covered.

    Attributes:
      pairs: files of word pairs: two words and a number on each line.
      analogies: files of questions: four words on a line, and lines ": CATEGORY".
      words: words whose nearest neighbours are written to samples/.
      nearest: how many neighbours are written.
      most_frequent: how many tokens are sought for answers and neighbours, by their
        number in the training rows.
      lowercase: whether the words of the files are lower-cased.
      resamples: of the intervals.
    """

    pairs: tuple[str, ...] = ()
    analogies: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    nearest: int = 8
    most_frequent: int = 30_000
    lowercase: bool = False
    resamples: int = 1000

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"embeds"})

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        for field in ("pairs", "analogies"):
            for file in getattr(self, field):
                expected = "a file that exists"
                yield Rule(Path(file).is_file(), f"{where}.{field}", file, expected)
        stems = [Path(file).stem for file in (*self.pairs, *self.analogies)]
        expected = "files of different names, which their metrics have"
        same = sorted({stem for stem in stems if stems.count(stem) > 1})
        yield Rule(not same, f"{where}.pairs", ", ".join(same), expected)

    def yields(self, objective: Objective) -> tuple[str, ...]:
        names = [
            f"{Path(file).stem}_{part}"
            for files, parts in ((self.pairs, SIMILARITY), (self.analogies, ANALOGIES))
            for file in files
            for part in parts
        ]
        return tuple(names)

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        for file in self.pairs:
            yield from self._similarity(Path(file), examples, model, out)
        if not self.analogies and not self.words:
            return
        names, table = self._candidates(examples, model)
        for file in self.analogies:
            yield from self._analogies(Path(file), names, table, out)
        rows = np.asarray([names[w] for w in self.words if w in names], np.int64)
        best, cosines = measures.nearest(rows, table, self.nearest)
        listed, lines = list(names), []
        for row, near, scores in zip(rows, best, cosines):
            pairs = zip(near.tolist(), scores.tolist())
            found = "  ".join(f"{listed[n]} {score:.2f}" for n, score in pairs)
            lines.append(f"{listed[row]}: {found}\n")
        lines += [f"{word}: not there\n" for word in self.words if word not in names]
        if self.words and jax.process_index() == 0:
            storage.write_text(out.samples, "".join(lines))

    def _similarity(
        self,
        file: Path,
        examples: base.Examples,
        model: base.Functions,
        out: base.Outputs,
    ) -> Iterator[tuple[str, float]]:
        pairs = read_pairs(file, self.lowercase)
        words = sorted({word for pair in pairs for word in (pair.one, pair.other)})
        found, table = _vectors(words, examples, model)
        kept = [pair for pair in pairs if pair.one in found and pair.other in found]
        judged = np.asarray([pair.score for pair in kept], np.float64)
        one, other = (
            table[np.asarray([found[word] for word in side], np.int64)]
            for side in ([p.one for p in kept], [p.other for p in kept])
        )
        # Rounded, so that cosines that differ by rounding alone are equal.
        cosines = np.round(np.einsum("pd,pd->p", one, other).astype(np.float64), 6)
        value, low, high = math.nan, math.nan, math.nan
        if len(kept) > 1:
            value = regression.spearman(judged, cosines)
            low, high = statistics.bootstrap(
                lambda rows: regression.spearman(judged[rows], cosines[rows]),
                len(kept),
                resamples=self.resamples,
                seed=self.seed,
            )
        name = file.stem
        yield f"{name}_spearman", value
        yield f"{name}_low", low
        yield f"{name}_high", high
        yield f"{name}_coverage", len(kept) / len(pairs)
        said = f"{value:.3f} ({low:.3f} to {high:.3f})"
        if math.isnan(value):
            said = "no correlation: the cosines are all alike"
        out.note(f"{name}: {said}, {len(kept)} of {len(pairs)} pairs covered")

    def _candidates(
        self, examples: base.Examples, model: base.Functions
    ) -> tuple[dict[str, int], np.ndarray]:
        """Returns the rows of the tokens sought, by their words, and their vectors."""
        codec = examples.codec
        counts = np.asarray(examples.train_counts()).copy()
        counts[sorted(codec.special_ids)] = 0
        order = np.argsort(-counts, kind="stable")[: self.most_frequent]
        words: list[str] = []
        for token in order[counts[order] > 0].tolist():
            word = codec.decode([token]).strip()
            if word and examples.objective.spell([word], codec)[0, 0] == token:
                words.append(word)
        return _vectors(words, examples, model)

    def _analogies(
        self,
        file: Path,
        names: Mapping[str, int],
        table: np.ndarray,
        out: base.Outputs,
    ) -> Iterator[tuple[str, float]]:
        questions = read_analogies(file, self.lowercase)
        kept = [q for q in questions if all(word in names for word in q.words)]
        rows = np.asarray([[names[w] for w in q.words] for q in kept], np.int64)
        rows = rows.reshape(-1, 4)
        right = [found == rows[:, 3] for found in measures.solve(rows[:, :3], table)]
        category = np.asarray([question.category for question in kept])
        name = file.stem
        for rule, hits in zip(("add", "mul"), right):
            yield f"{name}_{rule}", _share(hits)
            interval = statistics.wilson(int(hits.sum()), len(hits))
            yield from interval.named(f"{name}_{rule}")
        yield f"{name}_coverage", len(kept) / len(questions)
        shown = [
            f"{name}: {_share(right[0]):.3f} by 3CosAdd, {_share(right[1]):.3f} by "
            f"3CosMul, {len(kept)} of {len(questions)} questions covered, answers from "
            f"{len(table):,} words"
        ]
        for each in dict.fromkeys(question.category for question in questions):
            hits = [some[category == each] for some in right] if kept else right
            shown.append(
                f"  {each}: {_share(hits[0]):.3f}, {_share(hits[1]):.3f} of "
                f"{len(hits[0])} (of {sum(q.category == each for q in questions)})"
            )
        out.note("\n".join(shown))


class Pair(NamedTuple):
    """Two words, and how similar people find them."""

    one: str
    other: str
    score: float


class Question(NamedTuple):
    """An analogy: words 0 and 1 are related as words 2 and 3 are."""

    category: str
    words: tuple[str, ...]


def read_pairs(file: Path, lowercase: bool = False) -> list[Pair]:
    """Reads a file of word pairs, set off by white space or by a tab.

    Raises:
      DataError: a line has not two words and a finite number; there is none.
    """
    pairs = []
    for where, line in _lines(file, lowercase):
        fields = line.split("\t") if line.count("\t") > 1 else line.split()
        try:
            one, other, score = (field.strip() for field in fields[:3])
            pairs.append(Pair(one, other, float(score)))
        except ValueError:
            raise DataError(where, f"{line!r:.80}", "two words and a number") from None
        if not math.isfinite(pairs[-1].score):
            raise DataError(where, f"{line!r:.80}", "two words and a finite number")
    if not pairs:
        raise DataError(str(file), "no pair", "lines of two words and a number")
    return pairs


def read_analogies(file: Path, lowercase: bool = False) -> list[Question]:
    """Reads a file of analogies, with lines ": CATEGORY" between them.

    Raises:
      DataError: a line has not four words; there is none.
    """
    questions, category = [], "all"
    for where, line in _lines(file, lowercase):
        if line.startswith(":"):
            category = line[1:].strip()
            continue
        words = tuple(line.split())
        if len(words) != 4:
            raise DataError(where, f"{line!r:.80}", "four words, or : and a category")
        questions.append(Question(category, words))
    if not questions:
        raise DataError(str(file), "no question", "lines of four words")
    return questions


def _lines(file: Path, lowercase: bool) -> Iterator[tuple[str, str]]:
    """Yields (place, line) for each line with text that is no comment."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        found = f"a file that cannot be read ({error})"
        raise DataError(str(file), found, "a text file in UTF-8") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{file}:{number}", line.lower() if lowercase else line


def _vectors(
    words: Sequence[str], examples: base.Examples, model: base.Functions
) -> tuple[dict[str, int], np.ndarray]:
    """Returns the row of each word that has a vector, and the vectors of length 1."""
    ids = examples.objective.spell(words, examples.codec)
    known = (ids >= 0).any(axis=1)
    found = {word: row for row, word in enumerate(np.asarray(words)[known].tolist())}
    return found, measures.normalised(embed_all(ids[known], model))


def embed_all(ids: np.ndarray, model: base.Functions) -> np.ndarray:
    """Computes the vectors of words, in chunks of one size: (W, K) -> (W, D)."""
    # A power of two, so that few sizes are compiled.
    most = max(CHUNK // ids.shape[1], 1)
    parts, size = [], min(most, 1 << max(len(ids) - 1, 0).bit_length())
    for start in range(0, max(len(ids), 1), size):
        part = ids[start : start + size]
        padded = np.zeros((size, ids.shape[1]), np.int32)
        padded[: len(part)] = part
        parts.append(np.asarray(model.embed(padded))[: len(part)])
    return np.concatenate(parts)


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else math.nan
