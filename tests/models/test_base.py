"""What models say of themselves, held against what they do."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lm.errors import ConfigError
from lm.models import base
from lm.models.base import Compute, Head, Trunk
from lm.models.blocks.heads import Linear
from lm.models.blocks.layers import named
from lm.models.transformer import Model
from lm.objectives import mlm

TINY = {
    "vocab_size": 40,
    "num_layers": 3,
    "d_model": 16,
    "num_heads": 4,
    "d_ff": 48,
    "max_len": 16,
    "token_types": 0,
}
MASKED = mlm.Objective().heads()
GROUPED = {"attention": {"kv_heads": 2, "head_dim": 8}}
SHAPES = [
    {"kind": "encoder", "heads": MASKED},
    {"kind": "encoder", "heads": MASKED, "activation": "geglu"},
    {"kind": "decoder", "activation": "swiglu", "position": "rope"} | GROUPED,
    {"kind": "encoder_decoder", "encoder_layers": 2, "position": "relative"} | GROUPED,
]


def make(**fields):
    from lm.config import resolve as configs

    heads = fields.pop("heads", ())
    compute = fields.pop("compute", Compute())
    return configs.build(Model, TINY | fields, heads=heads, compute=compute)


def batch_of(model, rows=2, length=6, source=5):
    sizes = {"": length, "source_": source}
    names = {"inputs", "positions", "segment_ids"} | model.reads
    return {
        name: jnp.ones((rows, sizes["source_" * name.startswith("source_")]), jnp.int32)
        for name in names
    }


def products(jaxpr):
    """The multiplications of all matrix products of a program."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [
            getattr(leaf, "jaxpr", leaf)
            for value in eqn.params.values()
            for leaf in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "eqns"))
            if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ]
        total += eqn.params.get("length", 1) * sum(map(products, inner))
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            shared = math.prod(left[axis] for axis in contract)
            total += math.prod(eqn.outvars[0].aval.shape) * shared
    return total


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s['kind']}-{len(s)}")
def test_the_flops_are_those_of_the_matrix_products(shape):
    model = make(**shape)
    batch = batch_of(model)
    params = jax.eval_shape(
        lambda: meta.unbox(model.init(jax.random.key(0), method="touch")["params"])
    )

    def forward(params, batch):
        return model.apply(
            {"params": params}, batch, method=lambda m, b: m.logits(m(b, train=False))
        )

    counted = products(jax.make_jaxpr(forward)(params, batch).jaxpr)
    many = "target_positions" if shape["kind"] == "encoder" else "targets"
    assert model.flops(batch | {many: batch["inputs"]}) == 6.0 * counted


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s['kind']}-{len(s)}")
def test_it_reads_what_it_says_and_nothing_else(shape):
    model = make(**shape, token_types=2)
    params = model.init(jax.random.key(0), method="touch")
    run = functools.partial(model.apply, params, train=False)
    batch = batch_of(model)
    assert run(batch).shape == (2, 6, 16)
    for name in batch:
        with pytest.raises(KeyError, match=name):
            run({other: x for other, x in batch.items() if other != name})


def test_what_each_kind_can_do():
    always = {"embeds", "hidden", "head", "layers"}
    assert make(kind="encoder").can == {*always, "whole"}
    assert "logits" in make(kind="encoder", heads=MASKED).can
    decoder = make(kind="decoder")
    generates = {"logits", "causal", "extend", "prefix"}
    assert decoder.can == always | generates
    assert "beyond" in make(kind="decoder", position="rope").can
    both = make(kind="encoder_decoder").can
    assert {"encode", "extend", "causal"} <= both
    assert not {"prefix", "whole", "layers"} & both
    assert decoder.can | both < base.ABILITIES.keys()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s['kind']}-{len(s)}")
def test_the_small_model_is_small_and_of_the_same_kind(shape):
    from lm.config import resolve as configs

    big = {"num_layers": 12, "d_model": 768, "num_heads": 12, "d_ff": 3072}
    model = make(**shape, **big)
    tree = TINY | shape | big | {"attention": dict(shape.get("attention", {}))}
    for path, value in (model.small() | model.exact(99)).items():
        group, _, name = path.rpartition(".")
        (tree[group] if group else tree)[name] = value
    heads = tree.pop("heads", ())
    small = configs.build(Model, tree, heads=heads)
    assert small.d_ff == 4 * small.d_model == 4 * 96
    assert small.num_layers == 2 and small.context == 99
    assert small.dropout == small.attention.dropout == 0.0
    assert small.can == model.can and small.reads == model.reads


def test_a_model_that_cannot_is_refused_in_a_line():
    with pytest.raises(ConfigError, match=r"cannot continue.*'extend'.*objective echo"):
        base.check_can(make(kind="encoder"), {"hidden", "extend"}, "objective echo")
    base.check_can(make(kind="decoder"), {"hidden", "extend"}, "objective echo")


class Scored(nn.Module):
    """A head with parameters of its own beside a dense layer, and two results."""

    trunk: Trunk
    tags: int

    def setup(self):
        self.emit = Linear(self.trunk, self.tags)
        ones = named(nn.initializers.ones, None, None)
        self.transitions = self.param("transitions", ones, (self.tags, self.tags))

    def __call__(self, hidden):
        return {"emissions": self.emit(hidden), "transitions": self.transitions}


@pytest.mark.parametrize("row", [None, "first", "last", "max", "mean"])
def test_a_head_brings_its_module_and_its_parameters(row):
    heads = (Head("tags", functools.partial(Scored, tags=3), row=row, pooler="relu"),)
    model = make(kind="encoder", heads=heads, dropout=0.0)
    params = meta.unbox(model.init(jax.random.key(0), method="touch")["params"])
    assert set(params["heads"]["tags"]) == {"emit", "transitions"}
    hidden = jax.random.normal(jax.random.key(1), (2, 5, 16)) - 2.0
    segments = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = model.apply(
        {"params": params}, "tags", hidden, segments, train=False, method="head"
    )
    hidden = np.asarray(hidden)
    read = {
        None: hidden,
        "first": hidden[:, 0],
        "last": hidden[[0, 1], [2, 4]],
        "max": np.stack([hidden[0, :3].max(axis=0), hidden[1].max(axis=0)]),
        "mean": np.stack([hidden[0, :3].mean(axis=0), hidden[1].mean(axis=0)]),
    }[row]
    pooler, emit = params["pooler"], params["heads"]["tags"]["emit"]
    pooled = np.maximum(read @ pooler["kernel"] + pooler["bias"], 0.0)
    expected = pooled @ emit["kernel"] + emit["bias"]
    np.testing.assert_allclose(found["emissions"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["transitions"], np.ones((3, 3)))
