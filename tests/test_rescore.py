"""lm.rescore: from lists and models to the chosen hypotheses and their errors."""

import json

import pytest

from lm import convert, rescore, score
from tests import tiny

RIGHT = ["the cat sat on the mat", "a dog sat on a log", "the dog ate a fish"]
WRONG = ["the mat cat on sat the", "a log sat dog on a", "fish the ate dog a"]


@pytest.fixture(scope="module")
def arpa(test_data, tmp_path_factory):
    """KenLM's model of nine sentences as a run."""
    workdir = tmp_path_factory.mktemp("toy") / "run"
    source = test_data("ref_kenlm") / "toy.arpa"
    assert convert.main([f"--from=arpa:{source}", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def say(capsys):
    """Runs a command: (exit code, standard output, standard error)."""

    def run(command, *argv):
        with tiny.some_devices(tiny.config(evals={})):
            code = command.main([str(a) for a in argv])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def lists(tmp_path):
    """A list whose own scores prefer the words in a wrong order."""
    file = tmp_path / "dev.jsonl"
    rows = [
        {"id": f"u{n}", "ref": right, "hyps": [[1.0, wrong], [0.5, right]]}
        for n, (right, wrong) in enumerate(zip(RIGHT, WRONG))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_language_model_mends_the_order_of_words(arpa, say, lists, tmp_path):
    output = tmp_path / "chosen.jsonl"
    flags = f"--dev={lists}", f"--test={lists}", f"--output={output}"
    code, out, error = say(rescore, *flags, f"--lm={arpa}")
    assert code == 0, error
    found = json.loads(out)
    for name in ("dev", "test"):
        assert found[name]["first"]["wer"] > 50
        assert found[name]["rescored"]["wer"] == found[name]["oracle"]["wer"] == 0
        assert found[name]["rescored"]["length"] == 17
    low, high = found["test"]["first"]["wer_interval"]
    assert low <= found["test"]["first"]["wer"] <= high
    chosen = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in chosen] == RIGHT
    assert [row["rank"] for row in chosen] == [2, 2, 2]
    # The same by files of lm.score, and with weights that were not tuned.
    texts, scores = tmp_path / "texts.txt", tmp_path / "scores.jsonl"
    texts.write_text("".join(f"{w}\n{r}\n" for w, r in zip(WRONG, RIGHT)))
    asked = f"--workdir={arpa}", f"--input={texts}", f"--output={scores}"
    assert say(score, *asked, "--end=true")[0] == 0
    again = json.loads(say(rescore, *flags, f"--scores={scores},{scores}")[1])
    assert again["test"] == found["test"]
    assert [*again["weights"].values()] == [*found["weights"].values()]
    one = f"--test={lists}", f"--scores={scores}"
    first = json.loads(say(rescore, *one, "--weights=0,0")[1])["test"]
    assert first["rescored"] == first["first"] == found["test"]["first"]
    # Without references nothing is counted, and the choice is the same.
    lists.write_text(lists.read_text().replace('"ref"', '"was"'))
    weights = ",".join(map(str, again["weights"].values()))
    code, out, _ = say(
        rescore, *one, f"--weights={weights}", "--unlabelled", f"--output={output}"
    )
    assert code == 0 and "test" not in json.loads(out)
    assert [json.loads(line) for line in output.read_text().splitlines()] == chosen
    code, _, error = say(rescore, *one, f"--weights={weights}")
    assert code == 3 and f"{lists}:1: found no reference for 'u0'" in error
    scores.write_text(scores.read_text().replace("the cat sat", "the cat sits", 1))
    code, _, error = say(rescore, *one, "--weights=0,0", "--unlabelled")
    assert code == 3 and f"{scores}:2: found the text 'the cat sits" in error


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ([], "--dev: found none, expected a list to tune on"),
        (["--weights=1,2"], "--weights: found 1,2, expected 0 weights"),
        (["--weights=x"], "--weights: found x"),
        (["--dev=DEV", "--scores=a"], "--scores: found a, expected a file for each"),
        (["--dev=DEV", "--grid=1:0:1"], "--grid: found 1:0:1"),
        (["--dev=DEV", "--grid=0:1:0"], "--grid: found 0:1:0"),
        (["--dev=DEV", "--lm=a", "--lm=b", "--grid=0:9:0.05"], "found 425,893 points"),
        (["--dev=DEV", "--refine=x"], "--refine: found x"),
    ],
)
def test_refused_flags(say, lists, flags, what):
    argv = [flag.replace("DEV", str(lists)) for flag in flags]
    code, out, error = say(rescore, f"--test={lists}", *argv)
    assert (code, out) == (2, ""), error
    assert what in error and len(error.splitlines()) == 1
