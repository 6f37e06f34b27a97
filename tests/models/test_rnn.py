"""The recurrent model, against a loop over time written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lm import generate, main, trees
from lm import run as runs
from lm.decoding import loop
from lm.errors import ConfigError
from lm.models.base import Carries, Compute, Decodes, Head
from lm.models.blocks.heads import Linear, MaskedToken
from lm.models.rnn import Model
from lm.ops.recurrence import CELLS
from tests import tiny

SIZES = {"vocab_size": 24, "num_layers": 2, "d_model": 8, "dropout": 0.0}
cells = pytest.mark.parametrize("cell", tiny.few(CELLS, {"gru", "lstm"}))


@functools.cache
def make(cell="gru", **fields):
    """A model with parameters that are stirred: biases are zero at first."""
    model = Model(**SIZES | {"cell": cell, "init_std": 0.5} | fields)
    params = meta.unbox(model.init(jax.random.key(0), method="touch")["params"])
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: x + rng.normal(0.0, 0.3, x.shape).astype(np.float32), params
    )


def batch_of(inputs, positions=None, segments=None):
    inputs = np.atleast_2d(inputs)
    if positions is None:
        positions = np.arange(inputs.shape[1])[None].repeat(len(inputs), 0)
    segments = np.ones_like(inputs) if segments is None else np.atleast_2d(segments)
    names = ("inputs", "positions", "segment_ids")
    arrays = (inputs, np.atleast_2d(positions), segments)
    return {n: jnp.asarray(x, jnp.int32) for n, x in zip(names, arrays)}


def hidden_of(model, params, batch):
    return np.asarray(model.apply({"params": params}, batch, train=False))


def tokens(rows=2, length=9, seed=0):
    return np.random.default_rng(seed).integers(0, 24, (rows, length))


def written_out(cell, params, row):
    """The states of the last layer after each token of one text."""

    def sigmoid(x):
        return 1.0 / (1.0 + np.exp(-x))

    def max0(x):
        return np.maximum(x, 0.0)

    x = np.asarray(params["embed"]["embedding"], np.float64)[row]
    stack = jax.tree.map(lambda p: np.asarray(p, np.float64), params["layers"])
    for layer in range(2):
        into, back = (
            {name: leaf[layer] for name, leaf in stack[part].items()}
            for part in ("input", "recurrent")
        )
        h, c, out = np.zeros(8), np.zeros(8), []
        gates = range(len(into["bias"]))
        for token in x:
            a = [token @ into["kernel"][:, g] + into["bias"][g] for g in gates]
            b = [h @ back["kernel"][:, g] + back["bias"][g] for g in gates]
            if cell.startswith("elman"):
                h = np.tanh(a[0] + b[0]) if cell == "elman" else max0(a[0] + b[0])
            elif cell == "gru":
                r, z = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
                n = np.tanh(a[2] + r * b[2])
                h = (1 - z) * n + z * h
            else:
                i, f = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1] + 1)
                g, o = np.tanh(a[2] + b[2]), sigmoid(a[3] + b[3])
                c = f * c + i * g
                h = o * np.tanh(c)
            out.append(h)
        x = np.array(out)
    return x


@cells
def test_the_states_are_those_of_the_loop_written_out(cell):
    model, params = make(cell)
    rows = tokens()
    found = hidden_of(model, params, batch_of(rows))
    for row, states in zip(rows, found):
        np.testing.assert_allclose(states, written_out(cell, params, row), atol=1e-5)


@cells
def test_texts_in_one_row_are_texts_apart(cell):
    """Also where the second is the rest of a text, which begins at no position 0."""
    model, params = make(cell)
    (one, two), three = tokens(2, 5), tokens(1, 4, seed=1)[0]
    row = np.concatenate([one, two, three, [0, 0]])
    positions = np.concatenate([np.arange(5), np.arange(5) + 3, np.arange(4), [0, 0]])
    segments = np.repeat([1, 2, 3, 0], [5, 5, 4, 2])
    found = hidden_of(model, params, batch_of(row, positions, segments))[0]
    apart = [hidden_of(model, params, batch_of(text))[0] for text in (one, two, three)]
    np.testing.assert_allclose(found[:14], np.concatenate(apart), atol=1e-6)
    assert np.isfinite(found).all()


@cells
def test_padding_before_and_within_a_text_leaves_the_state(cell):
    model, params = make(cell)
    text = tokens(1, 6)[0]
    row = np.concatenate([[7, 7], text[:4], [7], text[4:], [7]])
    real = np.array([0, 0, 1, 1, 1, 1, 0, 1, 1, 0])
    positions = np.where(real, np.cumsum(real) - 1, 0)
    found = hidden_of(model, params, batch_of(row, positions, real))[0]
    expected = hidden_of(model, params, batch_of(text))[0]
    np.testing.assert_allclose(found[real == 1], expected, atol=1e-6)


@cells
def test_a_state_depends_on_no_later_token_and_on_no_other_row(cell):
    """By the gradient of one state with respect to every token's embedding."""
    _, params = make(cell)
    at, sizes = 4, SIZES | {"cell": cell, "vocab_size": 18}
    batch = batch_of(np.arange(18).reshape(2, 9))

    def state(table):
        given = params | {"embed": {"embedding": table}}
        return Model(**sizes).apply({"params": given}, batch, train=False)[0, at].sum()

    table = jax.random.normal(jax.random.key(2), (18, 8))
    gradient = np.abs(jax.grad(state)(table)).max(axis=-1).reshape(2, 9)
    assert (gradient[0, : at + 1] > 0).all()
    assert (gradient[0, at + 1 :] == 0).all()
    assert (gradient[1] == 0).all()


