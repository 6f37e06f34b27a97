"""Span corruption, mixtures of denoisers and prefix LM: rows, and what is refused."""

import collections

import jax
import numpy as np
import pytest

from lm import run as runs
from lm.errors import ConfigError, DataError
from lm.objectives import denoising, span_corruption
from tests import tiny
from tests.data.test_spans import invert
from tests.objectives.test_seq2seq import MODEL

SPM = {"name": "spm", "vocab_size": 120, "extra_ids": 20}


def corpus_of(tmp_path, name, *, pack=False, seq_len=32, model=None, **objective):
    tmp_path.mkdir(parents=True, exist_ok=True)
    config = tiny.config(
        seq_len=seq_len,
        model=MODEL | (model or {}),
        objective={"name": name, **objective},
        tokenizer=SPM,
        data={
            "sources": [{"name": "memory", "items": tiny.documents(40)}],
            "pack": pack,
        },
        evals={},
    )
    return runs.open_corpus(config, tmp_path, lambda line: None)


def segments(example):
    """For each segment: the source, what the decoder reads, and what it says."""
    for k in range(1, example["segment_ids"].max() + 1):
        source = example["source_segment_ids"] == k
        own = example["segment_ids"] == k
        yield (
            example["source_inputs"][source].tolist(),
            example["inputs"][own].tolist(),
            example["targets"][own].tolist(),
        )


def texts(corpus):
    return [corpus.codec.encode(d["text"]) for d in tiny.documents(40)]


@pytest.mark.parametrize("pack", [False, True])
def test_corrupted_rows_are_the_documents(tmp_path, pack):
    corpus = corpus_of(tmp_path, "span_corruption", pack=pack)
    codec, stream = corpus.codec, corpus.stream
    layout = corpus.objective.layout(codec, seq_len=32, pack=pack)
    pieces, most = [], 0
    for n in range(len(stream)):
        example = stream.example(n)
        assert example["source_inputs"].shape == (32,)
        assert example["inputs"].shape == (layout.capacity[1],)
        assert (example["weights"] == (example["segment_ids"] > 0)).all()
        most = max(most, example["segment_ids"].max())
        for source, read, said in segments(example):
            assert source.pop() == said[-1] == codec.eos_id
            assert read == [codec.bos_id, *said[:-1]]
            assert said[0] == codec.sentinel_ids[0]
            pieces.append(tuple(invert(source, said[:-1], codec.sentinel_ids)))
    cut = [
        tuple(text[start : start + layout.length])
        for text in texts(corpus)
        for start in range(0, len(text), layout.length)
    ]
    assert sorted(pieces) == sorted(piece for piece in cut if len(piece) > 1)
    assert (most > 1) == pack


def test_full_rows_have_no_padding_and_the_target_length_is_computed(tmp_path):
    corpus = corpus_of(tmp_path, "span_corruption", seq_len=20)
    layout = corpus.objective.layout(corpus.codec, seq_len=20, pack=False)
    assert layout.capacity == (20, layout.forms[0].lengths(layout.length)[1])
    full = 0
    for n in range(len(corpus.stream)):
        example = corpus.stream.example(n)
        _, _, row = corpus.stream.locate(n)
        if len(corpus.stream.indices[0].row(row)["pieces"][0]) == layout.length:
            full += 1
            assert (example["source_segment_ids"] > 0).all()
            assert (example["segment_ids"] > 0).all()
    assert full > 5
    shorter = span_corruption.Objective(target_len=5)
    assert shorter.layout(corpus.codec, seq_len=20, pack=False).capacity == (20, 5)


def test_spans_differ_between_epochs(tmp_path):
    corpus = corpus_of(tmp_path, "span_corruption")
    seen = collections.defaultdict(set)
    for n in range(4 * len(corpus.stream)):
        example = corpus.stream.example(n)
        if (example["segment_ids"] > 0).all():  # of short pieces there are few
            seen[int(example["example_ids"][2])].add(example["source_inputs"].tobytes())
    assert len(seen) > 5
    assert np.mean([len(variants) for variants in seen.values()]) > 3


def test_what_a_corruption_needs(tmp_path):
    codec = corpus_of(tmp_path, "span_corruption").codec
    with pytest.raises(DataError, match=r"20 sentinels, expected 28.*extra_ids=100"):
        span_corruption.Objective().layout(codec, seq_len=512, pack=False)
    with pytest.raises(ConfigError, match=r"seq_len: found 2 with"):
        span_corruption.Objective().layout(codec, seq_len=2, pack=False)


