"""Every implementation of attention against the plain one, and what it refuses.

Splash runs in Pallas's interpreter. cuDNN cannot run here: what jax makes of its
arguments without a GPU stands in for it, and its kernels are looked for in the program.
"""

import dataclasses
import functools
import importlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from lm.config import names
from lm.config import resolve as configs
from lm.errors import ConfigError
from lm.models.blocks import layers
from lm.models.transformer import Compute, Model
from lm.ops.attention import kernels as attention_kernels
from lm.ops.attention import limits
from lm.ops.attention.dense import Request, TokenLayout
from tests import tiny

HEADS, DIM = 4, 8
DTYPES = {"xla": "float32", "splash": "float32", "cudnn": "bfloat16"}
CLOSE = {"float32": 2e-5, "bfloat16": 0.04}
SEEN = {
    "both": {},
    "causal": {"causal": True},
    "window": {"window": 3},
    "causal_window": {"causal": True, "window": 3},
}
plain = jax.nn.dot_product_attention


def attend_by(name, query, key, value, **options):
    request = Request(**options)
    return attention_kernels.attend_by(name, query, key, value, request)


@pytest.fixture
def by(monkeypatch):
    """attend_by, for each implementation in the way in which it runs on a CPU."""

    def without_gpu(*args, implementation, **keywords):
        assert implementation == "cudnn"
        return plain(*args, implementation="xla", **keywords)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_gpu)
    return functools.partial(attend_by, interpret=True)


def places(*lengths, padding=0, rows=1, prefix=None):
    """Documents of these lengths side by side, and padding."""
    ids = [np.full(n, i + 1) for i, n in enumerate(lengths)] + [np.zeros(padding)]
    at = [np.arange(n) for n in (*lengths, padding)]
    ids, at = (np.tile(np.concatenate(x), (rows, 1)) for x in (ids, at))
    return TokenLayout(jnp.asarray(at, jnp.int32), jnp.asarray(ids, jnp.int32), prefix)


def arrays(length, keys=None, kv_heads=HEADS, rows=1, dtype="float32"):
    shapes = [(rows, length, HEADS, DIM), *[(rows, keys or length, kv_heads, DIM)] * 2]
    rngs = jax.random.split(jax.random.key(7), 3)
    return [jax.random.normal(r, s).astype(dtype) for r, s in zip(rngs, shapes)]


def with_gradients(by, name, given, query, key, *, start=0, **options):
    """What real queries get, and the gradients of a sum of it.

    The sum's weights depend on the place in the row; the first query is at `start`.
    """
    real = (query.segments != 0)[..., None, None]
    size = (query.segments.shape[1], HEADS, DIM)
    weights = jnp.cos(jnp.arange(np.prod(size)) + start * HEADS * DIM).reshape(size)

    @jax.jit
    def both(given):
        def total(given):
            out = jnp.where(real, by(name, *given, layouts=(query, key), **options), 0)
            return (out.astype(jnp.float32) * weights).sum(), out

        gradients, out = jax.grad(total, has_aux=True)(given)
        return [out, *gradients]

    return [np.asarray(x, np.float32) for x in both(given)]


def agree(found, expected, name):
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=CLOSE[DTYPES[name]])


@pytest.mark.parametrize("seen, kv_heads", list(zip(SEEN, (4, 2, 1, 2))))
@pytest.mark.parametrize("name", DTYPES)
def test_packed_documents_are_as_if_each_were_alone(by, name, seen, kv_heads):
    dtype, lengths = DTYPES[name], (5, 9, 1)
    packed = places(*lengths, padding=2)
    given = arrays(17, kv_heads=kv_heads, dtype=dtype)
    together = with_gradients(by, name, given, packed, packed, **SEEN[seen])
    start = 0
    for length in lengths:
        own, where = slice(start, start + length), places(length)
        document = [x[:, own].astype("float32") for x in given]
        options = SEEN[seen] | {"start": start}
        # Alone by the plain one, with which each thus agrees too.
        alone = with_gradients(by, "xla", document, where, where, **options)
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[:, own], b, atol=CLOSE[dtype])
        start += length
    assert not any(x[:, start:].any() for x in together)


@pytest.mark.slow
@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_rows_of_many_tiles_are_as_the_plain_ones(by, name, seen):
    # Splash leaves out tiles of 128 that nothing can see.
    where = places(130, 30, 100, padding=30)
    given = arrays(290, kv_heads=2, dtype=DTYPES[name])
    options = SEEN[seen] | {"scale": 0.5}
    if "window" in options:
        options["window"] = 70
    if name == "splash":
        options["softcap"] = 2.0
    found = with_gradients(by, name, given, where, where, **options)
    agree(found, with_gradients(by, "xla", given, where, where, **options), name)


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_an_encoder_of_another_length_is_seen_as_the_plain_one_is(by, name):
    query, source = places(4, 3, padding=2), places(6, 150, padding=1)
    given = arrays(9, 157, dtype=DTYPES[name])
    found = with_gradients(by, name, given, query, source)
    agree(found, with_gradients(by, "xla", given, query, source), name)


