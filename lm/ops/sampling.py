"""The choice of the next token: the one with the highest logit, or a sample."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt


def penalise(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, ""]
) -> Float[Array, "B V"]:
    """Makes tokens that the text has already less likely (Keskar et al. 2019, 4.1).

    Positive logits are divided by the penalty, negative ones multiplied.

    Args:
      seen: which tokens of the vocabulary each text has.
    """
    lower = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, lower, logits)


def keep_top_k(logits: Float[Array, "B V"], k: Int[Array, ""]) -> Float[Array, "B V"]:
    """Keeps the k highest logits of each row, with ties of the last; 0 keeps all."""
    count = jnp.where(k > 0, k, logits.shape[-1]).astype(jnp.float32)
    return _keep_mass(logits, jnp.ones_like(logits), count)


def keep_top_p(logits: Float[Array, "B V"], p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Keeps the most probable tokens that together reach p (Holtzman et al. 2020)."""
    return _keep_mass(logits, jax.nn.softmax(logits, axis=-1), p)


def keep_min_p(logits: Float[Array, "B V"], p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Keeps tokens of at least p times the highest probability (Nguyen et al. 2024)."""
    least = logits.max(axis=-1, keepdims=True) + jnp.log(p)
    return jnp.where(logits >= least, logits, -jnp.inf)


def _keep_mass(
    logits: Float[Array, "B V"], weights: Float[Array, "B V"], needed: Float[Array, ""]
) -> Float[Array, "B V"]:
    """Keeps the highest logits of each row whose weights together reach `needed`.

    The lowest logit to keep is found bit by bit, which is exact, and on a CPU much
    faster than to sort the vocabulary.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    # These unsigned integers have the order of the floats.
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def next_bit(i: Int[Array, ""], least: UInt[Array, "B 1"]) -> UInt[Array, "B 1"]:
        raised = least | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        mass = jnp.where(order >= raised, weights, 0.0).sum(axis=-1, keepdims=True)
        return jnp.where(mass >= needed, raised, least)

    start = jnp.zeros((len(logits), 1), jnp.uint32)
    least = jax.lax.fori_loop(0, 32, next_bit, start)
    return jnp.where(order >= least, logits, -jnp.inf)


def choose(
    logits: Float[Array, "B V"],
    keys: Key[Array, "B"],
    *,
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    min_p: Float[Array, ""],
) -> Int[Array, "B"]:
    """Chooses the next token of each row: a sample, or the highest logit.

    All settings are arrays, so that one compiled program serves all of their values;
    what is off costs nothing.

    Args:
      keys: a random key for each row.
      temperature: divides the logits; 0 chooses the highest logit.
      top_k, top_p, min_p: off at 0, 1 and 0; they apply in this order.
    """

    def cut(logits: jax.Array) -> jax.Array:
        kept = keep_top_p(keep_top_k(logits, top_k), top_p)
        return keep_min_p(kept, min_p)

    def draw(logits: jax.Array) -> jax.Array:
        logits = logits / temperature
        some = (top_k > 0) | (top_p < 1.0) | (min_p > 0.0)
        logits = jax.lax.cond(some, cut, lambda logits: logits, logits)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.argmax(logits + noise, axis=-1)

    def highest(logits: jax.Array) -> jax.Array:
        return jnp.argmax(logits, axis=-1)

    return jax.lax.cond(temperature > 0.0, draw, highest, logits).astype(jnp.int32)
