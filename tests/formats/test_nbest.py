"""n-best lists in three forms, and what is refused with file and line."""

import json

import pytest

from lm.errors import DataError
from lm.formats import nbest

LISTS = {
    "u-1": ("a b", [(-1.5, "a c"), (-2.0, "a b")]),
    "u-2": ("d", [(0.25, "")]),
}


def jsonl():
    rows = [{"id": id, "ref": ref, "hyps": hyps} for id, (ref, hyps) in LISTS.items()]
    return "".join(json.dumps(row) + "\n" for row in rows)


def espnet():
    return json.dumps(
        {
            id: {"ref": ref}
            | {f"hyp_{n}": {"score": s, "text": t} for n, (s, t) in enumerate(hyps, 1)}
            for id, (ref, hyps) in LISTS.items()
        },
        indent=1,
    )


def kaldi(folder):
    texts, scores, references = (folder / name for name in ("text", "score", "ref"))
    pairs = [(f"{i}-{n}", *h) for i, (_, hs) in LISTS.items() for n, h in enumerate(hs)]
    texts.write_text("".join(f"{key} {text}\n" for key, _, text in pairs))
    scores.write_text("".join(f"{key} {score}\n" for key, score, _ in pairs))
    references.write_text("".join(f"{i} {ref}\n" for i, (ref, _) in LISTS.items()))
    return f"{texts},{scores},{references}"


def content(utterances):
    return {u.id: (u.reference, [tuple(h) for h in u.hypotheses]) for u in utterances}


def test_three_forms_of_one_list(tmp_path):
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text(jsonl())
    whole.write_text(espnet())
    for name in (str(lines), str(whole), kaldi(tmp_path)):
        found = nbest.read(name)
        assert content(found) == LISTS
        nbest.require_references(found, "")
    assert nbest.read(str(lines))[1].where == f"{lines}:2"
    assert nbest.read(str(whole))[1].where == f"{whole}:13"
    without = kaldi(tmp_path).rpartition(",")[0]
    assert [u.reference for u in nbest.read(without)] == [None, None]


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ('"id": "u-2"', '"id": 2', 2, "id=2"),
        ('"id": "u-2"', '"id": "u-1"', 2, "the id 'u-1' again"),
        ('"ref": "d"', '"ref": 3', 2, "ref=3"),
        ("[[0.25,", '[["x",', 2, "the score 'x' of hyps.0"),
        ('[-1.5, "a c"]', "[-1.5]", 1, "hyps.0 = [-1.5]"),
        ('"a c"', "null", 1, "the text None of hyps.0"),
        ('[[0.25, ""]]', "[]", 2, "no list 'hyps'"),
        ('"hyps"', '"hypotheses"', 1, "no list 'hyps'"),
        ("}\n{", "\n{", 1, "no JSON"),
    ],
)
def test_broken_lines(tmp_path, old, new, line, what):
    assert old in jsonl()
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl().replace(old, new))
    with pytest.raises(DataError) as error:
        nbest.read(str(path))
    assert error.value.where == f"{path}:{line}"
    assert what in error.value.found


def test_broken_files_of_the_other_forms(tmp_path):
    whole = tmp_path / "a.json"
    for old, new, line, what in (
        ('"hyp_1"', '"hyp_x"', 2, "'hyp_x'"),
        ('"score": 0.25', '"score": "0.25"', 13, "the score '0.25' of u-2.hyp_1"),
    ):
        whole.write_text(espnet().replace(old, new))
        with pytest.raises(DataError, match=what) as error:
            nbest.read(str(whole))
        assert error.value.where == f"{whole}:{line}"
    names = kaldi(tmp_path)
    for file, old, new, place, what in (
        ("score", "u-2-0 0.25\n", "", "text:3", "no score of 'u-2-0'"),
        ("score", "0.25", "o.25", "score:3", "the score 'o.25'"),
        ("score", "u-2-0", "u-2-7", "text:3", "no score of 'u-2-0'"),
        ("text", "u-1-1", "u-1-0", "text:2", "the key 'u-1-0' again"),
        ("text", "u-1-1", "u", "text:2", "the key 'u'"),
    ):
        kaldi(tmp_path)
        path = tmp_path / file
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(DataError, match=what) as error:
            nbest.read(names)
        assert error.value.where == str(tmp_path / place)


def test_a_list_without_references(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl().replace(', "ref": "d"', ""))
    with pytest.raises(DataError, match=r"a\.jsonl:2: found no reference for 'u-2'"):
        nbest.require_references(nbest.read(str(path)), "")
