"""What is left out of a text: its share, its places, and that nothing is lost."""

import numpy as np
import pytest

from lm.data import spans

SENTINELS = np.arange(999, 899, -1, dtype=np.int32)


def rng(seed=0):
    return np.random.default_rng(seed)


def runs(left_out):
    """The (start, length) of each span."""
    edges = np.flatnonzero(np.diff(left_out.astype(int), prepend=0, append=0))
    return [(a, b - a) for a, b in zip(edges[::2], edges[1::2])]


def invert(source, target, sentinels):
    """The text that source and target were made of."""
    order = {int(sentinel): k for k, sentinel in enumerate(sentinels)}
    parts = {}
    for token in map(int, target):
        if token in order:
            last = parts.setdefault(order[token], [])
        else:
            last.append(token)
    assert list(parts) == list(range(len(parts))), "each sentinel once, in order"
    text = []
    for token in map(int, source):
        text += parts.pop(order[token]) if token in order else [token]
    assert not parts, "a span of the target without a place in the source"
    return text


def test_the_example_of_the_paper():
    """Raffel et al. 2020, figure 2, but for its last sentinel (see `lm.data.spans`)."""
    text = "Thank you for inviting me to your party last week"
    words = text.split(" ")
    left_out = np.isin(words, ["for", "inviting", "last"])
    source, target = spans.split(np.arange(10, dtype=np.int32), left_out, SENTINELS)
    names = dict(enumerate(words)) | dict(zip(SENTINELS.tolist(), ("<X>", "<Y>")))

    def shown(ids):
        return " ".join(names[i] for i in ids.tolist())

    assert shown(source) == "Thank you <X> me to your party <Y> week"
    assert shown(target) == "<X> for inviting <Y> last"


@pytest.mark.parametrize(
    "form",
    [
        spans.Spans(0.15, 3.0),
        spans.Spans(0.5, 3.0),
        spans.Spans(0.5, 64.0),
        spans.Spans(0.9, 1.0),
        spans.Suffix(0.25, True),
    ],
)
def test_source_and_target_are_the_text_again(form):
    generator = rng()
    for n in [*range(2, 40), 130, 513]:
        piece = generator.integers(1, 100, n).astype(np.int32)
        left_out = form.draw(n, generator)
        source, target = spans.split(piece, left_out, SENTINELS)
        assert invert(source, target, SENTINELS) == piece.tolist()
        most = form.lengths(n)
        assert len(source) + 1 <= most[0] and len(target) + 1 <= most[1]
        if isinstance(form, spans.Spans):
            assert (len(source) + 1, len(target) + 1) == most
        used = np.isin(source, SENTINELS).sum()
        assert used == np.isin(target, SENTINELS).sum() <= form.sentinels(n)


def test_the_lengths_of_t5():
    """512 tokens of source are 568 of text, with 114 of target."""
    form = spans.Spans(0.15, 3.0)
    assert spans.raw_length((form,), 512, None) == 568
    assert form.lengths(568) == (512, 114)
    assert form.sizes(568) == (85, 28)


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5, 0.8])
@pytest.mark.parametrize("span", [1.0, 2.5, 3.0, 10.0])
@pytest.mark.parametrize("target", [None, 20])
def test_the_raw_length_is_the_most_that_fits(rate, span, target):
    form = spans.Spans(rate, span)
    for source in (4, 17, 64, 200):
        n = spans.raw_length((form,), source, target)
        if n == 0:
            continue
        assert form.lengths(n)[0] <= source
        assert target is None or form.lengths(n)[1] <= target
        more = form.lengths(n + 1)
        assert more[0] > source or (target is not None and more[1] > target)


def test_a_row_too_short_for_anything():
    assert spans.raw_length((spans.Spans(0.15, 3.0),), 2, None) == 0
    assert spans.raw_length((spans.Spans(0.15, 3.0),), 100, 2) == 0
    assert spans.raw_length((spans.Spans(0.15, 3.0),), 3, 3) == 2


def test_rate_and_span_are_exact_and_spans_never_touch():
    form, n = spans.Spans(0.15, 3.0), 568
    generator = rng()
    starts = np.zeros(n)
    lengths = []
    for _ in range(400):
        left_out = form.draw(n, generator)
        found = runs(left_out)
        assert left_out.sum() == 85 and len(found) == 28
        assert not left_out[0] and left_out[-1]
        starts[[start for start, _ in found]] += 1
        lengths += [length for _, length in found]
    assert np.mean(lengths) == pytest.approx(85 / 28)
    # Cutting 85 into 28 parts with equal probability makes the first of length 1 with
    # probability 27/84, of 2 with 27/84 · 57/83, and so on.
    shares = np.bincount(lengths, minlength=4)[1:4] / len(lengths)
    p = 27 / 84
    expected = [p, p * 57 / 83, p * 57 / 83 * 56 / 82]
    np.testing.assert_allclose(shares, expected, atol=0.015)
    # Away from both ends a span starts anywhere with the same probability.
    middle = starts[60:-60].reshape(16, -1).sum(1) / (400 * 28)
    np.testing.assert_allclose(middle, middle.mean(), rtol=0.15)