@cells
def test_the_cache_gives_what_the_whole_text_gives(cell):
    model, params = make(cell)
    whole = batch_of(tokens(2, 9))
    extend = functools.partial(model.apply, {"params": params}, method="extend")
    cache = model.apply({}, 2, 9, 0, method="make_cache")
    parts = []
    for begin, end in [(0, 4), *((n, n + 1) for n in range(4, 9))]:
        part = {name: x[:, begin:end] for name, x in whole.items()}
        found, cache = extend(part, cache)
        parts.append(found)
    expected = hidden_of(model, params, whole)
    # The states of ReLU grow from step to step.
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=1e-5, atol=1e-6)


BOTH = {"bidirectional": True}


def test_both_directions_of_texts_in_one_row_with_padding():
    """The second direction begins at the end of each text, not of the row."""
    model, params = make("lstm", **BOTH)
    (one, two), three = tokens(2, 5), tokens(1, 4, seed=1)[0]
    row = np.concatenate([[7], one, two, [7], three, [0, 0]])
    positions = [0, *range(5), *range(5), 0, *range(4), 0, 0]
    # The third text has the number of the second and begins at its position 0.
    segments = np.repeat([0, 1, 2, 0, 2, 0], [1, 5, 5, 1, 4, 2])
    found = hidden_of(model, params, batch_of(row, positions, segments))[0]
    apart = [hidden_of(model, params, batch_of(text))[0] for text in (one, two, three)]
    real = segments > 0
    np.testing.assert_allclose(found[real], np.concatenate(apart), atol=1e-6)
    assert np.isfinite(found).all()


def test_a_text_turned_round_swaps_the_directions():
    model, params = make("lstm", num_layers=1, **BOTH)
    layers = params["layers"]
    names = {"input": "backward_input", "recurrent": "backward_recurrent"}
    names |= {back: there for there, back in names.items()}
    swapped = params | {"layers": {names[name]: layers[name] for name in layers}}
    text = tokens(2, 6)
    found = hidden_of(model, params, batch_of(text))
    turned = hidden_of(model, swapped, batch_of(text[:, ::-1]))[:, ::-1]
    np.testing.assert_allclose(found, np.roll(turned, 4, axis=-1), atol=1e-6)
    assert np.abs(found[..., :4] - found[..., 4:]).max() > 0.01


