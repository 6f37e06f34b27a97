"""The index of a corpus: what it finds, and how it stands in a folder."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from lm.errors import CheckpointError, StorageError
from lm.retrieval import index as indexes
from lm.retrieval import mining
from lm.retrieval.index import Settings

IDS = ["d1", "d2", "d3", "d4"]
TEXTS = ["the flow over a wing", "heat flows in slabs", "wings", "nothing of it"]
BLANK = ["", " .\n"]
VECTORS = np.eye(4, 3, dtype=np.float32)


def written(place, vectors=VECTORS):
    index = indexes.make(IDS, TEXTS, Settings(), vectors)
    model = None if vectors is None else {"run": "r", "step": 3}
    facts = indexes.facts_of(IDS, TEXTS, Settings(), model)
    indexes.write(index, TEXTS, place, facts)
    return index


def found(index, method, texts, vectors=None, count=10):
    lists = index.search(method, texts, vectors, count)
    return [[index.ids[row] for row in one.rows] for one in lists]


def test_each_method_finds_its_documents():
    index = indexes.make(IDS, TEXTS, Settings(), VECTORS)
    queries = np.asarray([[0, 3, 1], [2, 1, 0]], np.float32)
    texts = ["flow of wings", "slabs"]
    assert found(index, "bm25", texts) == [["d1", "d3", "d2"], ["d2"]]
    # Of ties the larger id stands first.
    dense = [["d2", "d3", "d4", "d1"], ["d1", "d2", "d4", "d3"]]
    assert found(index, "dense", texts, queries) == dense
    assert found(index, "dense", texts, queries, 2) == [one[:2] for one in dense]
    # d2: 1/61 + 1/63, d3: 1/62 + 1/62, d1: 1/64 + 1/61, d4: 1/63
    fused = found(index, "fusion", texts, queries)
    assert fused[0] == sorted(
        ["d1", "d2", "d3", "d4"],
        key=lambda id: (
            -sum(
                1 / (61 + one.index(id))
                for one in (dense[0], ["d1", "d3", "d2"])
                if id in one
            )
        ),
    )
    assert fused[1][0] == "d2"


def test_a_blank_query_finds_nothing():
    index = indexes.make(IDS, TEXTS, Settings(), VECTORS)
    for method in indexes.METHODS:
        assert found(index, method, BLANK, np.ones((2, 3), np.float32)) == [
            [],
            [],
        ]


@pytest.mark.parametrize("vectors", [VECTORS, None])
def test_an_index_comes_back(vectors, tmp_path):
    made = written(tmp_path / "i", vectors)
    index = indexes.read(tmp_path / "i")
    assert [*index.ids] == IDS and indexes.read_texts(tmp_path / "i") == TEXTS
    assert found(index, "bm25", TEXTS) == found(made, "bm25", TEXTS)
    assert index.facts["documents"] == 4 and index.settings == Settings()
    assert (index.vectors is None) == (vectors is None)
    if vectors is not None:
        np.testing.assert_array_equal(index.vectors, vectors)
    with pytest.raises(StorageError):  # It is never replaced.
        written(tmp_path / "i")


@pytest.mark.parametrize(
    "name",
    [f"{name}.json" for name in ("ids", "texts", "terms", "MANIFEST")]
    + ["postings.npz", "vectors.npy"],
)
@pytest.mark.parametrize("how", ["torn", "changed", "gone"])
def test_a_damaged_file_is_named(name, how, tmp_path):
    written(tmp_path / "i")
    path = tmp_path / "i" / name
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "torn":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        indexes.read(tmp_path / "i")
    assert error.value.where == str(path) and error.value.exit_code == 4


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        indexes.read(tmp_path / "i")
    (tmp_path / "i").mkdir()
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json"):
        indexes.read(tmp_path / "i")


def test_arrays_of_two_indexes_are_refused(tmp_path):
    index = indexes.make(IDS, TEXTS, Settings(), VECTORS[:3])
    facts = indexes.facts_of(IDS, TEXTS, Settings(), {"run": "r", "step": 3})
    indexes.write(index, TEXTS, tmp_path / "i", facts)
    with pytest.raises(CheckpointError, match="arrays that do not fit"):
        indexes.read(tmp_path / "i")


@pytest.mark.parametrize("point", ["commit-synced"])
def test_a_kill_leaves_no_index_and_the_next_build_is_whole(point, tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from tests.retrieval import test_indexes as t; t.written(Path(sys.argv[1]))"
    )
    place = tmp_path / "i"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(place), os.getcwd()],
        env={**os.environ, "LM_CRASHPOINT": f"{point}:1"},
    )
    assert killed.returncode == -9 and indexes.read_facts(place) is None
    written(place)
    assert indexes.read(place).facts["documents"] == 4


def test_facts_tell_indexes_apart():
    facts = indexes.facts_of(IDS, TEXTS, Settings(), None)
    others = [
        indexes.facts_of(IDS[::-1], TEXTS, Settings(), None),
        indexes.facts_of(IDS, TEXTS[::-1], Settings(), None),
        indexes.facts_of(IDS, TEXTS, Settings(stem=False), None),
        indexes.facts_of(IDS, TEXTS, Settings(), {"run": "r"}),
    ]
    assert all(other != facts for other in others)


def test_hard_negatives_by_hand():
    ids = [f"{n:02}" for n in range(20)]
    # Inner products with the query: 20, 19, ..., 1.
    vectors = np.arange(20, 0, -1, dtype=np.float32)[:, None]
    index = indexes.make(ids, ["word"] * 20, Settings(), vectors)
    gains = [{0: 1, 7: 2, 4: 0, 11: 1}]
    query = np.ones((1, 1), np.float32)

    def triples(**options):
        mined = mining.mine(index, "dense", ["word"], query, gains, **options)
        return [(one.positive, one.negative) for one in mined]

    # Ranks 4 to 12 are rows 3 to 11, without 7 and 11, which are answers; 0.9 * 20 = 18
    # is row 2, 0.9 * 13 = 11.7 allows row 9 (11) and row 10, 0.9 * 9 = 8.1 none.
    limits = {"first": 4, "last": 12, "share": 0.9}
    low = [(7, 9), (7, 10)]
    everything = [(0, row) for row in (3, 4, 5, 6, 8, 9, 10)] + low
    assert triples(**limits, each=20) == everything
    assert triples(**limits, each=1) == [(0, 3), (7, 9)]
    assert triples(first=4, last=12, share=1.0, each=1) == [(0, 3), (7, 8)]
    negative = dataclasses.replace(index, vectors=-vectors)
    mined = mining.mine(negative, "dense", ["word"], query, gains, each=20)
    assert not [*mined]  # Each positive's score is below 0.
