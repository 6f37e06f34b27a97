"""A hidden Markov model over tokens, fitted by expectation maximisation (Baum-Welch).

Each token of a text is drawn from a hidden state, and each state from the state before
(Rabiner 1989). The model is fitted without labels in several passes (`job = "fit"`,
`steps` is their number): a pass computes the expected counts under the parameters so
far, and their shares are the next parameters (Baum et al. 1970). The likelihood of the
data never falls. The expected counts are the gradient of the log-likelihood with
respect to the log-probabilities.

A text begins with a state of `start`. A bos token of the objective is not drawn from a
state; the end of a text is a token like any other. In fitting each row is taken as
texts of their own, so rows should not share tokens (leave out objective.stride).

    vocabulary    (V,) which ids are words
    start         (R, K)     log-probabilities, float32, of each of R models
    transitions   (R, K, K)  [i, j] from state i to state j
    emissions     (R, V, K)  of each token in each state
    log_likelihood (R,)      of the data before the last pass; the best one is asked
"""

from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from lm.models.base import Batch, Compute, Head, Rows, Shapes
from lm.ops import chain as chains
from lm.ops.chain import Chain
from lm.ops.recurrence import boundaries

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "states": "[1, 4096]",
    "restarts": "[1, 1024]",
    "trials": "[1, 1000000]",
    "smoothing": "[0, 1e9]",
    "seed": "[0, 4294967295]",
}
CHANGEABLE = ()

Cache = dict[str, jax.Array]
PARTS = ("start", "transitions", "emissions")


class Model(nn.Module):
    """A hidden Markov model of texts.

    Attributes:
      vocab_size: None is the tokenizer's.
      vocab_multiple: the size is rounded up to a multiple of this number.
      states: the number of hidden states.
      restarts: the number of models, each with its own random beginning.
      trials: passes after which the most likely model alone is kept.
      smoothing: added to each expected count of an emission, over the vocabulary, and
        of a transition. With 0 each pass maximises the likelihood, otherwise the
        posterior probability under a Dirichlet distribution.
      seed: of the random beginnings.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 1
    states: int = 32
    restarts: int = 1
    trials: int = 10
    smoothing: float = 0.01
    seed: int = 0
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    can: ClassVar[frozenset[str]] = frozenset(
        {"logits", "score", "causal", "extend", "fit"}
    )
    reads: ClassVar[frozenset[str]] = frozenset()
    context: ClassVar[None] = None
    statistics_on: ClassVar[Literal["device"]] = "device"

    def touch(self) -> None:
        """Makes nothing: all parameters come from `start` and `improve`."""

    def flops(self, batch: Shapes) -> float | None:
        return None

    def small(self) -> dict[str, Any]:
        return {"states": 4, "restarts": 1}

    def exact(self, length: int) -> dict[str, Any]:
        return {}

    # ── Fitted by expectation maximisation ──────────────────────────────────────────

    def start(self, corpus: Any) -> tuple[PyTree, PyTree]:
        """Draws each distribution from the uniform Dirichlet distribution.

        Beginnings near the uniform distribution would be near a saddle of the
        likelihood, where passes hardly improve.
        """
        assert self.vocab_size is not None  # filled in by the run
        codec, rng = corpus.codec, np.random.default_rng(self.seed)
        words = np.arange(self.vocab_size) < codec.vocab_size
        words[[id for id in (codec.pad_id, codec.bos_id) if id is not None]] = False
        R, K = self.restarts, self.states
        sizes = {"start": (R, K), "transitions": (R, K, K)}
        counts = {name: rng.exponential(size=size) for name, size in sizes.items()}
        emitted = rng.exponential(size=(R, self.vocab_size, K))
        counts["emissions"] = np.where(words[:, None], emitted, 0)
        logs = _shares({name: jnp.asarray(x) for name, x in counts.items()})
        found = jnp.full(R, -jnp.inf, jnp.float32)
        params = {"vocabulary": words, "log_likelihood": found}
        return params | logs, {"passes": np.int32(0)}

    def statistics(self, params: PyTree, batch: Batch) -> PyTree:
        """Computes the expected counts of states, transitions and emissions.

        Returns:
          `counts` of the parameters' shapes, `log_likelihood` (R,) in nats and the
          number of `tokens`.
        """
        words = params["vocabulary"]

        def log_likelihood(parts: PyTree) -> Float[Array, ""]:
            return jnp.sum(chains.log_partition(*chain_of(parts, words, batch)))

        parts = {name: params[name] for name in PARTS}
        found, counts = jax.vmap(jax.value_and_grad(log_likelihood))(parts)
        seen = observe(words, batch)
        tokens = jnp.sum(seen.real) + jnp.sum(seen.leads)
        return {"counts": counts, "log_likelihood": found, "tokens": tokens}

    def improve(
        self, params: PyTree, memory: PyTree, statistics: PyTree
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        """Makes the expected counts the parameters, and measures those before."""
        found, counts = statistics["log_likelihood"], dict(statistics["counts"])
        if memory["passes"] == self.trials and len(found) > 1:
            best = jnp.argmax(found)
            found, counts = jax.tree.map(lambda x: x[best][None], (found, counts))
        words = params["vocabulary"]
        counts["transitions"] += self.smoothing
        counts["start"] += self.smoothing
        counts["emissions"] += jnp.where(words[:, None], self.smoothing, 0.0)
        params = {"vocabulary": words, "log_likelihood": found} | _shares(counts)
        measured = {
            "loss": -jnp.max(found) / jnp.maximum(statistics["tokens"], 1),
            "log_likelihood": jnp.max(found),
            "models": len(found),
        }
        return params, {"passes": memory["passes"] + 1}, measured

    # ── Asked for probabilities ─────────────────────────────────────────────────────

    def _model(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns start (K,), transitions (K, K), emissions (V, K): probabilities."""
        params = self.variables["params"]
        best = jnp.argmax(params["log_likelihood"])
        start, transitions, emissions = (jnp.exp(params[x][best]) for x in PARTS)
        return start, transitions, emissions

    def __call__(self, batch: Batch, *, train: bool = False) -> Float[Array, "B T K"]:
        """Computes the probability of each state of the token after each token."""
        return self.extend(batch, self.make_cache(len(batch["inputs"]), 0))[0]

    def logits(self, hidden: Float[Array, "*any K"]) -> Float[Array, "*any V"]:
        """Returns log-probabilities in nats, float32; -inf outside the vocabulary."""
        return jnp.log(jnp.einsum("...k,vk->...v", hidden, self._model()[2]))

    def log_prob(
        self, hidden: Float[Array, "*any K"], targets: Int[Array, "*any"]
    ) -> Float[Array, "*any"]:
        """Returns the log-probability of each target, in nats."""
        return jnp.log(jnp.sum(hidden * self._model()[2][targets], axis=-1))

    def best(self, hidden: Float[Array, "*any K"]) -> Int[Array, "*any"]:
        """Returns the most probable next token."""
        return jnp.argmax(self.logits(hidden), axis=-1)

    def make_cache(self, rows: int, length: int, source_length: int = 0) -> Cache:
        """Makes the cache: the probabilities of the next state, and whether any token
        has been read; without one they are not used.
        """
        states = jnp.zeros((rows, self.states), jnp.float32)
        return {"states": states, "read": jnp.zeros(rows, bool)}

    def cache_rows(self) -> Rows:
        return Rows()

    def extend(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "B T K"], Cache]:
        """Computes the probabilities of the states after new tokens, and the cache."""
        start, transitions, emissions = self._model()
        words: jax.Array = self.get_variable("params", "vocabulary")
        inputs = batch["inputs"]
        begins, real = boundaries(batch["positions"], batch["segment_ids"])

        def step(states: jax.Array, token: tuple) -> tuple[jax.Array, jax.Array]:
            seen, begins, real = token
            states = jnp.where(begins, start, states)
            joint = states * seen
            total = jnp.sum(joint, axis=-1, keepdims=True)
            # A token that no state can draw says nothing about the state.
            after = jnp.where(total > 0, joint / total, states) @ transitions
            states = jnp.where(real, after, states)
            return states, states

        seen = emissions[inputs]
        drawn = real & words[inputs]
        columns = [
            jnp.swapaxes(x, 0, 1) for x in (seen, begins[..., None], drawn[..., None])
        ]
        first = jnp.where(cache["read"][:, None], cache["states"], start)
        states, hidden = jax.lax.scan(step, first, tuple(columns))
        read = cache["read"] | jnp.any(real, axis=1)
        return jnp.swapaxes(hidden, 0, 1), {"states": states, "read": read}


