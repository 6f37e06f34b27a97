"""Grammars as text: in and out to the byte, what is broken, the same probabilities."""

import gzip
import json
import types

import numpy as np
import pytest

from lm import convert, predict, score
from lm.errors import ConfigError
from lm.formats import grammar
from lm.main import main

# Rules in the order in which they are written.
TEXT = r"""START -> S [0.875]
START -> S|<NP-VP> [0.125]
NP -> DT NN [0.75]
S -> NP VB [1.0]
S|<NP-VP> -> NP VB [1.0]
DT -> '<class 2>' [0.25]
DT -> '<class any>' [0.5]
DT -> 'the' [1.0]
NN -> '\'s' [0.5]
NN -> 'größer' [0.5]
NP -> 'Ana' [0.25]
VB -> 'sees' [1.0]
"""


def code(flags):
    return convert.main([str(flag) for flag in flags])


def scored(workdir, tmp_path, *texts):
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in texts))
    out = tmp_path / f"{workdir.name}.jsonl"
    flags = [f"--workdir={workdir}", f"--input={tmp_path}/in.txt", f"--output={out}"]
    assert score.main(flags) == 0
    return [json.loads(line) for line in out.read_text().splitlines()[-len(texts) :]]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_in_and_out_is_the_same_bytes(tmp_path, capsys, suffix):
    source, target = tmp_path / "a.cfg", tmp_path / f"b.cfg{suffix}"
    source.write_text(TEXT)
    assert code([f"--from=grammar:{source}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert code([f"--to=grammar:{target}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "6 symbols, 3 binary and 7 lexical rules" in capsys.readouterr().out
    data = target.read_bytes()
    assert (gzip.decompress(data) if suffix else data).decode() == TEXT


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("S -> NP VB [1.0]\n", "S => NP VB [1.0]\n", 4, "'S => NP VB [1.0]', expected"),
        ("NP -> DT NN [0.75]", "NP -> DT NN [1.75]", 3, "'1.75'"),
        ("NP -> DT NN [0.75]", "NP -> DT NN [x]", 3, "'x', expected a number"),
        ("NP -> DT NN [0.75]", "NP -> DT NN", 3, "NP -> DT NN without a probability"),
        ("NP -> DT NN [0.75]", "NP -> DT NN [0.5]", 3, "NP that sum to 0.75"),
        ("NP -> DT NN [0.75]", "NP -> DT NN VB [0.75]", 3, "a rule to 3 symbols"),
        ("NP -> DT NN [0.75]", "NP -> DT [0.75]", 3, "a rule to 1 symbols"),
        ("VB -> 'sees' [1.0]", "DT -> 'the' [0.0]", 12, "DT -> the again"),
        ("VB -> 'sees' [1.0]", "VB -> 'a b' [1.0]", 12, "the word 'a b'"),
        ("VB -> 'sees' [1.0]", "VB -> '(S' [1.0]", 12, "the word '(S'"),
        ("VB -> 'sees' [1.0]", "START -> NP VB [0]", 1, "START with rules to one"),
    ],
)
def test_a_broken_line_is_named(tmp_path, capsys, old, new, line, said):
    source = tmp_path / "a.cfg"
    source.write_text(TEXT.replace(old, new))
    assert code([f"--from=grammar:{source}", f"--workdir={tmp_path / 'run'}"]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"a.cfg:{line}: found" in error and said in error
    assert not (tmp_path / "run").exists()


def test_other_files_and_runs_are_refused(tmp_path, capsys):
    source = tmp_path / "a.cfg"
    source.write_text("# only a comment\n")
    flags = [f"--from=grammar:{source}", f"--workdir={tmp_path / 'run'}"]
    assert code(flags) == 3
    assert "no rule with a word, expected a grammar" in capsys.readouterr().err
    source.write_bytes(b"S -> 'gr\xf6\xdfer' [1.0]\n")
    assert code(flags) == 3 and "a.cfg:1" in capsys.readouterr().err
    assert code([flags[0] + "x", flags[1]]) == 3
    other = types.SimpleNamespace(model=types.SimpleNamespace(name="cnn"))
    with pytest.raises(ConfigError, match="model cnn, expected a grammar"):
        grammar.write(source, other, None, {"vocabulary": np.zeros(3)})


def test_rules_without_probabilities_alternatives_and_roots():
    lines = ["S -> S C | S S | 'a' | '|'", "C -> 'b'"]
    found = grammar.parse([("g", line) for line in lines], "g")
    assert found.symbols == ["C", "S"]
    np.testing.assert_allclose(np.exp(found.start), [0, 1])
    np.testing.assert_allclose(np.exp(found.rules["weights"]), 0.25)
    assert [(s, w, round(np.exp(p), 6)) for s, w, p in found.lexical] == [
        (0, "b", 1.0),
        (1, "a", 0.25),
        (1, "|", 0.25),
    ]


def test_sentences_are_scored_without_a_tree_too(tmp_path, capsys):
    """By hand; an unknown word is the class of its ending, or any class."""
    source, workdir = tmp_path / "a.cfg", tmp_path / "run"
    source.write_text(TEXT)
    assert code([f"--from=grammar:{source}", f"--workdir={workdir}"]) == 0
    texts = ["Ana sees", "the größer sees", "walked größer sees", "ox größer sees"]
    rows = scored(workdir, tmp_path, *texts, "sees Ana")
    found = [row["log_prob"] for row in rows[:4]]
    shares = [0.25, 0.75 * 0.5, 0.75 * 0.25 * 0.5, 0.75 * 0.5 * 0.5]
    np.testing.assert_allclose(found, np.log(shares), atol=2e-6)
    assert [row["unknown"] for row in rows] == [0, 0, 1, 1, 0]
    assert rows[0]["perplexity"] == pytest.approx(2) and rows[0]["tokens"] == 2
    assert rows[0]["bits_per_byte"] == pytest.approx(2 / 8) and not rows[0]["greedy"]
    assert rows[4]["log_prob"] is rows[4]["perplexity"] is None
    said = capsys.readouterr().err
    assert "5 texts, 11 tokens" in said and "1 impossible texts left out" in said
    assert "2 unknown" in said and "nan" not in said.lower()
    assert predict.main([f"--workdir={workdir}", *texts[:2], "sees Ana"]) == 0
    parses = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["tree"] for row in parses] == [
        "(S (NP Ana) (VB sees))",
        "(S (NP (DT the) (NN größer)) (VB sees))",
        None,
    ]
    joint = [row["tree_log_prob"] for row in parses]
    np.testing.assert_allclose(joint[:2], np.log(shares[:2]) + np.log(0.875), atol=2e-6)
    assert parses[0]["log_prob"] == rows[0]["log_prob"] and joint[2] is None


@pytest.mark.slow
def test_a_fitted_run_out_and_in_scores_sentences_equally(tmp_path):
    run, back = tmp_path / "run", tmp_path / "back"
    assert main(["--config=configs/pcfg.py:quick", f"--workdir={run}"]) == 0
    first, second = tmp_path / "a.cfg", tmp_path / "b.cfg"
    assert code([f"--to=grammar:{first}", f"--workdir={run}"]) == 0
    assert code([f"--from=grammar:{first}", f"--workdir={back}"]) == 0
    assert code([f"--to=grammar:{second}", f"--workdir={back}"]) == 0
    assert first.read_bytes() == second.read_bytes()
    texts = ["the man saw Mary", "Mary saw a telescopist", "the the man"]
    mixed, alone = (scored(folder, tmp_path, *texts) for folder in (run, back))
    for one, other in zip(mixed[:2], alone):  # the first has a share of unigrams
        assert one["log_prob"] == pytest.approx(other["log_prob"], abs=0.02)
    assert mixed[2]["log_prob"] < -10 and alone[2]["log_prob"] is None
