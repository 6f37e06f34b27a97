"""Averages over an evaluation set: losses, perplexities, accuracies."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm.evaluators import base
from lm.metrics import statistics
from lm.objectives.base import Objective

BOUNDS = {"level": "(0, 1)", "resamples": "[0, 100000]"}
CHANGEABLE = ("level", "resamples")
PARTS = ("known_nats", "end_nats")  # of a loss, which have no interval


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """The objective's metrics: the sum over the set divided by the count.

    Yields `loss` (the sum of all metrics `<term>_loss`, in nats) and all metrics of the
    objective. If the targets of a term are tokens, also

        perplexity     exp of that term's loss
        targets        their number
        unknown        the number of those that are the tokenizer's unknown token
        unknown_share  their share; if it is large, loss and perplexity say little
                       about the text
        known_nats     the mean loss of the others
        perplexity_without_unknown  exp of it; unknown tokens count neither in the sum
                       nor in the number, and stay in the context
        unigram_loss   with baseline="unigram": the loss that the unigram distribution
                       of the training rows has on the same targets (1 is added to each
                       count; special tokens that are never a target are left out)

    and if each token of a text is a target at most once (decoders), three metrics that
    can be compared across tokenizers:

        bits_per_byte              the loss of all targets, end tokens included, in
                                   bits, divided by the UTF-8 bytes of the targets
        bits_per_byte_without_end  the same without the loss of the end tokens
        word_perplexity            exp of the loss of all targets, divided by the words
                                   of the text: what white space separates, and each
                                   end of a line or a text that has a token

    An end token costs bits but has no bytes, which matters in short texts; among the
    words it counts as one. The first token of a text is a target only if a bos token
    precedes it; otherwise its bytes and its word are not counted either. An unknown
    token costs what its probability costs, though it stands for any of many words:
    compare only where `unknown_share` is 0 or, with one vocabulary, the same. Both
    perplexities of a token are those of `lm.score`, where `--end=true` scores the end
    tokens that the objective gives to texts.

    `loss`, the objective's metrics, `perplexity`, `bits_per_byte` and `word_perplexity`
    have with `<metric>_low` and `<metric>_high` the bounds of the bootstrap interval
    over the rows of the set, taken as independent (over groups of neighbours, where
    there are more than 16,384). There is none where the rows of a batch interact.

    Attributes:
      baseline: whether `unigram_loss` is computed.
      level: of the interval.
      resamples: how many the interval is of; 0 gives none.
    """

    baseline: Literal["none", "unigram"] = "none"
    level: float = 0.95
    resamples: int = 1000

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tokens"} if self.baseline == "unigram" else ())

    def yields(self, objective: Objective) -> tuple[str, ...] | None:
        measures = objective.measures()
        if measures is None:
            return None
        names = ["loss", *measures]
        if "tokens" in objective.can:
            names += ["perplexity"]
        if "bytes" in objective.can:
            names += ["bits_per_byte", "word_perplexity"]
        if self._has_intervals(objective):
            whole = [name for name in names if name not in PARTS]
            names += [f"{name}_{end}" for name in whole for end in ("low", "high")]
        if "tokens" in objective.can:
            names += ["targets", "unknown", "unknown_share"]
            names += ["known_nats", "perplexity_without_unknown"]
        if "bytes" in objective.can:
            names += ["bits_per_byte_without_end"]
        return (*names, *(["unigram_loss"] if self.baseline == "unigram" else []))

    def _has_intervals(self, objective: Objective) -> bool:
        return bool(self.resamples) and not objective.interacts

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        objective, unknown = examples.objective, examples.codec.unk_id
        tokens = "tokens" in objective.can
        kept: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        sums: dict[str, float] = collections.defaultdict(float)
        counts: dict[str, float] = collections.defaultdict(float)
        for batch in examples.batches(by_length=True):
            share = {}
            if tokens and unknown is not None:
                known, share["unknown_share"] = _known(
                    batch["targets"], batch["weights"], unknown
                )
                batch = batch | {"known_weights": known}
            if self._has_intervals(objective):
                found, parts = model.by_row(batch)
                for name, part in parts.items():
                    kept[name].append(np.stack(part, axis=1, dtype=np.float64))
            else:
                found = model.metrics(batch)
            for name, (total, count) in (dict(found) | share).items():
                sums[name] += float(total)
                counts[name] += float(count)
        means = {name: sums[name] / max(counts[name], 1.0) for name in sums}
        yield "loss", sum(v for name, v in means.items() if name.endswith("_loss"))
        yield from means.items()
        if sums["unknown_share"]:
            out.note(
                f"unknown: {sums['unknown_share']:,.0f} of "
                f"{counts['unknown_share']:,.0f} targets "
                f"({means['unknown_share']:.1%}) are the tokenizer's unknown token"
            )
        term = f"{objective.token_term}_loss"
        if tokens:
            # Beyond 709 nats a float overflows.
            yield "perplexity", math.exp(min(means[term], 700.0))
            yield "targets", counts[term]
            if unknown is not None:
                yield "unknown", sums["unknown_share"]
        if "known_nats" in means:
            rest = math.exp(min(means["known_nats"], 700.0))
            yield "perplexity_without_unknown", rest
        if "bytes" in objective.can and (size := summed(examples, "bytes")):
            bits = 1 / size / math.log(2)
            yield "bits_per_byte", sums[term] * bits
            ends = sums["end_nats"]
            yield "bits_per_byte_without_end", (sums[term] - ends) * bits
        if "bytes" in objective.can and (words := summed(examples, "words")):
            yield "word_perplexity", math.exp(min(sums[term] / words, 700.0))
        if self.baseline == "unigram":
            yield "unigram_loss", unigram_loss(examples)
        if self._has_intervals(objective):
            totals = {name: (sums[name], counts[name]) for name in kept}
            drawn = self._resample(examples, kept, totals, out)
            for name, values in resampled(drawn, objective).items():
                yield from statistics.percentiles(values, self.level).named(name)

    def _resample(
        self,
        examples: base.Examples,
        kept: Mapping[str, list[np.ndarray]],
        totals: Mapping[str, tuple[float, float]],
        out: base.Outputs,
    ) -> dict[str, np.ndarray]:
        """Returns the (sum, count) of each metric in each resample of the rows, (R, 2).

        `bytes` and `words` have (R, 1). A metric that the rows do not add up to is NaN.

        Args:
          kept: of each batch, (sum, count) of its rows, (B, 2), by the metric.
          totals: (sum, count) of the whole set.
        """
        parts = {}
        for name, batches in kept.items():
            parts[name] = in_order(examples, np.concatenate(batches))
            if not np.allclose(parts[name].sum(0), totals[name], rtol=1e-3, atol=1e-3):
                if np.isfinite(totals[name]).all() and not examples.memo.get(name):
                    out.note(f"{name} has no interval: the rows do not add up to it")
                    examples.memo[name] = True
                parts[name][:] = math.nan
            elif not np.isfinite(totals[name]).all():
                parts[name][:] = math.nan
        for name in ("bytes", "words") if "bytes" in examples.objective.can else ():
            parts[name] = sizes_of(examples, name)[:, None]
        table = np.concatenate([*parts.values()], axis=1)
        table = statistics.grouped(table)
        drawn = statistics.draw(table, self.resamples, self.seed)
        ends = np.cumsum([part.shape[1] for part in parts.values()])
        return dict(zip(parts, np.split(drawn, ends[:-1], axis=1)))


def resampled(
    drawn: Mapping[str, np.ndarray], objective: Objective
) -> dict[str, np.ndarray]:
    """Returns the figures that have an interval, of each resample, (R,)."""
    measures = [name for name in drawn if name not in ("bytes", "words", *PARTS)]
    found = {name: statistics.ratios(drawn[name]) for name in measures}
    each = [value for name, value in found.items() if name.endswith("_loss")]
    found = {"loss": np.sum(each, axis=0)} | found
    term = f"{objective.token_term}_loss"
    if "tokens" in objective.can:
        found["perplexity"] = np.exp(np.minimum(found[term], 700.0))
    for name in ("bytes", "words") if "bytes" in objective.can else ():
        if drawn[name].any():
            both = np.concatenate([drawn[term][:, :1], drawn[name]], axis=1)
            found[name] = statistics.ratios(both)
    if "bytes" in found:
        found["bits_per_byte"] = found.pop("bytes") / math.log(2)
    if "words" in found:
        found["word_perplexity"] = np.exp(np.minimum(found.pop("words"), 700.0))
    return found


def in_order(examples: base.Examples, parts: np.ndarray) -> np.ndarray:
    """Returns what each row of the set adds, of rows as `batches(by_length=True)` has.

    Args:
      parts: (rows of all batches, K); those that fill up the last batch come last.
    """
    stream = examples.stream
    parts = parts[: stream.evaluated(examples.rows)]
    order = stream.from_longest(examples.rows)
    return parts if order is None else parts[np.argsort(order)]


def sizes_of(examples: base.Examples, field: str) -> np.ndarray:
    """Returns a field of each row, 0 for those that do not count, (rows,)."""
    stream = examples.stream
    sizes = np.concatenate([index.fields[field] for index in stream.indices])
    if stream.lanes is None:
        return sizes[: examples.rows]
    numbers = range(stream.evaluated(examples.rows))
    places = map(stream.lanes.locate, numbers)
    return np.asarray([sizes[at.row or 0] * at.counts for at in places])


@jax.jit
def _known(
    targets: Int[Array, "*any"], weights: Float[Array, "*any"], unknown: int
) -> tuple[Float[Array, "*any"], tuple[Float[Array, ""], Float[Array, ""]]]:
    """Returns the weights of the targets that are known; counts the others, and all."""
    known, real = targets != unknown, weights > 0
    return weights * known, (jnp.sum(real & ~known), jnp.sum(real))


def summed(examples: base.Examples, field: str) -> float:
    """Sums a field over the rows of the set, such as `bytes` or `words`."""
    sizes = [index.fields[field] for index in examples.stream.indices]
    return float(np.concatenate(sizes)[: examples.rows].sum())


def unigram_loss(examples: base.Examples) -> float:
    """Computes the mean of -log p(target) in nats for the unigrams of the training set.

    Args:
      examples: a set whose objective offers "tokens".
    """
    counts, wanted = examples.train_counts() + 1.0, examples.target_counts
    special = np.isin(np.arange(len(counts)), list(examples.codec.special_ids))
    counts[special & (wanted == 0)] = 0.0
    hit = wanted > 0
    losses = np.log(counts.sum()) - np.log(counts[hit])
    return float(wanted[hit] @ losses / max(wanted.sum(), 1.0))
