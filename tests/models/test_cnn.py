"""The gated convolutional model: what a state depends on, and what changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lm import trees
from lm.decoding import loop
from lm.models.base import Compute, Decodes, Head, Headed
from lm.models.blocks.heads import Linear
from lm.models.cnn import Model
from tests import tiny
from tests.models.test_base import products

SIZES = {"vocab_size": 24, "num_layers": 2, "d_model": 8, "width": 3, "dropout": 0.0}
KINDS = {"glu": {}, "gtu": {"gate": "gtu"}, "bottleneck": {"bottleneck": 4}}
kinds = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def make(kind="bottleneck", **fields):
    """A model with parameters that are stirred: biases are zero at first."""
    model = Model(**SIZES | KINDS[kind] | fields)
    init = jax.jit(lambda key: model.init(key, method="touch")["params"])
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: x + rng.normal(0.0, 0.3, x.shape).astype(np.float32),
        meta.unbox(init(jax.random.key(0))),
    )


def batch_of(inputs, segments=None):
    inputs = np.atleast_2d(inputs)
    segments = np.ones_like(inputs) if segments is None else np.atleast_2d(segments)
    places = np.arange(inputs.shape[1])[None].repeat(len(inputs), 0)
    arrays = {"inputs": inputs, "positions": places, "segment_ids": segments}
    return {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}


@functools.partial(jax.jit, static_argnums=0)
def hidden_of(model, params, batch):
    return model.apply({"params": params}, batch, train=False)


def tokens(rows=2, length=9, seed=0):
    return np.random.default_rng(seed).integers(0, 24, (rows, length))


def written_out(kind, params, text):
    """The states of each token of one text, by a loop over tokens and offsets."""
    width, gtu = SIZES["width"], kind == "gtu"
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def gated(layer, *window):
        kernel = layer["kernel"].reshape(len(window), -1, *layer["bias"].shape)
        both = layer["bias"] + sum(
            np.einsum("i,igo->go", x, part) for x, part in zip(window, kernel)
        )
        value = np.tanh(both[0]) if gtu else both[0]
        return value / (1.0 + np.exp(-both[1]))

    x = params["embed"]["embedding"][text] * 8**0.5
    for n in range(SIZES["num_layers"]):
        layer = jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"])
        y = [gated(layer["down"], each) for each in x] if "down" in layer else [*x]
        y = [np.zeros_like(y[0])] * (width - 1) + y
        y = [gated(layer["conv"], *y[t : t + width]) for t in range(len(text))]
        y = [gated(layer["up"], each) for each in y] if "up" in layer else y
        x = (x + np.array(y)) / 2**0.5
    return x


@kinds
def test_the_states_are_those_of_the_loop_written_out(kind):
    model, params = make(kind)
    rows = tokens()
    for row, states in zip(rows, hidden_of(model, params, batch_of(rows))):
        np.testing.assert_allclose(states, written_out(kind, params, row), atol=1e-4)


def test_texts_in_one_row_are_texts_apart():
    model, params = make()
    texts = tokens(1, 5)[0], tokens(1, 2, seed=1)[0], tokens(1, 4, seed=2)[0]
    row = np.concatenate([[7, 7], *texts, [0, 0]])
    segments = np.repeat([0, 1, 2, 3, 0], [2, 5, 2, 4, 2])
    found = np.asarray(hidden_of(model, params, batch_of(row, segments)))[0]
    for number, text in enumerate(texts, 1):
        alone = hidden_of(model, params, batch_of(text))[0]
        np.testing.assert_allclose(found[segments == number], alone, atol=1e-5)
    assert np.isfinite(found).all()


@kinds
def test_a_state_depends_on_the_tokens_within_its_reach(kind):
    """By the gradient of one state with respect to every token's embedding."""
    model, params = make(kind)
    model = model.clone(vocab_size=18)
    at, reach = 6, (SIZES["width"] - 1) * SIZES["num_layers"]
    batch = batch_of(np.arange(18).reshape(2, 9))

    def state(table):
        given = params | {"embed": {"embedding": table}}
        return hidden_of(model, given, batch)[0, at] @ jnp.arange(8.0)

    table = jax.random.normal(jax.random.key(2), (18, 8))
    gradient = np.abs(jax.jit(jax.grad(state))(table)).max(axis=-1).reshape(2, 9)
    assert (gradient[0, at - reach : at + 1] > 0).all()
    assert (gradient[0, : at - reach] == 0).all()
    assert (gradient[0, at + 1 :] == 0).all()
    assert (gradient[1] == 0).all()


def test_the_cache_gives_what_the_whole_text_gives():
    """Prompts of unequal length, padded before; a part shorter than the cache too."""
    model, params = make()
    whole = batch_of(tokens(2, 9), [[0, 0] + [1] * 7, [1] * 9])
    extend = jax.jit(functools.partial(model.apply, method="extend"))
    cache, parts = model.make_cache(2, 9), []
    for begin, end in [(0, 1), (1, 5), *((n, n + 1) for n in range(5, 9))]:
        part = {name: x[:, begin:end] for name, x in whole.items()}
        found, cache = extend({"params": params}, part, cache)
        parts.append(found)
    found, real = np.concatenate(parts, 1), whole["segment_ids"] > 0
    expected = np.asarray(hidden_of(model, params, whole))
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5)
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(
        jnp.shape, model.make_cache(2, 0)
    )