def test_denoisers_are_mixed_and_marked(tmp_path):
    denoisers = (
        {"kind": "spans", "rate": 0.15, "span": 3.0, "mode": "the", "weight": 2},
        {"kind": "spans", "rate": 0.5, "span": 4.0, "mode": "a"},
        {"kind": "prefix", "rate": 0.25, "mode": "old"},
    )
    corpus = corpus_of(tmp_path, "denoising", denoisers=denoisers)
    codec, stream = corpus.codec, corpus.stream
    layout = corpus.objective.layout(codec, seq_len=32, pack=False)
    modes = [codec.encode(d["mode"]) for d in denoisers]
    counts, shares = collections.Counter(), collections.defaultdict(list)
    known = {tuple(piece) for text in texts(corpus) for piece in chunks(text, layout)}
    for n in range(6 * len(stream)):
        ((source, _, said),) = segments(stream.example(n))
        number = next(i for i, m in enumerate(modes) if source[: len(m)] == m)
        source = source[len(modes[number]) : -1]
        text = invert(source, said[:-1], codec.sentinel_ids)
        assert tuple(text) in known
        counts[number] += 1
        left_out = sum(token not in codec.sentinel_ids for token in said[:-1])
        shares[number].append(left_out / len(text))
        if number == 2:
            assert source[-1] == codec.sentinel_ids[0] == said[0]
            assert source[:-1] == text[: len(source) - 1]
    total = counts.total()
    expected = [total / 2, total / 4, total / 4]
    assert [counts[i] for i in range(3)] == pytest.approx(expected, rel=0.25)
    assert np.mean(shares[0]) == pytest.approx(0.15, abs=0.04)
    assert np.mean(shares[1]) == pytest.approx(0.5, abs=0.05)
    assert np.mean(shares[2]) == pytest.approx(0.25, abs=0.06)


def chunks(text, layout):
    return (text[i : i + layout.length] for i in range(0, len(text), layout.length))


def test_all_denoisers_of_a_mixture_fit_one_raw_length(tmp_path):
    codec = corpus_of(tmp_path, "span_corruption").codec
    objective = denoising.Objective()
    forms = objective.forms(codec)
    assert len(forms) == 7 and objective.weights() == (1.0,) * 7
    codec.sentinel_ids = tuple(range(100))
    layout = objective.layout(codec, seq_len=128, pack=False)
    for form in forms:
        source, target = form.lengths(layout.length)
        assert source <= 128 and target <= layout.capacity[1]
    assert max(form.lengths(layout.length + 1)[0] for form in forms) > 128


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        ({"kind": "span"}, r"0\.kind: found 'span', expected spans or prefix"),
        ({"rate": 1.0}, r"0\.rate: found 1\.0"),
        ({"rate": "0.1"}, r"0\.rate: found '0\.1'"),
        ({"span": 0.5}, r"0\.span: found 0\.5"),
        ({"weight": 0}, r"0\.weight: found 0"),
        ({"mode": 3}, r"0\.mode: found 3"),
        ({"sapn": 3}, r"0\.sapn: found an unknown field, expected one of kind"),
    ],
)
def test_a_denoiser_that_cannot_be(denoiser, message):
    with pytest.raises(ConfigError, match=rf"objective\.denoisers\.{message}"):
        denoising.Objective(denoisers=(denoiser,))
    with pytest.raises(ConfigError, match="at least one"):
        denoising.Objective(denoisers=())


@pytest.mark.parametrize("pack", [False, True])
def test_a_prefix_of_an_encoder_decoder_is_its_source(tmp_path, pack):
    corpus = corpus_of(tmp_path, "prefix_lm", pack=pack, kind="encoder_decoder")
    codec, stream = corpus.codec, corpus.stream
    layout = corpus.objective.layout(codec, seq_len=32, pack=pack)
    found, most = [], 0
    for n in range(len(stream)):
        example = stream.example(n)
        most = max(most, example["segment_ids"].max())
        for source, read, said in segments(example):
            assert source.pop() == said[-1] == codec.eos_id
            assert read == [codec.bos_id, *said[:-1]]
            assert source and said[:-1]
            found.append(source + said[:-1])
    expected = [p for t in texts(corpus) for p in chunks(t, layout) if len(p) > 1]
    assert sorted(found) == sorted(expected)
    assert layout.length == 32
    assert (most > 1) == pack or not pack


