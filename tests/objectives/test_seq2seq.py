"""Translation: its examples, packed and not, its loss against numpy, its texts."""

import jax
import numpy as np
import pytest

from lm import run as runs
from lm.data.sources.base import Record
from lm.errors import DataError
from lm.objectives import seq2seq
from tests import tiny

RNG = np.random.default_rng(5)
PAIRS = tuple(
    {"source": tiny.sentence(RNG), "target": tiny.sentence(RNG)} for _ in range(24)
)
MODEL = {
    "name": "transformer",
    "kind": "encoder_decoder",
    "num_layers": 1,
    "d_model": 16,
    "num_heads": 2,
    "d_ff": 32,
    "max_len": 64,
    "position": "sinusoidal",
    "token_types": 0,
    "dropout": 0.0,
    "attention": {"dropout": 0.0},
}


def settings(*, pack=True, items=PAIRS, **objective):
    return tiny.config(
        seq_len=32,
        model=MODEL,
        objective={"name": "seq2seq", "source_len": 40, **objective},
        data={"sources": [{"name": "memory", "items": items}], "pack": pack},
        evals={},
    )


def opened(tmp_path, **changes):
    config = settings(**changes)
    with tiny.some_devices(config):
        return tiny.program(config, tmp_path)


def corpus_of(tmp_path, **changes):
    tmp_path.mkdir(parents=True, exist_ok=True)
    return runs.open_corpus(settings(**changes), tmp_path, lambda line: None)


@pytest.mark.parametrize("pack", [False, True])
def test_both_sides_of_every_pair(tmp_path, pack):
    corpus = corpus_of(tmp_path, pack=pack)
    codec, stream = corpus.codec, corpus.stream
    expected = {
        (tuple(codec.encode(p["source"])), tuple(codec.encode(p["target"])))
        for p in PAIRS
    }
    found, segments = set(), []
    for n in range(len(stream)):
        e = stream.example(n)
        assert e["source_inputs"].shape == (40,) and e["inputs"].shape == (32,)
        assert e["source_segment_ids"].max() == e["segment_ids"].max()
        segments.append(e["segment_ids"].max())
        assert (e["weights"] == (e["segment_ids"] > 0)).all()
        for side in ("source_", ""):
            assert (e[f"{side}inputs"][e[f"{side}segment_ids"] == 0] == 0).all()
        for k in range(1, e["segment_ids"].max() + 1):
            source = e["source_segment_ids"] == k
            own = e["segment_ids"] == k
            assert e["source_positions"][source].tolist() == [*range(source.sum())]
            assert e["positions"][own].tolist() == [*range(own.sum())]
            read, said = e["inputs"][own].tolist(), e["targets"][own].tolist()
            assert read[0] == codec.bos_id and said[-1] == codec.eos_id
            assert read[1:] == said[:-1]
            *words, end = e["source_inputs"][source].tolist()
            assert end == codec.eos_id
            found.add((tuple(words), tuple(said[:-1])))
    assert found == expected
    assert (max(segments) > 1) == pack


def test_a_prefix_is_put_before_the_source(tmp_path):
    corpus = corpus_of(tmp_path, prefix="now here ")
    for n in range(3):
        e = corpus.stream.example(n)
        first = e["source_inputs"][e["source_segment_ids"] == 1].tolist()
        shown = corpus.codec.decode(first)
        assert shown.startswith("now here ")


