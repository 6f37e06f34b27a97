"""What is read from source text, and how values are fitted to it."""

import ast
import json

import pytest

from lm.config import names
from lm.config.schema import (
    MISFIT,
    REQUIRED,
    Field,
    Text,
    check,
    describe,
    fit,
    literal,
    modules,
    read_class,
    shown,
    within,
)
from lm.errors import ConfigError

BASE = """
BOUNDS = {"weight": "(0, inf)"}
CHANGEABLE = ("weight",)

class Base:
    weight: float = 1
    part: Literal["all", "train"] = "all"
"""
THING = """
import numpy  # never imported: it would not be found under this name
import no_such_module
from lm import base
from lm.compute import Compute

RULES = ((".*", 1.0),)
Alias = tuple[str, ...]
BOUNDS = {"size": "[1, 8]", "weight": "(0, 2)"}
CHANGEABLE = ("size",)

@dataclass(frozen=True)
class Thing(base.Base, no_such_module.Other):
    size: int
    names: tuple[str, ...] = ()
    rules: tuple[tuple[str, float], ...] = RULES
    every: Duration = -1
    options: dict[str, Any] = field(default_factory=dict)
    maybe: str | None = None
    compute: Compute = Compute()
    wired: Alias = ()
    constant = 3

    def method(self):
        inner: int = 3
"""


@pytest.fixture
def thing(tmp_path):
    root = tmp_path / "lm"
    root.mkdir()
    (root / "base.py").write_text(BASE)
    (root / "thing.py").write_text(THING)
    return read_class(root / "thing.py", "Thing", root)


def test_fields_are_read_without_import(thing):
    assert {name: field.default for name, field in thing.items()} == {
        "weight": 1,
        "part": "all",
        "size": REQUIRED,
        "names": (),
        "rules": ((".*", 1.0),),
        "every": -1,
        "options": {},
        "maybe": None,
    }


def test_tables_beside_the_class_and_its_base(thing):
    assert thing["size"].bounds == "[1, 8]" and thing["size"].changeable
    assert thing["weight"].bounds == "(0, 2)" and thing["weight"].changeable
    assert thing["part"].bounds is None and not thing["part"].changeable


def test_default_that_is_no_literal(tmp_path):
    file = tmp_path / "thing.py"
    file.write_text("class Thing:\n    size: int = compute()\n")
    with pytest.raises(ConfigError, match=r"thing.py:2: found the default compute\(\)"):
        read_class(file, "Thing", tmp_path)


def test_modules_lists_only_those_with_the_class(tmp_path):
    (tmp_path / "one.py").write_text("class Model:\n    pass\n")
    (tmp_path / "two.py").write_text("class Modelling:\n    pass\n")
    (tmp_path / "base.py").write_text("class Model:\n    pass\n")
    assert modules(tmp_path, "Model") == ["one"]


def kind(annotation):
    return ast.parse(annotation, mode="eval").body


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("int", 3, 3),
        ("int", True, MISFIT),
        ("int", 3.0, MISFIT),
        ("int", "3", MISFIT),
        ("int", 10**30, MISFIT),
        ("float", 3, 3.0),
        ("float", False, MISFIT),
        ("float", NAN, MISFIT),
        ("float", -INF, MISFIT),
        ("float", "1e-4", MISFIT),
        ("bool", True, True),
        ("bool", 1, MISFIT),
        ("str", "a", "a"),
        ("str", None, MISFIT),
        ("str | None", None, None),
        ("int | str", "a", "a"),
        ("tuple[int, ...]", [1, 2], (1, 2)),
        ("tuple[int, ...]", [1, "2"], MISFIT),
        ("tuple[int, ...]", 1, MISFIT),
        ("tuple[str, float]", ["a", 1], ("a", 1.0)),
        ("tuple[str, float]", ["a"], MISFIT),
        ("tuple[tuple[str, float], ...]", [["a", 1]], (("a", 1.0),)),
        ("list[int]", [1], (1,)),
        ("tuple", [1, "a", [None]], (1, "a", (None,))),
        ("dict[str, float]", {"a": 1}, {"a": 1.0}),
        ("dict[str, float]", {1: 1}, MISFIT),
        ("dict", {"a": [1, {"b": None}]}, {"a": (1, {"b": None})}),
        ("dict", {"a": NAN}, MISFIT),
        ("dict", {"a": 1j}, MISFIT),
        ("dict", {"a": b"x"}, MISFIT),
        ("Literal['a', 'b']", "b", "b"),
        ("Literal['a', 'b']", "c", MISFIT),
        ("Literal[1, 2]", True, MISFIT),
        ("Duration", "3 epochs", "3 epochs"),
        ("Duration", 0, 0),
        ("Duration", -1, MISFIT),
        ("Duration", "1000", MISFIT),
        ("Duration", 1.0, 1),
        ("Duration", 1.5, MISFIT),
        ("Duration", 1e300, MISFIT),
        ("Duration", Text("1e3"), 1000),
        ("int", Text("3"), 3),
        ("float", Text("1e-4"), 1e-4),
        ("float", Text("1e999"), MISFIT),
        ("bool", Text("false"), False),
        ("str", Text("3"), "3"),
        ("str", Text("none"), "none"),
        ("str | None", Text("none"), None),
        ("Literal['none', 'full'] | None", Text("full"), "full"),
        ("Duration", Text("10%"), "10%"),
        ("Duration", Text("10"), 10),
        ("tuple[str, ...]", Text("('a',)"), ("a",)),
        ("dict", Text("{'a': 1}"), {"a": 1}),
        ("dict[str, Any]", {"b1": Text("0.9")}, {"b1": 0.9}),
        ("int", Text("9" * 5000), MISFIT),
        ("int", Text("(" * 5000), MISFIT),
        ("int", Text("\0"), MISFIT),
        ("int", Text("{[]: 1}"), MISFIT),
    ],
)
def test_fit(annotation, value, expected):
    found = fit(value, kind(annotation))
    assert found == expected and type(found) is type(expected)
    if found is not MISFIT:
        json.dumps(found, allow_nan=False)