def _shares(counts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns log-probabilities from counts; uniform where all counts are 0."""
    axes = {"start": 1, "transitions": 2, "emissions": 1}
    logs = {}
    for name, axis in axes.items():
        total = jnp.sum(counts[name], axis=axis, keepdims=True)
        share = counts[name] / jnp.where(total > 0, total, 1.0)
        share = jnp.where(total > 0, share, 1.0 / counts[name].shape[axis])
        logs[name] = jnp.log(share).astype(jnp.float32)
    return logs


class Observed(NamedTuple):
    """The tokens of a batch as steps of chains: each step is the token after an input.

    Attributes:
      tokens, real: (B, T) the tokens, and whether there is one.
      leads: (B, T) whether an input that is a token itself, not a bos, stands before
        the first step of its text.
    """

    tokens: Int[Array, "B T"]
    real: Bool[Array, "B T"]
    leads: Bool[Array, "B T"]


def observe(words: Bool[Array, "V"], batch: Batch) -> Observed:
    """Finds the tokens that a batch gives, in its inputs and its last targets.

    Rows whose weights are all 0 have none. Other tokens of weight 0 count.
    """
    inputs, segments = batch["inputs"], batch["segment_ids"]
    after = jnp.pad(segments, ((0, 0), (0, 1)))[:, 1:]
    goes_on = (segments != 0) & (segments == after)
    tokens = jnp.where(goes_on, jnp.roll(inputs, -1, axis=1), batch["targets"])
    counts = jnp.any(batch["weights"] > 0, axis=1, keepdims=True)
    real = (goes_on | (batch["weights"] > 0)) & (segments != 0) & counts
    begins, _ = boundaries(jnp.ones_like(segments), jnp.where(real, segments, 0))
    begins = begins | (real & (jnp.cumsum(real, axis=1) == 1))
    return Observed(tokens, real, begins & words[inputs])


def chain_of(
    logs: dict[str, jax.Array], words: Bool[Array, "V"], batch: Batch
) -> tuple[Chain, Int[Array, "B T"]]:
    """Makes the chains of a batch under one model, and their segments.

    The chain of a text without bos begins with the states of its first target, and
    `start` has the score of its first input.
    """
    tokens, real, leads = observe(words, batch)
    start, moves, emitted = (logs[name] for name in PARTS)

    def with_first_inputs() -> Float[Array, "B T K"]:
        led = chains.log_product(emitted[batch["inputs"]] + start, moves)
        return jnp.where(leads[..., None], led, start)

    every = (*leads.shape, len(start))
    starts = jax.lax.cond(
        jnp.any(leads), with_first_inputs, lambda: jnp.broadcast_to(start, every)
    )
    chain = Chain(emitted[tokens], moves, starts)
    return chain, jnp.where(real, batch["segment_ids"], 0)