class Words:
    """What decoding asks of a tokenizer."""

    vocab_size, pad_id, bos_id, eos_id = 22, 0, 1, 2


def test_it_generates_by_the_decoder_of_all_models():
    model, params = make()
    assert isinstance(model, Decodes) and isinstance(model, Headed)
    decoder = loop.with_params(loop.make_decoder(model, Words()), params)

    @jax.jit
    def logits_of(batch):
        both = functools.partial(model.apply, {"params": params}, batch)
        return both(method=lambda m, b: m.logits(m(b, train=False))[0])

    def after(text):
        row = np.zeros(9, int)
        row[: len(text)] = text
        return np.array(logits_of(batch_of(row))[len(text) - 1])

    prompts = [[3, 4, 5, 6, 7], [8], [9, 10, 11]]
    greedy = loop.answer(decoder, prompts, loop.Settings(max_tokens=4))
    search = loop.answer(decoder, prompts, loop.Settings(max_tokens=4, beams=3))
    for prompt, [answer], [best] in zip(prompts, greedy, search):
        text = []
        while len(text) < 4 and 2 not in text:
            logits = after([*prompt, *text])
            logits[[0, 1, 22, 23]] = -np.inf
            text.append(int(logits.argmax()))
        assert answer.ids == [n for n in text if n != 2]
        # The score of the search, by the whole text: its cache was reordered rightly.
        ids = best.ids if len(best.ids) == 4 else [*best.ids, 2]
        score = sum(
            jax.nn.log_softmax(after([*prompt, *ids[:n]]))[token]
            for n, token in enumerate(ids)
        )
        length = ((5 + len(ids)) / 6) ** 0.6
        assert best.score == pytest.approx(float(score) / length, abs=1e-4)


def test_how_it_is_computed_changes_nothing():
    _, params = make()
    batch = batch_of(tokens())

    def gradients(compute):
        model = Model(**SIZES | KINDS["bottleneck"] | {"compute": compute})

        def loss(params):
            return (model.apply({"params": params}, batch, train=False) ** 2).sum()

        return jax.jit(jax.grad(loss))(params)

    expected = gradients(Compute(unroll=1, remat="none"))
    for unroll, remat in [(0, "dots"), (1, "full")]:
        found = gradients(Compute(unroll=unroll, remat=remat))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            found,
            expected,
        )


@kinds
def test_the_flops_are_those_of_the_matrix_products(kind):
    model, params = make(kind)
    batch = batch_of(tokens())

    def forward(params, batch):
        return model.apply(
            {"params": params}, batch, method=lambda m, b: m.logits(m(b, train=False))
        )

    counted = products(jax.make_jaxpr(forward)(params, batch).jaxpr)
    assert model.flops(batch | {"targets": batch["inputs"]}) == 6.0 * counted


def test_every_parameter_names_its_axes():
    model, params = make("bottleneck", output="untied")
    boxes = jax.eval_shape(lambda: model.init(jax.random.key(0), method="touch"))
    axes = jax.tree.map(
        lambda box: box.axes, boxes["params"], is_leaf=lambda x: hasattr(x, "axes")
    )
    named = trees.flatten(axes, is_leaf=lambda x: isinstance(x, tuple))
    assert named == {
        "embed/embedding": ("vocab", "embed"),
        "layers/down/bias": ("layers", None, "mlp"),
        "layers/down/kernel": ("layers", "embed", None, "mlp"),
        "layers/conv/bias": ("layers", None, "mlp"),
        "layers/conv/kernel": ("layers", None, "embed", None, "mlp"),
        "layers/up/bias": ("layers", None, "embed"),
        "layers/up/kernel": ("layers", "mlp", None, "embed"),
        "output/embedding": ("vocab", "embed"),
    }
    assert named.keys() == trees.flatten(params).keys()


def test_new_states_keep_their_size_through_many_blocks():
    """The gates' halves and the residual sums are allowed for by the deviations."""
    model = Model(**SIZES | {"d_model": 64, "num_layers": 12, "bottleneck": 32})
    params = tiny.new(model)
    states = hidden_of(model, params, batch_of(tokens(4, 12)))
    assert 1 / 3 < float(jnp.std(states)) < 3


def test_a_head_is_put_on_its_states():
    heads = (Head("classify", functools.partial(Linear, outputs=3), row="mean"),)
    model, params = make(heads=heads)
    batch = batch_of(tokens(), [[1] * 9, [1] * 5 + [0] * 4])
    hidden = np.asarray(hidden_of(model, params, batch))
    apply = functools.partial(model.apply, {"params": params}, train=False)
    found = apply("classify", jnp.asarray(hidden), batch["segment_ids"], method="head")
    dense = params["heads"]["classify"]
    read = np.stack([hidden[0].mean(axis=0), hidden[1, :5].mean(axis=0)])
    np.testing.assert_allclose(found, read @ dense["kernel"] + dense["bias"], atol=1e-5)
