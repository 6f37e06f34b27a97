"""Rows that follow each other: the contiguous layout, and data.order="stream"."""

import numpy as np
import pytest

from lm import run as runs
from lm.data import index as indices
from lm.data import pipeline
from lm.data.lanes import Lanes
from lm.data.pipeline import Data, Shares
from lm.data.sources import memory
from lm.data.stream import Stream
from lm.data.windows import Contiguous, Measure, NextInStream
from lm.errors import ConfigError
from tests import tiny

BOS, EOS = 1, 2
DOCUMENTS = ["abcdefgh", "ij", "klmnopqrstuvw", "x", "", "yzabcdefg", "hijkl"]


class Letters:
    """A tokenizer of one token per letter."""

    vocab_size, fingerprint, unk_id = 128, "letters", None

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


def build(tmp_path, length=4, across=False, documents=DOCUMENTS, **ids):
    ids = {"bos_id": BOS, "eos_id": EOS} | ids
    folder = tmp_path / f"index-{length}-{across}"
    indices.build(
        folder,
        memory.Source(items=tuple(documents)),
        Contiguous(length, across=across, **ids),
        Letters(),
        skip_bad=False,
        max_bad=0.0,
        note=lambda line: None,
    )
    return indices.load(folder)


def all_tokens(documents=DOCUMENTS):
    return [t for d in documents if d for t in (BOS, *map(ord, d), EOS)]


def borders(documents=DOCUMENTS):
    """Where each text begins among all tokens."""
    lengths = [len(d) + 2 for d in documents if d]
    return [0, *np.cumsum(lengths)[:-1].tolist()]


@pytest.mark.parametrize("length", [1, 3, 4, 7, 64])
def test_rows_follow_each_other_and_know_their_texts(tmp_path, length):
    index = build(tmp_path, length)
    tokens, begins = all_tokens(), borders()
    numbers = [n for n, d in enumerate(DOCUMENTS) if d]
    for i in range(len(index)):
        row, at = index.row(i), i * length
        (piece,) = row["pieces"]
        assert piece.tolist() == tokens[at : at + length + 1]
        own = max(b for b in begins if b <= at)
        assert row["offset"] == at - own
        held = [b for b in begins if at <= b <= at + length and b < len(tokens)]
        assert row["starts"].tolist() == [b - at for b in held]
        texts = [own, *(b for b in held if own < b < at + len(piece) - 1)]
        assert row["record"].tolist() == [numbers[begins.index(b)] for b in texts]
    assert (len(index) - 1) * length < len(tokens) - 1 <= len(index) * length


@pytest.mark.parametrize("across", [False, True])
def test_the_bytes_are_those_of_the_counted_targets(tmp_path, across):
    index = build(tmp_path, 3, across)
    total = sum(len(d) for d in DOCUMENTS)
    assert index.fields["bytes"].sum() == pytest.approx(total)
    words = sum(map(bool, DOCUMENTS))  # each a word, without an end of its own
    assert index.fields["words"].sum() == pytest.approx(words)
    make = NextInStream(3, reset=not across)
    weights = [make(index.row(i), None)["weights"] for i in range(len(index))]
    targets = len(all_tokens()) - 1
    missed = 0 if across else len(borders()) - 1
    assert sum(w.sum() for w in weights) == targets - missed
    empty = [i for i, w in enumerate(weights) if w.sum() == 0]
    assert all(index.fields["bytes"][i] == 0 for i in empty)


@pytest.mark.parametrize("across", [False, True])
def test_without_bos_a_first_token_that_is_no_target_has_no_bytes(tmp_path, across):
    def decode(ids):
        return "".join(map(chr, ids))

    index = build(tmp_path, 3, across, bos_id=None, measure=Measure(decode=decode))
    texts = [d for d in DOCUMENTS if d]
    # Across texts only the very first token has none before it.
    missed = 1 if across else len(texts)
    total = sum(map(len, texts)) - missed
    assert index.fields["bytes"].sum() == pytest.approx(total)


