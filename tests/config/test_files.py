"""Config files and what may be wrong with them, overrides, and arguments."""

import pytest

from lm.config.files import default_workdir, parse_arg, read_file
from lm.config.overrides import set_fields
from lm.errors import ConfigError


@pytest.fixture
def config_file(tmp_path):
    def write(text, name="run.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_config_dict_becomes_plain(config_file):
    file = config_file("""
import ml_collections
def get_config(arg):
    c = ml_collections.ConfigDict()
    c.steps = len(arg)
    c.model = dict(size=c.get_ref("steps"), rules=(("a", 1),))
    c.sources = [dict(name="text"), ml_collections.ConfigDict(dict(name="csv"))]
    return c
""")
    assert read_file(f"{file}:a=b:c") == {
        "steps": 5,
        "model": {"size": 5, "rules": [["a", 1]]},
        "sources": [{"name": "text"}, {"name": "csv"}],
    }


def test_missing_file_names_those_near(config_file, tmp_path):
    near = config_file("", "bert_tiny.py")
    with pytest.raises(
        ConfigError, match=f"no such file.*did you mean {near}"
    ) as error:
        read_file(str(tmp_path / "bert_tny.py"))
    assert error.value.exit_code == 2
    with pytest.raises(ConfigError, match="no Python file"):
        read_file(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nlr = foo\n", r"run.py:2: found NameError: .* in `lr = foo`"),
        ("def get_config(arg)\n  pass", r"run.py:1: found SyntaxError"),
        (
            "import json\n\ndef get_config(arg):\n    return json.loads(arg)",
            r"run.py:4: found JSONDecodeError: .* in `return json.loads\(arg\)`",
        ),
        (
            "def get_config(arg):\n    return lr(0)\n\ndef lr(n):\n    return 1 / n",
            r"run.py:5: found ZeroDivisionError: .* in `return 1 / n`",
        ),
        ("import sys\nsys.exit(3)", "run.py:2: found SystemExit"),
        ("x = 1", "found no get_config"),
        ("def get_config(arg): return 3", "found 3, expected a ConfigDict"),
        ("def get_config(): return {}", "found :x, expected no argument"),
        (
            "d = {}\nd['a'] = d\ndef get_config(arg): return d",
            "more than 32 levels",
        ),
    ],
)
def test_broken_files(config_file, text, message):
    with pytest.raises(ConfigError, match=message):
        read_file(config_file(text) + ":x")


def test_overrides_in_both_forms_and_the_last_wins():
    tree = {"optim": {"lr": 1.0}, "sources": [{"name": "text"}], "init": None}
    flags = ["--config.optim.lr=2", "--config.optim.lr", "-3", "--config.a.b=c=d"]
    set_fields(tree, [*flags, "--config.sources.0.name=csv", "--config.init.source=x"])
    assert tree == {
        "optim": {"lr": "-3"},
        "sources": [{"name": "csv"}],
        "init": {"source": "x"},
        "a": {"b": "c=d"},
    }


def test_override_within_a_section_given_as_text():
    tree = {}
    set_fields(tree, ["--config.optim={'lr': 1, 'clip': 2}", "--config.optim.lr=3"])
    assert tree == {"optim": {"lr": "3", "clip": 2}}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=3"], "--steps=3: found an unknown flag"),
        (["steps"], "steps: found an unknown flag"),
        (["--config.steps"], "--config.steps: found no value"),
        (["--config.steps", "--debug"], "--config.steps: found no value"),
        (["--config.sources[0].name=x"], r"such as data\.sources\.0\.files"),
        (["--config.a..b=x"], "names joined by dots"),
        (["--config.sources.1.name=x"], "sources: found item 1, expected .* 0 to 0"),
        (["--config.sources.-1.name=x"], "sources: found item -1"),
        (["--config.steps.x=1"], "steps.x: found a field within steps"),
    ],
)
def test_overrides_without_a_place(flags, message):
    with pytest.raises(ConfigError, match=message):
        set_fields({"steps": 3, "sources": [{"name": "text"}]}, flags)


def parse(arg):
    return vars(
        parse_arg(
            arg, quick=False, task=("sst2", "mnli"), lr=1.0, n=2, name="", on=True
        )
    )


def test_parse_arg():
    defaults = {
        "quick": False,
        "task": "sst2",
        "lr": 1.0,
        "n": 2,
        "name": "",
        "on": True,
    }
    assert parse("") == defaults
    given = parse("task=mnli,quick,lr=3e-5,n=7,name=a/b=c,on=false")
    assert given == {
        **{"quick": True, "task": "mnli", "lr": 3e-5, "n": 7, "name": "a/b=c"},
        "on": False,
    }


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("qick", r"expected one of quick, task=<value>, .*did you mean quick\?"),
        ("quick,paper", "config argument paper: found an unknown name"),
        ("task=mnil", r"one of sst2, mnli. Fix: did you mean mnli\?"),
        ("task", "found no value, expected task=<value>"),
        ("n=3.5", "n=3.5: found 3.5, expected a whole number"),
        ("lr=fast", "found 'fast', expected a finite number"),
        ("quick=maybe", "expected true or false"),
        ("__import__('os')", "found an unknown name"),
    ],
)
def test_parse_arg_refuses(arg, message):
    with pytest.raises(ConfigError, match=message):
        parse(arg)


@pytest.mark.parametrize(
    ("file_arg", "expected"),
    [
        ("configs/bert_tiny.py", "runs/bert_tiny"),
        ("configs/bert_tiny.py:quick", "runs/bert_tiny-quick"),
        ("a/b.py:task=mnli,lr=3e-5,quick", "runs/b-task-mnli-lr-3e-5-quick"),
        ("b.py:text=../../etc/x", "runs/b-text-..-..-etc-x"),
        ("b.py:../x", "runs/b-x"),
        ("b.py:", "runs/b"),
    ],
)
def test_default_workdir(file_arg, expected):
    found = default_workdir(file_arg)
    assert str(found) == expected and len(found.parts) == 2