def test_cudnn_sees_a_prefix(by):
    where = places(8, 4, prefix=jnp.arange(12)[None] % 8 < 3)
    given = arrays(12, dtype="bfloat16")
    options = {"layouts": (where, where), "causal": True}
    found, expected = (by(n, *given, **options) for n in ("cudnn", "xla"))
    np.testing.assert_allclose(
        np.float32(found), np.float32(expected), atol=CLOSE["bfloat16"]
    )


@pytest.mark.parametrize("name", DTYPES)
def test_scores_and_their_softmax_are_float32(by, name):
    # Two scores, 128 and 128.25: one number in bfloat16, whose steps are of 1 there.
    where = places(2)
    query = jnp.zeros((1, 2, 1, 8)).at[..., :2].set([16.0, 1.0]).astype("bfloat16")
    key = jnp.zeros((1, 2, 1, 8)).at[..., 0].set(8.0).at[0, 1, 0, 1].set(0.25)
    value = jnp.zeros((1, 2, 1, 8)).at[0, 1].set(1.0)
    both = key.astype("bfloat16"), value.astype("bfloat16")
    out = by(name, query, *both, layouts=(where, where), scale=1.0)
    np.testing.assert_allclose(np.float32(out), 1 / (1 + np.exp(-0.25)), atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_over_a_mesh_as_on_one_device(by, name, kv_heads):
    where = places(5, 3, padding=2, rows=4)
    given = arrays(10, kv_heads=kv_heads, rows=4, dtype=DTYPES[name])
    rules = (("batch", ("data",)), ("heads", "tensor"))
    expected = with_gradients(by, name, given, where, where, causal=True)
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        names = ("batch", None, "heads", None)
        spec = layers.partition(given[1].shape, rules, *names)
        heads = None if kv_heads == 1 else ("tensor",)
        assert spec == PartitionSpec(("data",), None, heads, None)
        options = {"causal": True, "spec": spec}
        agree(with_gradients(by, name, given, where, where, **options), expected, name)


def program(name, platform, dtype, **options):
    """The program of forward and backward pass for an accelerator that is not here."""
    where = places(60, 30, padding=9)
    given = arrays(99, kv_heads=2, dtype=dtype)
    function = functools.partial(attend_by, name)

    def total(*given):
        out = function(*given, layouts=(where, where), causal=True, **options)
        return out.astype(jnp.float32).sum()

    lowered = jax.jit(jax.grad(total, (0, 1, 2))).trace(*given)
    return lowered.lower(lowering_platforms=(platform,)).as_text()


def test_splash_has_its_kernels_on_a_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    text = program("splash", "tpu", "bfloat16", softcap=5.0, window=20)
    # The forward pass, and those backward to queries and to keys and values.
    assert text.count("@tpu_custom_call") == 3


def test_cudnn_has_its_kernels_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    inside = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    with mock.patch(inside, lambda: 91000):
        text = program("cudnn", "cuda", "bfloat16", window=20)
    # With a bias, which is the mask: segments are in it.
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1


REFUSED = [
    ("cudnn", {"dtype": "float32"}, "cudnn with float32, expected compute.dtype=bfl"),
    ("cudnn", {"dim": 12}, "cudnn with head_dim=12, expected a multiple of 8"),
    ("cudnn", {"dim": 264}, "cudnn with head_dim=264, .* up to 256"),
    ("cudnn", {"softcap": 5.0}, "cudnn with softcap 5.0"),
    ("cudnn", {"bias": True}, "cudnn with a bias by model.position"),
    ("splash", {"bias": True}, "splash with a bias by model.position"),
    ("cudnn", {"dropout": 0.1}, "cudnn with dropout 0.1"),
    ("splash", {"dropout": 0.1}, "splash with dropout 0.1"),
    ("splash", {"prefix": True}, "splash with positions that all of a document see"),
    ("splash", {"dtype": "float32", "precision": "highest"}, "precision=highest"),
]


@pytest.mark.parametrize("name, asked, message", REFUSED)
def test_what_an_implementation_cannot_do_is_refused(name, asked, message):
    dim, dtype = asked.get("dim", 8), asked.get("dtype", "bfloat16")
    query = jnp.zeros((1, 4, 2, dim), dtype)
    prefix = jnp.zeros((1, 4), bool) if asked.get("prefix") else None
    where = places(4, prefix=prefix)
    options = {"bias": jnp.zeros((1, 2, 4, 4))} if asked.get("bias") else {}
    if "dropout" in asked:
        options = {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}
    options |= {k: asked[k] for k in ("softcap", "precision") if k in asked}
    run = functools.partial(attend_by, layouts=(where, where), causal=True, **options)
    with pytest.raises(ConfigError, match=rf"^compute\.attention: found .*{message}"):
        run(name, query, query, query, interpret=True)
    run("xla", query, query, query)


KNOWN = [each for each in REFUSED if "prefix" not in each[1]]  # the batch has it


@pytest.mark.parametrize("name, asked, message", KNOWN)
def test_the_fields_of_a_model_are_enough_to_refuse_it(name, asked, message):
    attention = layers.AttentionOptions(
        head_dim=asked.get("dim", 8),
        softcap=asked.get("softcap"),
        dropout=asked.get("dropout", 0.0),
    )
    compute = Compute(
        attention=name,
        dtype=asked.get("dtype", "bfloat16"),
        precision=asked.get("precision", "default"),
    )
    position = "relative" if asked.get("bias") else "rope"
    build = functools.partial(Model, kind="decoder", position=position)
    with pytest.raises(ConfigError, match=rf"^compute\.attention: found .*{message}"):
        build(attention=attention, compute=compute)
    build(attention=attention, compute=dataclasses.replace(compute, attention="xla"))


def test_the_kernels_are_the_files_that_state_their_limits():
    found = names.words("ops.attention.*:LIMITS", configs.ROOT)
    assert found == ("cudnn", "splash", "xla")
    for name in found:
        kernel = importlib.import_module(f"lm.ops.attention.{name}")
        assert limits.limits(name) == kernel.LIMITS
        assert kernel.LIMITS.keys() <= limits.SHOWN.keys()


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_a_kernel_of_another_machine_is_refused(name):
    where = places(4)
    query = jnp.zeros((1, 4, 2, 8), "bfloat16")
    with pytest.raises(ConfigError, match=f"found {name} on a cpu, .*attention=xla"):
        attend_by(name, query, query, query, layouts=(where, where))


def model(name, kind):
    attention = layers.AttentionOptions(kv_heads=2, window=4, dropout=0.0)
    sizes = {"vocab_size": 32, "num_layers": 2, "d_model": 16, "num_heads": 4}
    compute = Compute(attention=name)
    return Model(
        kind=kind,
        position="rope",
        d_ff=16,
        dropout=0.0,
        attention=attention,
        compute=compute,
        **sizes,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_a_model_is_the_same_by_either_implementation(monkeypatch, kind):
    def interpreted(*args):
        *given, request = args
        return attention_kernels.attend_by(*given, request._replace(interpret=True))

    used = mock.Mock(side_effect=interpreted)
    monkeypatch.setattr(layers, "attend_by", used)
    where, source = places(5, 6, padding=1, rows=2), places(3, 7, padding=2, rows=2)
    batch = {}
    for side, of in (("", where), ("source_", source)):
        tokens = jnp.arange(of.segments.size).reshape(of.segments.shape) % 32
        batch |= {f"{side}inputs": tokens, f"{side}positions": of.positions}
        batch |= {f"{side}segment_ids": of.segments, f"{side}token_types": tokens * 0}
    plain, splash = model("xla", kind), model("splash", kind)
    params = tiny.new(plain)
    real = (where.segments != 0)[..., None]
    found = []
    for each in (plain, splash):
        hidden = each.apply({"params": params}, batch, train=False)
        found.append(np.where(real, hidden, 0))
    np.testing.assert_allclose(*found, atol=2e-5)
    assert {call.args[0] for call in used.call_args_list} == {"xla", "splash"}


def test_with_a_cache_a_model_does_without_kernels(monkeypatch):
    used = mock.Mock(wraps=attention_kernels.attend_by)
    monkeypatch.setattr(layers, "attend_by", used)
    decoder = model("splash", "decoder")
    params = tiny.new(model("xla", "decoder"))
    where = places(4)
    batch = {"inputs": where.positions, "positions": where.positions}
    batch |= {"segment_ids": where.segments, "token_types": where.positions * 0}

    def extend(bound):
        return bound.extend(batch, bound.make_cache(1, 8))[0]

    used.reset_mock()
    hidden = decoder.apply({"params": params}, method=extend)
    assert np.isfinite(hidden).all()
    assert {call.args[0] for call in used.call_args_list} == {"xla"}
