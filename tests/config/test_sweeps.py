"""Settings of a sweep: by a function of the config, by flags, and their names."""

import pytest

from lm.config import schema, sweeps
from lm.config.overrides import set_fields
from lm.config.schema import Text
from lm.errors import ConfigError


@pytest.fixture
def config_file(tmp_path):
    def write(body):
        text = "def get_config():\n    return {}\n\n" + body
        (tmp_path / "run.py").write_text(text)
        return str(tmp_path / "run.py")

    return write


def test_a_function_adds_settings_and_may_take_the_argument(config_file):
    file = config_file("""
import numpy, random
drawn = random.Random(0)
def sweep(add, arg):
    if arg == "drawn":
        add({"optim.lr": drawn.random()})
        return
    for lr in numpy.logspace(-4, -3, 2):
        add({"optim.lr": lr, "seed": 3}, steps=arg)
    add()
    if arg:
        add({"objective.labels": ("a", "b")})
""")
    found = sweeps.read(f"{file}:9")
    assert found == [
        {"optim.lr": 1e-4, "seed": 3, "steps": "9"},
        {"optim.lr": 1e-3, "seed": 3, "steps": "9"},
        {},
        {"objective.labels": ["a", "b"]},
    ]
    assert type(found[0]["optim.lr"]) is float
    assert len(sweeps.read(file)) == 3
    assert sweeps.read(f"{file}:drawn")[0]["optim.lr"] > 0
    assert sweeps.read(config_file("")) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sweep = 3", "found 3, expected a function"),
        ("def sweep(add): pass", "found no setting"),
        (
            "import random\ndef sweep(add): add({'optim.lr': random.random()})",
            r"other settings at the second call, .* random.Random\(0\)",
        ),
        ("def sweep(add): yield 1", "a function that yields"),
        ("def sweep(add): add(3)", r"found add\(3\), expected fields by path"),
        ("def sweep(add): add({3: 1})", "the field 3"),
        ("def sweep(add): add({'optim lr': 1})", "the field 'optim lr'"),
        ("def sweep(add): add({'seed': 1}, seed=2)", "seed twice in one"),
        ("def sweep(add): add(seed=add)", "sweep of .*: seed: found <function"),
        ("def sweep(add): add({'optim.lr': float('nan')})", "optim.lr: found nan"),
        ("def sweep(add):\n for n in (1, 1): add(seed=n)", "seed=1 twice"),
        (
            "def sweep(add):\n for n in 'a.b', 'a/b', 'a:b': add({'init.source': n})",
            "init.source=a/b and init.source=a:b, both named init.source=a-b",
        ),
        ("def sweep(add):\n  return 1 / 0", r"run.py:5: found ZeroDivisionError"),
        ("def sweep(add):\n for n in range(10_001): add(seed=n)", "more than 10,000"),
    ],
)
def test_what_is_no_sweep(config_file, body, message):
    with pytest.raises(ConfigError, match=message):
        sweeps.read(config_file(body))


def test_flags_multiply_and_replace_the_settings_of_the_function():
    axes = [sweeps.grid("optim.lr=1e-4, 3e-4"), sweeps.folds("3"), sweeps.seeds("2")]
    own = [{"seed": 7, "model.order": order} for order in (2, 3)]
    found = [sweeps.describe(each) for each in sweeps.expand(own, axes)]
    assert len(found) == 2 * 2 * 3 * 2 == len(set(found))
    assert found[:3] == [
        "model.order=2,optim.lr=1e-4,data.fold=1/3,seed=0",
        "model.order=2,optim.lr=1e-4,data.fold=1/3,seed=1",
        "model.order=2,optim.lr=1e-4,data.fold=2/3,seed=0",
    ]
    # Settings that differed in that field alone become one.
    own = [{"optim.lr": lr, "seed": n} for lr in (1, 2) for n in (0, 1)]
    found = sweeps.expand(own, [sweeps.grid("optim.lr=5")])
    assert [sweeps.describe(each) for each in found] == [
        "optim.lr=5,seed=0",
        "optim.lr=5,seed=1",
    ]
    # A section as a whole replaces the fields in it.
    found = sweeps.expand([{"optim.lr": 1}], [sweeps.grid("optim={'name': 'sgd'}")])
    assert [[*each] for each in found] == [["optim"]]