def test_in_both_directions_it_reads_texts_and_continues_none():
    model, params = make("lstm", **BOTH)
    assert model.can == {"hidden", "head", "whole", "embeds"}
    masked = Head("masked", MaskedToken, logits=True)
    assert "logits" in model.clone(heads=(masked,)).can
    with pytest.raises(ConfigError, match=r"model\.d_model.*7.*even"):
        model.clone(d_model=7)
    settings = tiny.config(
        model={"name": "rnn", **BOTH}, objective={"name": "causal_lm"}
    )
    with pytest.raises(ConfigError, match=r"model\.bidirectional: found True.*False"):
        runs.check(settings)
    heads = (Head("classify", functools.partial(Linear, outputs=3), row="last"),)
    model, params = make("lstm", heads=heads, **BOTH)
    batch = batch_of(tokens(), segments=[[0] + [1] * 8, [1] * 5 + [0] * 4])
    hidden = hidden_of(model, params, batch)
    rows = jnp.asarray(hidden), batch["segment_ids"]
    apply = functools.partial(model.apply, {"params": params}, train=False)
    found = apply("classify", *rows, method="head")
    read = np.concatenate(
        [hidden[[0, 1], [8, 4], :4], hidden[[0, 1], [1, 0], 4:]], axis=-1
    )
    dense = params["heads"]["classify"]
    expected = read @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def carried(model, params, *batches):
    """The states of one batch after the other."""
    carry, found = {}, []
    for batch in batches:
        variables = {"params": params} | ({"carry": carry} if carry else {})
        hidden, left = model.apply(variables, batch, train=False, mutable=["carry"])
        carry, found = left["carry"], [*found, hidden]
    return np.concatenate(found, axis=1), carry


@cells
def test_two_halves_with_the_state_carried_are_one_row(cell):
    model, params = make(cell)
    whole = batch_of(tokens(2, 10))
    halves = (
        {name: x[:, part] for name, x in whole.items()}
        for part in (slice(5), slice(5, 10))
    )
    found, carry = carried(model, params, *halves)
    expected = hidden_of(model, params, whole)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    empty = model.make_carry(2)
    assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, empty)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(empty))


