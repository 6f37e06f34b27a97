"""Rows of similar length share a batch: order, lengths, and the loss that stays."""

import collections

import jax
import numpy as np
import pytest

from lm import evaluations
from lm import run as runs
from lm.data import buckets, pipeline
from lm.data.pipeline import Shares
from lm.errors import CheckpointError
from tests import tiny

PAIRS = tuple({"source": t["text"], "target": t["text"][:9]} for t in tiny.documents(9))
LABELLED = tuple(
    {"text": tiny.WORDS[n % 7] + " the dog" * (n % 9), "label": n % 2}
    for n in range(700)
)
KINDS = {
    "classification": ({"name": "classification"}, LABELLED[:9]),
    "mlm": ({"name": "mlm"}, LABELLED[:9]),
    "sop": ({"name": "mlm", "next": "sop"}, tiny.documents(9)),
    "nsp": ({"name": "mlm", "next": "nsp"}, tiny.documents(9)),
    "causal": ({"name": "causal_lm"}, LABELLED[:9]),
    "prefix": ({"name": "prefix_lm"}, LABELLED[:9]),
    "chunks": ({"name": "prefix_lm", "kind": "encoder_decoder"}, LABELLED[:9]),
    "seq2seq": ({"name": "seq2seq", "source_len": 48}, PAIRS),
}
BOTH = ("seq2seq", "chunks")


def config_of(kind, count, items=None, pack=False, **changes):
    objective, few = KINDS[kind]
    data = {
        "sources": [{"name": "memory", "items": items or few}],
        "buckets": count,
        "pack": pack,
    }
    evals = {"dev": {"evaluator": "mean", "data": data, "every": 4}}
    changes |= {"data": data, "evals": evals, "objective": objective}
    return tiny.config(**changes)


def test_shapes_have_two_sizes_for_each_doubling():
    assert buckets.make_shapes((100,), 8, 1) == tuple(
        (n,) for n in (16, 24, 32, 48, 64, 96, 100)
    )
    assert buckets.make_shapes((100,), 3, 1) == ((64,), (96,), (100,))
    assert buckets.make_shapes((100,), 1, 1) == ((100,),)
    assert buckets.make_shapes((64,), 9, 32) == ((32,), (64,))
    assert buckets.make_shapes((64, 20), 9, 1) == (
        *((16, 16), (24, 16), (32, 16), (48, 16), (64, 20)),
    )


def test_a_row_gets_the_first_shape_that_holds_both_sides():
    source, target = np.array([3, 30, 3, 60]), np.array([2, 2, 19, 1])
    made = buckets.make_buckets([((source, 50), (target, 20))], 3, 1)
    assert made.shapes == ((32, 16), (48, 16), (50, 20))
    assert made.least[0].tolist() == [0, 0, 2, 2]  # 60 is cut to 50 later.
    assert made.totals[0].tolist() == [5, 32, 22, 51]
    assert made.lengths([(0, 0), (0, 2)]) == (50, 20)
    assert buckets.make_buckets([((np.array([3]), 8),)], 4, 1) is None


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    config = config_of("classification", 8, LABELLED, batch_size=4)
    return runs.open_corpus(config, tmp_path_factory.mktemp("run"), print).stream


def batches(stream, first, last, process=0, processes=1):
    return [
        {name: np.asarray(array) for name, array in batch.items()}
        for batch in pipeline.batches(
            stream,
            batch_size=4,
            first_step=first,
            last_step=last,
            data=pipeline.Data(),
            shares=Shares(process, processes),
        )
    ]


def ids(batch):
    return [tuple(row) for row in batch["example_ids"].tolist()]


def test_an_epoch_has_every_row_once_and_batches_have_one_length(stream):
    made = batches(stream, 0, 160)
    seen = collections.Counter(row for batch in made for row in ids(batch))
    assert max(seen.values()) == 1 and len(seen) == 640
    lengths = [batch["inputs"].shape[1] for batch in made]
    assert {*lengths} == {16, 24}
    used = [np.count_nonzero(b["segment_ids"]) / b["segment_ids"].size for b in made]
    plain = np.mean([np.count_nonzero(b["segment_ids"]) / (4 * 24) for b in made])
    assert np.mean(used) > 1.2 * plain
    # The batches of a group are in no order of length, and others in the next group.
    assert lengths[:32] not in (sorted(lengths[:32]), sorted(lengths[:32])[::-1])
    assert lengths[:32] != lengths[32:64]


