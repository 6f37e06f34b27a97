"""lm.predict: labels of new texts, in every way in and out; and what it refuses."""

import csv
import dataclasses
import gzip
import io
import json
import types

import jax
import numpy as np
import pytest

import lm
from lm import ask as ask_run
from lm import predict
from lm import run as runs
from lm.config.flags import UNEVALUATED
from lm.data.sources.base import Record
from lm.errors import ConfigError, DataError, NumericalError
from tests import tiny

NAMES = ("bad", "good", "fair")
ITEMS = tuple(
    {"text": d["text"], "label": NAMES[n % 3]} for n, d in enumerate(tiny.documents(24))
)


def settings(**objective):
    data = {"sources": [{"name": "memory", "items": ITEMS}], "pack": False}
    return tiny.config(
        steps=2,
        model__init_std=0.5,  # so that texts differ
        objective={
            "name": "classification",
            "classes": 3,
            "labels": NAMES,
            **objective,
        },
        data=data,
        evals={},
        checkpoint={"every": 2, "keep_last": 1},
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("classifier")
    assert tiny.run(settings(), workdir) == 0
    return workdir


@pytest.fixture
def ask(workdir, capsys, monkeypatch):
    """Runs the command: (exit code, standard output, standard error)."""

    def run(*argv, stdin=b""):
        stream = types.SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False)
        monkeypatch.setattr("sys.stdin", stream)
        argv = [str(a) for a in (f"--workdir={workdir}", "--batch-size=4", *argv)]
        with tiny.some_devices(settings()):
            code = predict.main(argv)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A file of 11 records of any length, and what the model says of them by itself."""
    texts = [d["text"] for d in tiny.documents(11, seed=7)]
    texts[3], texts[5] = "dog", " ".join(texts[:5])
    file = tmp_path_factory.mktemp("records") / "in.jsonl"
    rows = [{"id": f"r{n}", "body": text} for n, text in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return texts, file


@pytest.fixture(scope="module")
def expected(workdir, records):
    """Probabilities (11, 3) by the training pipeline, each row padded to `seq_len`."""
    config = runs.configs.of_run(workdir)
    items = tuple({"text": text, "label": "bad"} for text in records[0])
    data = runs.configs.Config(
        settings().data | {"sources": [{"name": "memory", "items": items}]}
    )
    with tiny.some_devices(settings()):
        opened = runs.open_run(workdir, config=config, note=lambda line: None)
        corpus = dataclasses.replace(opened.corpus)
        full = runs.configs.resolve(tiny.tree(**{**settings(), "data": data}))
        stream = corpus.open(full.data, seed=0, train=False)
        examples = [stream.example(n) for n in range(11)]
        names = [name for name in examples[0] if name != "example_ids"]
        batch = {name: np.stack([e[name] for e in examples]) for name in names}
        with opened.on_mesh():
            found = opened.program.predict(opened.params, batch)[1]
    return np.asarray(jax.device_get(found["probabilities"]))


def test_every_record_is_answered_in_its_place(ask, records, expected, tmp_path):
    file = records[1]
    out = tmp_path / "new" / "out.jsonl"
    argv = (f"--input={file}", f"--output={out}", "--columns=text=body", "--keep=id")
    assert ask(*argv)[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(11)]
    for row, wanted in zip(rows, expected):
        assert [*row] == ["id", "label", "probabilities", "truncated"]
        assert row["label"] == NAMES[wanted.argmax()]
        found = [row["probabilities"][name] for name in NAMES]
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert rows[5]["truncated"] > 20 and rows[3]["truncated"] == 0

    whole = out.read_bytes()
    for kept, torn in ((10, b""), (4, b'{"id": "r4", "lab'), (0, b"")):
        lines = whole.splitlines(keepends=True)
        out.write_bytes(b"".join(lines[:kept]) + torn)
        code, _, error = ask(*argv)
        assert code == 0 and out.read_bytes() == whole
        assert ("torn" in error) == bool(torn)
    code, _, error = ask(*argv, "--what=labels")
    assert code == 3 and "answers made with fields=['label', 'prob" in error
    file.write_text(file.read_text() + '{"id": "r11", "body": "x"}\n')
    code, _, error = ask(*argv)
    assert code == 3 and "answers made with input=" in error


@pytest.mark.slow
def test_the_ways_in_and_out(ask, workdir, records, expected, tmp_path):
    texts, _ = records
    lines = "".join(f"{text}\n" for text in texts).encode()
    code, shown, error = ask("--input=-", "--what=labels", stdin=lines)
    assert code == 0, error
    rows = [json.loads(line) for line in shown.splitlines()]
    labels = [NAMES[n] for n in expected.argmax(1)]
    assert [row["text"] for row in rows] == texts
    assert [row["label"] for row in rows] == labels
    assert [*rows[0]] == ["text", "label", "truncated"]

    file = tmp_path / "in.txt.gz"
    file.write_bytes(gzip.compress(lines))
    table = tmp_path / "out.csv"
    assert ask(f"--input={file}", f"--output={table}", "--what=logits")[0] == 0
    rows = [*csv.DictReader(table.open())]
    assert [*rows[0]][:3] == ["text", "label", "logits.bad"]
    assert [row["text"] for row in rows] == texts
    assert [row["label"] for row in rows] == labels

    glue = tmp_path / "SST-2.tsv"
    assert ask(f"--input={file}", f"--output={glue}", "--format=glue")[0] == 0
    wanted = ["index\tprediction", *(f"{n}\t{name}" for n, name in enumerate(labels))]
    assert glue.read_text().splitlines() == wanted

    plain = tmp_path / "in.tsv"
    plain.write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(texts)))
    argv = (f"--input={plain}", "--no-header", "--columns=n,text", "--keep=n")
    rows = [json.loads(line) for line in ask(*argv)[1].splitlines()]
    assert [(row["n"], row["label"]) for row in rows] == [
        (str(n), name) for n, name in enumerate(labels)
    ]
    with tiny.some_devices(settings()):
        run = lm.open(workdir)
        found = run.predict(texts, batch_size=4)
        assert run.predict([]) == []
        assert run.predict({"text": texts[0]}["text"], what="labels") == [
            {"label": labels[0], "truncated": found[0]["truncated"]}
        ]
        with pytest.raises(ConfigError, match="did you mean labels"):
            run.predict(texts, what="label")
        with pytest.raises(DataError, match="text 1: found columns body"):
            run.predict([{"body": "x"}])
    assert [row["label"] for row in found] == labels


def test_a_long_text_is_answered_by_its_windows(workdir, records):
    """By the mean of the logits that the windows have as texts of their own."""
    long = records[0][5]
    changes = [*UNEVALUATED, "--config.objective.too_long=window"]
    config = runs.configs.of_run(workdir, changes)
    with tiny.some_devices(settings()):
        opened = runs.open_run(workdir, config=config, note=lambda line: None)
        asker, codec = ask_run.open_asker(opened, 4), opened.corpus.codec
        ids = codec.encode(long)
        assert len(ids) > 44  # three windows or more of 22 tokens
        count = -(-len(ids) // 22)
        starts = [n * (len(ids) - 22) // (count - 1) for n in range(count)]
        texts = [long, *(codec.decode(ids[n : n + 22]) for n in starts)]
        asked = [Record({"text": text}, "here") for text in texts]
        with opened.on_mesh():
            whole, *parts = [answer for _, answer in asker.answers(asked)]
            assert whole["truncated"] == 0
            for name in NAMES:
                wanted = np.mean([part["logits"][name] for part in parts])
                assert whole["logits"][name] == pytest.approx(wanted, abs=1e-5)
            assert sum(whole["probabilities"].values()) == pytest.approx(1)
            spoilt = jax.tree.map(lambda leaf: leaf * np.nan, opened.params)
            bad = dataclasses.replace(opened, params=spoilt)
            with pytest.raises(NumericalError, match="step 2 that are no numbers"):
                next(ask_run.open_asker(bad, 4).answers(asked))


@pytest.mark.parametrize(
    "argv, code, error",
    [
        (["a", "--what=label"], 2, "did you mean labels"),
        (["a", "--batch-size=0"], 2, "--batch-size: found 0"),
        (["a", "--output=x.xml"], 2, "a name that ends in .jsonl"),
        (["a", "--output=x.tsv", "--format=glue"], 2, "a file named CoLA, SST-2"),
        (["a", "--format=glue"], 2, "glue without --output"),
        (["a", "--keep=id"], 2, "--keep without a file"),
        (["a", "--input=x.jsonl"], 2, "texts and --input"),
        (["--input=absent.jsonl"], 3, "absent.jsonl: found no such file"),
        (["--input=setup.cfg"], 2, "a name that ends in .jsonl"),
        (["a", "--checkpoint=7"], 4, "[2]"),
        (["a", "--keeps=id"], 2, "did you mean --keep"),
        ([], 3, "standard input: found nothing"),
    ],
)
def test_refusals(ask, argv, code, error):
    found, out, shown = ask(*argv)
    assert found == code, shown
    assert error in shown
    assert len(shown.splitlines()) == 1
    assert not out


def test_bad_records_are_found_before_the_first_is_answered(ask, tmp_path):
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for row, error in (('{"body": "x"}', "a column 'text'"), ("[", "broken JSON")):
        file.write_text('{"text": "a"}\n' * 9 + row + "\n")
        code, _, shown = ask(f"--input={file}", f"--output={out}")
        assert code == 3 and f"{file}:10: found" in shown and error in shown
        assert not out.exists()


def test_a_run_without_answers_is_refused():
    with pytest.raises(ConfigError, match=r"'mlm'.*does not offer it \(answers\)"):
        runs.check(tiny.config(evals={}), {"answers"}, "lm.predict")
