"""Batches are a function of config and step: across processes, resumes and epochs."""

import collections

import numpy as np
import pytest

from lm import run as runs
from lm.config import resolve as configs
from lm.data import pipeline
from lm.data.pipeline import Data, Shares
from lm.errors import DataError
from tests import tiny

MIXED = [
    {"name": "memory", "items": tiny.documents(40), "weight": 3.0},
    {"name": "memory", "items": tiny.documents(20, seed=2), "weight": 1.0},
]


def corpus(tmp_path, **changes):
    tmp_path.mkdir(parents=True, exist_ok=True)
    config = tiny.config(**changes)
    return config, runs.open_corpus(config, tmp_path, lambda line: None)


def stream(tmp_path, **changes):
    return corpus(tmp_path, **changes)[1].stream


def batches(config, corpus, first, last, shares=None, **more):
    return list(
        pipeline.batches(
            more.pop("stream", corpus.stream),
            batch_size=config.batch_size,
            first_step=first,
            last_step=last,
            data=configs.build(Data, config.data),
            shares=shares or Shares(),
            **more,
        )
    )


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    "changes",
    [{}, {"data__sources": MIXED}, {"objective__next": "nsp", "data__pack": False}],
    ids=["packed", "mixed", "pairs"],
)
def test_processes_share_a_step(tmp_path, changes):
    """Two processes give the rows that one gives, in its order, in later epochs too."""
    config, data = corpus(tmp_path, **changes)
    last = 3 * len(data.stream) // config.batch_size
    alone = batches(config, data, 0, last)
    halves = [batches(config, data, 0, last, Shares(p, 2)) for p in (0, 1)]
    for whole, first, second in zip(alone, *halves, strict=True):
        joined = {name: np.concatenate([first[name], second[name]]) for name in first}
        assert_equal(whole, joined)


def test_a_resume_seeks(tmp_path):
    config, data = corpus(tmp_path, data__sources=MIXED)
    straight = batches(config, data, 0, 20)
    for step in (1, 7, 13):
        for a, b in zip(straight[step:], batches(config, data, step, 20), strict=True):
            assert_equal(a, b)


def test_the_number_of_threads_changes_nothing(tmp_path):
    config, data = corpus(tmp_path, data__threads=1)
    other, more = corpus(tmp_path, data__threads=4)
    for a, b in zip(batches(config, data, 0, 9), batches(other, more, 0, 9)):
        assert_equal(a, b)


def test_an_epoch_has_every_row_once_and_the_next_another_order(tmp_path):
    _, data = corpus(tmp_path)
    rows = len(data.stream)
    epochs = [
        [data.stream.locate(n)[2] for n in range(e * rows, (e + 1) * rows)]
        for e in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(rows))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != list(range(rows))


def test_masks_differ_between_epochs_and_follow_the_seed(tmp_path):
    _, data = corpus(tmp_path)
    seen = collections.defaultdict(set)
    for n in range(4 * len(data.stream)):
        example = data.stream.example(n)
        assert_equal(example, data.stream.example(n))
        seen[int(example["example_ids"][2])].add(example["inputs"].tobytes())
    assert np.mean([len(variants) for variants in seen.values()]) > 3
    _, other = corpus(tmp_path / "other", seed=4)
    assert other.stream.locate(0) != data.stream.locate(0) or (
        other.stream.example(0)["inputs"].tobytes()
        != data.stream.example(0)["inputs"].tobytes()
    )


def test_an_evaluation_set_is_whole_in_order_and_padded(tmp_path):
    config, data = corpus(tmp_path)
    section = config.evals.heldout.data
    stream = data.open(section, seed=0, train=False)
    rows = len(stream) // config.batch_size * config.batch_size - 3
    steps = rows // config.batch_size + 1
    found = batches(config, data, 0, steps, stream=stream, rows=rows)
    ids = np.concatenate([batch["example_ids"] for batch in found])
    weights = np.concatenate([batch["weights"] for batch in found])
    assert ids[:rows, 2].tolist() == list(range(rows))
    assert len(ids) == rows + 3
    assert (weights[:rows].sum(1) > 0).all()
    assert (weights[rows:] == 0).all()
    assert all(len(batch["inputs"]) == config.batch_size for batch in found)
    again = batches(config, data, 0, steps, stream=stream, rows=rows)
    assert_equal(found[0], again[0])


def test_rows_are_indexed_once(tmp_path):
    notes = []
    config = tiny.config()
    for _ in range(2):
        assert len(runs.open_corpus(config, tmp_path, notes.append).stream) > 0
    assert sum("indexing" in note for note in notes) == 1
    assert sum("tokenizer" in note for note in notes) == 1


def test_packed_rows_keep_documents_apart(tmp_path):
    _, data = corpus(tmp_path)
    several = 0
    for n in range(len(data.stream)):
        example = data.stream.example(n)
        segments, positions = example["segment_ids"], example["positions"]
        for segment in range(1, segments.max() + 1):
            places = np.flatnonzero(segments == segment)
            assert (np.diff(places) == 1).all()
            assert positions[places].tolist() == list(range(len(places)))
        several += segments.max() > 1
        assert (example["segment_ids"][example["target_positions"]] > 0).all()
    assert several > 0


def test_one_document_is_too_few_for_next_sentences(tmp_path):
    with pytest.raises(DataError, match="a single document"):
        stream(
            tmp_path,
            objective__next="nsp",
            data__pack=False,
            data__sources=[{"name": "memory", "items": tiny.documents(1)}],
        )


def test_texts_too_short_for_any_row(tmp_path):
    with pytest.raises(DataError, match="no row"):
        stream(
            tmp_path,
            objective__next="nsp",
            data__pack=False,
            data__sources=[{"name": "memory", "items": ("a", "b")}],
        )
