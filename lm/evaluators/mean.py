"""Averages over an evaluation set: losses, perplexities, accuracies."""

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import PyTree

from lm.evaluators import base


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """The objective's metrics, each the sum over the set by its count.

    Yields `loss` (the sum of the terms' losses), `<term>_loss` in nats,
    `<term>_accuracy`, and `perplexity` = exp(loss) where the loss is over tokens; with
    baseline="unigram" also `unigram_loss`: the loss on the same targets of the unigram
    distribution of the training rows (special tokens apart, one added to each count).
    """

    baseline: Literal["none", "unigram"] = "none"

    def run(self, tools: base.Tools, params: PyTree) -> Iterator[tuple[str, float]]:
        sums: dict[str, float] = collections.defaultdict(float)
        counts: dict[str, float] = collections.defaultdict(float)
        for batch in tools.batches():
            for name, (total, count) in tools.metrics(params, batch).items():
                sums[name] += float(total)
                counts[name] += float(count)
        means = {name: sums[name] / max(counts[name], 1.0) for name in sums}
        losses = {name: mean for name, mean in means.items() if name.endswith("_loss")}
        yield "loss", sum(losses.values())
        yield from means.items()
        token_losses = [n for n in losses if n.removesuffix("_loss") in ("mlm", "lm")]
        if token_losses:
            yield "perplexity", math.exp(min(losses[token_losses[0]], 700.0))
        if self.baseline == "unigram":
            yield "unigram_loss", unigram_loss(tools)


def unigram_loss(tools: base.Tools) -> float:
    """Mean of -log p(target), p being the training rows' unigram distribution."""
    counts = tools.train_counts() + 1.0
    counts[list(tools.codec.special_ids)] = 0.0
    with np.errstate(divide="ignore"):
        losses = np.log(counts.sum()) - np.log(counts)
    total = weight = 0.0
    for n in range(tools.rows):
        example = tools.stream.example(n)
        kept = example["weights"] > 0
        total += float(losses[example["targets"][kept]].sum())
        weight += float(kept.sum())
    return total / max(weight, 1.0)