def test_axes_of_flags():
    assert [*sweeps.seeds("3")[1]] == [0, 1, 2]
    assert sweeps.seeds("7,3")[1] == [7, 3] and sweeps.seeds("7,")[1] == [7]
    assert sweeps.folds("2") == ("data.fold", ["1/2", "2/2"])
    path, values = sweeps.grid("model.kernels=[1, 2],(3,4),'a,b',x")
    assert path == "model.kernels" and values == ["[1, 2]", "(3,4)", "'a,b'", "x"]
    assert all(isinstance(value, Text) for value in values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sweeps.seeds("0"), "--seeds: found '0'"),
        (lambda: sweeps.seeds("-1"), "'-1'"),
        (lambda: sweeps.seeds("1,x"), "'1,x'"),
        (lambda: sweeps.seeds("1,1"), "--seeds: found 1 twice"),
        (lambda: sweeps.seeds("20000"), "from 1 to 10,000"),
        (lambda: sweeps.folds("1"), "--folds: found '1', expected how many, from 2"),
        (lambda: sweeps.folds("1001"), "from 2 to 1,000"),
        (lambda: sweeps.grid("optim.lr="), "no value"),
        (lambda: sweeps.grid("optim.lr=1,,2"), "an empty value"),
        (lambda: sweeps.grid("optim.lr"), "expected FIELD=VALUE"),
        (lambda: sweeps.grid("=1"), "expected FIELD=VALUE"),
        (lambda: sweeps.grid("optim.lr=1e-4,0.0001"), "1e-4 twice"),
        (lambda: sweeps.expand([], []), "nothing that varies"),
        (
            lambda: sweeps.expand([], [sweeps.seeds("2"), sweeps.grid("seed=1,2")]),
            "seed twice, expected each field in one axis",
        ),
        (
            lambda: sweeps.expand([], [sweeps.grid("a.b=1"), sweeps.grid("a=2")]),
            "a and a.b, expected each",
        ),
        (
            lambda: sweeps.expand([], [sweeps.seeds("9999"), sweeps.folds("2")]),
            "19,998 settings, expected at most 10,000",
        ),
    ],
)
def test_what_is_no_axis(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_field_is_set_in_one_place():
    settings = [{"optim.lr": 1.0}, {"tokenizer": {}}]
    sweeps.check_overrides(settings, ["--config.optim.name=sgd", "--config.seed", "1"])
    for path in ("optim.lr", "tokenizer.kind"):
        with pytest.raises(ConfigError, match=f"--grid={path}=x replaces") as error:
            sweeps.check_overrides(settings, [f"--config.{path}=x"])
        assert error.value.where == f"--config.{path}"


def test_a_fold_is_held_out_for_an_evaluation():
    mine, theirs = {"sources": [1], "fold": "1/2"}, {"sources": [2], "fold": "1/2"}
    config = {"data": mine, "evals": {"dev": {"data": mine}, "far": {"data": theirs}}}
    [note] = sweeps.check_folds("x", config)
    assert note.startswith("note: evals.far reads the fold alone")
    theirs["fold"] = ""
    assert sweeps.check_folds("x", config) == []
    with pytest.raises(ConfigError, match="setting x: evals: found none of the rec"):
        sweeps.check_folds("x", config | {"evals": {"far": {"data": theirs}}})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((3e-4, "3e-4"), (1.5e-5, "1.5e-5"), (-2e-5, "-2e-5"), (0.0, "0.0")),
        *((0.01, "0.01"), (0.5, "0.5"), (1.0, "1.0"), (1e22, "1e22"), (5, "5")),
        *((True, "true"), (None, "none"), ("a b", "a b"), ([1, "x"], "[1, 'x']")),
        *((Text("0.0003"), "3e-4"), (Text("bert_mini"), "bert_mini")),
    ],
)
def test_values_are_short_and_exact(value, text):
    assert sweeps.short(value) == text
    if isinstance(value, float):
        assert float(text) == value


def test_names_of_folders_are_safe_and_differ():
    setting = {"init.source": "hf:../a b", "data.fold": "1/10", "seed": 0}
    assert sweeps.folder_of(setting) == "init.source=hf-..-a-b,data.fold=1-10,seed=0"
    assert sweeps.folder_of({}) == "as-configured"
    long = [{"data.sources": [{"name": "text", "files": "x" * 150 + y}]} for y in "ab"]
    names = [sweeps.folder_of(each) for each in long]
    assert names[0] != names[1] and all(len(name) <= 100 for name in names)


def test_a_setting_becomes_flags_that_read_back_the_same():
    setting = {"a.b": "none", "c": None, "d": [1, "x"], "e": Text("1e-4"), "f": "1/3"}
    flags = sweeps.flags_of(setting)
    assert flags == [
        *("--config.a.b='none'", "--config.c=None", "--config.d=[1, 'x']"),
        *("--config.e=1e-4", "--config.f=1/3"),
    ]
    tree = {}
    set_fields(tree, flags)
    assert schema.literal(tree["a"]["b"]) == "none" and tree["f"] == "1/3"
    assert sweeps.values_of(setting | {"t": (1, 2)}) == {
        **{"a.b": "none", "c": None, "d": [1, "x"], "e": 1e-4, "f": "1/3"},
        "t": [1, 2],
    }
    assert sweeps.group_of({"seed": 1, "a": 2, "data.fold": "1/2"}) == {"a": 2}