@pytest.mark.parametrize(("total", "parts"), [(5, 1), (5, 5), (5, 3)])
def test_all_ways_of_cutting_are_equally_probable(total, parts):
    generator = rng()
    counts = {}
    for _ in range(3000):
        found = tuple(spans.cut(total, parts, generator).tolist())
        assert len(found) == parts and sum(found) == total and min(found) >= 1
        counts[found] = counts.get(found, 0) + 1
    ways = {(5, 1): 1, (5, 5): 1, (5, 3): 6}[total, parts]
    assert len(counts) == ways
    assert max(counts.values()) < 1.2 * 3000 / ways


@pytest.mark.parametrize(("rate", "longest"), [(0.25, 49), (0.5, 99), (0.9, 99)])
def test_a_suffix_is_uniform_up_to_twice_its_mean(rate, longest):
    form, generator = spans.Suffix(rate, sentinel=False), rng()
    lengths = []
    for _ in range(4000):
        left_out = form.draw(100, generator)
        lengths.append(int(left_out.sum()))
        assert (left_out == (np.arange(100) >= 100 - lengths[-1])).all()
    assert min(lengths) == 1 and max(lengths) == longest
    assert np.mean(lengths) == pytest.approx((1 + longest) / 2, rel=0.05)


def test_without_sentinels_the_two_parts():
    piece = np.arange(10, 15, dtype=np.int32)
    source, target = spans.split(piece, np.arange(5) >= 3, SENTINELS[:0])
    assert source.tolist() == [10, 11, 12] and target.tolist() == [13, 14]


def test_corrupt_draws_forms_by_weight_and_puts_the_mode_first():
    forms = (spans.Spans(0.15, 3.0, (7, 8)), spans.Suffix(0.25, True, (9,)))
    corrupt = spans.Corrupt(forms, (3.0, 1.0), tuple(SENTINELS.tolist()))
    generator, modes = rng(), []
    piece = np.arange(100, 150, dtype=np.int32)
    for _ in range(400):
        source, target = corrupt({"pieces": [piece]}, generator)["pieces"]
        mode = source[:2].tolist() if source[0] == 7 else source[:1].tolist()
        modes.append(mode)
        assert mode in ([7, 8], [9])
        text = invert(source[len(mode) :], target, SENTINELS)
        assert text == piece.tolist()
    assert modes.count([7, 8]) == pytest.approx(300, abs=30)


def test_every_piece_of_a_row_begins_with_the_first_sentinel():
    corrupt = spans.Corrupt((spans.Spans(0.15, 3.0),), (1.0,), (99, 98, 97))
    pieces = [np.arange(1, 11, dtype=np.int32), np.arange(11, 16, dtype=np.int32)]
    out = corrupt({"pieces": pieces}, rng())["pieces"]
    assert len(out) == 4
    assert out[1][0] == out[3][0] == 99
    assert all(piece.dtype == np.int32 for piece in out)


def test_prefix_and_rest():
    transform = spans.PrefixAndRest(start_id=1)
    pieces = [np.arange(10, 16, dtype=np.int32), np.array([20, 21], np.int32)]
    cuts = set()
    for seed in range(60):
        out = transform({"pieces": pieces}, rng(seed))
        assert out["inputs"].tolist() == [1, 10, 11, 12, 13, 14, 1, 20]
        assert out["targets"].tolist() == [10, 11, 12, 13, 14, 15, 20, 21]
        assert out["segment_ids"].tolist() == [1] * 6 + [2] * 2
        assert out["positions"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
        first = int(out["prefix"][:6].sum())
        cuts.add(first)
        assert out["prefix"][:6].tolist() == [True] * first + [False] * (6 - first)
        # Counted is what follows the last token of the prefix, which is seen whole.
        assert out["weights"][:6].tolist() == [0] * (first - 1) + [1] * (7 - first)
        assert out["prefix"][6:].tolist() == [True, True]
        assert out["weights"][6:].tolist() == [0, 1]
    assert cuts == {2, 3, 4, 5, 6}
