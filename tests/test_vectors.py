"""Word vectors from a text to a file and back: runs, resume, evaluator, init.source."""

import json

import jax
import numpy as np
import pytest

from lm import convert, evaluate, main, train
from lm import run as runs
from lm.errors import DataError
from lm.formats import fasttext, glove, word2vec
from tests import tiny

PAIRS = "dog cat 9\nold new 8\nriver hill 4\nDOG runs 1\nrare words 2\n"
QUESTIONS = ": one\nold new small blue\ndog cat bird fish\n: two\nno such word here\n"


def settings(folder, **changes):
    """A tiny fastText run, evaluated with a few pairs and questions."""
    (folder / "pairs.txt").write_text(PAIRS)
    (folder / "questions.txt").write_text(QUESTIONS)
    words = {
        "evaluator": "word_vectors",
        "data": {"sources": [{"name": "memory", "items": tiny.documents(60)}]},
        "pairs": [str(folder / "pairs.txt")],
        "analogies": [str(folder / "questions.txt")],
        "words": ["dog", "unheard"],
        "nearest": 3,
        "lowercase": True,
        "every": 4,
    }
    given = {
        "model": {"name": "word_vectors", "d_model": 8},
        "objective": {
            "name": "word2vec",
            **{"window": 2, "subsample": 0.05, "span": 4, "shared": 4},
            **{"buckets": 50, "min_n": 2, "max_n": 3, "hierarchical": True},
        },
        "tokenizer": {"name": "word", "kind": "word", "specials": ["pad", "unk"]},
        "update": {"name": "rows", "size": 2, "most": 4},
        "optim": {
            **{"name": "sgd", "lr": 0.05, "schedule": "constant"},
            **{"clip": 0.0, "weight_decay": 0.0},
        },
        "evals": {"words": words},
    }
    return tiny.config(**given | changes)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    config = settings(folder)
    assert tiny.run(config, folder / "run") == 0
    return folder / "run"


def code(command, *flags):
    return command.main([str(flag) for flag in flags])


def test_a_run_learns_and_is_evaluated_with_its_coverage(workdir):
    rows = tiny.rows(workdir)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert rows[-1]["words/pairs_coverage"] == 1  # n-grams give vectors to all words
    assert -1 <= rows[-1]["words/pairs_low"] <= rows[-1]["words/pairs_spearman"]
    assert rows[-1]["words/questions_coverage"] == pytest.approx(2 / 3)
    said = (workdir / "samples" / "words-8.txt").read_text()
    assert said.startswith("dog: ") and "unheard: not there" in said
    assert {"optim/lr", "optim/gradient_norm", "optim/applied"} <= rows[-1].keys()


def test_a_run_that_is_stopped_ends_in_the_same_bits(workdir, tmp_path):
    config = settings(workdir.parent)
    assert tiny.run(runs.Config(config | {"steps": 4}), tmp_path / "a") == 0
    assert tiny.run(config, tmp_path / "a") == 0
    assert tiny.state_bits(tmp_path / "a") == tiny.state_bits(workdir)


@pytest.mark.slow
def test_dense_descent_trains_the_same_objective(workdir, tmp_path):
    """The same loss, with an optimiser over whole tables."""
    plain = {"update": {"name": "plain"}, "evals": {}}
    optim = {
        "name": "adam",
        "schedule": "constant",
        "lr": 0.02,
        "weight_decay": 0.0,
        "freeze": ["counts"],
    }
    optim["decay_mask"] = [[".*", 1.0]]
    assert tiny.run(settings(workdir.parent, optim=optim, **plain), tmp_path) == 0
    first, *_, last = tiny.rows(tmp_path)
    assert last["train/loss"] < first["train/loss"]
    own = tiny.rows(workdir)[0]["train/negative_loss"]
    assert first["train/negative_loss"] == pytest.approx(own, rel=0.05)


