"""The update of single rows beside dense descent; only touched rows change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.updates import rows
from tests import tiny

OPTIM = {"name": "sgd", "options": {}}
TABLE = "table"


@dataclasses.dataclass(frozen=True)
class Squares:
    """An objective whose loss is the sum of weights x (row . row)^2 / 4."""

    def spans(self, batch):
        return batch

    def touched(self, spans):
        return {"it": (TABLE, spans["ids"]), "again": (TABLE, spans["ids"][:, :1])}

    def terms(self, found, spans):
        size = (found["it"] ** 2).sum(axis=-1) ** 2 / 4
        first = (found["again"] ** 2).sum(axis=-1)
        total = (size * spans["weights"]).sum() + (
            first * spans["weights"][:, :1]
        ).sum()
        return {"squares": (total, spans["weights"].sum())}

    def counts(self, batch):
        return {"squares": batch["weights"].sum()}


def made():
    rng = np.random.default_rng(0)
    table = {TABLE: jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)}
    ids = jnp.asarray([[1, 2], [2, 5], [0, 0], [1, 1], [5, 2]])
    weights = jnp.ones((5, 2)).at[2].set(0)  # An empty span between others.
    return table, {"ids": ids, "weights": weights}


def sweep(update, table, batch, optim=OPTIM, sound=True):
    squares = update.start(optim, table)
    run = jax.jit(
        lambda t, s: update.sweep(Squares(), t, s, batch, 0.01, jnp.bool_(sound))
    )
    return run(table, squares)


def dense(table, batch):
    def loss(table):
        uses = Squares().touched(batch)
        found = {use: table[path][ids] for use, (path, ids) in uses.items()}
        return Squares().terms(found, batch)["squares"][0]

    return jax.grad(loss)(table)


def test_one_mini_batch_is_a_step_of_dense_descent():
    table, batch = made()
    found, _, sums = sweep(rows.Update(size=5), table, batch)
    grads = dense(table, batch)
    np.testing.assert_allclose(
        found[TABLE], table[TABLE] - 0.01 * grads[TABLE], rtol=1e-6
    )
    untouched = [0, 3, 4, 6, 7, 8]
    same = np.asarray(found[TABLE])[untouched] == np.asarray(table[TABLE])[untouched]
    assert same.all() and float(sums.terms["squares"][1]) == 8


def test_mini_batches_follow_each_other():
    table, batch = made()
    found, _, _ = sweep(rows.Update(size=2), table, batch)
    wanted = table
    for part in ([0, 1], [3, 4]):  # The empty span is left out.
        some = {name: array[jnp.asarray(part)] for name, array in batch.items()}
        wanted = {TABLE: wanted[TABLE] - 0.01 * dense(wanted, some)[TABLE]}
    np.testing.assert_allclose(found[TABLE], wanted[TABLE], rtol=1e-6)


def test_a_row_that_occurs_often_is_held_back():
    table, batch = made()
    found, _, _ = sweep(rows.Update(size=5, most=1), table, batch)
    whole = dense(table, batch)[TABLE]
    times = {1: 5, 2: 4, 5: 3}  # Both uses, without the empty span.
    for row, count in times.items():
        wanted = table[TABLE][row] - 0.01 * whole[row] / count
        np.testing.assert_allclose(found[TABLE][row], wanted, rtol=1e-5)


def test_adagrad_divides_by_the_root_of_the_sum_of_squares():
    table, batch = made()
    optim = {"name": "adagrad", "options": {"initial_accumulator_value": 1.0}}
    once = {name: array[:1] for name, array in batch.items()}  # Rows 1 and 2.
    found, squares, _ = sweep(rows.Update(size=1), table, once, optim)
    uses = Squares().touched(once)
    given = {use: table[path][ids] for use, (path, ids) in uses.items()}
    grads = jax.grad(lambda r: Squares().terms(r, once)["squares"][0])(given)
    first, second = grads["it"][0]
    again = grads["again"][0, 0]
    total = 1 + first**2 + again**2  # Each occurrence counts by itself.
    np.testing.assert_allclose(squares[TABLE][1], total, rtol=1e-6)
    wanted = table[TABLE][1] - 0.01 * (first + again) / jnp.sqrt(total)
    np.testing.assert_allclose(found[TABLE][1], wanted, rtol=1e-5)
    wanted = table[TABLE][2] - 0.01 * second / jnp.sqrt(1 + second**2)
    np.testing.assert_allclose(found[TABLE][2], wanted, rtol=1e-5)
    assert (np.asarray(squares[TABLE])[[0, 3, 5]] == 1).all()


@pytest.mark.parametrize("sound", [True, False])
def test_what_is_not_finite_changes_nothing(sound):
    table, batch = made()
    if sound:
        table = {TABLE: table[TABLE].at[2].set(jnp.nan)}
    found, _, sums = sweep(rows.Update(size=5), table, batch, sound=sound)
    np.testing.assert_array_equal(found[TABLE], table[TABLE])
    assert not sums.sound


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__name": "adamw"},
        {"optim__clip": 1.0},
        {"optim__weight_decay": 0.1},
        {"optim__options": {"momentum": 0.9}},
        {"grad_accum": 2},
        {"objective": {"name": "causal_lm"}, "model__name": "rnn"},
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(changes):
    from lm import run as runs
    from lm.errors import ConfigError

    plain = {"name": "sgd", "lr": 0.1, "clip": 0.0, "weight_decay": 0.0}
    given = {"update": {"name": "rows"}, "optim": plain, "evals": {}}
    given |= {"model": {"name": "word_vectors"}, "objective": {"name": "word2vec"}}
    runs.check(tiny.config(**given))
    with pytest.raises(ConfigError):
        runs.check(tiny.config(**given | changes))
