"""Linear chains: sums, maxima and samples over all label sequences of a text.

A sequence of labels y has the score

    start[y_1] + sum over t of emissions[t, y_t] + transitions[y_t-1, y_t] + end[y_n]

and the probability exp(score) / Z. Conditional random fields (Lafferty et al. 2001),
hidden Markov models, whose scores are log-probabilities (Rabiner 1989), and Markov
models of maximum entropy (McCallum et al. 2000) are such chains. B is rows, T steps, K
labels. `segments` (B, T) counts the sequences of a row from 1, as `segment_ids` do; 0
is padding, which changes nothing wherever it stands. A row of several sequences is one
chain, since their scores add up.

A score of -inf forbids a label or a transition. If a row forbids every sequence, its
log Z is -inf and its gradient is zero. Everything but samples and the best sequences is
a derivative of log Z: the gradient has the expected counts, which are the marginals.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from lm.ops.recurrence import boundaries


class Chain(NamedTuple):
    """The scores of a batch of chains, in nats.

    Attributes:
      emissions: of each label at each step.
      transitions: [i, j] from label i to label j; with four axes, [b, t, i, j] into
        step t of row b, which is not read where a sequence begins. With three axes the
        labels are pairs, a chain of second order: [h, i, j] from label h C + i to label
        i C + j, and no other follows. H may exceed C, for pairs that only begin.
      start: of each label as the first of a sequence, with three axes at each step;
        None: 0.
      end: of each label as the last; None: 0.
    """

    emissions: Float[Array, "B T K"]
    transitions: Float[Array, "K K"] | Float[Array, "B T K K"] | Float[Array, "H C C"]
    start: Float[Array, "K"] | Float[Array, "B T K"] | None = None
    end: Float[Array, "K"] | None = None


class Best(NamedTuple):
    """The best label sequences of each row, the best first.

    Attributes:
      labels: 0 at padding.
      scores: -inf for sequences that are forbidden, or that do not exist; their labels
        have no meaning.
    """

    labels: Int[Array, "B N T"]
    scores: Float[Array, "B N"]


class Steps(NamedTuple):
    """What a scan reads at each step, time on axis 0; see `Chain` and `in_time`."""

    emissions: Float[Array, "T B K"]
    transitions: Float[Array, "T B K K"] | None
    start: Float[Array, "T B K"] | None
    begins: Bool[Array, "T B 1"]
    opened: Bool[Array, "T B 1"]
    real: Bool[Array, "T B 1"]


def in_time(chain: Chain, segments: Int[Array, "B T"]) -> Steps:
    """Puts time on axis 0, and finds where sequences begin.

    Returns:
      The steps. `opened` tells whether the row has a sequence before this step.
    """
    begins, real = boundaries(jnp.ones_like(segments), segments)
    opened = jnp.cumsum(real, axis=1) > real
    # Position 0 begins a text in `boundaries`; here only segments do.
    begins |= real & ~opened
    swap = lambda x: jnp.swapaxes(x, 0, 1)  # noqa: E731
    by_step = chain.start is not None and chain.start.ndim == 3
    return Steps(
        swap(chain.emissions),
        swap(chain.transitions) if chain.transitions.ndim == 4 else None,
        swap(chain.start) if by_step else None,
        *(swap(x)[..., None] for x in (begins, opened, real)),
    )


def _ends(chain: Chain) -> tuple[Float[Array, "K"], Float[Array, "K"]]:
    """Returns the scores of first and last labels that hold for all steps, or zeros."""
    zeros = jnp.zeros(chain.emissions.shape[-1], chain.emissions.dtype)
    start, end = chain.start, chain.end
    first = zeros if start is None or start.ndim == 3 else start
    return first, zeros if end is None else end


# ── The partition function ──────────────────────────────────────────────────────────


def log_partition(
    chain: Chain, segments: Int[Array, "B T"], *, log_space: bool = False
) -> Float[Array, "B"]:
    """Computes log Z of each row, the sum over its sequences; 0 for padding alone.

    The scan keeps the probabilities of the labels, which sum to 1, and the logarithm of
    their scale, so that a step is a product with the matrix exp(transitions) (Rabiner
    1989, section V.A). At each step it loses the labels with less than about exp(-87)
    of the probability. That matters only if later steps rule out all the others and no
    transition leads back: then log Z is too small, perhaps -inf.

    Args:
      log_space: whether the scan keeps logarithms instead, which loses nothing and
        takes two to three times as long.
    """
    if log_space:
        return _log_space(first_order(chain), segments)
    return _scaled(chain, segments)


def _exp(scores: Float[Array, "*any"], axis: Any) -> tuple[jax.Array, jax.Array]:
    """Returns exp(scores - top), and the maxima `top` over the axes, kept as 1."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return jnp.exp(scores - top), top