def stream(tmp_path, lanes, length=4, reset=True, documents=DOCUMENTS):
    index = build(tmp_path, length, not reset, documents)
    steps = (NextInStream(length, reset), pad(length))
    return Stream((index,), None, (steps,), 0, Lanes(lanes, len(index)))


def pad(length):
    from lm.data import transforms

    keep = ("inputs", "positions", "segment_ids", "targets", "weights")
    sides, kept = transforms.PadSides(0, length, 0), transforms.Keep(keep)
    return lambda example, rng: kept(sides(example, rng), rng)


def batches(made, lanes, first, last, processes=1):
    parts = [
        pipeline.batches(
            made,
            batch_size=lanes,
            first_step=first,
            last_step=last,
            data=Data(),
            shares=Shares(process, processes),
        )
        for process in range(processes)
    ]
    for shares in zip(*parts, strict=True):
        yield {k: np.concatenate([s[k] for s in shares]) for k in shares[0]}


@pytest.mark.parametrize("lanes", [1, 2, 4, 6])
def test_row_r_of_the_steps_is_one_text_and_all_rows_are_the_whole(tmp_path, lanes):
    made = stream(tmp_path, lanes)
    steps = -(-len(made) // lanes)
    found = list(batches(made, lanes, 0, steps))
    text: list[int] = []
    for lane in range(lanes):
        for step, batch in enumerate(found):
            if made.lanes.locate(step * lanes + lane).row is None:
                assert not batch["weights"][lane].any()
                continue
            text += batch["inputs"][lane][batch["segment_ids"][lane] > 0].tolist()
    assert text == all_tokens()[:-1]


def test_the_same_by_two_processes_and_from_any_step_on(tmp_path):
    made = stream(tmp_path, 4)
    whole = list(batches(made, 4, 0, 9))
    parts = [
        *batches(made, 4, 0, 2),
        *batches(made, 4, 2, 5, 2),
        *batches(made, 4, 5, 9),
    ]
    for one, other in zip(whole, parts, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])


def test_an_epoch_begins_the_lanes_again(tmp_path):
    made = stream(tmp_path, 4)
    steps = -(-len(made) // 4)
    first, second = (list(batches(made, 4, s, s + steps)) for s in (0, steps))
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one["inputs"], other["inputs"])
        np.testing.assert_array_equal(one["positions"], other["positions"])
    assert [e for _, e, _ in map(made.locate, range(0, 8 * steps, 4))] == [
        epoch for epoch in (0, 1) for _ in range(steps)
    ]


