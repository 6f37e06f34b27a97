"""Bracketed trees: read, cleaned, made binary and whole again; what is refused."""

import gzip

import pytest

from lm.data import trees
from lm.data.sources.trees import Source
from lm.errors import DataError
from lm.main import main

PENN = """( (S (NP-SBJ=1 (DT The) (NN man))
     (VP (VBZ sleeps)
         (S (-NONE- *T*)))
     (. .)) )
# a comment
(ROOT (X (-LRB- -LRB-) (NN # )))
(ROOT (NP (NN One)))
"""


def write(folder, text, name="a.mrg"):
    (folder / name).write_text(text)
    return str(folder / name)


def test_what_a_record_has(tmp_path):
    records = [*Source(files=write(tmp_path, PENN)).read()]
    first = "(S (NP (DT The) (NN man)) (VP (VBZ sleeps)) (. .))"
    assert [r.fields["tree"] for r in records] == [
        first,
        "(ROOT (X (-LRB- -LRB-) (NN #)))",
        "(ROOT (NP (NN One)))",
    ]
    assert [r.fields["text"] for r in records] == ["The man sleeps .", "-LRB- #", "One"]
    assert records[0].fields["grammar"] == (
        "(S (NP (DT The ) (NN man ) ) (S|<VP+VBZ-.> (VP+VBZ sleeps ) (. . ) ) )"
    )
    assert records[2].fields["grammar"] == "(ROOT+NP+NN One )"
    assert [r.where.rpartition(":")[2] for r in records] == ["1", "6", "7"]
    (tags, *_) = Source(files=write(tmp_path, PENN), leaves="tags").read()
    assert tags.fields["text"] == "DT NN VBZ ."
    whole = next(Source(files=write(tmp_path, PENN), functions=True).read())
    assert whole.fields["tree"].startswith("(S (NP-SBJ=1 (DT The)")


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("(S (NN a))\n(S (NN b)))\n(S (NN c))\n", 2, "a closing bracket outside"),
        ("(S (NN a))\n(S (NN b)\n(S (NN c))\n", 2, "a tree with 1 open brackets"),
        ("(S (NN a))\n(S (NN b)\n  (NN c)\n", 2, "a tree with 1 open brackets"),
        ("(S (NN a))\n(S ())\n(S (NN c))\n", 2, "empty brackets"),
        ("(S (NN a))\n(S (NN b c))\n(S (NN c))\n", 2, "'c' beside other words"),
        ("(S (NN a))\n(S (NN b) c)\n(S (NN c))\n", 2, "'c' beside"),
        ("(S (NN a))\nS (NN b)\n(S (NN c))\n", 2, "'S' outside of a tree"),
        ("(S (NN a))\n(S)\n(S (NN c))\n", 2, "(S) without a word"),
        ("(S (NN a))\n(A+B (NN b) (NN c))\n(S (NN c))\n", 2, "the label 'A+B'"),
        ("(S (NN a))\n" + "(S " * 300 + "\n(S (NN c))\n", 2, "201 brackets"),
    ],
)
def test_a_fault_is_named_and_the_other_trees_are_read(tmp_path, text, line, found):
    items = [*Source(files=write(tmp_path, text)).read()]
    (error,) = (item for item in items if isinstance(item, DataError))
    assert error.where.endswith(f"a.mrg:{line}") and found in error.found
    good = [item.fields["text"] for item in items if not isinstance(item, DataError)]
    wanted = ["a", "b", "c"] if ")))" in text else ["a", "c"]
    assert good == (wanted[:1] if "  (NN c)" in text else wanted)


def test_an_unbalanced_bracket_stops_a_run(tmp_path, capsys):
    for part in ("train", "dev", "test"):
        with gzip.open(tmp_path / f"{part}.ptb.gz", "wt") as file:
            file.write("(S (NN a))\n(S (NN b)))\n")
    flags = [f"--config=configs/pcfg.py:dir={tmp_path}", f"--workdir={tmp_path}/run"]
    assert main(flags) == 3
    assert f"{tmp_path}/train.ptb.gz:2" in capsys.readouterr().err


@pytest.mark.parametrize("vertical", [1, 2, 3])
@pytest.mark.parametrize("horizontal", [0, 2, 100])
def test_binary_trees_are_made_whole_again(horizontal, vertical):
    text = (
        "(ROOT (S (NP (NP (DT a) (JJ b) (NN c) (NN d)) (PP (IN e) (NP (NN f)))) "
        "(VP (VBD g) (NP (NN h)) (ADVP (RB i)) (ADVP (RB j)) (. k))))"
    )
    tree = trees.parse(text)
    made = trees.binary(tree, horizontal, vertical)

    def check(node):
        assert len(node.children) == (1 if node.is_tag else 2)
        for child in node.nodes():
            check(child)

    check(made)
    assert trees.whole(made) == tree and str(tree) == text
    assert [*trees.tags(made)][-1][1] == "k"


@pytest.mark.slow
def test_every_tree_of_a_treebank_is_made_whole_again(test_data):
    count = 0
    for part in ("train", "dev", "test"):
        path = test_data("tree_gum_const") / f"{part}.ptb.gz"
        with gzip.open(path, "rt") as file:
            for item in trees.read(enumerate(file, 1), part):
                assert not isinstance(item, DataError)
                for tree in (item[1], trees.clean(item[1])):
                    for orders in ((2, 1), (1, 2)):
                        assert trees.whole(trees.binary(tree, *orders)) == tree
                count += 1
    assert count == 4636
