"""Durations: each unit exactly, rounding, and what is refused."""

import pytest

from lm.config.durations import is_time, parse, to_steps
from lm.errors import ConfigError


def steps(duration, **known):
    sizes = {"batch_size": 32, "seq_len": 100} | known
    return to_steps(duration, **sizes)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (1000, 1000),
        ("1000 steps", 1000),
        ("1 step", 1),
        ("1_000 steps", 1000),
        ("5000 examples", 157),  # 156.25
        ("1e6 tokens", 313),  # 312.5
        ("3 epochs", 94),  # 93.75
        ("0.5 epochs", 16),  # 15.625
        ("1 epoch", 32),
        ("7%", 14),
        ("7 percent", 14),
        ("0.4%", 1),  # 0.8, but not 0
        ("12.4%", 24),  # 24.8
        ("100%", 200),
    ],
)
def test_units(duration, expected):
    assert steps(duration, examples_per_epoch=1000, total_steps=200) == expected


def test_percentages_are_exact_and_never_exceed_the_whole():
    for total in (100, 999, 12345):
        for percent in range(1, 101):
            found = steps(f"{percent}%", total_steps=total)
            assert found == max(percent * total // 100, 1)
        assert sum(steps("50%", total_steps=total) for _ in "ab") <= total


@pytest.mark.parametrize(
    "value",
    [
        *("", "10", "10 %%", "ten steps", "1.5 steps", "101%", "nan epochs", "3 weeks"),
        *("1e-99 epochs", "1e999999999 tokens", "inf tokens", "1__0 steps"),
        *(1.5, True, None, [1], 2**63),
    ],
)
def test_what_is_no_duration(value):
    assert parse(value) is None
    with pytest.raises(ConfigError, match="expected a duration"):
        steps(value)


@pytest.mark.parametrize(
    "value", [0, -5, "0%", "-1 epochs", "1e-999999999 epochs", 2**31]
)
def test_out_of_range(value):
    with pytest.raises(ConfigError, match="expected 1 to 2147483647 steps"):
        steps(value, examples_per_epoch=10, total_steps=10)


def test_least():
    assert steps(0, least=0) == 0
    assert steps("0%", least=0, total_steps=10) == 0


def test_unknown_totals():
    with pytest.raises(ConfigError, match=r"optim.warmup: found '3 epochs'.*epochs"):
        steps("3 epochs", total_steps=5, where="optim.warmup")
    with pytest.raises(ConfigError, match="not in percent"):
        steps("3%", examples_per_epoch=5)


def test_is_time():
    assert [s for s in range(1, 11) if is_time(s, 4, 10)] == [4, 8, 10]
    assert [s for s in range(1, 9) if is_time(s, 4, 8)] == [4, 8]
