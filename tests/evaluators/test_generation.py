"""What a model says is scored by the references of its own source, in order."""

import json

import numpy as np
import pytest

from lm import evaluate
from lm.metrics import text, words
from tests import tiny
from tests.test_generate import PAIR, settings

PAIRS = (
    PAIR,
    {"source": "a blue bird", "target": ("the cat", "one cat")},
    {"source": "dog dog dog dog dog dog", "target": "fish"},
)

NAMES = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match")


def test_scores_of_known_texts():
    right = [["the cat sat on the mat"], ["a dog", "the dog ran"]]
    same = ["the cat sat on the mat", "the dog ran"]
    for name in NAMES:
        metric = getattr(text, name)
        score, signature, *_ = metric(same, right)
        assert score == pytest.approx(100.0), name
        assert "version:" in signature or name == "exact_match"
        worse, *_ = metric(["the cat sat on a mat", "one dog ran"], right)
        assert 0 < worse < 100 or (name, worse) == ("exact_match", 0), name
    assert text.bleu(same, right)[1].startswith("nrefs:var|case:mixed|eff:no|tok:13a")
    # Two of three words, of four: P = 2/3, R = 2/4, F1 = 4/7.
    score, *_ = text.rouge1(["a c d"], [["a b c e"]])
    assert score == pytest.approx(100 * 4 / 7)
    # Of 5 words 4 are right, of 4 pairs 3, and so on.
    score, *_ = text.bleu(["a b c d f"], [["a b c d e"]])
    assert score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_the_parts_of_a_score_are_those_of_any_resample():
    """Of texts drawn with repetitions it is what the metric says of these texts."""
    rng = np.random.default_rng(0)
    right = [[tiny.sentence(rng) for _ in range(1 + n % 2)] for n in range(12)]
    said = [each[0] if n % 3 else tiny.sentence(rng) for n, each in enumerate(right)]
    for name in NAMES:
        metric = getattr(text, name)
        whole = metric(said, right)
        assert whole.measure(whole.parts.sum(0)) == pytest.approx(whole.value)
        numbers = [0, 0, 0, 3, 3, 3, 1, 2, 4, 5, 7, 8]
        drawn = metric([said[n] for n in numbers], [right[n] for n in numbers])
        sums = whole.parts[numbers].sum(0)
        assert whole.measure(sums) == pytest.approx(drawn.value), name
        assert abs(drawn.value - whole.value) > 0.1, name


def test_exact_match_joins_white_space_alone():
    said = ["a  b\n", "A b", "c"]
    right = [["x", "a b"], ["a b"], ["c", "d"]]
    score = text.exact_match(said, right)
    assert score.value == pytest.approx(200 / 3) and "spaces:joined" in score.signature


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
        expected, signature, *_ = getattr(text, name)(lines, references)
        assert row[f"test/{name}"] == pytest.approx(expected)
        assert signature in (workdir / "run.log").read_text()
        low, high = (row[f"test/{name}_{end}"] for end in ("low", "high"))
        assert low <= row[f"test/{name}"] <= high
    shown = (workdir / "samples" / "test-2.txt").read_text()
    assert "prompt: a red bird\nanswer: " in shown
    assert "reference: the cat | one cat" in shown
    assert "reference: fish" not in shown
    with tiny.some_devices(settings()):
        assert evaluate.main([f"--workdir={workdir}"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["test/bleu"] == row["test/bleu"]
    assert "nrefs:var" in found.err


@pytest.mark.parametrize(
    ("texts", "tok"),
    [
        (["我喜欢北京烤鸭和饺子", "今天天气很好我们去公园"], "zh"),
        (["私は東京に行きました", "今日は天気がいいですね"], "char"),
        (["나는 학교에 갑니다", "오늘은 날씨가 좋아요"], "char"),
        (["ฉันชอบกินข้าวผัด", "วันนี้อากาศดีมาก"], "char"),
        (["привет мир как твои дела", "всё хорошо спасибо тебе друг"], "13a"),
        (["été à la plage chez nous", "il fait beau ici"], "13a"),
    ],
)
def test_an_exact_copy_is_perfect_in_every_script(texts, tok):
    references = [[line] for line in texts]
    cut = words.choose("auto", "auto", references)
    for name in NAMES:
        score, signature, *_ = getattr(text, name)(texts, references, cut)
        assert score == pytest.approx(100.0), name
        if name == "bleu":
            assert f"tok:{tok}|" in signature
        if name.startswith("rouge"):
            assert f"tok:{cut.rouge}|stemmer:{'porter' if cut.stem else 'none'}|" in (
                signature
            )
    other = [line[::-1] for line in texts]
    assert text.rouge2(other, references, cut).value < 50


def test_the_tokenizer_and_stems_of_a_score_are_options():
    references = [["the dogs were running"]]
    auto = words.choose("auto", "auto", references)
    assert auto == words.Words("13a", "rouge", True)
    plain = words.choose("char", "none", references)
    assert plain == words.Words("char", "char", False)
    said = ["the dog was running"]
    assert text.rouge1(said, references, auto).value == pytest.approx(75.0)
    bare = words.choose("13a", "none", references)
    assert text.rouge1(said, references, bare).value == pytest.approx(50.0)
    stems = words.choose("intl", "porter", references)
    assert text.rouge1(said, references, stems).value == pytest.approx(75.0)
