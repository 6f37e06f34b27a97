"""ARPA files: in and out to the byte, what is broken, the same numbers as the run's."""

import gzip
import json

import numpy as np
import pytest

from lm import convert, evaluate
from lm.errors import DataError
from lm.formats import arpa
from tests import tiny
from tests.test_fit import run, settings

# A bigram model whose n-grams stand in our order, numbers in their shortest form.
TEXT = r"""\data\
ngram 1=5
ngram 2=4

\1-grams:
-1.3	<unk>	0
0	<s>	-0.5
-0.75	</s>	0
-0.30103	one	-0.25
-0.6	größer	-0.125

\2-grams:
-0.2	<s> one
-0.9	<s> größer
-0.4	one </s>
-0.0000001	größer one

\end\
""".replace("-0.0000001", "-1e-07")


def write(path, text=TEXT):
    path.write_text(text, encoding="utf-8")
    return path


def code(flags):
    return convert.main([str(flag) for flag in flags])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_in_and_out_is_the_same_bytes(tmp_path, suffix):
    source, workdir = write(tmp_path / "a.arpa"), tmp_path / "run"
    assert code([f"--from=arpa:{source}", f"--workdir={workdir}"]) == 0
    target = tmp_path / f"b.arpa{suffix}"
    assert code([f"--to=arpa:{target}", f"--workdir={workdir}"]) == 0
    data = target.read_bytes()
    assert (gzip.decompress(data) if suffix else data) == source.read_bytes()
    again = tmp_path / f"c.arpa{suffix}"
    assert code([f"--from=arpa:{target}", f"--workdir={tmp_path / 'two'}"]) == 0
    assert code([f"--to=arpa:{again}", f"--workdir={tmp_path / 'two'}"]) == 0
    assert again.read_bytes() == data


def test_a_fitted_run_out_and_in_gives_the_same_probabilities(tmp_path, capsys):
    config = settings("kneser_ney", model__prune=(0, 0, 1))
    assert run(config, tmp_path / "run")[0] == 0
    (row,) = tiny.rows(tmp_path / "run")
    first, second = tmp_path / "a.arpa.gz", tmp_path / "b.arpa.gz"
    assert code([f"--to=arpa:{first}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert code([f"--from=arpa:{first}", f"--workdir={tmp_path / 'in'}"]) == 0
    assert code([f"--to=arpa:{second}", f"--workdir={tmp_path / 'in'}"]) == 0
    assert first.read_bytes() == second.read_bytes()
    capsys.readouterr()
    items = [dict(item) for item in config.evals.heldout.data.sources[0]["items"]]
    data = {"sources": [{"name": "memory", "items": items}]}
    evals = {"heldout": {"evaluator": "mean", "data": data}}
    flags = [f"--workdir={tmp_path / 'in'}", f"--config.evals={json.dumps(evals)}"]
    with tiny.some_devices(config):
        assert evaluate.main([*flags, "--config.mesh.data=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["heldout/loss"] == pytest.approx(row["heldout/loss"], rel=1e-6)
    assert found["heldout/lm_accuracy"] == row["heldout/lm_accuracy"]


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("\\data\\", "data", 19, "the end of the file"),
        ("ngram 2=4", "ngram 3=4", 3, "ngram 2=COUNT"),
        ("ngram 2=4", "ngram 2=5", 18, "5 2-grams"),
        ("ngram 2=4", "ngram 2=3", 16, "end"),
        ("ngram 1=5\nngram 2=4", "", 4, "1 to 6 lines"),
        ("\\2-grams:", "\\3-grams:", 12, "2-grams"),
        ("-0.9\t<s> größer", "-0.9\t<s> kleiner", 14, "'kleiner'"),
        ("-0.9\t<s> größer", "-0.9\t<s> one", 14, "again (first on line 13)"),
        ("-0.9\t<s> größer", "zero\t<s> größer", 14, "numbers"),
        ("-0.9\t<s> größer", "0.9\t<s> größer", 14, "at most 0"),
        ("-0.9\t<s> größer", "-0.9\t<s> größer nan nan", 14, "2 words"),
        ("-0.9\t<s> größer", "-0.9\tgrößer", 14, "2 words"),
        ("-0.9\t<s> größer", "-0.9\t<s> größer\tinf", 14, "finite"),
        ("-0.6\tgrößer", "-0.6\tone", 10, "again (first on line 9)"),
        ("größer", "a\u00a0b", 10, "white space"),
        ("\n\\end\\\n", "", 17, "the end of the file"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path, old, new, line, what, capsys):
    assert old in TEXT
    path = write(tmp_path / "a.arpa", TEXT.replace(old, new))
    assert code([f"--from=arpa:{path}", f"--workdir={tmp_path / 'run'}"]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"error[data] {path}:{line}: found ")
    assert what in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_files_that_cannot_be_read(tmp_path):
    packed = gzip.compress(TEXT.encode())
    cut = tmp_path / "cut.arpa.gz"
    cut.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"cut\.arpa\.gz:\d+: found damaged"):
        arpa.read(cut)
    with pytest.raises(DataError, match="cannot be read"):
        arpa.read(tmp_path / "none.arpa")
    latin = tmp_path / "latin.arpa"
    latin.write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.arpa:10: .*UTF-8"):
        arpa.read(latin)


def test_what_cannot_be_written(tmp_path, capsys):
    assert run(settings(), tmp_path / "added")[0] == 0
    flags = [f"--workdir={tmp_path / 'added'}", f"--to=arpa:{tmp_path / 'a.arpa'}"]
    assert code(flags) == 2
    assert "smoothing is not add_k" in capsys.readouterr().err
    there = write(tmp_path / "there.arpa")
    assert code([flags[0], f"--to=arpa:{there}"]) == 2
    assert "which exists" in capsys.readouterr().err
    assert code([*flags, "--family=bert"]) == 2
    assert "--family" in capsys.readouterr().err
    assert code([flags[0], "--to=apra:x"]) == 2
    assert "hf:DIR, peft:DIR, arpa:FILE" in capsys.readouterr().err


def test_a_token_with_white_space_has_no_name(tmp_path, capsys):
    config = settings("kneser_ney", tokenizer={"name": "word", "kind": "char"})
    assert run(config, tmp_path / "run")[0] == 0
    target = tmp_path / "a.arpa"
    assert code([f"--to=arpa:{target}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "' ', with white space" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize("name", ["toy.arpa", "mid.arpa.gz"])
def test_a_file_of_kenlm_has_its_lines_again(name, test_data, tmp_path):
    source = test_data("ref_kenlm") / name
    target = tmp_path / "out.arpa"
    assert code([f"--from=arpa:{source}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert code([f"--to=arpa:{target}", f"--workdir={tmp_path / 'run'}"]) == 0
    opened = gzip.open if name.endswith("gz") else open
    with opened(source, "rt") as file:
        theirs = [line.strip().split("\t") for line in file]
    ours = [line.split("\t") for line in target.read_text().splitlines()]
    assert numbers(ours) == numbers(theirs)


def numbers(lines):
    """What stands beside each n-gram, as float32."""
    return {
        line[1]: np.float32([line[0], *line[2:]]).tolist()
        for line in lines
        if len(line) > 1
    }
