"""Courses of the learning rate after its warmup: `optim.schedule` names one of these.

Each function takes the step, counted from 0 (a float array), and by keyword those of
the following that it depends on, and returns a factor of `optim.lr`:

    warmup: steps of warmup
    decay: steps of `optim.decay`
    steps: steps of the run
    end: `optim.end_lr`, the factor at the end
"""

import jax
import jax.numpy as jnp


def constant(step: jax.Array) -> jax.Array:
    """Keeps the learning rate."""
    return jnp.ones_like(step)


def linear(step: jax.Array, *, warmup: int, steps: int, end: float) -> jax.Array:
    """Falls linearly to `end` at the step after the last."""
    return 1 - (1 - end) * _fallen(step, warmup, steps)


def cosine(step: jax.Array, *, warmup: int, steps: int, end: float) -> jax.Array:
    """Falls along half a cosine to `end` at the step after the last."""
    fallen = _fallen(step, warmup, steps)
    return end + (1 - end) * (1 + jnp.cos(jnp.pi * fallen)) / 2


def rsqrt(step: jax.Array, *, warmup: int) -> jax.Array:
    """Falls with the root of the step (Raffel et al., arXiv:1910.10683, 3.1.2)."""
    return jnp.sqrt(max(warmup, 1) / jnp.maximum(step + 1, warmup))


def wsd(step: jax.Array, *, decay: int, steps: int, end: float) -> jax.Array:
    """Falls linearly over the last `decay` steps (Hu et al., arXiv:2404.06395, 4)."""
    return 1 - (1 - end) * _fallen(step, steps - decay, steps)


def _fallen(step: jax.Array, start: int, steps: int) -> jax.Array:
    """Returns how much of the way from `start` to the end is done, 0 to 1."""
    return jnp.clip((step - start) / max(steps - start, 1), 0.0, 1.0)
