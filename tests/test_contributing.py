"""CONTRIBUTING.md and CHANGELOG.md are true: paths exist, names resolve, code runs."""

import importlib
import pkgutil
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

import lm
from lm.config import resolve
from lm.data import pipeline
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
WORDS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))


@pytest.mark.parametrize("word", sorted({w for w in WORDS if "/" in w}))
def test_a_path_exists(word):
    """`mine` stands for what the reader adds: its folder must exist."""
    path = ROOT / word.split()[0]
    if "mine" in path.name:
        path = path.parent
    if not word.startswith(("pip ", "python ")):
        assert path.exists(), word


def test_names_in_code_resolve():
    dotted = [w for w in WORDS if re.fullmatch(r"lm(\.\w+)+", w)]
    assert dotted
    for word in dotted:
        pkgutil.resolve_name(word)  # Raises where it is absent.
    base = importlib.import_module("lm.models.base")
    for name in re.findall(r"base\.py` \(`(\w+)`\)", TEXT):
        assert hasattr(base, name), name


def test_fields_named_exist():
    config = tiny.config()
    for word in WORDS:
        section, _, field = word.partition(".")
        if section in ("optim", "compute") and field:
            assert field in config[section], word


def test_the_table_answers_what_strangers_ask():
    rows = re.findall(r"^\| (.+?) \| .* \| .* \|$", TEXT, re.MULTILINE)
    for wanted in (
        *("schedule", "source", "masking", "metric", "a model", "word vectors", "CRF"),
        *("question answering", "dual encoder", "n-gram", "private", "moving average"),
        *("LoRA", "attention kernel", "sweep"),
    ):
        assert any(wanted in row for row in rows), wanted


def test_the_rules_are_twenty_and_the_glossary_has_words():
    rules = re.findall(r"^(\d+)\. ", TEXT, re.MULTILINE)
    assert rules == [str(n) for n in range(1, 21)]
    terms = re.findall(r"^\| (.+?) \|", TEXT.partition("## Glossary")[2], re.MULTILINE)
    terms = terms[2:]  # the heading and its line
    assert terms == sorted(terms)
    assert len(terms) >= 20


def test_the_source_of_the_example_trains(tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = {"name": "study.mine", "last": 40}
    config = tiny.config(data={"sources": [source]})
    try:
        [opened] = pipeline.open_sources(
            resolve.build(pipeline.Data, config.data), train=True
        )
        texts = [record.fields["text"] for record in opened.read()]
    finally:
        sys.modules.pop("study.mine", None)
        sys.modules.pop("study", None)
    assert texts[0] == "number 0"
    assert len(texts) == 41


def test_the_commands_are_those_of_the_repository():
    for line in "".join(re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)).split(
        "\n"
    ):
        for word in shlex.split(line):
            if "/" in word:
                assert (ROOT / word).exists(), line


def test_the_changelog_has_this_version():
    version = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version[1] == lm.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "lm-jax"
    assert (ROOT / "lm" / "py.typed").exists()