def test_no_code_is_run(tmp_path):
    canary = tmp_path / "canary"
    text = f"__import__('os').system('touch {canary}')"
    assert literal(text) == text
    assert not canary.exists()


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ("(0, inf)", [1e-9, 1e9], [0, -1]),
        ("[0, 1)", [0, 0.999], [-1e-9, 1]),
        ("[-1, 8]", [-1, 8], [-2, 9]),
        (None, [-1e300], []),
    ],
)
def test_bounds(bounds, inside, outside):
    assert all(within(number, bounds) for number in inside)
    assert not any(within(number, bounds) for number in outside)


def test_bounds_hold_for_every_number_of_a_value():
    pairs = kind("tuple[tuple[str, float], ...] | None")
    assert fit([("a", 1)], pairs, "(0, inf)") == (("a", 1.0),)
    assert fit([("a", 1), ("b", 0)], pairs, "(0, inf)") is MISFIT
    assert fit("0%", kind("Duration"), "(0, inf)") is MISFIT


@pytest.mark.parametrize(
    ("annotation", "bounds", "expected"),
    [
        ("float", "(0, inf)", "a positive number"),
        ("int", "[1, inf)", "a whole number of 1 or more"),
        ("float", "[0, 1)", "a number in [0, 1)"),
        ("str | None", None, "text or none"),
        ("Literal['a', 8]", None, "one of a, 8"),
        ("tuple[str, ...]", None, "a list, each item text"),
        ("tuple[str, float]", None, "a list of text, a finite number"),
        ("bool", None, "true or false"),
        ("dict[str, Any]", None, "a dict with text for keys"),
    ],
)
def test_describe(annotation, bounds, expected):
    assert describe(kind(annotation), bounds) == expected


def test_check_names_field_value_rule_and_fix():
    field = Field("lr", kind("float"), 1e-4, "(0, inf)")
    with pytest.raises(ConfigError) as error:
        check(field, -1.0, "optim.lr")
    assert error.value.line() == (
        "error[config] optim.lr: found -1.0, expected a positive number. "
        "Fix: leave it out for the default, 0.0001."
    )
    field = Field("norm", kind("Literal['layer', 'rms']"), "rms")
    with pytest.raises(ConfigError, match="Fix: did you mean layer"):
        check(field, "layr", "model.norm")


def test_shown_is_short_and_never_fails():
    class Bad:
        def __repr__(self):
            raise RuntimeError

    assert shown(Bad()) == "a value of type Bad"
    assert shown(10**6000) == "a value of type int"
    assert len(shown("x" * 1000)) == 80
    assert shown("a\nb") == r"'a\nb'"


GROUPS = """
BOUNDS = {"window": "[1, inf)"}

@dataclass(frozen=True)
class ReadOptions:
    window: int | None = None
    scale: float = 1.0

class Wiring:
    size: int = 3

class Thing:
    read: ReadOptions = ReadOptions()
    wiring: Wiring = Wiring()
"""


