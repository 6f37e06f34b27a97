"""Averages over an evaluation set: losses, perplexities, accuracies."""

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm.evaluators import base
from lm.objectives.base import Objective


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

    Attributes:
      baseline: whether `unigram_loss` is computed.
    """

    baseline: Literal["none", "unigram"] = "none"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tokens"} if self.baseline == "unigram" else ())

    def yields(self, objective: Objective) -> tuple[str, ...] | None:
        measures = objective.measures()
        if measures is None:
            return None
        names = ["loss", *measures]
        if "tokens" in objective.can:
            names += ["perplexity", "targets", "unknown", "unknown_share"]
            names += ["known_nats", "perplexity_without_unknown"]
        if "bytes" in objective.can:
            names += ["bits_per_byte", "bits_per_byte_without_end", "word_perplexity"]
        return (*names, *(["unigram_loss"] if self.baseline == "unigram" else []))

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        objective, unknown = examples.objective, examples.codec.unk_id
        tokens = "tokens" in objective.can
        sums: dict[str, float] = collections.defaultdict(float)
        counts: dict[str, float] = collections.defaultdict(float)
        for batch in examples.batches(by_length=True):
            share = {}
            if tokens and unknown is not None:
                known, share["unknown_share"] = _known(
                    batch["targets"], batch["weights"], unknown
                )
                batch = batch | {"known_weights": known}
            found = dict(model.metrics(batch)) | share
            for name, (total, count) in found.items():
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
