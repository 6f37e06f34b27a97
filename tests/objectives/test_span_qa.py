"""Answers as parts of a context: the loss, the best spans, rows of any length."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import ask, predict
from lm import run as runs
from lm.data.sources.base import Record
from lm.hf import checkpoint
from lm.objectives.base import Asked
from lm.objectives.span_qa import Objective
from lm.training import step
from tests import tiny
from tests.hf import goldens

TEXTS = [d["text"] for d in tiny.documents(8)]
TEXTS[3] = TEXTS[3].partition(".")[0]  # which fits a row


def item(n):
    """A question whose answer is one to three words; each fourth has none."""
    text = TEXTS[n]
    answer = " ".join(text.split()[2 : 3 + n % 3]) if n % 4 else ""
    return {
        "id": f"q{n}",
        "question": f"the dog {tiny.WORDS[n]}",
        "context": text,
        "answers": answer,
        "starts": text.index(answer),
    }


ITEMS = tuple(map(item, range(8)))


def settings(seq_len=24, buckets=1, evals=None, **objective):
    sources = [{"name": "memory", "items": ITEMS}]
    return tiny.config(
        steps=2,
        seq_len=seq_len,
        model=tiny.tree()["model"] | {"max_len": 64, "init_std": 0.5},
        objective={"name": "span_qa", "question_len": 4, **objective},
        data={"sources": sources, "pack": False, "buckets": buckets},
        evals=evals or {},
        checkpoint={"every": 2, "keep_last": 1},
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Corpus, functions and parameters, rows of 24 in windows 4 apart."""
    folder = tmp_path_factory.mktemp("span")
    corpus, program = tiny.program(settings(stride=4), folder)
    return corpus, step.make(program.model, corpus.objective), tiny.new(program.model)


@pytest.fixture(scope="module")
def batch(opened):
    corpus, _, _ = opened
    assert len(corpus.stream.indices[0]) > 8  # some contexts have several windows
    return tiny.batch(corpus, 12)


@pytest.fixture(scope="module")
def logits(opened, batch):
    """The outputs of the head, (B, 2, T), without any mask."""
    _, functions, params = opened

    def both(model):
        return model.head("span", model(batch, train=False), train=False)

    run = jax.jit(lambda p: functions.model.apply({"params": p}, method=both))
    return np.moveaxis(np.asarray(run(params)), -1, 1)


def test_the_loss_by_hand(opened, batch, logits):
    """Over [CLS] and the window, the mean of start and end; without weight none."""
    _, functions, params = opened
    terms = jax.device_get(functions.metrics(params, batch))
    total, right = 0.0, 0
    for row in range(12):
        window = np.flatnonzero(batch["token_types"][row] == 1)[:-1]
        places = np.asarray([0, *window])
        labels = np.asarray(batch["labels"][row])
        assert {*labels.tolist()} <= {*places.tolist()}
        chosen = [places[logits[row, side, places].argmax()] for side in range(2)]
        right += chosen == labels.tolist()
        for side in range(2):
            own = logits[row, side]
            total += np.log(np.exp(own[places]).sum()) / 2 - own[labels[side]] / 2
    assert terms["span_loss"][0] == pytest.approx(total, rel=1e-5)
    assert terms["span_loss"][1] == terms["span_accuracy"][1] == 12
    assert terms["span_accuracy"][0] == right
    one = batch | {"label_weights": batch["label_weights"].at[1:].set(0)}
    found = jax.device_get(functions.metrics(params, one)["span_loss"])
    assert found[1] == 1 and 0 < found[0] < total


def test_predictions_are_the_best_spans(opened, batch, logits):
    _, functions, params = opened
    found = jax.device_get(functions.predict(params, batch)[1])
    nulls = logits[:, :, 0].sum(1)
    np.testing.assert_allclose(found["null_scores"], nulls, rtol=1e-5, atol=1e-5)
    for row in range(12):
        kinds = np.asarray(batch["candidates"][row])
        pairs = [
            logits[row, 0, i] + logits[row, 1, j]
            for i in np.flatnonzero(kinds == 2)
            for j in np.flatnonzero(kinds)
            if i <= j
        ]
        count = min(len(pairs), 20)
        best = found["scores"][row][:count]
        wanted = np.sort(pairs)[::-1][:count]
        np.testing.assert_allclose(best, wanted, rtol=1e-5, atol=1e-5)


def test_the_first_output_is_the_start_as_in_transformers():
    opened = checkpoint.open_checkpoint(goldens.PLACE / "bert_span")
    model, wanted = goldens.model(opened), goldens.outputs("bert_span")
    rows = goldens.batch(wanted)
    rows["candidates"] = jnp.where(rows["segment_ids"] > 0, 2, 0).at[:, 0].set(0)
    task = Objective(answer_len=4, n_best=1)
    functions = step.make(model, task)
    found = jax.device_get(functions.predict(goldens.params(opened), rows)[1])
    start, end = np.moveaxis(wanted["logits"], -1, 0)
    for row in range(3):
        used = int(rows["segment_ids"][row].sum())
        best, i, j = max(
            (start[row, i] + end[row, j], i, j)
            for i in range(1, used)
            for j in range(i, min(i + 4, used))
        )
        assert (found["starts"][row, 0], found["ends"][row, 0]) == (i, j)
        assert found["scores"][row, 0] == pytest.approx(best, abs=1e-4)


