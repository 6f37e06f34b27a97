"""lm.embed and run.embed: vectors of texts in their order, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import embed, embedder
from lm.errors import ConfigError
from tests import tiny

TEXTS = [d["text"] for d in tiny.documents(11, seed=7)]
TEXTS[3], TEXTS[5] = "dog", " ".join(TEXTS[:5])
DATA = {"sources": [{"name": "memory", "items": tiny.documents(24)}], "pack": False}
SETTINGS = {
    "steps": 2,
    "model__init_std": 0.5,
    "data": DATA,
    "evals": {},
    "checkpoint": {"every": 2, "keep_last": 1},
}
SIMCSE = {"name": "contrastive", "texts": ("text", "text")}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("encoder")
    assert tiny.run(tiny.config(objective=SIMCSE, **SETTINGS), workdir) == 0
    return workdir


@pytest.fixture
def ask(workdir, capsys):
    def run(*argv):
        argv = [f"--workdir={workdir}", "--batch-size=2", *map(str, argv)]
        with tiny.some_devices(tiny.config()):
            code = embed.main(argv)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def run(workdir):
    with tiny.some_devices(tiny.config()):
        return lm.open(workdir)


@pytest.fixture(scope="module")
def expected(run):
    """(11, 16), each text by itself and without padding."""
    codec, rows = run._corpus.codec, []
    for text in TEXTS:
        ids = [codec.cls_id, *codec.encode(text)[:22], codec.sep_id]
        ones = np.ones((1, len(ids)), np.int32)
        batch = {"inputs": np.array([ids]), "positions": np.arange(len(ids))[None]}
        batch |= {"segment_ids": ones, "token_types": 0 * ones}
        batch = jax.tree.map(jnp.asarray, batch)
        params = {"params": run._params}
        hidden = run._program.model.apply(params, batch, train=False)
        rows.append(jax.device_get(hidden[0]).mean(0))
    return np.array(rows)


def test_vectors_come_in_the_order_of_the_texts(run, expected):
    found = run.embed(TEXTS, batch_size=2, normalize=False)
    assert found.shape == (11, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(run.embed(TEXTS, batch_size=4), unit, atol=2e-6)
    few = expected[:, :4] / np.linalg.norm(expected[:, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(run.embed(TEXTS, dims=4), few, atol=2e-6)
    assert run.embed([]).shape == (0, 16) and run.embed([], dims=4).shape == (0, 4)
    with pytest.raises(ConfigError, match="dims"):
        run.embed(TEXTS, dims=17)


def test_a_torn_output_is_continued(ask, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("lm.ask.CHUNK", 2)
    file, out = tmp_path / "in.jsonl", tmp_path / "new" / "out.npy"
    rows = [{"id": f"r{n}", "text": text} for n, text in enumerate(TEXTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = (f"--input={file}", f"--output={out}", "--keep=id", "--no-normalize")
    code, _, error = ask(*argv)
    assert code == 0 and "texts are cut to 24 tokens" in error
    np.testing.assert_allclose(np.load(out), expected, atol=2e-5)
    beside = (out.parent / "out.npy.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in beside] == [{"id": row["id"]} for row in rows]
    whole = out.read_bytes()
    header = len(whole) - 11 * 16 * 4
    for kept in (header + 7 * 64 + 13, header + 4 * 64, header, header - 5, 0):
        out.write_bytes(whole[:kept])
        assert ask(*argv)[0] == 0
        assert out.read_bytes() == whole
    code, _, error = ask(*argv, "--dims=4")
    assert code == 3 and "dims" in error and len(error.splitlines()) == 1

    out = tmp_path / "out.jsonl"
    argv = (f"--input={file}", f"--output={out}", "--keep=id", "--dims=8")
    assert ask(*argv)[0] == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert lines[5]["truncated"] > 20 and lines[3]["truncated"] == 0
    few = expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1, keepdims=True)
    found = np.array([line["embedding"] for line in lines])
    np.testing.assert_allclose(found, few, atol=2e-6)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("x", "--output=v.txt"), 2, ".npy or .jsonl"),
        (("x", "--dims=0"), 2, "--dims"),
        (("x", "--dims=99"), 2, "dims"),
        (("x", "--pooling=sum"), 2, "--pooling"),
        (("x", "--batch-size=0"), 2, "--batch-size"),
        (("--input=absent.jsonl",), 3, "absent.jsonl"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(ask, argv, code, words):
    found, out, error = ask(*argv)
    assert found == code and words in error and out == ""
    assert len([line for line in error.splitlines() if line.startswith("error[")]) == 1


def test_a_column_that_is_missing_or_no_text(ask, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "a dog"}\n{"body": "a cat"}\n')
    code, _, error = ask(f"--input={file}")
    assert code == 3 and "in.jsonl" in error
    file.write_text('{"text": "a dog"}\n{"text": 3}\n')
    code, _, error = ask(f"--input={file}")
    assert code == 3 and "of type int, expected a text" in error


def test_any_encoder_is_asked_and_a_model_without_vectors_is_refused():
    simple = tiny.config(objective={"name": "mlm"})
    assert embedder.objective_of(simple).pooling == "mean"
    assert embedder.objective_of(simple, "cls").pooling == "cls"
    decoder = {"objective": {"name": "causal_lm"}, "model__kind": "decoder"}
    assert embedder.objective_of(tiny.config(**decoder)).pooling == "mean"
    with pytest.raises(ConfigError, match="whole"):
        embedder.objective_of(tiny.config(**decoder), "cls")
    both = {"objective": {"name": "seq2seq"}, "model__kind": "encoder_decoder"}
    with pytest.raises(ConfigError, match="reads"):
        embedder.objective_of(tiny.config(**both, data__pack=False))