def test_fasttext_out_and_in_gives_the_same_vectors(workdir, tmp_path, capsys):
    file = tmp_path / "v.bin"
    assert code(convert, f"--to=fasttext:{file}", f"--workdir={workdir}") == 0
    again = tmp_path / "again"
    assert code(convert, f"--from=fasttext:{file}", f"--workdir={again}") == 0
    second = tmp_path / "second.bin"
    assert code(convert, f"--to=fasttext:{second}", f"--workdir={again}") == 0
    with tiny.some_devices(settings(workdir.parent)):
        run = runs.open_run(workdir)
    words = ["dog", "the", "unheard"]
    wanted = run.program.embed(
        run.params, run.corpus.objective.spell(words, run.corpus.codec)
    )
    held = fasttext.read(file)
    assert held.counts.sum() == np.asarray(run.params["counts"]).sum() > 0
    rows = {word: row for row, word in enumerate(held.words)}
    for form in (held, fasttext.read(second)):
        vectors = [form.vector(word, rows.get(word)) for word in words]
        np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    # As text, in both formats, the vectors are composed.
    for kind, form in (("word2vec", word2vec), ("glove", glove)):
        text = tmp_path / f"{kind}.txt"
        assert code(convert, f"--to={kind}:{text}", f"--workdir={workdir}") == 0
        np.testing.assert_allclose(
            form.read(text).table[rows["dog"]], vectors[0], atol=1e-6
        )
    capsys.readouterr()
    flag = f"--config.evals.words.pairs=('{workdir.parent / 'pairs.txt'}',)"
    assert code(evaluate, f"--workdir={again}", flag) == 0
    said = capsys.readouterr().out
    found = json.loads(said[said.index("{") :])
    assert found["words/pairs_coverage"] == 1


@pytest.mark.parametrize(
    "name",
    tiny.few(["rnn", "transformer", "cnn"], {"rnn"}),
)
def test_a_table_starts_from_a_file_by_word(name, tmp_path, capsys):
    file = tmp_path / "v.txt"
    rng = np.random.default_rng(0)
    names = ["dog", "cat", "new york", "dog."]
    table = rng.normal(size=(4, 16)).round(3)
    lines = (" ".join([w, *map(str, row)]) for w, row in zip(names, table))
    file.write_text("\n".join(lines) + "\n")
    given = {
        "model": {"name": name, "num_layers": 1, "d_model": 16},
        "objective": {"name": "causal_lm" if name != "transformer" else "mlm"},
        "init": {"source": f"glove:{file}"},
        "evals": {},
    }
    if name == "transformer":
        given["model"] |= {"num_heads": 2, "d_ff": 32, "max_len": 24}
    config = tiny.config(**given)
    runs.check(config)
    corpus, program = tiny.program(config, tmp_path / "run")
    with tiny.some_devices(config), jax.set_mesh(program.mesh):
        fresh = program.init(jax.random.key(config.seed))
        notes = []
        params = runs.vectors.start(
            config.init.source, fresh, program.model, corpus, notes.append
        )
        ids = np.asarray([[corpus.codec.encode(w)[0]] for w in ("dog", "cat", "the")])
        found = np.asarray(program.embed(params, ids))
        before = np.asarray(program.embed(fresh, ids))
    np.testing.assert_allclose(found[:2], table[:2], atol=1e-6)
    np.testing.assert_array_equal(found[2], before[2])  # "the" starts fresh.
    assert " tokens (" in notes[0] and "start fresh" in notes[0]
    one_hot = np.eye(len(params["embed"].get("token", params["embed"])["embedding"]))
    whole = np.asarray(jax.tree.leaves(params["embed"])[0])
    if name == "rnn":
        np.testing.assert_allclose(one_hot[ids[:, 0]] @ whole, found, atol=1e-6)
        wide = {"d_model": 8, "num_layers": 1, "name": name}
        other = tiny.config(**given | {"model": wide})
        workdir = tmp_path / "wide"
        with pytest.raises(DataError, match="16 dimensions"):
            tiny.run(other, workdir)
        missing = given | {"init": {"source": "glove:absent.txt"}}
        with pytest.raises(DataError, match="no such file"):
            tiny.run(tiny.config(**missing), tmp_path / "missing")
        assert main and train


def test_broken_evaluation_files_are_refused_with_their_line(tmp_path):
    from lm.evaluators.word_vectors import read_analogies, read_pairs

    file = tmp_path / "words.txt"
    for read, text, line in (
        (read_pairs, "dog cat 3\ndog cat\n", 2),
        (read_pairs, "dog cat inf\n", 1),
        (read_analogies, ": a\n\na b c\n", 3),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=f"words.txt:{line}"):
            read(file)
