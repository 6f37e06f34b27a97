"""What a model says is scored by the references of its own source, in order."""

import json

import pytest

from lm import evaluate
from lm.metrics import text
from tests import tiny
from tests.test_generate import PAIR, settings

PAIRS = (
    PAIR,
    {"source": "a blue bird", "target": ("the cat", "one cat")},
    {"source": "dog dog dog dog dog dog", "target": "fish"},
)


def test_scores_of_known_texts():
    right = [["the cat sat on the mat"], ["a dog", "the dog ran"]]
    same = ["the cat sat on the mat", "the dog ran"]
    for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL"):
        metric = getattr(text, name)
        score, signature = metric(same, right)
        assert score == pytest.approx(100.0), name
        assert "version:" in signature
        worse, _ = metric(["the cat sat on a mat", "one dog ran"], right)
        assert 0 < worse < 100, name
    assert text.bleu(same, right)[1].startswith("nrefs:var|case:mixed|eff:no|tok:13a")
    # Two of three words, of four: P = 2/3, R = 2/4, F1 = 4/7.
    score, _ = text.rouge1(["a c d"], [["a b c e"]])
    assert score == pytest.approx(100 * 4 / 7)
    # Of 5 words 4 are right, of 4 pairs 3, and so on.
    score, _ = text.bleu(["a b c d f"], [["a b c d e"]])
    assert score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("translator")
    heldout = {"sources": [{"name": "memory", "items": PAIRS, "lists": True}]}
    config = settings(
        model=settings().model | {"kind": "encoder_decoder", "position": "sinusoidal"},
        objective={"name": "seq2seq"},
        data={"sources": heldout["sources"], "pack": False},
        tokenizer={"name": "word", "kind": "word"},
        evals={
            "test": {
                "evaluator": "generation",
                "metrics": ("bleu", "chrf", "rougeL"),
                "prompts": ("a red bird",),
                "data": heldout,
                "beams": 2,
                "max_tokens": 6,
                "rows": 2,
                "batch_size": 2,
                "every": 2,
            }
        },
    )
    assert tiny.run(config, workdir) == 0
    return workdir


@pytest.mark.slow
def test_in_training_and_after(workdir, capsys):
    row = tiny.rows(workdir)[-1]
    lines = (workdir / "samples" / "test-2.hypotheses.txt").read_text().splitlines()
    assert len(lines) == 3
    references = [[PAIR["target"]], ["the cat", "one cat"], ["fish"]]
    for name in ("bleu", "chrf", "rougeL"):
        expected, signature = getattr(text, name)(lines, references)
        assert row[f"test/{name}"] == pytest.approx(expected)
        assert signature in (workdir / "run.log").read_text()
    shown = (workdir / "samples" / "test-2.txt").read_text()
    assert "prompt: a red bird\nanswer: " in shown
    assert "reference: the cat | one cat" in shown
    assert "reference: fish" not in shown
    with tiny.some_devices(settings()):
        assert evaluate.main([f"--workdir={workdir}"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["test/bleu"] == row["test/bleu"]
    assert "nrefs:var" in found.err
