"""Figures and lines for the terminal."""

from lm.workdir.lines import figures, wrap


def test_a_metric_is_shown_with_its_interval():
    values = {"dev/f1": 0.5, "dev/f1_low": 0.25, "dev/f1_high": 0.75, "dev/x_low": 1}
    assert figures(values) == {
        "dev/f1": "0.5000 [0.2500, 0.7500]",
        "dev/x_low": "1.0000",
    }
    assert figures({"dev/f1": 1.0, "dev/f1_low": 0.0}) == {"dev/f1": "1.0000"}


def test_parts_are_not_broken():
    lines = wrap(["a" * 50, "b" * 50, "c"], ", ").splitlines()
    assert lines == ["a" * 50 + ",", "    " + "b" * 50 + ", c"]