@pytest.fixture
def group(tmp_path):
    path = tmp_path / "thing.py"
    path.write_text(GROUPS)
    fields = read_class(path, "Thing", tmp_path)
    assert list(fields) == ["read"]  # a class that is no group is wiring
    return fields["read"]


def test_a_group_of_options_is_filled_and_checked(group):
    assert check(group, {}, "m.read") == {"window": None, "scale": 1.0}
    found = check(group, {"window": Text("4"), "scale": 2}, "m.read")
    assert found == {"window": 4, "scale": 2.0}


@pytest.mark.parametrize(
    "value, error",
    [
        ({"windo": 1}, r"m\.read\.windo: .*did you mean m\.read\.window"),
        ({"window": 0}, r"m\.read\.window: found 0.*1 or more"),
        (7, r"m\.read: found 7.*a section"),
    ],
)
def test_a_mistake_in_a_group_is_named_by_its_path(group, value, error):
    with pytest.raises(ConfigError, match=error):
        check(group, value, "m.read")


@pytest.fixture
def worded(tmp_path):
    """A class whose texts are the functions of a module and the files of a room."""
    (tmp_path / "ops" / "attention").mkdir(parents=True)
    (tmp_path / "curves.py").write_text(
        "import math\nNOT = 1\ndef linear(t): pass\ndef _helper(t): pass\n"
        "def cosine(t): pass\nclass Nor: pass\n"
    )
    for name, text in {
        "dense": "LIMITS = {}",
        "flash": "LIMITS: dict = {}",
        "other": "limits = 1",
        "__init__": "LIMITS = 1",
    }.items():
        (tmp_path / "ops" / "attention" / f"{name}.py").write_text(text)
    (tmp_path / "thing.py").write_text(
        'WORDS = {"curve": "curves:*", "kernels": "ops.attention.*:LIMITS"}\n'
        'class Thing:\n    curve: str = "linear"\n'
        "    kernels: tuple[str, ...] | None = None\n"
    )
    return read_class(tmp_path / "thing.py", "Thing", tmp_path)


def test_the_words_of_a_field_are_functions_or_files(worded):
    assert worded["curve"].words == ("linear", "cosine")
    assert worded["kernels"].words == ("dense", "flash")
    assert check(worded["curve"], Text("cosine"), "curve") == "cosine"
    assert check(worded["kernels"], None, "kernels") is None
    assert check(worded["kernels"], ["flash", "dense"], "k") == ("flash", "dense")
    field = worded["curve"]
    assert describe(field.type, words=field.words) == "one of linear, cosine"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (
            "curve",
            "cosin",
            r"curve: found 'cosin', expected one of linear, cosine.*cosi",
        ),
        ("curve", "_helper", "expected one of linear, cosine"),
        ("curve", 3, "expected one of linear, cosine"),
        ("kernels", ["dense", "other"], "found 'other', expected one of dense, flash"),
    ],
)
def test_a_word_that_is_none_lists_those_that_are(worded, name, value, error):
    with pytest.raises(ConfigError, match=error):
        check(worded[name], value, name)


@pytest.mark.parametrize("place", ["nothing:*", "ops.nothing.*:LIMITS", "ops:LIMITS"])
def test_words_of_no_module_are_a_mistake(tmp_path, place):
    (tmp_path / "ops").mkdir()
    with pytest.raises(ConfigError, match="WORDS"):
        names.words(place, tmp_path)


@pytest.mark.parametrize("text", ["class Thing(:", "\0", "x = '\\ud800'\nclass Thing("])
def test_a_module_that_is_no_python_is_a_refusal(tmp_path, text):
    (tmp_path / "thing.py").write_text(text)
    with pytest.raises(ConfigError, match=r"thing\.py.*a Python module"):
        read_class(tmp_path / "thing.py", "Thing", tmp_path)


@pytest.mark.parametrize(
    ("annotation", "value", "bounds"),
    [
        ("int", 2**31, None),
        ("int", -(2**31), None),
        ("int", 2**31, "[1, inf)"),
        ("int | None", 2**63 - 1, "[1, inf)"),
        ("float", 1e39, None),
        ("float", 1e39, "(0, inf)"),
        ("tuple[int, ...]", (1, 2**31), None),
    ],
)
def test_every_number_has_an_upper_bound(annotation, value, bounds):
    assert fit(value, kind(annotation), bounds) is MISFIT
    with pytest.raises(ConfigError, match=r"x: found"):
        check(Field("x", kind(annotation), 1, bounds), value, "x")


def test_a_bound_of_its_own_may_be_larger():
    assert fit(2**32 - 1, kind("int"), "[0, 4294967295]") == 2**32 - 1
