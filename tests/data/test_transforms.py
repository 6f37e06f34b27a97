"""Each transform as exact input and output, and the statistics of the random ones."""

import numpy as np
import pytest

from lm.data import masking, sentences, transforms
from lm.data.index import Index

CLS, SEP, MASK, PAD = 1, 2, 3, 0
SPECIAL = np.isin(np.arange(100), [PAD, CLS, SEP, MASK])


def rng(seed=0):
    return np.random.default_rng(seed)


def masker(**changes):
    fields = {
        "rate": 0.15,
        "mask": 0.8,
        "random": 0.1,
        "choose": masking.tokens,
        "length": 128,
        "mask_id": MASK,
        "ordinary": np.flatnonzero(~SPECIAL).astype(np.int32),
        "is_special": SPECIAL,
        "starts_word": np.arange(100) < 50,
    }
    return transforms.MaskTokens(**fields | changes)


def test_wrap_makes_each_piece_a_segment():
    wrap = transforms.Wrap(prefix=(CLS,), suffix=(SEP,))
    out = wrap({"pieces": [np.array([10, 11, 12]), np.array([20])]}, rng())
    assert out["inputs"].tolist() == [CLS, 10, 11, 12, SEP, CLS, 20, SEP]
    assert out["positions"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert out["segment_ids"].tolist() == [1, 1, 1, 1, 1, 2, 2, 2]
    assert out["token_types"].tolist() == [0] * 8


def test_wrap_pair_single_and_pair():
    wrap = transforms.WrapPair(length=8, cls_id=CLS, sep_id=SEP)
    one = wrap({"pieces": [np.array([10, 11])]}, rng())
    assert one["inputs"].tolist() == [CLS, 10, 11, SEP]
    assert one["token_types"].tolist() == [0, 0, 0, 0]
    two = wrap({"pieces": [np.array([10, 11]), np.array([20, 21])]}, rng())
    assert two["inputs"].tolist() == [CLS, 10, 11, SEP, 20, 21, SEP]
    assert two["token_types"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert two["positions"].tolist() == list(range(7))
    assert two["segment_ids"].tolist() == [1] * 7


def test_wrap_pair_shortens_the_longer_piece():
    wrap = transforms.WrapPair(length=8, cls_id=CLS, sep_id=SEP)
    out = wrap({"pieces": [np.arange(10, 20), np.array([20, 21])]}, rng())
    assert out["inputs"].tolist() == [CLS, 10, 11, 12, SEP, 20, 21, SEP]


def test_pad_fills_with_segment_zero():
    row = {
        "inputs": np.array([CLS, 5, SEP]),
        "positions": np.arange(3),
        "segment_ids": np.ones(3, np.int32),
        "token_types": np.zeros(3, np.int32),
    }
    out = transforms.Pad(length=5, pad_id=9)(row, rng())
    assert out["inputs"].tolist() == [CLS, 5, SEP, 9, 9]
    assert out["segment_ids"].tolist() == [1, 1, 1, 0, 0]
    assert out["positions"].tolist() == [0, 1, 2, 0, 0]


def test_mask_exact():
    inputs = np.array([CLS, 10, 11, 12, 13, SEP], np.int32)
    out = masker(rate=0.5, mask=1.0, random=0.0, length=6)({"inputs": inputs}, rng())
    chosen = out["target_positions"][:2]
    assert out["weights"].tolist() == [1, 1, 0]
    assert (out["targets"][:2] == inputs[chosen]).all()
    expected = inputs.copy()
    expected[chosen] = MASK
    assert (out["inputs"] == expected).all()
    assert inputs.tolist() == [CLS, 10, 11, 12, 13, SEP]  # the row itself stays


def test_masking_statistics():
    inputs = np.concatenate([[CLS], np.resize(np.arange(4, 100), 126), [SEP]])
    inputs = inputs.astype(np.int32)
    mask, generator = masker(), rng(1)
    masked = kept = changed = total = specials = 0
    for _ in range(2000):
        out = mask({"inputs": inputs}, generator)
        at = out["target_positions"][out["weights"] > 0]
        new, old = out["inputs"][at], inputs[at]
        total += len(at)
        masked += np.sum(new == MASK)
        kept += np.sum(new == old)
        changed += np.sum((new != MASK) & (new != old))
        specials += np.sum(SPECIAL[old]) + np.sum(SPECIAL[new] & (new != MASK))
        untouched = np.setdiff1d(np.arange(len(inputs)), at)
        assert (out["inputs"][untouched] == inputs[untouched]).all()
    assert total == 2000 * round(126 * 0.15)
    assert specials == 0
    assert abs(masked / total - 0.8) < 0.01
    assert abs(changed / total - 0.1 * 95 / 96) < 0.01
    assert abs(kept / total - (0.1 + 0.1 / 96)) < 0.01


def test_every_place_is_masked_alike():
    inputs = np.concatenate([[CLS], np.arange(10, 30), [SEP]]).astype(np.int32)
    mask, generator, hits = masker(), rng(2), np.zeros(22)
    for _ in range(4000):
        out = mask({"inputs": inputs}, generator)
        hits[out["target_positions"][out["weights"] > 0]] += 1
    assert hits[0] == hits[-1] == 0
    assert abs(hits[1:-1] / 4000 - 0.15).max() < 0.025


def test_whole_words_are_masked_whole():
    # Ids from 50 on continue a word: words are 1, 3 and 2 tokens long.
    inputs = np.array([CLS, 10, 11, 60, 61, 12, 62, SEP], np.int32)
    words = [{1}, {2, 3, 4}, {5, 6}]
    mask = masker(choose=masking.words, rate=0.5, mask=1.0, random=0.0)
    seen = set()
    for seed in range(50):
        out = mask({"inputs": inputs}, rng(seed))
        chosen = set(out["target_positions"][out["weights"] > 0].tolist())
        assert all(word <= chosen or not word & chosen for word in words)
        assert 1 <= len(chosen) <= 3
        seen.add(frozenset(chosen))
    assert seen == {frozenset({2, 3, 4}), frozenset({1, 5, 6})} or len(seen) > 2


def test_a_word_ends_at_a_special_token():
    inputs = np.array([CLS, 10, SEP, CLS, 60, SEP], np.int32)
    mask = masker(choose=masking.words, rate=0.5, mask=1.0, random=0.0)
    chosen = [
        mask({"inputs": inputs}, rng(seed))["target_positions"][0] for seed in range(30)
    ]
    assert set(map(int, chosen)) == {1, 4}


@pytest.fixture
def documents():
    """Three documents: rows 0 and 1 of the first, 2 of the second, 3 of the third."""
    pieces = [[10, 11], [12], [13], [14, 15], [20], [21, 22], [30], [31]]
    return Index(
        tokens=np.concatenate(pieces),
        spans=np.cumsum([0, *map(len, pieces)]),
        rows=np.array([0, 2, 4, 6, 8]),
        fields={"document": np.array([0, 0, 1, 2])},
        facts={},
    )


def test_next_sentence(documents):
    pair = sentences.NextSentence(documents, length=5, task="nsp")
    labels = []
    for seed in range(400):
        generator = rng(seed)
        row = documents.row(seed % 4)
        out = pair(row, generator)
        first, second = (piece.tolist() for piece in out["pieces"])
        labels.append(int(out["labels"]))
        whole = np.concatenate(row["pieces"]).tolist()
        assert first == whole[: len(first)]
        if out["labels"] == 0:
            assert first + second == whole
        else:  # from another document: the tens tell documents apart
            assert second[0] // 10 != first[0] // 10
            assert len(first) + len(second) <= 5
    assert abs(np.mean(labels) - 0.5) < 0.08


def test_random_sentences_come_from_every_other_document(documents):
    pair = sentences.NextSentence(documents, length=5, task="nsp")
    found = set()
    for seed in range(200):
        out = pair(documents.row(2), rng(seed))
        if out["labels"]:
            found.add(int(out["pieces"][1][0]) // 10)
    assert found == {1, 3}


def test_sentence_order(documents):
    pair = sentences.NextSentence(documents, length=5, task="sop")
    labels = set()
    for seed in range(20):
        out = pair(documents.row(0), rng(seed))
        first, second = (piece.tolist() for piece in out["pieces"])
        labels.add(int(out["labels"]))
        assert (second + first if out["labels"] else first + second) == [10, 11, 12]
    assert labels == {0, 1}


def test_source_and_target_exact():
    transform = transforms.SourceTarget(start_id=1, eos_id=2)
    pieces = [np.array(p, np.int32) for p in ([10, 11], [20], [12], [21, 22])]
    out = transform({"pieces": pieces}, rng())
    assert out["source_inputs"].tolist() == [10, 11, 2, 12, 2]
    assert out["source_positions"].tolist() == [0, 1, 2, 0, 1]
    assert out["source_segment_ids"].tolist() == [1, 1, 1, 2, 2]
    assert out["inputs"].tolist() == [1, 20, 1, 21, 22]
    assert out["positions"].tolist() == [0, 1, 0, 1, 2]
    assert out["segment_ids"].tolist() == [1, 1, 2, 2, 2]
    assert out["targets"].tolist() == [20, 2, 21, 22, 2]
    assert out["weights"].tolist() == [1.0] * 5
    assert {a.dtype for k, a in out.items() if k not in ("pieces", "weights")} == {
        np.dtype(np.int32)
    }


def test_pad_sides_fills_each_side_to_its_length():
    row = {
        "source_inputs": np.array([10, 2]),
        "source_positions": np.arange(2),
        "source_segment_ids": np.ones(2, np.int32),
        "inputs": np.array([1]),
        "positions": np.arange(1),
        "segment_ids": np.ones(1, np.int32),
        "targets": np.array([2]),
        "weights": np.ones(1, np.float32),
        "prefix": np.array([True]),
    }
    out = transforms.PadSides(source_length=4, length=3, pad_id=9)(row, rng())
    assert out["source_inputs"].tolist() == [10, 2, 9, 9]
    assert out["source_segment_ids"].tolist() == [1, 1, 0, 0]
    assert out["inputs"].tolist() == [1, 9, 9]
    assert out["targets"].tolist() == [2, 9, 9]
    assert out["segment_ids"].tolist() == [1, 0, 0]
    assert out["weights"].tolist() == [1, 0, 0]
    assert out["prefix"].tolist() == [True, False, False]
    del row["prefix"]
    assert "prefix" not in transforms.PadSides(4, 3, 9)(row, rng())