@cells
def test_the_carried_state_is_zeros_where_a_text_begins(cell):
    model, params = make(cell)
    first, second = tokens(1, 6), tokens(1, 6, seed=1)
    ends = batch_of(first)
    # The second row: two more tokens of the first text, then a new one.
    begins = batch_of(second, [6, 7, 0, 1, 2, 3], [1, 1, 2, 2, 2, 2])
    found, _ = carried(model, params, ends, begins)
    text = np.concatenate([first, second[:, :2]], axis=1)
    joined = hidden_of(model, params, batch_of(text))
    new = hidden_of(model, params, batch_of(second[:, 2:]))
    expected = np.concatenate([joined, new], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@cells
def test_a_row_that_begins_a_text_forgets_what_is_carried(cell):
    model, params = make(cell)
    first, second = batch_of(tokens(1, 6)), batch_of(tokens(1, 6, seed=1))
    found, _ = carried(model, params, first, second)
    expected = hidden_of(model, params, second)
    np.testing.assert_allclose(found[:, 6:], expected, atol=1e-6)


def test_without_the_collection_nothing_is_carried():
    model, params = make()
    batch = batch_of(tokens())
    assert isinstance(model, Decodes) and isinstance(model, Carries)
    assert set(model.init(jax.random.key(0), method="touch")) == {"params"}
    hidden, carry = carried(model, params, batch)
    np.testing.assert_array_equal(hidden, hidden_of(model, params, batch))
    # Given and not mutable, as in an evaluation: read, and left as it is.
    variables = {"params": params, "carry": carry}
    later = batch | {"positions": batch["positions"] + 9}
    assert (model.apply(variables, later, train=False) != hidden).any()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("unroll", [0, 1])
def test_unrolling_and_recomputing_change_nothing(unroll, remat):
    _, params = make("lstm")
    batch = batch_of(tokens())

    def gradients(compute):
        model = Model(**SIZES | {"cell": "lstm", "compute": compute})

        def loss(params):
            hidden = model.apply({"params": params}, batch, train=False)
            return (hidden**2).sum()

        return jax.grad(loss)(params)

    found = gradients(Compute(unroll=unroll, remat=remat))
    expected = gradients(Compute(unroll=1, remat="none"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected
    )


def test_bfloat16_keeps_the_state_in_float32():
    model, params = make()
    half = model.clone(compute=Compute(dtype="bfloat16"))
    batch = batch_of(tokens())
    hidden, left = half.apply({"params": params}, batch, train=False, mutable=["carry"])
    assert hidden.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(left["carry"]))
    full = hidden_of(model, params, batch)
    np.testing.assert_allclose(np.asarray(hidden, np.float32), full, atol=0.05)


def test_dropout_is_of_what_enters_a_layer():
    model, params = make(dropout=0.5)
    batch = batch_of(tokens())
    rngs = {"dropout": jax.random.key(0)}
    found = model.apply({"params": params}, batch, train=True, rngs=rngs)
    assert (found != model.apply({"params": params}, batch, train=False)).any()
    again = model.apply({"params": params}, batch, train=True, rngs=rngs)
    np.testing.assert_array_equal(found, again)


def dropped(batch, seed=0, **fields):
    """The states of a model in training, and without its dropout."""
    model, params = make("lstm", dropout=0.0, **fields)
    rngs = {"dropout": jax.random.key(seed)}
    found = model.apply({"params": params}, batch, train=True, rngs=rngs)
    return np.asarray(found), hidden_of(model, params, batch)


def test_a_mask_of_the_recurrence_is_one_for_a_window():
    """A text after another one in its row has the states that it has there alone."""
    text = tokens(1, 5)[0]
    row, segments = np.tile(text, 2), np.repeat([1, 2], 5)
    batch = batch_of(row, np.tile(np.arange(5), 2), segments)
    found, plain = dropped(batch, dropout_weight=0.5)
    np.testing.assert_allclose(found[0, :5], found[0, 5:], atol=1e-6)
    # The first token has no state before it, in the first layer alone.
    assert (np.abs(found - plain)[0, 1:5] > 1e-4).any(axis=-1).all()
    assert (found != dropped(batch, 1, dropout_weight=0.5)[0]).any()


@pytest.mark.slow
def test_locked_dropout_has_one_mask_for_all_positions_of_a_row():
    batch = batch_of(tokens(3, 6))
    found, plain = dropped(batch, dropout_output=0.5, locked=True)
    kept = found != 0
    assert (kept == kept[:, :1]).all() and (kept[0] != kept[1]).any()
    np.testing.assert_allclose(found[kept], 2 * plain[kept], rtol=1e-5)
    free = dropped(batch, dropout_output=0.5)[0] != 0
    assert (free != free[:, :1]).any()
    # Of the inputs: equal tokens have equal inputs, and so equal first states.
    same = batch_of(np.full((1, 8), 5), np.zeros((1, 8)), np.arange(1, 9)[None])
    locked, plain = dropped(same, dropout_input=0.5, locked=True)
    np.testing.assert_allclose(locked[0], locked[0, :1].repeat(8, 0), atol=1e-6)
    assert np.abs(locked - plain).max() > 1e-3
    loose = dropped(same, dropout_input=0.5)[0]
    assert np.abs(loose[0] - loose[0, :1]).max() > 1e-3


def test_a_word_is_dropped_wherever_it_stands():
    words = np.arange(8)[:, None].repeat(2, 1)
    batch = batch_of(words, np.zeros((8, 2)), [[1, 2]] * 8)
    found, plain = dropped(batch, dropout_word=0.5)
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-6)
    _, params = make("lstm", dropout=0.0)
    without = params | {"embed": {"embedding": jnp.zeros((24, 8))}}
    zeros = hidden_of(Model(**SIZES | {"cell": "lstm"}), without, batch)
    gone = np.isclose(found, zeros, atol=1e-6).all(axis=(1, 2))
    assert 0 < gone.sum() < 8 and not np.isclose(found, plain, atol=1e-4).any()