def _log(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Computes the logarithm; that of 0 is -inf, with a gradient of zero."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)


def _product(
    alpha: Float[Array, "B K"], matrix: Float[Array, "K L"] | Float[Array, "B K L"]
) -> Float[Array, "B L"]:
    names = "bi,ij->bj" if matrix.ndim == 2 else "bi,bij->bj"
    return jnp.einsum(names, alpha, matrix, precision="highest")


def _moved(
    alpha: Float[Array, "B K"], matrix: Float[Array, "K K"] | Float[Array, "H C C"]
) -> Float[Array, "B K"]:
    """Takes a step by transitions that all steps share."""
    if matrix.ndim == 2:
        return _product(alpha, matrix)
    pairs = alpha.reshape(-1, *matrix.shape[:2])
    made = jnp.einsum("bhi,hij->bij", pairs, matrix, precision="highest")
    return _from_pairs(made, alpha.shape[1], 0.0)


def _from_pairs(
    pairs: Shaped[Array, "B C C"], K: int, fill: float | int
) -> Shaped[Array, "B K"]:
    """Puts pairs on one axis, and after them those that only begin."""
    flat = pairs.reshape(len(pairs), -1)
    rest = ((0, 0), (0, K - flat.shape[1]))
    return jnp.pad(flat, rest, constant_values=fill)


def first_order(chain: Chain) -> Chain:
    """Returns a chain of second order as one of first order, whose labels are pairs."""
    if chain.transitions.ndim != 3:
        return chain
    H, C, _ = chain.transitions.shape
    before, label = jnp.divmod(jnp.arange(H * C), C)
    follows = label[:, None] == before
    into = chain.transitions[before[:, None], label[:, None], label]
    return chain._replace(transitions=jnp.where(follows, into, -jnp.inf))


def log_product(
    scores: Float[Array, "*any K"], matrix: Float[Array, "K L"]
) -> Float[Array, "*any L"]:
    """Computes log of exp(scores) times exp(matrix), as `log_partition` does a step."""
    (left, top), (right, scale) = _exp(scores, -1), _exp(matrix, (0, 1))
    product = jnp.einsum("...i,ij->...j", left, right, precision="highest")
    return _log(product) + top + scale[0]


def filtered(
    chain: Chain, steps: Steps, alpha: Float[Array, "B K"]
) -> tuple[tuple[Float[Array, "B K"], Float[Array, "B 1"]], Float[Array, "T B K"]]:
    """Runs the scaled scan over the steps.

    Args:
      alpha: the probabilities of the labels before the first step, for rows that go on
        with a sequence (`opened` and not `begins`).

    Returns:
      The last alpha with the logarithm of its scale, and alpha after each step: the
      probability of each label given the emissions so far, if `end` is None and the
      scores are log-probabilities.
    """
    first, last = _ends(chain)
    (first, first_top), (last, last_top) = _exp(first, -1), _exp(last, -1)
    if steps.transitions is None:
        matrix, matrix_top = _exp(
            chain.transitions, tuple(range(chain.transitions.ndim))
        )
        matrix_top = matrix_top.reshape(1)

    def step(carry: tuple, at: Steps) -> tuple[tuple, jax.Array]:
        alpha, scale = carry
        if at.transitions is None:
            moved, top = _moved(alpha, matrix), matrix_top
        else:
            moves, top = _exp(at.transitions, (1, 2))
            moved, top = _product(alpha, moves), top[..., 0]
        start, start_top = (first, first_top) if at.start is None else _exp(at.start, 1)
        # The sequence before is closed here; its sum multiplies all of the next one.
        closed = jnp.where(at.opened, _product(alpha, last[:, None]), 1.0)
        closed_top = start_top + jnp.where(at.opened, last_top, 0.0)
        seen, seen_top = _exp(at.emissions, 1)
        new = seen * jnp.where(at.begins, closed * start, moved)
        # log Z does not depend on the scale, nor does its gradient.
        total = jax.lax.stop_gradient(jnp.sum(new, axis=1, keepdims=True))
        total = jnp.where(total > 0, total, 1.0)
        grown = (
            scale + jnp.log(total) + seen_top + jnp.where(at.begins, closed_top, top)
        )
        new = jnp.where(at.real, new / total, alpha)
        return (new, jnp.where(at.real, grown, scale)), new

    return jax.lax.scan(step, (alpha, jnp.zeros_like(alpha[:, :1])), steps)


def _scaled(chain: Chain, segments: Int[Array, "B T"]) -> Float[Array, "B"]:
    steps = in_time(chain, segments)
    (alpha, scale), _ = filtered(chain, steps, jnp.zeros_like(chain.emissions[:, 0]))
    last, last_top = _exp(_ends(chain)[1], -1)
    total = scale[:, 0] + _log(_product(alpha, last[:, None]))[:, 0] + last_top
    return jnp.where(jnp.any(segments != 0, axis=1), total, 0.0)


def _sum(scores: Float[Array, "*any"], axis: int) -> Float[Array, "*less"]:
    """Computes log of the sum of exp over an axis."""
    parts, top = _exp(scores, axis)
    return _log(jnp.sum(parts, axis=axis)) + jnp.squeeze(top, axis)


def _log_space(chain: Chain, segments: Int[Array, "B T"]) -> Float[Array, "B"]:
    first, last = _ends(chain)

    def step(alpha: jax.Array, at: Steps) -> tuple[jax.Array, None]:
        new = _sum(_ways(chain, first, last, alpha, at), 1)
        return jnp.where(at.real, new, alpha), None

    B, _, K = chain.emissions.shape
    alpha = jnp.where(jnp.arange(K) == 0, 0.0, jnp.full((B, K), -jnp.inf))
    alpha, _ = jax.lax.scan(step, alpha, in_time(chain, segments))
    return jnp.where(jnp.any(segments != 0, axis=1), _sum(alpha + last, 1), 0.0)


def _ways(
    chain: Chain,
    first: Float[Array, "K"],
    last: Float[Array, "K"],
    alpha: Float[Array, "B K"],
    at: Steps,
) -> Float[Array, "B K K"]:
    """Computes the score of each label with each label before it.

    Args:
      alpha: the scores so far. Before the first step of a row it is 0 for label 0 and
        -inf for the others, since one way leads to each first label.
    """
    moves = chain.transitions if at.transitions is None else at.transitions
    start = first if at.start is None else at.start[:, None]
    into = start + jnp.where(at.opened, last, 0.0)[..., None]
    moved = jnp.where(at.begins[..., None], into, moves)
    return alpha[..., None] + moved + at.emissions[:, None]


# ── Scores, expectations, entropy ───────────────────────────────────────────────────


def score(
    chain: Chain, labels: Int[Array, "B T"], segments: Int[Array, "B T"]
) -> Float[Array, "B"]:
    """Computes the score of a label sequence for each row; its log p is this - log Z.

    Labels at padding may be any numbers.
    """
    each, final = _along(chain, labels, segments)
    return jnp.sum(each, axis=1) + final


def nats(
    chain: Chain, labels: Int[Array, "B T"], segments: Int[Array, "B T"]
) -> Float[Array, "B"]:
    """Computes -log p of a label sequence for each row, log Z - `score`.

    The score of each step is taken from the emissions of all labels there, so that
    the scan adds up the result alone: it keeps more digits than the difference of two
    sums that are far larger.
    """
    each, final = _along(chain, labels, segments)
    less = chain._replace(emissions=chain.emissions - each[..., None])
    return log_partition(less, segments) - final


def _along(
    chain: Chain, labels: Int[Array, "B T"], segments: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B"]]:
    """Computes what each step adds to the score of a label sequence, and the end."""
    chain = first_order(chain)
    steps = in_time(chain, segments)
    begins, opened, real = (x[..., 0].T for x in steps[3:])
    first, last = _ends(chain)
    labels = jnp.where(real, labels, 0)

    def pick(scores: jax.Array) -> jax.Array:
        return jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]

    # The label before, across padding: that of the latest real step.
    T = labels.shape[1]
    latest = jax.lax.cummax(jnp.where(real, jnp.arange(T), 0), axis=1)
    previous = jnp.pad(jnp.take_along_axis(labels, latest, axis=1), ((0, 0), (1, 0)))
    previous = previous[:, :-1]
    if chain.transitions.ndim == 2:
        moves = chain.transitions[previous, labels]
    else:
        rows = jnp.take_along_axis(chain.transitions, previous[..., None, None], axis=2)
        moves = pick(rows[:, :, 0])
    start = first[labels]
    if chain.start is not None and chain.start.ndim == 3:
        start = pick(chain.start)
    start = start + jnp.where(opened, last[previous], 0.0)
    each = pick(chain.emissions) + jnp.where(begins, start, moves)
    final = jnp.take_along_axis(labels, latest[:, -1:], axis=1)[:, 0]
    some = jnp.any(real, axis=1)
    return jnp.where(real, each, 0.0), jnp.where(some, last[final], 0.0)


def expectations(chain: Chain, segments: Int[Array, "B T"]) -> Chain:
    """Computes the expected counts that belong to each score, as the gradient of log Z.

    Returns:
      Probabilities in the places of the scores: in `emissions` (B, T, K) those of each
      label at each step; in `transitions` the expected number of each pair of labels
      (K, K) in the batch, or the probability of each pair at each step (B, T, K, K), if
      the scores have these axes.
    """
    return jax.grad(lambda c: jnp.sum(log_partition(c, segments)))(chain)


def marginals(chain: Chain, segments: Int[Array, "B T"]) -> Float[Array, "B T K"]:
    """Computes the probability of each label at each step; zeros at padding."""
    total = lambda e: jnp.sum(log_partition(chain._replace(emissions=e), segments))  # noqa: E731
    return jax.grad(total)(chain.emissions)


def entropy(chain: Chain, segments: Int[Array, "B T"]) -> Float[Array, "B"]:
    """Computes the entropy of the label sequences of each row, in nats.

    It is log Z less the expected score, which is the derivative of log Z as all scores
    grow in proportion. NaN if every sequence is forbidden.
    """
    finite = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), chain)
    total, mean = jax.jvp(lambda c: log_partition(c, segments), (chain,), (finite,))
    return jnp.where(jnp.isfinite(total), total - mean, jnp.nan)