def test_the_order_depends_on_the_step_alone(stream):
    straight = batches(stream, 0, 40)
    again = batches(stream, 33, 40)
    assert [ids(b) for b in again] == [ids(b) for b in straight[33:]]
    halves = [batches(stream, 33, 40, process, 2) for process in (0, 1)]
    for left, right, whole in zip(*halves, again):
        assert ids(left) + ids(right) == ids(whole)
        assert left["inputs"].shape[1] == right["inputs"].shape[1]


def opened(kind, count, folder):
    sides = {"model__kind": "encoder_decoder"} if kind in BOTH else {}
    return runs.open_corpus(config_of(kind, count, **sides), folder, lambda line: None)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"nsp"}))
def test_a_shorter_example_lacks_nothing_but_padding(kind, tmp_path):
    stream = opened(kind, 8, tmp_path).evals["dev"]
    order = stream.from_longest(len(stream)).tolist()
    assert sorted(order) == [*range(len(stream))]
    shorter = 0
    for n in order[-3:]:  # the shortest
        whole, short = stream.example(n), stream.example(n, stream.lengths([n]))
        assert whole.keys() == short.keys()
        for name, array in short.items():
            if np.ndim(array):
                assert (whole[name][: len(array)] == array).all(), name
                rest = whole[name][len(array) :]
                shorter += len(rest)
                if name.endswith(("weights", "segment_ids")):
                    assert not rest.any()
            else:
                assert whole[name] == array
    assert shorter


def test_what_is_drawn_or_packed_is_padded_to_the_full_length(tmp_path):
    assert opened("nsp", 8, tmp_path).stream.buckets is None
    packed = config_of("causal", 8, pack=True)
    assert runs.open_corpus(packed, tmp_path / "packed", print).stream.buckets is None


def test_the_metrics_are_those_of_rows_padded_to_the_full_length(tmp_path):
    found = {}
    for count in (1, 8):
        config = config_of("classification", count, LABELLED[:14])
        with tiny.some_devices(config):
            corpus, program = tiny.program(config, tmp_path)
            with jax.set_mesh(program.mesh):
                params = program.init(jax.random.key(0))
                dev = evaluations.open_evaluators(config, tmp_path, corpus, program)[
                    "dev"
                ]
                found[count] = dev(params, 0)
                made = [b["inputs"].shape for b in dev.examples.batches(by_length=True)]
        assert made == [(8, 24), (8, 24 if count == 1 else 16)]
    for name, value in found[1].items():
        assert found[8][name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.slow
def test_stop_and_resume_is_the_straight_run_over_several_shapes(tmp_path):
    settings = config_of("classification", 8, LABELLED[:90], steps=8)
    assert tiny.run(settings, tmp_path / "straight") == 0
    log = (tmp_path / "straight" / "run.log").read_text()
    assert log.count("compiled in") > 1
    for steps in (4, 8):
        part = config_of("classification", 8, LABELLED[:90], steps=steps)
        assert tiny.run(part, tmp_path / "halves") == 0
    assert tiny.raw_rows(tmp_path / "halves") == tiny.raw_rows(tmp_path / "straight")
    assert tiny.state_bits(tmp_path / "halves") == tiny.state_bits(
        tmp_path / "straight"
    )
    # A run that began without sorted rows does not go on with them.
    plain = config_of("classification", 1, LABELLED[:90], steps=9)
    with pytest.raises(CheckpointError, match="began without sorted rows has data"):
        tiny.run(
            plain,
            tmp_path / "halves",
            allow_change=("data.buckets", "evals.dev.data.buckets"),
        )


def test_lengths_are_few_and_near():
    sizes = [buckets.round_up(n, 4096) for n in range(1, 2000)]
    assert [*dict.fromkeys(sizes)][:8] == [16, 24, 32, 48, 64, 96, 128, 192]
    for n, size in enumerate(sizes, 1):
        assert n <= size and (size <= 16 or size < 1.5 * n)
    assert buckets.round_up(70, 80) == 80


def test_only_padding_is_cut():
    row = np.array([7, 8, 9, 0, 0, 0])
    example = {"inputs": row, "segment_ids": (row > 0) * 1, "labels": row, "own": row}
    example |= {"source_inputs": row[:4], "source_segment_ids": np.ones(4, int)}
    assert buckets.used(example) == 4
    found = buckets.cut(example, 4, frozenset({"own"}))
    lengths = {name: len(array) for name, array in found.items()}
    assert lengths.pop("labels") == 6 and {*lengths.values()} == {4}
    assert found["inputs"].tolist() == [7, 8, 9, 0]
    assert buckets.used({"segment_ids": np.zeros(3)}) == 1
