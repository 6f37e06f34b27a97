"""Changes only the rows of tables that a part of a batch touches, and nothing else.

A dense gradient of a table of word vectors is nearly all zeros, and an optimiser over
it would read and write all of the table at every step. Here a step is a loop over
mini-batches of a few spans (`lm.objectives.by_rows`); each gathers the rows that it
touches, differentiates its loss with respect to them alone, and adds their updates to
the tables. A row that occurs several times in a mini-batch gets the sum of its updates.

A mini-batch contributes the sum over its targets, not their mean, so that each target
has the whole learning rate, as in the published programs of word2vec and GloVe.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lm.errors import Rule
from lm.updates import plain

BOUNDS = {"size": "[1, 1048576]", "most": "[1, inf)"}
RULES = ("sgd", "adagrad")
EPSILON = 1e-7  # of optax.adagrad

Tables = dict[str, Array]


class Sums(NamedTuple):
    """What the mini-batches of a step add up to.

    Attributes:
      terms: (sum, count) of each term of the loss.
      square: the sum of the squares of all gradients.
      sound: whether all of them were finite; none after the first other one counts.
    """

    terms: dict[str, tuple[Array, Array]]
    square: Float[Array, ""]
    sound: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Update(plain.Update):
    """Options of `rows`; config.optim names the rule and its learning rate.

    Attributes:
      size: spans of a mini-batch.
      most: a row that occurs more often than this in a mini-batch gets so many times
        the mean of its updates instead of their sum. Without it a row that occurs in
        every target, such as the root of hierarchical softmax, takes too large a step,
        as all of its updates are made from one value of it. None: the sum in any case.
    """

    size: int = 8
    most: int | None = None

    in_place: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rows"})

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        """Yields what of config.optim the update of single rows can do."""
        optim, parts = config["optim"], config["grad_accum"]
        expected = "sgd or adagrad, for update rows"
        yield Rule(optim.name in RULES, "optim.name", repr(optim.name), expected)
        expected = "0: update rows changes no row that is not touched"
        yield Rule(
            optim.weight_decay == 0, "optim.weight_decay", optim.weight_decay, expected
        )
        expected = "0: update rows has no gradient of the whole batch"
        yield Rule(optim.clip == 0, "optim.clip", optim.clip, expected)
        yield Rule(
            parts == 1, "grad_accum", parts, "1 with update rows, see update.size"
        )
        expected = "nothing, with update rows"
        for name in ("multipliers", "freeze"):
            yield Rule(not optim[name], f"optim.{name}", f"{optim[name]}", expected)
        yield Rule(optim.ema is None, "optim.ema", optim.ema, "None, with update rows")
        start = "initial_accumulator_value"
        known = {start} if optim.name == "adagrad" else set()
        others = sorted(optim.options.keys() - known)
        yield Rule(
            not others,
            f"optim.options.{others[0]}" if others else "optim.options",
            "an option",
            f"only {start}, of adagrad, with update rows",
        )

    def start(self, optim: Mapping[str, Any], tables: Tables) -> Tables:
        """Makes the rule's state: {}, or AdaGrad's sums of squares by table."""
        if optim["name"] == "sgd":
            return {}
        first = optim["options"].get("initial_accumulator_value", 0.1)
        return {path: jnp.full_like(table, first) for path, table in tables.items()}

    def sweep(
        self,
        objective: Any,
        tables: Tables,
        squares: Tables,
        batch: dict[str, Array],
        rate: Float[Array, ""],
        sound: Bool[Array, ""],
    ) -> tuple[Tables, Tables, Sums]:
        """Goes over the mini-batches of a batch, and changes the rows that they touch.

        Args:
          objective: of lm.objectives.by_rows.
          tables: by the paths of their parameters.
          squares: the state of the rule.
          rate: the learning rate.
          sound: False: nothing is changed.

        Returns:
          Tables and state after the batch, and the sums over the mini-batches.
        """
        spans = objective.spans(batch)
        used = spans["weights"].reshape(len(spans["weights"]), -1).any(axis=1)
        # Spans that hold something first, and empty ones up to a whole mini-batch.
        order = jnp.argsort(~used, stable=True)
        order = jnp.pad(order, (0, -len(order) % self.size), constant_values=-1)
        parts = -(-used.sum() // self.size)

        def loss(rows: Tables, part: dict[str, Array]) -> tuple[Array, Any]:
            terms = objective.terms(rows, part)
            return jnp.asarray(sum(total for total, _ in terms.values())), terms

        def one(number: Array, carry: tuple) -> tuple:
            tables, squares, seen, sums = carry
            chosen = jax.lax.dynamic_slice_in_dim(order, number * self.size, self.size)
            part = {name: array[chosen] for name, array in spans.items()}
            there = (chosen >= 0).reshape(-1, *[1] * (part["weights"].ndim - 1))
            part["weights"] = part["weights"] * there
            touched = objective.touched(part)
            rows = {use: tables[path][ids] for use, (path, ids) in touched.items()}
            (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(rows, part)
            square = sum(jnp.sum(grad * grad) for grad in grads.values())
            total = sum(total for total, _ in terms.values())
            good = sums.sound & jnp.isfinite(square) & jnp.isfinite(total)
            sums = Sums(
                jax.tree.map(jnp.add, sums.terms, terms), sums.square + square, good
            )
            for path in dict.fromkeys(path for path, _ in touched.values()):
                uses = [use for use, (where, _) in touched.items() if where == path]
                table = tables[path]
                ids = jnp.concatenate([touched[use][1].reshape(-1) for use in uses])
                grad = jnp.concatenate(
                    [grads[use].reshape(-1, *table.shape[1:]) for use in uses]
                )
                if self.most is not None:
                    real = (grad != 0).reshape(len(grad), -1).any(axis=1)
                    times = seen[path].at[ids].add(real)
                    share = jnp.minimum(1, self.most / jnp.maximum(times[ids], 1))
                    grad = grad * share.reshape(-1, *[1] * (grad.ndim - 1))
                    seen = seen | {path: times.at[ids].set(0)}
                if path in squares:
                    squared = jnp.where(good, grad * grad, 0)
                    squares = squares | {path: squares[path].at[ids].add(squared)}
                    grad = grad * jax.lax.rsqrt(squares[path][ids] + EPSILON)
                change = jnp.where(good, -rate * grad, 0)
                tables = tables | {path: table.at[ids].add(change)}
            return tables, squares, seen, sums

        zero = jnp.zeros(())
        names = objective.counts(batch)
        first = Sums(dict.fromkeys(names, (zero, zero)), zero, sound)
        seen = {}
        if self.most is not None:
            seen = {path: jnp.zeros(len(table)) for path, table in tables.items()}
        carry = (tables, squares, seen, first)
        tables, squares, _, sums = jax.lax.fori_loop(0, parts, one, carry)
        return tables, squares, sums
