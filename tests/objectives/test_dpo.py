"""Preference optimisation: its rows, loss and gradient, and its frozen reference."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import adapted
from lm import run as runs
from lm.data.index import Rows
from lm.data.sources.base import Record
from lm.errors import CheckpointError, ConfigError, DataError
from lm.objectives.dpo import Objective
from lm.tokenizers.dialogues import Conversation, Turn
from lm.tokenizers.word import Tokenizer as Words
from lm.trees import flatten, merge
from lm.workdir import checkpoint
from tests import tiny
from tests.objectives.test_dialogues import MODEL, codec_of, dialogue

PAIRS = [
    {"prompt": "Where?", "chosen": "At the river.", "rejected": "Why?"},
    {"prompt": "Who are you", "chosen": "A dog", "rejected": "I say nothing at all"},
    {"prompt": "a", "chosen": "b", "rejected": "c"},
]
LORA = {"name": "lora", "kernels": [r"layers/attention/\w+/kernel"], "rank": 2}


def settings(**changes):
    source = {"name": "memory", "items": PAIRS}
    given = {
        "model": MODEL,
        "objective": {"name": "dpo", "beta": 0.5},
        "adapter": {"name": "reference"},
        "data": {"sources": [source]},
        "evals": {"x": {"evaluator": "mean", "data": {"sources": [source]}}},
        "seq_len": 112,
        "tokenizer": {"name": "word", "kind": "byte"},
        "steps": 4,
        "checkpoint": {"every": 2, "keep_last": 9},
    }
    return tiny.config(**given | changes)


@pytest.fixture
def plain(tmp_path):
    return codec_of(Words(kind="byte"), tmp_path / "plain")


def record(**fields):
    return Record(fields, "pairs.jsonl:3")


def test_a_row_has_the_prompt_with_each_answer(plain):
    layout, out = Objective().layout(plain, seq_len=112, pack=False), Rows()
    layout.write(iter([(record(**PAIRS[0]), [])]), out)
    [(_, row)] = out.rows
    texts = [plain.decode(piece.tolist()) for piece in row["pieces"]]
    asked = "User: Where?\nAssistant:"
    assert texts == [f"{asked} At the river.", f"{asked} Why?"]
    targets = np.concatenate([piece[1:] for piece in row["pieces"]])
    learned = targets[row["learned"] == 1].tolist()
    assert plain.decode(learned) == " At the river. Why?"
    assert learned.count(plain.eos_id) == 2


def test_turns_before_the_answers(plain):
    turns = dialogue("a", "b", "c")
    fields = {"roles": tuple(t.role for t in turns)}
    fields |= {"contents": tuple(t.content for t in turns)}
    layout = Objective(prompt_column=None).layout(plain, seq_len=112, pack=False)
    out, given = Rows(), record(**fields, chosen="d", rejected="e")
    layout.write(iter([(given, [])]), out)
    [(_, row)] = out.rows
    form = Objective().form(plain)
    for piece, answer in zip(row["pieces"], "de", strict=True):
        whole = Conversation([*turns, Turn("assistant", answer)])
        [wanted] = form.dialogues([whole], last=True)
        assert piece.tolist() == wanted.ids
        assert wanted.answers[0][0] == len(form.prompt(turns))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": "Why?"}, "chosen and rejected, equal texts"),
        ({"rejected": " "}, "an empty rejected"),
        ({"prompt": ""}, "an empty prompt"),
        ({"chosen": 3}, "chosen 3, expected a text"),
        ({"chosen": "x" * 99}, "tokens of the prompt with each answer"),
    ],
)
def test_what_is_no_preference_is_refused(changes, message, plain):
    layout = Objective().layout(plain, seq_len=112, pack=False)
    given = record(**PAIRS[0] | changes)
    with pytest.raises(DataError, match=r"pairs\.jsonl:3") as error:
        layout.texts(given)
        layout.write(iter([(given, [])]), Rows())
    assert message in str(error.value)
    turns = {"roles": ("user", "assistant"), "contents": ("a", "b")}
    layout = Objective(prompt_column=None).layout(plain, seq_len=112, pack=False)
    with pytest.raises(DataError, match="the last of assistant, expected the user's"):
        layout.texts(record(**turns, chosen="c", rejected="d"))


def opened(tmp_path, **changes):
    config = settings(**changes)
    corpus, program = tiny.program(config, tmp_path)
    steps_of = runs.durations(config, corpus)
    training = runs.open_training(config, corpus, program, steps_of)
    rows = [corpus.stream.example(n) for n in range(3)]
    longest = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
    del longest["example_ids"]
    return corpus, program, training, longest


def written_out(logits, fixed, batch, beta, share, sft):
    """The loss by loops over records, answers and tokens.

    `logits` and `fixed` give those of a text by the model and by the reference.
    """

    def log_prob(logits_of, row, segment):
        (places,) = np.nonzero(batch["segment_ids"][row] == segment)
        found = logits_of(batch["inputs"][row][places])
        total = 0.0
        for n, place in enumerate(places):
            if batch["answers"][row][place]:
                target = batch["targets"][row][place]
                total += found[n][target] - jnp.log(jnp.sum(jnp.exp(found[n])))
        return total

    loss = nll = 0.0
    for row in range(len(batch["inputs"])):
        gained = [log_prob(logits, row, k) - log_prob(fixed, row, k) for k in (1, 2)]
        margin = beta * (gained[0] - gained[1])
        loss -= (1 - share) * jnp.log(1 / (1 + jnp.exp(-margin)))
        loss -= share * jnp.log(1 / (1 + jnp.exp(margin)))
        nll -= log_prob(logits, row, 1)
    tokens = (batch["answers"] * (batch["segment_ids"] == 1)).sum()
    return loss / len(batch["inputs"]) + sft * nll / tokens


def logits_by(model, params):
    """A function from the tokens of one text to its logits."""

    def method(m, batch):
        return m.logits(m(batch, train=False))

    def of(ids):
        places = np.arange(len(ids), dtype=np.int32)
        row = {"inputs": ids, "positions": places, "segment_ids": places * 0 + 1}
        row = {name: jnp.asarray(array)[None] for name, array in row.items()}
        return model.apply({"params": params}, row, method=method)[0]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["reference", "lora"])
def test_the_loss_and_its_gradient_are_those_of_a_loop(adapter, tmp_path):
    changes = {"adapter": LORA} if adapter == "lora" else {}
    objective = {"name": "dpo", "beta": 0.5, "label_smoothing": 0.1, "sft": 0.3}
    _, program, training, batch = opened(tmp_path, objective=objective, **changes)
    state = training.start(program.init(jax.random.key(0)))
    noise = jax.random.normal(jax.random.key(1), (1 << 14,))
    moved = jax.tree.map(
        lambda x: x + 0.05 * noise[: x.size].reshape(x.shape), state.params
    )
    state = state._replace(params=moved)
    whole = functools.partial(merge, state.frozen) if adapter == "lora" else dict
    frozen = state.frozen if adapter == "lora" else state.frozen["reference"]
    fixed = logits_by(program.model.model, frozen)

    @jax.jit
    def loop(params):
        logits = logits_by(program.model, whole(params))
        return written_out(logits, fixed, batch, 0.5, 0.1, 0.3)

    wanted, slopes = jax.value_and_grad(loop)(state.params)
    given = {k: jnp.asarray(v) for k, v in batch.items()}
    assert float(training.loss(state, given)) == pytest.approx(float(wanted), rel=1e-5)
    found = flatten(training.gradients(state, given))
    assert found.keys() == flatten(slopes).keys()
    for path, slope in flatten(slopes).items():
        scale = float(jnp.abs(slope).max())
        assert scale > 0, path
        np.testing.assert_allclose(
            found[path], slope, atol=1e-4 * scale, rtol=1e-3, err_msg=path
        )


def test_a_model_as_its_reference_has_the_loss_of_a_coin(tmp_path):
    _, program, _, batch = opened(tmp_path)
    params = program.init(jax.random.key(0))
    found = {
        name: float(total) / float(count)
        for name, (total, count) in program.metrics(params, batch).items()
    }
    assert found["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["accuracy"] == 0.5 and found["reward_margin"] == 0
    own = {k: v for k, v in params.items() if k != "reference"}
    louder = jax.tree.map(lambda x: 1.1 * x, own) | {"reference": params["reference"]}
    found = {
        name: float(total) / float(count)
        for name, (total, count) in program.metrics(louder, batch).items()
    }
    margin = found["reward_chosen"] - found["reward_rejected"]
    assert found["reward_margin"] == pytest.approx(margin, rel=1e-4)
    assert abs(margin) > 1e-3


def test_what_cannot_be_compared_is_refused():
    for changes, message in (
        ({"adapter": {"name": "none"}}, r"adapter\.name: found 'none', expected refer"),
        ({"init": {"missing": ["heads/.*"]}}, r"init\.missing"),
        ({"data__pack": True}, r"data\.pack"),
    ):
        with pytest.raises(ConfigError, match=message):
            runs.check(settings(**changes))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of causal_lm from which the others begin."""
    workdir = tmp_path_factory.mktemp("source")
    documents = {"sources": [{"name": "memory", "items": tiny.documents(20)}]}
    config = settings(
        objective={"name": "causal_lm"},
        adapter={"name": "none"},
        data=documents,
        evals={},
        steps=2,
    )
    assert tiny.run(config, workdir) == 0
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{"name": "reference"}, LORA])
def test_a_run_prefers_continues_and_knows_its_reference(adapter, source, tmp_path):
    common = {
        "adapter": adapter,
        "tokenizer": None,
        "init": {"source": str(source), "checkpoint": 2},
        "optim": {"name": "adamw", "lr": 1e-2, "schedule": "constant"},
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = settings(steps=12, **common)
    assert tiny.run(config, whole) == 0
    last = tiny.rows(whole)[-1]
    assert last["x/accuracy"] == 1 and last["x/reward_margin"] > 0.3
    assert tiny.rows(whole)[0]["train/dpo_loss"] == pytest.approx(math.log(2))
    names = checkpoint.read_leaves(checkpoint.find(whole))
    assert not any("reference" in name for name in names)
    named = tiny.host(whole)["base"]
    assert named["source"] == str(source) and len(named["sha256"]) == 64
    # Stopped and continued, it ends in the same bits.
    assert tiny.run(settings(steps=6, **common), parts) == 0
    assert tiny.run(config, parts) == 0
    assert "continuing from step 6" in (parts / "run.log").read_text()
    assert tiny.state_bits(parts) == tiny.state_bits(whole)
    # The reference is the source's weights; with other weights it is refused.
    with tiny.some_devices(config):
        run = runs.open_run(whole, note=lambda line: None)
        theirs = runs.open_run(source, note=lambda line: None)
    base = flatten(run.program.frozen(run.params))
    for path, leaf in flatten(theirs.params).items():
        where = f"reference/{path}" if adapter["name"] == "reference" else path
        np.testing.assert_array_equal(base.pop(where), leaf, path)
    assert not base
    host = checkpoint.find(parts) / "host.json"
    changed = json.loads(host.read_text())
    changed["base"]["sha256"] = "0" * 64
    with pytest.raises(CheckpointError, match=r"000\.\.\., those under this run's ada"):
        adapted.check(changed, adapted.identify(config, run.program.frozen(run.params)))
