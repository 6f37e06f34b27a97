"""--help: every flag of every command is described, within 80 columns."""

import ast
import importlib
from pathlib import Path

import pytest

from lm.config import files, schema
from lm.config.flags import Parser, describe_fields

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(
    file.stem
    for file in (ROOT / "lm").glob("*.py")
    if (ast.get_docstring(ast.parse(file.read_text())) or "").startswith("Command: ")
    and not file.stem.startswith("_")
)


@pytest.fixture(params=COMMANDS)
def shown(request, monkeypatch, capsys):
    """The parser of a command and the text of its --help."""
    parsers = []
    show = Parser.format_help

    def format_help(self):
        parsers.append(self)
        return show(self)

    monkeypatch.setattr(Parser, "format_help", format_help)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"lm.{request.param}").main(["--help"])
    assert end.value.code == 0
    return parsers[0], capsys.readouterr().out


def test_every_option_is_described_with_its_default(shown):
    parser, _ = shown
    for action in parser._actions:
        assert action.help, action.option_strings
        optional = not action.required and action.nargs != 0
        alone = action.option_strings in (["--from"], ["--to"])  # one must be given
        if optional and not alone:
            assert "default: " in action.help, action.option_strings


def test_no_line_is_longer_than_80_columns(shown):
    _, text = shown
    for line in text.splitlines():
        assert len(line) <= 80, line


def test_main_lists_the_configs(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("lm.main").main(["--help"])
    text = capsys.readouterr().out
    for file in (ROOT / "configs").glob("*.py"):
        assert f"configs/{file.name} " in text
    assert "A tiny BERT" in text


def test_the_options_of_generate_are_those_of_its_dataclass(capsys):
    place = ROOT / "lm" / "decoding" / "loop.py"
    fields = schema.read_class(place, "Settings", ROOT / "lm")
    about = describe_fields(place, "Settings")
    assert fields.keys() == about.keys()
    with pytest.raises(SystemExit):
        importlib.import_module("lm.generate").main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert f"default: {field.default})" in text, name
        assert about[name][:25] in text


def test_a_config_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = files.find_file("configs/bert_tiny.py")
    assert found == ROOT / "configs" / "bert_tiny.py"
    own = tmp_path / "configs" / "bert_tiny.py"
    own.parent.mkdir()
    own.write_text("'Mine.'\ndef get_config():\n    return {}\n")
    assert files.find_file("configs/bert_tiny.py").resolve() == own  # the nearest
    assert "configs/bert_tiny.py         Mine." in files.describe_files()
    own.write_text("def broken(:")
    assert "configs/bert_tiny.py" in files.describe_files()
    assert files.find_file("configs/none.py") == Path("configs/none.py")