SHAPES = {"2-tied": (2, "tied"), "3-tied": (3, "tied"), "2-untied": (2, "untied")}


@pytest.mark.parametrize("shape", tiny.few(SHAPES, {"2-tied"}))
def test_embeddings_of_another_size(shape):
    """Carried over two batches, they give what the whole text gives."""
    layers, output = SHAPES[shape]
    model, params = make("lstm", num_layers=layers, d_embed=6, output=output)
    widths = {path: leaf.shape for path, leaf in trees.flatten(params).items()}
    assert widths["embed/embedding"] == (24, 6)
    assert widths["first/input/kernel"] == (6, 4, 8)
    whole = batch_of(tokens(2, 10))
    halves = (
        {name: x[:, part] for name, x in whole.items()}
        for part in (slice(5), slice(5, 10))
    )
    found, carry = carried(model, params, *halves)
    assert found.shape[-1] == (6 if output == "tied" else 8)
    expected = hidden_of(model, params, whole)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert len(carry) == 2 * len({path.split("/")[0] for path in widths} & ENDS)
    logits = model.apply({"params": params}, jnp.asarray(found), method="logits")
    assert logits.shape == (2, 10, 24)


ENDS = {"first", "layers", "last"}


def test_one_tied_layer_has_one_size():
    with pytest.raises(ConfigError, match=r"model\.num_layers: found 1 with d_embed=6"):
        make(num_layers=1, d_embed=6)


def test_every_parameter_names_its_axes():
    model, params = make("lstm", output="untied")
    boxes = jax.eval_shape(lambda: model.init(jax.random.key(0), method="touch"))
    axes = jax.tree.map(
        lambda box: box.axes, boxes["params"], is_leaf=lambda x: hasattr(x, "axes")
    )
    named = trees.flatten(axes, is_leaf=lambda x: isinstance(x, tuple))
    assert named == {
        "embed/embedding": ("vocab", "embed"),
        "layers/input/bias": ("layers", None, "mlp"),
        "layers/input/kernel": ("layers", "embed", None, "mlp"),
        "layers/recurrent/bias": ("layers", None, "mlp"),
        "layers/recurrent/kernel": ("layers", "embed", None, "mlp"),
        "output/embedding": ("vocab", "embed"),
    }
    assert named.keys() == trees.flatten(params).keys()


def test_a_head_is_put_on_the_last_token():
    heads = (Head("classify", functools.partial(Linear, outputs=3), row="last"),)
    model, params = make(heads=heads)
    batch = batch_of(tokens(), segments=[[1] * 9, [1] * 5 + [0] * 4])
    hidden = hidden_of(model, params, batch)
    found = model.apply(
        {"params": params},
        "classify",
        jnp.asarray(hidden),
        batch["segment_ids"],
        train=False,
        method="head",
    )
    dense = params["heads"]["classify"]
    expected = hidden[[0, 1], [8, 4]] @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Words:
    """What decoding asks of a tokenizer."""

    vocab_size, pad_id, bos_id, eos_id = 22, 0, 1, 2


PROMPTS = [[3, 4, 5, 6, 7], [8], [9, 10, 11]]


