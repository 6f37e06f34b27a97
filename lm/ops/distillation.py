"""Losses by which a student learns what a teacher computes, for each target or token.

Hinton et al. 2015, section 2 (soft targets); Sanh et al. 2019 (DistilBERT), section 3
(cosine of states); Jiao et al. 2020 (TinyBERT), section 3.1 (squared error of states).
The teacher's side gets no gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm.ops import losses


def _itself(states: Array) -> Array:
    return states


class Soft(NamedTuple):
    """The logits of the targets of a term, as the teacher or the student gives them.

    Attributes:
      states: one for each target, (B, D) or (B, K, D): the logits themselves, or what
        `logits` makes them of, a part at a time where they are many.
      weights: of the targets, (B,) or (B, K), as in the term's own loss.
      kind: what they are, a function of this file: "softmax", "sigmoid" or
        "regression".
      logits: states -> logits, in the last axis.
    """

    states: Array
    weights: Array
    kind: str = "softmax"
    logits: Callable[[Array], Array] = _itself


def softmax(
    student: Float[Array, "*any C"], teacher: Float[Array, "*any C"], temperature: float
) -> Float[Array, "*any"]:
    """Computes T^2 KL(teacher || student) of softmax(logits / T), in nats.

    The factor keeps the size of the gradient when T changes (Hinton et al. 2015,
    section 2).
    """
    own = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    log_p = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    p = jnp.exp(log_p)
    # A logit of -inf excludes a class: 0 log 0 is 0.
    each = jnp.where(p > 0, p * (log_p - own), 0.0)
    return temperature**2 * each.sum(-1)


def sigmoid(
    student: Float[Array, "*any C"], teacher: Float[Array, "*any C"], temperature: float
) -> Float[Array, "*any"]:
    """Computes T^2 KL of the yes and no of each class, the mean over classes."""
    own, theirs = (x.astype(jnp.float32) / temperature for x in (student, teacher))
    total = jnp.zeros_like(own)
    for sign in (1.0, -1.0):
        log_p = jax.nn.log_sigmoid(sign * theirs)
        total += jnp.exp(log_p) * (log_p - jax.nn.log_sigmoid(sign * own))
    return temperature**2 * total.mean(-1)


def regression(
    student: Float[Array, "*any C"], teacher: Float[Array, "*any C"], temperature: float
) -> Float[Array, "*any"]:
    """Computes the squared error of outputs; it has no temperature."""
    return jnp.square(student - teacher).mean(-1)


KINDS = {"softmax": softmax, "sigmoid": sigmoid, "regression": regression}


def soft_loss(
    student: Soft, teacher: Soft, temperature: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns (summed loss of the targets, their weight), by the student's weights.

    Where logits are many, they are computed by chunks of targets, and again in the
    backward pass.
    """
    compare, given = KINDS[student.kind], jax.lax.stop_gradient(teacher.states)

    def total(own: Array, theirs: Array, weights: Array) -> Array:
        wanted = jax.lax.stop_gradient(teacher.logits(theirs))
        each = compare(student.logits(own), wanted, temperature)
        return losses.weighted(each, weights)[0]

    count = student.weights.astype(jnp.float32).sum()
    parts = student.states, given, student.weights
    if student.states.ndim == 3:
        rows, length, _ = student.states.shape
        size = jax.eval_shape(student.logits, student.states).shape[-1]
        chunk = losses.chunk_of(rows, length, 2 * size)
        if chunk < length:
            cut = tuple(losses.in_chunks(array, chunk) for array in parts)
            again = jax.checkpoint(total)
            found = jax.lax.scan(
                lambda sum_, part: (sum_ + again(*part), None), jnp.zeros(()), cut
            )
            return found[0], count
    return total(*parts), count


def mse(
    student: Float[Array, "*any D"], teacher: Float[Array, "*any D"]
) -> Float[Array, "*any"]:
    """Computes the mean squared error of two vectors."""
    return jnp.square(student - teacher).mean(-1)


def cosine(
    student: Float[Array, "*any D"], teacher: Float[Array, "*any D"]
) -> Float[Array, "*any"]:
    """Computes 1 - the cosine of two vectors."""
    lengths = (jnp.sum(jnp.square(x), axis=-1) for x in (student, teacher))
    # Without the bound the gradient at zero would be NaN.
    one, other = (jax.lax.rsqrt(jnp.maximum(each, 1e-24)) for each in lengths)
    return 1.0 - jnp.sum(student * teacher, axis=-1) * one * other


MATCHES = {"mse": mse, "cosine": cosine}


def state_loss(
    student: Float[Array, "B T D"],
    teacher: Float[Array, "B T E"],
    kernel: Float[Array, "D E"] | None,
    match: str,
) -> Float[Array, "B T"]:
    """Computes how far the states of tokens are from the teacher's, float32.

    Args:
      kernel: maps the student's states to the teacher's width; None: no map.
      match: "mse" or "cosine".
    """
    own, theirs = student.astype(jnp.float32), teacher.astype(jnp.float32)
    if kernel is not None:
        own = jnp.einsum("btd,de->bte", own, kernel, precision="highest")
    return MATCHES[match](own, jax.lax.stop_gradient(theirs))