# ── The best sequences, and samples ─────────────────────────────────────────────────


def best(chain: Chain, segments: Int[Array, "B T"], n: int = 1) -> Best:
    """Finds the n label sequences of the highest scores in each row (Viterbi 1967).

    Several sequences in one row are ranked together.

    Args:
      n: for each label and step the scan keeps the n best ways that lead there.
    """
    if n == 1 and chain.transitions.ndim == 3:
        return _best_pairs(chain, segments)
    chain = first_order(chain)
    first, last = _ends(chain)
    B, _, K = chain.emissions.shape

    def top(scores: Float[Array, "B I J"]) -> tuple[jax.Array, jax.Array]:
        """Returns the n best of axis 1 and where they stand, each (B, N, J)."""
        if n == 1:
            where = jnp.argmax(scores, axis=1, keepdims=True)
            return jnp.take_along_axis(scores, where, axis=1), where
        found, where = jax.lax.top_k(jnp.swapaxes(scores, 1, 2), n)
        return jnp.swapaxes(found, 1, 2), jnp.swapaxes(where, 1, 2)

    # A way is a rank and a label; all N K ways of a step stand on one axis.
    stay = jnp.arange(n * K).reshape(n, K)

    def step(delta: jax.Array, at: Steps) -> tuple[jax.Array, jax.Array]:
        ranks = [_ways(chain, first, last, delta[:, r], at) for r in range(n)]
        new, back = top(jnp.concatenate(ranks, axis=1))
        real = at.real[..., None]
        return jnp.where(real, new, delta), jnp.where(real, back, stay)

    delta = jnp.where(stay == 0, 0.0, jnp.full((B, n, K), -jnp.inf))
    delta, pointers = jax.lax.scan(step, delta, in_time(chain, segments))
    return _follow((delta + last).reshape(B, n * K), pointers, segments, K, n)