def longest_first(logits_of, prompt, beams, most):
    """Beam search written out: all continuations of each hypothesis, best first."""
    live, done = [([], 0.0)], []
    for length in range(1, most + 1):
        grown = []
        for text, score in live:
            logits = logits_of([*prompt, *text])
            allowed = np.full(24, -np.inf)
            keep = [n for n in range(22) if n not in (0, 1)]
            allowed[keep] = jax.nn.log_softmax(logits)[np.array(keep)]
            grown += [([*text, n], score + allowed[n]) for n in keep]
        grown.sort(key=lambda each: -each[1])
        grown = grown[: 2 * beams]
        divisor = ((5 + length) / 6) ** 0.6
        for text, score in grown[:beams]:
            if text[-1] == 2 or length == most:
                done.append((text, score / divisor))
        live = [each for each in grown if each[0][-1] != 2][:beams]
    return sorted(done, key=lambda each: -each[1])[0]


@pytest.mark.parametrize("cell", tiny.few(CELLS, {"gru"}))
def test_it_generates_by_the_decoder_of_all_models(cell):
    """Greedily, and by a search whose cache is the state of each hypothesis."""
    model, params = make(cell)
    decoder = loop.with_params(loop.make_decoder(model, Words()), params)

    def logits_of(text):
        return np.array(
            model.apply(
                {"params": params},
                batch_of(text),
                method=lambda m, b: m.logits(m(b, train=False))[0, -1],
            )
        )

    greedy = loop.answer(decoder, PROMPTS, loop.Settings(max_tokens=5))
    search = loop.Settings(max_tokens=4, beams=3)
    found = loop.answer(decoder, PROMPTS, search)
    for prompt, [answer], [best] in zip(PROMPTS, greedy, found):
        text = []
        while len(text) < 5 and 2 not in text:
            logits = logits_of([*prompt, *text])[:22]
            logits[[0, 1]] = -np.inf
            text.append(int(logits.argmax()))
        assert answer.ids == [n for n in text if n != 2]
        ids, score = longest_first(logits_of, prompt, 3, 4)
        assert best.ids == [n for n in ids if n != 2]
        assert best.score == pytest.approx(score, abs=1e-4)


def test_draws_do_not_depend_on_the_batch():
    model, params = make()
    decoder = loop.with_params(loop.make_decoder(model, Words()), params)
    settings = loop.Settings(max_tokens=8, temperature=1.0, seed=3)
    together = loop.answer(decoder, PROMPTS, settings)
    for prompt, answers in zip(PROMPTS, together):
        assert loop.answer(decoder, [prompt], settings) == [answers]


@pytest.mark.slow
def test_a_classifier_is_trained_by_the_command(tmp_path, capsys):
    """Rows are longer than any `context` of the other models here, which has none."""
    rows = [f"{'the old house ' * 50}{word},{word}" for word in ("dog", "cat")] * 8
    data = tmp_path / "texts.csv"
    data.write_text("\n".join(["text,label", *rows]) + "\n")
    table = {"name": "csv", "files": str(data), "columns": ("text", "label")}
    source = {"sources": [table], "pack": False}
    names = {"name": "classification", "labels": ("dog", "cat"), "summary": "last"}
    tree = tiny.tree(
        model={"name": "rnn", "num_layers": 1, "d_model": 16, "dropout": 0.0},
        objective=names | {"text": "text", "label": "label"},
        data=source,
        seq_len=160,
        mesh={"data": -1},
        optim__lr=3e-2,
        steps=20,
        evals={
            "dev": {
                "evaluator": "predictions",
                "data": {"sources": [table]},
                "every": 20,
            }
        },
    )
    config = tmp_path / "config.py"
    config.write_text(f"def get_config(arg=''):\n    return {tree!r}\n")
    workdir = tmp_path / "run"
    assert main.main([f"--config={config}", f"--workdir={workdir}"]) == 0
    assert tiny.rows(workdir)[-1]["step"] == 20
    assert tiny.rows(workdir)[-1]["dev/accuracy"] == 1.0
    # Its objective gives no prompts, and the model no text.
    assert generate.main([f"--workdir={workdir}", "the old"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error[config]") and "lm.generate" in last
