"""Folds: a partition of the records, even by label, whole by group."""

import collections

import pytest

from lm.config import resolve
from lm.data import pipeline
from lm.data.folds import Folded
from lm.data.sources import memory
from lm.errors import ConfigError
from tests import tiny


def items(count=103):
    """Records of three labels of unequal number, and of 17 authors."""
    labels = [("a", "a", "a", "b", "a", "c", "a")[n % 7] for n in range(count)]
    return tuple(
        {"text": f"text {n}", "label": label, "author": f"author {n * n % 17}"}
        for n, label in enumerate(labels)
    )


def texts(number, inside, count=5, labels=None, groups=None, seed=0):
    source = memory.Source(items=items())
    folded = Folded(source, number, count, labels, groups, seed, inside)
    return [record.fields for record in folded.records()]


@pytest.mark.parametrize("groups", [None, "author"])
@pytest.mark.parametrize("labels", [None, "label"])
def test_folds_are_a_partition_in_the_order_of_the_source(labels, groups):
    every = [item["text"] for item in items()]
    own = [texts(n, True, labels=labels, groups=groups) for n in range(1, 6)]
    assert sorted(item["text"] for fold in own for item in fold) == sorted(every)
    for number, fold in enumerate(own, 1):
        names = [item["text"] for item in fold]
        rest = [t["text"] for t in texts(number, False, labels=labels, groups=groups)]
        assert [name for name in every if name not in names] == rest
        assert names == [name for name in every if name in names]
    sizes = [len(fold) for fold in own]
    counts = [collections.Counter(item["label"] for item in fold) for fold in own]
    if groups:
        authors = [{item["author"] for item in fold} for fold in own]
        assert sum(map(len, authors)) == len(set().union(*authors))
        assert max(sizes) - min(sizes) <= 12  # an author has up to 13 records
        return
    assert max(sizes) - min(sizes) <= (3 if labels else 1)
    if labels:
        for label in "abc":
            held = [count[label] for count in counts]
            assert max(held) - min(held) <= 1


def test_the_seed_alone_draws_the_folds():
    first, again, other = (texts(2, True, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_config_trains_without_the_fold_that_it_evaluates(tmp_path):
    source = {"name": "memory", "items": items()}
    data = {"sources": [source], "pack": False, "fold": "2/5", "fold_labels": "label"}
    data["max_unknown"] = 1.0
    dev = {"evaluator": "mean", "data": data}
    objective = {"name": "classification", "labels": ("a", "b", "c")}
    fields = {"objective": objective | {"classes": 3}, "evals": {"dev": dev}}
    config = tiny.config(data=data, **fields)
    corpus, _ = tiny.program(config, tmp_path)
    held = corpus.evals["dev"]
    assert len(corpus.stream) + len(held) == 103 and 19 <= len(held) <= 22
    train, own = (set(s.indices[0].digests.tolist()) for s in (corpus.stream, held))
    assert len(train) + len(own) == 103 and not train & own
    wanted = [t["text"] for t in texts(2, True, labels="label")]
    section = resolve.build(pipeline.Data, config.evals.dev.data)
    records = pipeline.records_of(held, section, len(held))
    assert [record.fields["text"] for record in records] == wanted
    for fold, error in (
        ("6/5", "data.fold: found '6/5'"),
        ("0/5", "0/5"),
        ("2", "'2'"),
    ):
        with pytest.raises(ConfigError, match=error):
            tiny.config(data=data | {"fold": fold}, **fields)
    with pytest.raises(ConfigError, match=r"evals\.dev\.data holds this fold out"):
        tiny.config(data=data | {"fold": "1/5"}, **fields)