def _follow(
    ends: Float[Array, "B W"],
    pointers: Int[Array, "T B *ways"],
    segments: Int[Array, "B T"],
    K: int,
    n: int,
) -> Best:
    """Reads the n best ways from their ends to their beginnings.

    Args:
      ends: the scores of the W = n K ways; way r K + k ends in label k.
      pointers: from the ways of each step to those of the step before.
    """
    scores, way = jax.lax.top_k(ends, n)

    def follow(way: Int[Array, "B N"], back: jax.Array) -> tuple[jax.Array, jax.Array]:
        before = jnp.take_along_axis(back.reshape(ends.shape), way, axis=1)
        return before, way % K

    _, labels = jax.lax.scan(follow, way, pointers, reverse=True)
    labels = jnp.where(segments[:, None] != 0, jnp.moveaxis(labels, 0, 2), 0)
    nothing = jnp.where(jnp.arange(n) == 0, 0.0, -jnp.inf)
    real = jnp.any(segments != 0, axis=1)[:, None]
    return Best(labels, jnp.where(real, scores, nothing))


def _best_pairs(chain: Chain, segments: Int[Array, "B T"]) -> Best:
    """Computes `best` of a chain of second order, looking at H labels for each."""
    first, last = _ends(chain)
    H, C, _ = chain.transitions.shape
    B, K = len(segments), H * C
    stay = jnp.arange(K)

    def step(delta: jax.Array, at: Steps) -> tuple[jax.Array, jax.Array]:
        ways = delta.reshape(B, H, C, 1) + chain.transitions
        back = jnp.argmax(ways, axis=1) * C + jnp.arange(C)[:, None]
        moved = _from_pairs(jnp.max(ways, axis=1), K, -jnp.inf)
        # A sequence begins after the best of all ways that the one before ends in.
        closed = delta + jnp.where(at.opened, last, 0.0)
        start = first if at.start is None else at.start
        into = jnp.max(closed, axis=1, keepdims=True) + start
        end = jnp.argmax(closed, axis=1)[:, None]
        new = jnp.where(at.begins, into, moved) + at.emissions
        back = jnp.where(at.begins, end, _from_pairs(back, K, 0))
        return jnp.where(at.real, new, delta), jnp.where(at.real, back, stay)

    delta = jnp.where(stay == 0, 0.0, jnp.full((B, K), -jnp.inf))
    delta, pointers = jax.lax.scan(step, delta, in_time(chain, segments))
    return _follow(delta + last, pointers, segments, K, 1)


def sample(
    key: PRNGKeyArray, chain: Chain, segments: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """Draws a label sequence for each row by its probability; 0 at padding.

    The labels are drawn from the last to the first, given the one after (Scott 2002).
    """
    chain = first_order(chain)
    steps = in_time(chain, segments)
    zeros = jnp.zeros_like(chain.emissions[:, 0])
    _, alphas = filtered(chain, steps, zeros)
    last = _ends(chain)[1]

    def step(carry: tuple, at: tuple) -> tuple[tuple, jax.Array]:
        # `after` has for each label the score of what was drawn after it.
        after, key = carry
        alpha, now = at
        key, own = jax.random.split(key)
        label = jax.random.categorical(own, _log(alpha) + after)
        moves = chain.transitions if now.transitions is None else now.transitions
        rows = jnp.arange(len(label))
        into = moves[:, label].T if moves.ndim == 2 else moves[rows, :, label]
        before = jnp.where(now.begins, last, into)
        return (jnp.where(now.real, before, after), key), label

    after = jnp.broadcast_to(last, zeros.shape)
    _, labels = jax.lax.scan(step, (after, key), (alphas, steps), reverse=True)
    return jnp.where(segments != 0, labels.T, 0)
