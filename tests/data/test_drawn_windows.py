"""Windows of drawn lengths: what they cover, what they carry, and that they resume."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import run as runs
from lm.data import index as indices
from lm.data import pipeline
from lm.data.lanes import DrawnWindows
from lm.data.pipeline import Data, Shares
from lm.data.sources import memory
from lm.data.windows import Contiguous, NextInStream, read_span
from lm.errors import ConfigError, DataError
from lm.training import step
from tests import tiny


@pytest.mark.parametrize(("count", "tokens"), [(1, 400), (3, 1000), (8, 4007)])
def test_each_epoch_reads_every_token_once_in_as_many_steps(count, tokens):
    windows = DrawnWindows(count, tokens, length=20, seed=7)
    lengths = []
    for epoch in range(3):
        read = np.zeros(tokens, int)
        first = epoch * windows.steps * count
        for n in range(first, first + windows.steps * count):
            span = windows.locate(n)
            assert span.epoch == epoch and span.size > 0
            read[span.start : span.start + span.size] += 1
            lane_start = windows.locate(first + n % count).start
            assert span.passed == span.start - lane_start
            top = windows.locate(n - n % count).size
            assert span.size == top or (n // count + 1) % windows.steps == 0
            assert windows.padded(n) >= top
        np.testing.assert_array_equal(read, 1)
        numbers = range(first, first + windows.steps * count, count)
        lengths.append([windows.locate(n).size for n in numbers])
    assert lengths[0] != lengths[1]
    again = DrawnWindows(count, tokens, length=20, seed=7)
    assert [again.locate(n).size for n in numbers] == lengths[-1]
    other = DrawnWindows(count, tokens, length=20, seed=8)
    assert [other.locate(n).size for n in numbers] != lengths[-1]


def test_the_lengths_are_those_of_the_paper():
    """70 with probability .95, else 35, with a deviation of 5; three shapes."""
    windows = DrawnWindows(1, 4_000_000, length=70, seed=0)
    sizes = np.diff(windows._borders(0))
    short = sizes < 53
    assert short.mean() == pytest.approx(0.05, abs=0.005)
    assert sizes[~short].mean() == pytest.approx(70, abs=0.3)
    assert sizes[short].mean() == pytest.approx(35, abs=0.6)
    assert sizes[~short].std() == pytest.approx(5, abs=0.3)
    assert {windows.padded(n) for n in range(2000)} == {47, 70, 82}


TEXTS = ["abcdefgh", "ij", "klmnopqrstuvw", "x", "", "yzabcdefg", "hijkl"]


class Letters:
    """A tokenizer of one token per letter."""

    vocab_size, fingerprint, unk_id = 128, "letters", None

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


@pytest.mark.parametrize("reset", [False, True])
def test_a_span_is_that_part_of_the_whole_text(tmp_path, reset):
    """Tokens, positions, segments and weights, wherever it begins and ends."""
    made = []
    for length in (4, 64):  # rows of four tokens, and all in one
        indices.build(
            tmp_path / str(length),
            memory.Source(items=tuple(TEXTS)),
            Contiguous(length, None, 1, across=not reset),
            Letters(),
            skip_bad=False,
            max_bad=0.0,
            note=lambda line: None,
        )
        made.append(indices.load(tmp_path / str(length)))
    index, one = made
    make = NextInStream(4, reset)
    whole = make(one.row(0), None)
    total = len(whole["inputs"])
    for start, stop in itertools.combinations(range(total + 1), 2):
        row = read_span(index, 4, start, stop - start)
        found = make(row | {"before": start}, None)
        for name in ("inputs", "targets", "weights", "positions"):
            np.testing.assert_array_equal(found[name], whole[name][start:stop])
        segments = whole["segment_ids"][start:stop]
        np.testing.assert_array_equal(
            np.diff(found["segment_ids"]), np.diff(segments), err_msg=f"{start, stop}"
        )
        assert (found["segment_ids"] > 0).all()


# ---- in a run ----

RUN = {
    "model": {"name": "rnn", "cell": "lstm", "d_model": 16, "init_std": 0.5},
    "objective": {"name": "causal_lm", "borders": "ignore", "bos": False},
    "data": {
        "sources": [{"name": "memory", "items": tiny.documents(40)}],
        "order": "stream",
        "windows": "drawn",
    },
    "batch_size": 4,
    "seq_len": 20,
    "evals": {},
}


def read(corpus, first, last, processes=1):
    """The batches of some steps, each put together of the shares of the processes."""
    parts = [
        pipeline.batches(
            corpus.stream,
            batch_size=4,
            first_step=first,
            last_step=last,
            data=Data(),
            shares=Shares(process, processes),
        )
        for process in range(processes)
    ]
    for shares in zip(*parts, strict=True):
        yield {k: np.concatenate([s[k] for s in shares]) for k in shares[0]}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    config = tiny.config(**RUN)
    runs.check(config)
    return tiny.program(config, tmp_path_factory.mktemp("drawn"))


def test_a_batch_is_a_function_of_its_step(opened):
    corpus, _ = opened
    steps = len(corpus.stream) // 4
    whole = list(read(corpus, 0, steps + 3))
    for first, last, processes in ((0, 4, 1), (4, 9, 2), (steps, steps + 3, 1)):
        found = read(corpus, first, last, processes)
        for batch, known in zip(found, whole[first:last], strict=True):
            for name, array in known.items():
                np.testing.assert_array_equal(batch[name], array)
    assert {batch["inputs"].shape[1] for batch in whole} <= {20, 22, 32}
    assert runs.durations(corpus.config, corpus)("2 epochs") == 2 * steps
    pace = step.share_of(20)
    for number, batch in enumerate(whole):
        size = corpus.stream.drawn.locate(4 * number).size
        assert float(pace(jax.tree.map(jnp.asarray, batch))) == pytest.approx(size / 20)


def test_the_state_that_is_carried_is_that_of_one_long_text(opened):
    """Padding leaves it as it is: loss and state of each lane, windows or none."""
    corpus, program = opened
    params = program.init(jax.random.key(0))
    state, loss, lanes = program.continued.start(4), 0.0, [[] for _ in range(4)]
    batches = list(read(corpus, 0, len(corpus.stream) // 4))
    for batch in batches:
        real = batch["segment_ids"] > 0
        for lane, row, own in zip(lanes, batch["inputs"], real):
            lane.append(row[own])
        for lane, row, own in zip(lanes, batch["targets"], real):
            last = row[own][-1:]
            lane[-1] = lane[-1] if batch is not batches[-1] else [*lane[-1], *last]
        given = {k: jnp.asarray(v) for k, v in batch.items() if k != "example_ids"}
        found, state = program.continued.metrics(params, step.Rows(given, state))
        loss += float(found["lm_loss"][0])
    expected = 0.0
    for number, lane in enumerate(lanes):
        tokens = np.concatenate(lane)[None].astype(np.int32)
        one = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        one["positions"] = np.arange(tokens.size - 1)[None]
        one["segment_ids"] = np.ones_like(one["inputs"])
        one["weights"] = np.ones(one["inputs"].shape, np.float32)
        given = step.Rows(jax.tree.map(jnp.asarray, one), program.continued.start(1))
        alone, end = program.continued.metrics(params, given)
        expected += float(alone["lm_loss"][0])
        for name, part in end.items():
            np.testing.assert_allclose(state[name][number], part[0], atol=1e-5)
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_run_resumes_exactly_and_its_learning_rate_is_that_of_the_length(tmp_path):
    optim = {"name": "sgd", "lr": 0.5, "schedule": "constant", "weight_decay": 0.0}
    checkpoint = {"every": 4, "keep_last": 3}
    changes = {"steps": 8, "optim": optim, "checkpoint": checkpoint}
    settings, first = (
        tiny.config(**RUN | changes | more) for more in ({}, {"steps": 4})
    )
    assert tiny.run(settings, tmp_path / "golden") == 0
    assert tiny.run(first, tmp_path / "run") == 0
    assert tiny.run(settings, tmp_path / "run") == 0
    assert tiny.raw_rows(tmp_path / "run") == tiny.raw_rows(tmp_path / "golden")
    assert tiny.state_bits(tmp_path / "run") == tiny.state_bits(tmp_path / "golden")
    corpus, _ = tiny.program(settings, tmp_path / "open")
    for number, row in enumerate(tiny.rows(tmp_path / "run")):
        size = corpus.stream.drawn.locate(4 * number).size
        assert row["optim/lr"] == pytest.approx(0.5 * size / 20)
        assert row["optim/update_norm"] == pytest.approx(
            row["optim/lr"] * min(row["optim/gradient_norm"], 1.0), rel=1e-4
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__order": "shuffled", "objective__borders": "row"}, "data.windows: .*"),
        ({"data__sources": RUN["data"]["sources"] * 2}, "with 2 sources"),
    ],
)
def test_what_has_no_such_windows_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        runs.check(tiny.config(**RUN | changes))


def test_windows_and_lanes_that_are_too_short_are_refused(tmp_path):
    for changes, kind, message in (
        ({"seq_len": 19}, ConfigError, "seq_len: found 19, expected at least 20"),
        ({"batch_size": 40}, DataError, "lower batch_size or seq_len"),
    ):
        corpus = runs.open_corpus(tiny.config(**RUN | changes), tmp_path, print)
        with pytest.raises(kind, match=message):
            len(corpus.stream)


@pytest.mark.parametrize(
    "changes",
    [{"name": "schedule_free_sgd"}, {"max_norm": ((".*output/kernel", 3.0),)}],
)
def test_an_optimiser_that_a_factor_does_not_scale_is_refused(opened, changes):
    corpus, program = opened
    config = tiny.config(**RUN, optim={"name": "sgd", "lr": 0.1} | changes)
    steps_of = runs.durations(config, corpus)
    with pytest.raises(ConfigError):
        runs.open_training(config, corpus, program, steps_of)
