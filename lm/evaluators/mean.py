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
    `<term>_accuracy`, and `perplexity` = exp(loss) where the loss is over tokens. Where
    each token of the texts is said once, also `bits_per_byte`, the loss in bits by the
    UTF-8 bytes of what was said, which is comparable across tokenizers. With
    baseline="unigram" also `unigram_loss`: the loss on the same targets of the unigram
    distribution of the training rows (one added to each count; special tokens that are
    no target apart).
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
        if "lm_loss" in sums and (size := said_bytes(tools)):
            yield "bits_per_byte", sums["lm_loss"] / size / math.log(2)
        if self.baseline == "unigram":
            yield "unigram_loss", unigram_loss(tools)


def said_bytes(tools: base.Tools) -> float:
    """UTF-8 bytes of the texts whose tokens are said; 0 where the rows do not tell."""
    sizes = [index.fields.get("bytes", ()) for index in tools.stream.indices]
    return float(np.concatenate(sizes)[: tools.rows].sum())


def unigram_loss(tools: base.Tools) -> float:
    """Mean of -log p(target), p being the training rows' unigram distribution."""
    counts = tools.train_counts() + 1.0
    wanted = np.zeros(len(counts))
    for n in range(tools.rows):
        example = tools.stream.example(n)
        np.add.at(wanted, example["targets"], example["weights"])
    special = np.isin(np.arange(len(counts)), list(tools.codec.special_ids))
    counts[special & (wanted == 0)] = 0.0
    said = wanted > 0
    losses = np.log(counts.sum()) - np.log(counts[said])
    return float(wanted[said] @ losses / max(wanted.sum(), 1.0))
