"""The README's commands run, and its files and flags exist."""

import importlib
import re
import runpy
import shlex
from pathlib import Path

import jax
import ml_collections
import pytest

from lm.config import resolve
from lm.training import sharding
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(language):
    lines = "\n".join(blocks(language)).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


def run_block(code, file, **names):
    file.write_text(code)
    return runpy.run_path(str(file), init_globals=names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which a reader types everything, one block after the other."""
    return tmp_path_factory.mktemp("reader")


@pytest.fixture
def reader(folder, monkeypatch):
    """A reader's machine: one device, and a folder with the configs."""
    one = jax.devices()[:1]
    make = sharding.make_mesh
    monkeypatch.setattr(
        sharding, "make_mesh", lambda config, devices=None: make(config, devices or one)
    )
    monkeypatch.chdir(folder)


def test_the_bash_commands_run_as_they_stand_in_order(reader, capfd):
    ran = []
    for line in commands("bash"):
        python, dash, module, *flags = shlex.split(line)
        assert (python, dash) == ("python", "-m"), line
        command = importlib.import_module(module).main
        assert command(flags) == 0, (line, capfd.readouterr().err)
        ran.append(module)
    assert ran[:2] == ["lm.main", "lm.evaluate"]
    assert len(ran) >= 5


def test_the_python_block_runs_after_them(reader):
    [code] = [block for block in blocks("python") if "import lm" in block]
    names = run_block(code, Path("block.py"))
    assert names["run"].config.objective.name == "causal_lm"


def test_the_blocks_of_a_config_are_accepted(tmp_path):
    for code in blocks("python"):
        if "import lm" not in code:
            c = ml_collections.ConfigDict(tiny.tree())
            run_block(code, tmp_path / "block.py", c=c)
            assert len(resolve.resolve(resolve.plain(c, "README")).data.sources) == 2


def test_the_table_names_what_exists():
    """Each name of a file in the table of what there is, in the room of its row."""
    rooms = {
        "models": "models",
        "objectives": "objectives",
        "evaluators": "evaluators",
        "data": "data/sources",
        "tokenizers": "tokenizers",
        "commands": ".",
    }
    for kind, room in rooms.items():
        [row] = re.findall(rf"^\| {kind} \| (.*) \|$", README, re.MULTILINE)
        names = re.findall(r"`(?:lm\.)?(\w+)`", row)
        if kind == "models":
            presets = runpy.run_path(str(ROOT / "lm/models/presets.py"))["PRESETS"]
            names = [n for n in names if n not in presets and n != "preset"]
        assert names
        for name in names:
            assert (ROOT / "lm" / room / f"{name}.py").exists(), (kind, name)


def test_every_console_command_names_what_exists():
    assert commands("console")
    for line in commands("console"):
        words = shlex.split(line)
        files = [w for w in words if w.endswith(".sh")]
        files += re.findall(r"REQUIREMENTS=(\S+)", line)
        files += re.findall(r"--config=([^:\s]+)", line)
        files += [
            f"{m.replace('.', '/')}.py"
            for m in words
            if m.startswith("lm.") and "=" not in m
        ]
        assert files, line
        for file in files:
            assert (ROOT / file).exists(), f"{line}: {file}"


def test_every_file_named_exists():
    folders = "lm|configs|tests|launch|experiments"
    for name in re.findall(rf"`((?:{folders})/[^`]*)`", README):
        if "<" in name or " " in name or "mine" in name or name.startswith("tests/run"):
            continue
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_exit_codes_are_those_of_the_code():
    from lm import errors
    from lm.host import process

    line = README.partition("## Exit codes")[2]
    codes = {int(code) for code in re.findall(r"(?:^|· )(\d+) ", line, re.MULTILINE)}
    refusals = {cls.exit_code for cls in errors.Refusal.__subclasses__()}
    ends = {process.PREEMPTED, process.INTERRUPTED, process.UNREAD}
    assert codes == {0, 1, *ends, *refusals}


def test_the_environment_is_that_of_the_code():
    named = {*re.findall(r"\bLM_[A-Z_]+", README)}
    used = set()
    for file in (ROOT / "lm").rglob("*.py"):
        used |= {*re.findall(r"\"(LM_[A-Z_]+)\"", file.read_text())}
    assert named == used - {"LM_CRASHPOINT"}  # of the tests of faults alone