@pytest.mark.parametrize("lanes", [1, 3])
def test_positions_are_0_where_a_text_or_a_lane_begins_alone(tmp_path, lanes):
    made = stream(tmp_path, lanes)
    begins, base = set(borders()), len(made) // lanes
    longer = len(made) % lanes
    for n in range(-(-len(made) // lanes) * lanes):
        row = made.lanes.locate(n).row
        if row is None:
            continue
        example = made.example(n)
        lane = n % lanes
        lane_start = (lane * base + min(lane, longer)) * 4
        for at in np.flatnonzero(example["segment_ids"]):
            place = row * 4 + at
            start = max([b for b in begins if b <= place] + [lane_start])
            assert example["positions"][at] == place - start


def test_without_reset_the_state_lives_through_the_borders(tmp_path):
    made = stream(tmp_path, 2, reset=False)
    zeros = [
        (n, at)
        for n in range(len(made))
        for at in np.flatnonzero(made.example(n)["positions"] == 0)
        if made.example(n)["segment_ids"][at] and made.example(n)["weights"].any()
    ]
    assert zeros == [(0, 0), (1, 0)]
    assert set(made.example(3)["segment_ids"].tolist()) <= {0, 1}


def test_texts_are_segments_of_their_own_and_their_first_token_is_no_target(tmp_path):
    index = build(tmp_path, 64)
    row = NextInStream(64, reset=True)(index.row(0), None)
    begins = borders()
    assert np.flatnonzero(row["weights"] == 0).tolist() == [b - 1 for b in begins[1:]]
    for number, begin in enumerate(begins, 1):
        assert row["segment_ids"][begin] == number and row["positions"][begin] == 0


# ---- in a run ----

CAUSAL = {
    "objective": {"name": "causal_lm", "borders": "reset", "bos": False},
    "model__kind": "decoder",
    "model__position": "rope",
    "model__token_types": 0,
    "evals": {},
}


def test_weights_are_refused_in_one_line():
    sources = [
        {"name": "memory", "items": tiny.documents(9, seed=s), "weight": float(s)}
        for s in (1, 2)
    ]
    config = tiny.config(**CAUSAL, data={"sources": sources, "order": "stream"})
    with pytest.raises(
        ConfigError, match=r"data\.order: .*weights 1\.0, 2\.0"
    ) as caught:
        runs.check(config)
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize("objective", [{"name": "mlm"}, {"name": "causal_lm"}])
def test_rows_that_are_no_stream_are_refused_before_step_1(objective):
    settings = CAUSAL | {"objective": objective, "data__order": "stream"}
    if objective["name"] == "mlm":
        settings = {"data__order": "stream", "evals": {}}
    wanted = rf"data\.order: found 'stream' with objective {objective['name']}"
    with pytest.raises(ConfigError, match=wanted):
        runs.check(tiny.config(**settings))


def test_an_evaluation_of_rows_that_are_no_stream_is_refused():
    texts = {"sources": [{"name": "memory", "items": tiny.documents(9)}]}
    dev = {"evaluator": "mean", "data": texts | {"order": "stream"}}
    dev["objective"] = {"borders": "row"}
    settings = CAUSAL | {"data__order": "stream", "evals": {"dev": dev}}
    with pytest.raises(ConfigError, match=r"evals\.dev\.data\.order: found 'stream'"):
        runs.check(tiny.config(**settings))


def test_a_model_whose_positions_end_is_refused():
    settings = CAUSAL | {"data__order": "stream", "model__position": "learned"}
    with pytest.raises(ConfigError, match=r"data\.order: .*model of 24 positions"):
        runs.check(tiny.config(**settings))


def test_a_run_in_stream_order_resumes_exactly(tmp_path):
    sources = [{"name": "memory", "items": tiny.documents(9, seed=s)} for s in (1, 2)]
    settings = CAUSAL | {
        "data": {"sources": sources, "order": "stream"},
        "objective": {"name": "causal_lm", "borders": "reset"},
        "steps": 6,
        "checkpoint": {"every": 3, "keep_last": 3},
    }
    assert tiny.run(settings, tmp_path / "golden") == 0
    assert tiny.run(settings | {"steps": 3}, tmp_path / "run") == 0
    assert tiny.run(settings, tmp_path / "run") == 0
    assert tiny.raw_rows(tmp_path / "run") == tiny.raw_rows(tmp_path / "golden")
    assert tiny.state_bits(tmp_path / "run") == tiny.state_bits(tmp_path / "golden")
    assert tiny.host(tmp_path / "run")["data"]["lanes"] == 8


def test_the_order_is_frozen(tmp_path):
    from lm.config import resolve as configs

    old = tiny.config(**CAUSAL)
    new = tiny.config(**CAUSAL, data__order="stream")
    assert configs.changes(old, new) == [("data.order", "shuffled", "stream", False)]
    older = {k: v for k, v in old["data"].items() if k not in ("order", "max_unknown")}
    assert configs.changes(old | {"data": older}, old) == []
    found = configs.changes(old | {"data": older}, new)
    assert found == [("data.order", "shuffled", "stream", False)]
