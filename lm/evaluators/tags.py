"""Scores predicted tags: accuracy of words, and precision, recall and F1 of spans."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from lm.errors import DataError, Rule
from lm.evaluators import base
from lm.host import storage
from lm.metrics import spans as metrics
from lm.metrics import statistics
from lm.objectives.base import Objective

BOUNDS = {"samples": "[0, 100000]", "rows": "[0, 1000]"}
CHANGEABLE = ("samples", "rows")
CONFUSED = 20  # pairs of tags in the file of samples


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """The tags of all words of a set, against those of its records.

    Words that no row reads, since the tokenizer makes no piece of them or their
    sentence was cut, count with the objective's default tag. Yields, from 0 to 1,

        accuracy                  share of the words with the right tag
        unknown_accuracy          the same of the words that the training data lack
        precision, recall, f1     of all spans (micro average)
        macro_f1, weighted_f1     mean over the types; weighted by their gold spans
        surface_f1                of the set of (text, type) (Derczynski et al. 2017),
                                  where spans may have several words
        f1_T                      with types=True: of the spans of type T

    and, of all but `surface_f1` and `f1_T`, <metric>_low and <metric>_high, the bounds
    of the bootstrap interval over sentences, 95 %.

    A type that is in neither gold nor predicted spans has F1 0 and is no part of the
    mean. The file of samples has the signature of the scores, those of each type, the
    most frequent pairs of confused tags, and sentences as columns of word, tag and
    predicted tag.

    Attributes:
      scheme: what a span is where tags follow each other that the objective's scheme
        does not allow: by the rule of conlleval (the default of seqeval too), or none
        ("strict", as seqeval's mode). See lm/data/tags.py.
      join: what stands between the words of a span in its text.
      types: whether the F1 of each type is a metric; the file of samples has it anyway.
      unknown: whether the training data are read for `unknown_accuracy`.
      samples: samples of the bootstrap; 0 leaves out the intervals.
      rows: sentences in the file of samples; None writes all.
    """

    scheme: Literal["conlleval", "strict"] = "conlleval"
    join: str = " "
    types: bool = False
    unknown: bool = True
    samples: int = 1000
    rows: int | None = 5

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tags"})

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        fix = f"set {where}.data.pack=false."
        expected = "false: tags are compared sentence by sentence"
        yield Rule(
            not self.data.get("pack"), f"{where}.data.pack", "true", expected, fix
        )

    def yields(self, objective: Objective) -> tuple[str, ...]:
        task: Any = objective  # with "tags"
        names = ["accuracy", "precision", "recall", "f1", "macro_f1", "weighted_f1"]
        names += ["surface_f1"] * (task.reader.scheme != "word")
        names += ["unknown_accuracy"] * self.unknown
        if self.samples:
            single = [name for name in names if name != "surface_f1"]
            names += [f"{name}_{end}" for name in single for end in ("low", "high")]
        if self.types:
            names += [f"f1_{kind}" for kind in types_of(task)]
        return tuple(names)

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        objective: Any = examples.objective  # "tags" promises the methods used here.
        sentences = [*read(examples, model)]
        words = [sentence.words for sentence in sentences]
        gold = [sentence.gold for sentence in sentences]
        predicted = [sentence.predicted for sentence in sentences]
        right = [objective.spans(tags, self.scheme) for tags in gold]
        guess = [objective.spans(tags, self.scheme) for tags in predicted]
        counts = metrics.count(right, guess)
        micro, kinds = metrics.micro(counts), metrics.by_type(counts)
        hits = np.asarray([[s.hits, len(s.words)] for s in sentences], float)
        shares = {"accuracy": hits}
        if self.unknown:
            shares["unknown_accuracy"] = self._unknown(examples, sentences, out)
        found = {name: share(*parts.sum(0)) for name, parts in shares.items()}
        found |= dataclasses.asdict(micro)
        found |= {"macro_f1": metrics.macro(counts)}
        found |= {"weighted_f1": metrics.weighted(counts)}
        if objective.reader.scheme != "word":
            surface = metrics.surface(words, right, guess, self.join)
            found["surface_f1"] = surface.f1
        if self.samples:
            intervals = metrics.resampled(counts, self.samples, self.seed)
            for name, parts in shares.items():
                drawn = statistics.draw(parts, self.samples, self.seed)
                means = statistics.ratios(drawn)
                intervals[name] = statistics.percentiles(means, 0.95)
            for name, interval in intervals.items():
                found |= dict(interval.named(name))
        for kind in types_of(objective) if self.types else ():
            found[f"f1_{kind}"] = kinds[kind].f1 if kind in kinds else 0.0
        sizes = (counts.gold.sum(), counts.predicted.sum(), counts.correct.sum())
        signature = (
            f"f1 {micro.f1:.5f} (scheme:{objective.reader.scheme}|rule:{self.scheme}|"
            f"sentences:{len(words)}|gold:{sizes[0]}|predicted:{sizes[1]}|"
            f"correct:{sizes[2]})"
        )
        if jax.process_index() == 0:
            tables = aligned(table(counts)), aligned(confused(sentences))
            lines = [signature, "", *tables[0], "", *tables[1]]
            shown = [f"# {line}".rstrip() for line in lines]
            for sentence in sentences[: self.rows]:
                shown += ["", *aligned(sentence.columns())]
            storage.write_text(out.samples, "\n".join(shown) + "\n")
            out.note(f"{out.samples.stem}: {signature}")
        yield from found.items()

    def _unknown(
        self, examples: base.Examples, sentences: list["Sentence"], out: base.Outputs
    ) -> np.ndarray:
        """Counts in each sentence the words that the training data lack.

        Returns:
          How many of them have the right tag, and how many there are, (sentences, 2);
          0 where the training data cannot be read.
        """
        found = np.zeros((len(sentences), 2))
        try:
            known = {*examples.train_texts()}
        except DataError as error:
            out.note(f"unknown_accuracy: the training data cannot be read ({error})")
            return found
        for row, sentence in zip(found, sentences):
            new = [g == t for word, g, t in sentence.columns() if word not in known]
            row[:] = sum(new), len(new)
        if not found.any():
            out.note("unknown_accuracy: the training data have every word of this set")
        return found


@dataclasses.dataclass(frozen=True)
class Sentence:
    """The words of a sentence with their tags, and the predicted ones."""

    words: tuple[str, ...]
    gold: list[str]
    predicted: list[str]

    @property
    def hits(self) -> int:
        """The number of words with the right tag."""
        return sum(map(str.__eq__, self.gold, self.predicted))

    def columns(self) -> Iterator[tuple[str, str, str]]:
        """Yields word, tag and predicted tag."""
        return zip(self.words, self.gold, self.predicted)


def read(examples: base.Examples, model: base.Functions) -> Iterator[Sentence]:
    """Yields the sentences of a set, each put together from its windows.

    Where the set is limited to some rows, a sentence with rows beyond is left out.
    """
    objective: Any = examples.objective
    reader, stream = objective.reader, examples.stream
    sentence: Sentence | None = None
    before: tuple[int, int] | None = None
    records = examples.records()
    for number, tags in enumerate(predictions(examples, model)):
        source, _, at = stream.locate(number)
        row = stream.indices[source].row(at)
        record, place = next(records), (source, int(row["record"]))
        if place != before:
            if sentence is not None:
                yield sentence
            words = reader.words_of(record)
            unread = [objective.default()] * len(words)
            sentence = Sentence(words, reader.tags_of(record), unread)
        assert sentence is not None
        objective.assign(sentence.predicted, row, tags)
        before = place
    if sentence is not None and before != examples.next_place:
        yield sentence


def predictions(examples: base.Examples, model: base.Functions) -> Iterator[np.ndarray]:
    """Yields the predicted tags (K,) of each row, without padding rows."""
    left = examples.rows
    for batch in examples.batches():
        _, found = model.predict(batch)
        tags = np.asarray(found["tags"])[:left]
        left -= len(tags)
        yield from tags


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Writes a table with columns of equal width, as white space parts them too."""
    rows = [*rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def table(counts: metrics.Counts) -> Iterator[Sequence[str]]:
    """Yields the scores of each type, under a row of names."""
    yield "type", "precision", "recall", "f1", "gold", "predicted"
    numbers = zip(counts.gold.sum(0), counts.predicted.sum(0))
    for (kind, score), (gold, guess) in zip(metrics.by_type(counts).items(), numbers):
        parts = (score.precision, score.recall, score.f1)
        yield kind, *(f"{part:.4f}" for part in parts), f"{gold}", f"{guess}"


def confused(sentences: list[Sentence]) -> Iterator[Sequence[str]]:
    """Yields the most frequent pairs of a tag and a wrong tag predicted for it."""
    pairs = metrics.confusions(
        [sentence.gold for sentence in sentences],
        [sentence.predicted for sentence in sentences],
    )
    yield "words", "tag", "predicted as"
    wrong = [(-n, *pair) for pair, n in pairs.items() if pair[0] != pair[1]]
    for n, tag, other in sorted(wrong)[:CONFUSED]:
        yield f"{-n}", tag, other


def types_of(objective: Any) -> list[str]:
    """Returns the types of spans that the labels of an objective can mark."""
    found = (objective.spans([label], "conlleval") for label in objective.labels)
    return sorted({kind for spans in found for kind, _, _ in spans})


def share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