def test_a_question_is_shown(opened, batch):
    corpus, functions, params = opened
    found = jax.device_get(functions.predict(params, batch)[1])
    rows = jax.device_get(batch)
    texts = [corpus.objective.show(rows, found, corpus.codec, n) for n in range(12)]
    lines = [dict(line.split(": ", 1) for line in t.splitlines()) for t in texts]
    assert all(line["question"].startswith("the dog") for line in lines)
    assert all(line["answer"] in line["context"] for line in lines)
    assert all(line["predicted"] in line["context"] for line in lines)
    assert {line["answer"] for line in lines} > {""}


@pytest.mark.slow
@pytest.mark.parametrize("too_long", ["window", "cut", "skip"])
def test_what_is_evaluated_is_what_is_predicted(tmp_path, capsys, too_long):
    """In padded rows and in short ones; a window is as none where a context fits."""
    sources = [{"name": "memory", "items": ITEMS}]
    data = {"sources": sources, "pack": False, "buckets": 4}
    dev = {"evaluator": "squad", "data": data, "write": True, "every": 2}
    whole = dev | {"data": data | {"buckets": 1}}
    options = {"stride": 4, "null_threshold": 0.0, "too_long": too_long}
    config = settings(24, 4, {"dev": dev, "whole": whole}, **options)
    workdir = tmp_path / "run"
    assert tiny.run(config, workdir) == 0
    row = next(row for row in tiny.rows(workdir) if "dev/f1" in row)
    names = [name.removeprefix("dev/") for name in row if name.startswith("dev/")]
    assert len(names) == 3 * 6 + 4  # with intervals, and the best thresholds
    for name in names:
        # Of no question without an answer nothing is defined.
        wanted = pytest.approx(row[f"whole/{name}"], abs=1e-4, nan_ok=True)
        assert row[f"dev/{name}"] == wanted
    folder = workdir / "predictions"
    official = json.loads((folder / "dev-2.json").read_text())
    best = json.loads((folder / "dev-2-nbest.json").read_text())
    odds = json.loads((folder / "dev-2-null_odds.json").read_text())
    assert {*official} == {*best} == {*odds}

    file = tmp_path / "in.jsonl"
    columns = ("id", "question", "context")
    lines = [json.dumps({name: one[name] for name in columns}) for one in ITEMS]
    file.write_text("\n".join(lines) + "\n")
    argv = [f"--workdir={workdir}", f"--input={file}", "--keep=id"]
    with tiny.some_devices(config):
        assert predict.main([*argv, "--what=candidates", "--batch-size=4"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert predict.main([*argv, "--batch-size=4"]) == 0
        briefs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"] for one in rows] == [one["id"] for one in ITEMS]
    for one, brief, given in zip(rows, briefs, ITEMS):
        if one["id"] not in official:
            assert too_long == "skip" and one["answer"] is None
            continue
        assert one["answer"] == brief["answer"] == official[one["id"]]
        if one["answer"]:
            part = given["context"][brief["start"] : brief["end"]]
            assert part == one["answer"]
        scores = [each["score"] for each in one["candidates"]]
        expected = [each["score"] for each in best[one["id"]]]
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        assert "" in [each["answer"] for each in one["candidates"]]
        short = given["id"] == "q3"
        assert (one["truncated"] > 0) == (too_long == "cut" and not short)
    dropped = {one["id"] for one in ITEMS} - {*official}
    assert bool(dropped) == (too_long == "skip")


def test_rows_of_any_length_say_the_same(opened, tmp_path):
    """The answers of all rows at once, in short batches, and one by one at full."""
    corpus, functions, params = opened
    config = settings(stride=4)
    task, stream = corpus.objective, corpus.stream
    with tiny.some_devices(config):
        program = runs.open_program(config, corpus)
        run = runs.Run(config, tmp_path, corpus, program, params, 0)
        asker = ask.open_asker(run, 8)
        records = [Record(dict(one), "x") for one in ITEMS]
        with jax.set_mesh(program.mesh):
            found = [answer for _, answer in asker.answers(records)]
    said: dict[int, list[Asked]] = {}
    index = stream.indices[0]
    for at in range(len(index)):
        example = index.row(at)
        for transform in stream.transforms[0]:
            example = transform(example, np.random.default_rng(0))
        rows = {name: jnp.asarray(array)[None] for name, array in example.items()}
        own = jax.device_get(functions.predict(params, rows)[1])
        own = {name: array[0] for name, array in own.items()}
        row = index.row(at)
        said.setdefault(int(row["record"]), []).append(Asked(row, example, own))
    assert max(map(len, said.values())) > 1
    for number, answer in enumerate(found):
        alone = task.extract(records[number], said[number]).answer
        assert answer["answer"] == alone.text
        assert answer["score"] == pytest.approx(alone.score, abs=1e-4)
        assert records[number].fields["context"][answer["start"] : answer["end"]] == (
            alone.text
        )
