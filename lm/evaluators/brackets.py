"""Scores the trees of a parser by their labelled brackets, and writes them."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lm.data import trees
from lm.data.layouts import text_of
from lm.evaluators import base
from lm.host import storage
from lm.metrics import brackets, statistics
from lm.objectives.base import Objective

BOUNDS = {
    "shortest": "[1, 1000000]",
    "longest": "[1, 1000000]",
    "step": "[1, 1024]",
    "level": "(0, 1)",
    "resamples": "[0, 100000]",
}
CHANGEABLE = ("step", "level", "resamples")
NAMES = (
    *("precision", "recall", "f1", "exact", "unparsed", "sentences", "words"),
    *("log_inside", "loss", "bits_per_byte"),
)
ENDED = ("precision", "recall", "f1", "exact", "loss", "bits_per_byte")


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Labelled precision, recall and F1 of brackets, as EVALB defines them.

    Brackets are the nodes above the preterminals, without those in `ignored`; all words
    count, punctuation too. A sentence without a parse misses all its brackets. Also
    yields the shares of `exact` and `unparsed` sentences, the sum of `log_inside` over
    the sentences with a parse, the `loss` in nats per word and `bits_per_byte` of the
    words as the model mixes them (spaces between words are bytes too). The metrics in
    ENDED have with _low and _high after them the bounds of the bootstrap interval over
    sentences. The parses are written to `samples/`, one on a line.

    Attributes:
      ignored: labels that are no brackets.
      shortest, longest: sentences with fewer or more words are left out.
      step: sentences are parsed in batches of equal length, rounded up to a multiple of
        this number; each length needs a program of its own.
      level: of the interval.
      resamples: how many the interval is of; 0 gives none.
    """

    ignored: tuple[str, ...] = ("ROOT", "TOP", "S1")
    shortest: int = 1
    longest: int = 40
    step: int = 8
    level: float = 0.95
    resamples: int = 1000

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"trees"})

    def yields(self, objective: Objective) -> tuple[str, ...]:
        ends = [f"{name}_{end}" for name in ENDED for end in ("low", "high")]
        return (*NAMES, *(ends if self.resamples else ()))

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        objective: Any = examples.objective
        rows = [examples.stream.example(n) for n in range(examples.rows)]
        sizes = [int(np.count_nonzero(row["segment_ids"])) for row in rows]
        chosen = [
            n for n, size in enumerate(sizes) if self.shortest <= size <= self.longest
        ]
        found = self._predict(rows, sizes, chosen, model)
        each, lines = {}, []
        for n, record in enumerate(examples.records()):
            if n not in found:
                continue
            gold = text_of(record, objective.tree)
            tree = trees.parse(gold)
            leaves = [word for _, word in trees.tags(tree)]
            parse = objective.parse_of(found[n], leaves, examples.codec)
            spans = None if parse is None else self._spans(parse)
            each[n] = brackets.count(spans, self._spans(tree))
            lines.append(str(parse) if parse is not None else "()")
        if jax.process_index() == 0:
            storage.write_text(out.samples, "\n".join(lines) + "\n")
        total = functools.reduce(brackets.add, each.values(), brackets.Brackets())
        count = len(chosen) or math.nan
        words = sum(sizes[n] for n in chosen) or math.nan
        inside = [float(found[n]["inside"]) for n in chosen]
        nats = [-float(found[n]["log_prob"]) for n in chosen]
        fields = [index.fields["bytes"] for index in examples.stream.indices]
        octets = np.concatenate(fields)[chosen]
        yield "precision", total.precision
        yield "recall", total.recall
        yield "f1", total.f1
        yield "exact", total.exact / count
        yield "unparsed", sum(not math.isfinite(x) for x in inside) / count
        yield "sentences", len(chosen)
        yield "words", words
        yield "log_inside", sum(x for x in inside if math.isfinite(x))
        yield "loss", sum(nats) / words
        yield "bits_per_byte", sum(nats) / math.log(2) / (octets.sum() or math.nan)
        if chosen and self.resamples:
            lengths = [sizes[n] for n in chosen]
            others = zip(lengths, nats, octets.tolist())
            parts = [[*each[n], 1, *rest] for n, rest in zip(chosen, others)]
            yield from self._bounds(np.asarray(parts))

    def _bounds(self, parts: Float[np.ndarray, "S 8"]) -> Iterator[tuple[str, float]]:
        """Yields the bounds of the intervals.

        Args:
          parts: of each sentence, its `Brackets`, 1, its words, nats and bytes.
        """
        drawn = statistics.draw(parts, self.resamples, self.seed)
        right, found, wanted, exact, count, words, nats, octets = drawn.T
        bits = nats / math.log(2)
        divided = {
            "precision": (right, found),
            "recall": (right, wanted),
            "f1": (2 * right, found + wanted),
            "exact": (exact, count),
            "loss": (nats, words),
            "bits_per_byte": (bits, octets),
        }
        for name, pair in divided.items():
            values = statistics.ratios(np.stack(pair, axis=1))
            yield from statistics.percentiles(values, self.level).named(name)

    def _spans(self, tree: trees.Tree) -> list[brackets.Span]:
        return [span for span in trees.spans(tree) if span[0] not in self.ignored]

    def _predict(
        self,
        rows: list[dict[str, Any]],
        sizes: list[int],
        chosen: list[int],
        model: base.Functions,
    ) -> dict[int, dict[str, np.ndarray]]:
        """Returns the predictions of the chosen rows, by their numbers."""
        found: dict[int, dict[str, np.ndarray]] = {}
        rounded = {n: -(-sizes[n] // self.step) * self.step for n in chosen}
        size = self.batch_size or 8
        for length in sorted({*rounded.values()}):
            group = [n for n in chosen if rounded[n] == length]
            for at in range(0, len(group), size):
                part = group[at : at + size]
                padded = part + part[:1] * (size - len(part))
                names = [k for k in rows[part[0]] if k not in ("example_ids", "tree")]
                batch = {
                    name: jnp.asarray([rows[n][name][:length] for n in padded])
                    for name in names
                }
                _, parses = model.predict(batch)
                for row, n in enumerate(part):
                    found[n] = {k: np.asarray(x)[row] for k, x in parses.items()}
        return found