@pytest.mark.parametrize("pack", [False, True])
def test_a_prefix_of_a_decoder_is_marked(tmp_path, pack):
    corpus = corpus_of(tmp_path, "prefix_lm", pack=pack, model={"kind": "decoder"})
    codec, stream = corpus.codec, corpus.stream
    found = []
    for n in range(len(stream)):
        example = stream.example(n)
        assert example["prefix"].dtype == bool
        padding = example["segment_ids"] == 0
        assert not example["prefix"][padding].any()
        assert not example["weights"][padding].any()
        for k in range(1, example["segment_ids"].max() + 1):
            own = example["segment_ids"] == k
            seen = int(example["prefix"][own].sum())
            assert example["prefix"][own][:seen].all() and seen >= 2
            assert example["weights"][own].tolist() == [
                float(place >= seen - 1) for place in range(own.sum())
            ]
            assert example["inputs"][own][0] == codec.bos_id
            found.append(example["targets"][own].tolist())
    ended = [[*text, codec.eos_id] for text in texts(corpus)]
    expected = [t[i : i + 32] for t in ended for i in range(0, len(t), 32)]
    assert sorted(found) == sorted(p for p in expected if len(p) > 1)


def test_samples_show_sentinels_and_prefixes(tmp_path):
    corpus = corpus_of(tmp_path / "spans", "span_corruption")
    codec, example = corpus.codec, corpus.stream.example(0)
    batch = {name: value[None] for name, value in example.items()}
    shown = corpus.objective.show(batch, {"tokens": batch["targets"]}, codec, 0)
    source, target, guesses = shown.split("\n")
    for line in (source, target, guesses):
        for k in range(int(np.isin(batch["targets"], codec.sentinel_ids).sum())):
            assert f"<extra_id_{k}>" in line
    assert guesses.removeprefix("guesses: ") == target.removeprefix("target: ")
    corpus = corpus_of(tmp_path / "prefix", "prefix_lm", model={"kind": "decoder"})
    example = corpus.stream.example(0)
    batch = {name: value[None] for name, value in example.items()}
    shown = corpus.objective.show(batch, {"tokens": batch["targets"]}, codec, 0)
    prefix, target, _ = shown.split("\n")
    whole = codec.decode(example["targets"].tolist())
    prefix, target = prefix.removeprefix("prefix: "), target.removeprefix("target: ")
    assert f"{prefix}{target}".replace(" ", "") == whole.replace(" ", "")


def test_what_is_to_be_said_is_not_seen(tmp_path):
    """A place that counts never sees its own target; within the prefix all is seen."""
    config = tiny.config(
        model=MODEL | {"kind": "decoder"},
        objective={"name": "prefix_lm"},
        tokenizer=SPM,
        data__pack=False,
        evals={},
    )
    with tiny.some_devices(config):
        corpus, program = tiny.program(config, tmp_path)
    batch = tiny.batch(corpus, rows=1)
    params = program.init(jax.random.key(0))
    length = int((batch["segment_ids"][0] > 0).sum())
    seen = int(batch["prefix"][0].sum())
    assert 2 <= seen < length - 1
    # Row j of the batch has another token at place j; the last row is as it was.
    rows = {n: np.repeat(np.asarray(a), length + 1, 0) for n, a in batch.items()}
    for j in range(length):
        rows["inputs"][j, j] = (rows["inputs"][j, j] + 1) % corpus.codec.vocab_size
    hidden = jax.jit(lambda p, b: program.model.apply({"params": p}, b, train=False))
    states = np.asarray(hidden(params, rows))[:, :length]
    changed = (np.abs(states[:-1] - states[-1]) > 1e-6).any(-1)  # by j, at place p
    place = np.arange(length)
    expected = (place[:, None] <= place) | (
        (place[:, None] < seen) & (place < seen)[None]
    )
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("span_corruption", {}),
        ("prefix_lm", {"kind": "decoder"}),
    ],
)
def test_a_gradient_comes_back(tmp_path, name, model):
    """Every parameter has a part in the loss, and padding has none."""
    config = tiny.config(
        seq_len=24,
        model=MODEL | model,
        objective={"name": name},
        tokenizer=SPM,
        evals={},
    )
    with tiny.some_devices(config):
        corpus, program = tiny.program(config, tmp_path)
    batch = tiny.batch(corpus)
    params = program.init(jax.random.key(0))

    @jax.jit
    @jax.value_and_grad
    def loss(params, batch):
        return program.model.apply(
            {"params": params},
            batch,
            method=lambda m, b: corpus.objective.loss(m, b, train=False)["lm"][0],
        )

    value, gradient = loss(params, batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(abs(leaf).max()) > 0, jax.tree_util.keystr(path)
    other = dict(batch)
    for side in ("", "source_") if "source_inputs" in batch else ("",):
        padding = batch[f"{side}segment_ids"] == 0
        other[f"{side}inputs"] = batch[f"{side}inputs"].at[padding].set(7)
    assert float(loss(params, other)[0]) == pytest.approx(float(value), rel=1e-6)