def test_the_loss_is_smoothed_and_the_metrics_are_not(tmp_path):
    smoothing, z = 0.1, 0.01
    corpus, program = opened(tmp_path, label_smoothing=smoothing, z_loss=z)
    batch, objective = tiny.batch(corpus), corpus.objective
    params = program.init(jax.random.key(0))

    @jax.jit
    def outputs(params, batch):
        return program.model.apply(
            {"params": params},
            batch,
            method=lambda m, b: (
                m.logits(m(b, train=False)),
                objective.loss(m, b, train=False),
            ),
        )

    logits, terms = outputs(params, batch)
    logits, (total, count) = np.asarray(logits, np.float64), terms["lm"]
    log_sum = np.log(np.exp(logits).sum(-1))
    log_p = logits - log_sum[..., None]
    targets, weights = np.asarray(batch["targets"]), np.asarray(batch["weights"])
    chosen = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    smoothed = (1 - smoothing) * chosen + smoothing * log_p.mean(-1)
    expected = ((z * log_sum**2 - smoothed) * weights).sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(count) == weights.sum() == float(objective.counts(batch)["lm"])
    metrics = program.metrics(params, batch)
    plain, count = metrics["lm_loss"]
    assert float(plain) == pytest.approx(-(chosen * weights).sum(), rel=1e-5)
    right = ((logits.argmax(-1) == targets) * weights).sum()
    assert float(metrics["lm_accuracy"][0]) == right
    assert float(metrics["lm_accuracy"][1]) == float(count) == weights.sum()


def test_packed_pairs_count_what_they_count_alone(tmp_path):
    """The loss over the set is the same whether rows hold one pair or several."""
    losses = []
    for pack in (False, True):
        corpus, program = opened(tmp_path / str(pack), pack=pack)
        batch = tiny.batch(corpus, rows=len(corpus.stream))
        params = program.init(jax.random.key(0))
        total, count = program.metrics(params, batch)["lm_loss"]
        losses.append((float(total), float(count)))
    assert losses[0][1] == losses[1][1]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)


def test_samples_show_source_target_and_guesses(tmp_path):
    corpus = corpus_of(tmp_path)
    codec = corpus.codec
    example = corpus.stream.example(0)
    batch = {name: value[None] for name, value in example.items()}
    guesses = np.where(batch["targets"] == codec.eos_id, codec.vocab_size, 0)
    shown = corpus.objective.show(batch, {"tokens": guesses}, codec, 0).split("\n")
    first = example["source_inputs"][example["source_segment_ids"] == 1].tolist()
    assert shown[0] == f"source: {codec.decode(first)}"
    assert shown[1].startswith("target: ") and shown[2] == "guesses: "


def test_references_are_all_targets_as_they_were_given():
    objective = seq2seq.Objective()
    record = Record({"source": "s", "target": ("Ein  Hund", "der Hund")}, "r:1")
    assert objective.references(record) == ("Ein  Hund", "der Hund")
    assert objective.references(Record({"target": "x "}, "r:1")) == ("x ",)


def test_a_pair_too_long_for_its_row(tmp_path):
    long = ({"source": " ".join(["dog"] * 50), "target": "cat"},)
    with pytest.raises(
        DataError, match=r"memory\[24\]: found 50 tokens of source and 1"
    ):
        corpus_of(tmp_path, items=PAIRS + long).stream  # noqa: B018
    cut = corpus_of(tmp_path / "cut", items=PAIRS + long, too_long="cut").stream
    assert cut.indices[0].facts["too_long_cut"] == 1


@pytest.mark.parametrize(
    ("specials", "found"),
    [(("pad", "unk", "bos"), "no end-of-text"), (("unk", "eos"), "no bos and no pad")],
)
def test_a_tokenizer_without_start_or_end_is_refused(tmp_path, specials, found):
    config = tiny.config(
        seq_len=32,
        model=MODEL,
        objective={"name": "seq2seq"},
        tokenizer={"name": "word", "kind": "word", "specials": specials},
        data={"sources": [{"name": "memory", "items": PAIRS}]},
        evals={},
    )
    with pytest.raises(DataError, match=found):
        runs.open_corpus(config, tmp_path, print).stream  # noqa: B018


def test_pad_starts_the_decoder_where_there_is_no_bos(tmp_path):
    config = tiny.config(
        seq_len=32,
        model=MODEL,
        objective={"name": "seq2seq"},
        tokenizer={"name": "word", "kind": "word", "specials": ("pad", "unk", "eos")},
        data={"sources": [{"name": "memory", "items": PAIRS}]},
        evals={},
    )
    corpus = runs.open_corpus(config, tmp_path, lambda line: None)
    assert corpus.stream.example(0)["inputs"][0] == corpus.codec.pad_id == 0
