"""Repeated texts and conflicting labels, counted by hand."""

from lm.checks import conflicts


def test_repeated_and_conflicting_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(conflicts, "CHUNK", 3)
    # (text, record, label): 7 three times with two labels, 71 twice with one.
    entries = [(7, 0, 1), (8, 1, 0), (7, 2, 1), (71, 3, 0), (7, 4, 0), (71, 5, 0)]
    found = conflicts.count(iter(entries), tmp_path)
    assert (found.repeated, found.conflicting, found.pairs) == (3, 3, ((0, 4),))
    assert not list(tmp_path.iterdir())
    none = conflicts.count(iter([]), tmp_path)
    assert (none.repeated, none.conflicting, none.pairs) == (0, 0, ())
