"""Losses against numpy; and in chunks: the same numbers, less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import losses
from lm.ops.dense import project

SETTINGS = [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}]


def inputs(rows=2, length=7, dim=5, vocab=11):
    draw = np.random.default_rng(0)
    weights = draw.integers(0, 2, (rows, length)).astype(np.float32)
    return (
        jnp.asarray(draw.normal(size=(vocab, dim)), jnp.float32),
        jnp.asarray(draw.normal(size=(rows, length, dim)), jnp.float32),
        jnp.asarray(draw.integers(0, vocab, (rows, length)), jnp.int32),
        jnp.asarray(weights),
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "smooth", "z"])
def test_token_losses_by_the_formula(settings):
    table, hidden, targets, _ = inputs()
    logits = np.asarray(hidden @ table.T, np.float64)
    log_total = np.log(np.exp(logits).sum(-1))
    log_p = logits - log_total[..., None]
    smooth = settings.get("label_smoothing", 0.0)
    wanted = np.full(logits.shape, smooth / 11)
    np.put_along_axis(
        wanted, np.asarray(targets)[..., None], 1 - smooth + smooth / 11, -1
    )
    expected = -(wanted * log_p).sum(-1) + settings.get("z_loss", 0.0) * log_total**2
    found = losses.token_losses(jnp.asarray(logits, jnp.float32), targets, **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "smooth", "z"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_in_chunks_as_at_once(chunk, settings):
    table, hidden, targets, weights = inputs()
    logits = functools.partial(project, scale=0.7, softcap=3.0)

    def at_once(table, hidden):
        whole = logits(hidden, table)
        return losses.cross_entropy(whole, targets, weights, **settings)

    def in_chunks(table, hidden):
        return losses.chunked_cross_entropy(
            logits, table, hidden, targets, weights, chunk=chunk, **settings
        )

    for found, expected in zip(in_chunks(table, hidden), at_once(table, hidden)):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The gradient of a mean, so that the factor from above is not 1.
    both = [
        jax.grad(lambda *a: f(*a)[0] / 3.0, argnums=(0, 1))(table, hidden)  # noqa: B023
        for f in (in_chunks, at_once)
    ]
    for found, expected in zip(*both):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_chunk_is_all_that_memory_holds():
    """Peak memory of the compiled gradient falls by what the logits need."""
    rows, length, dim, vocab = 2, 256, 8, 4096
    table, hidden, targets, weights = inputs(rows, length, dim, vocab)

    def bytes_with(chunk):
        def loss(table, hidden):
            return losses.chunked_cross_entropy(
                lambda h, t: project(h, t),
                table,
                hidden,
                targets,
                weights,
                chunk=chunk,
            )[0]

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(table, hidden)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    logits = rows * length * vocab * 4
    assert bytes_with(length) > logits
    assert bytes_with(16) < logits / 4


def test_the_chunk_follows_from_the_size_of_the_logits():
    assert losses.chunk_of(4, 128, 1000) == 128
    chunk = losses.chunk_of(8, 1024, 50257)
    assert chunk < 1024
    assert 8 * chunk * 50257 <= losses.MOST_LOGITS < 8 * 2 * chunk * 50257
    assert losses.chunk_of(1 << 20, 8, 1 << 20) == 1
