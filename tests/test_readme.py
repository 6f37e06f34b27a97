"""The README's commands run, and its files and flags exist."""

import re
import shlex
from pathlib import Path

import pytest

from lm import evaluate, generate, main

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "lm.main": main.main,
    "lm.evaluate": evaluate.main,
    "lm.generate": generate.main,
}
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(language):
    lines = "\n".join(blocks(language)).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A directory with the configs, and nothing of an earlier run."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)


def quick(argument):
    """The config of a flag, in its quick form."""
    name, _, arg = argument.partition(":")
    return f"{name}:{arg},quick" if arg else f"{name}:quick"


def test_every_bash_command_runs(clone, capsys):
    small = ["--config.mesh.data=8", "--config.batch_size=8", "--config.steps=2"]
    small += ["--config.model.num_layers=2", "--config.model.d_model=64"]
    small += ["--config.model.num_heads=2", "--config.model.d_ff=128"]
    small += ["--config.model.attention.kv_heads=2"]
    ran = []
    for line in commands("bash"):
        python, dash, module, *flags = shlex.split(line)
        assert (python, dash) == ("python", "-m"), line
        flags = [
            f"--config={quick(flag.removeprefix('--config='))}"
            if flag.startswith("--config=")
            else flag
            for flag in flags
        ]
        command = COMMANDS[module]
        if module == "lm.main":
            flags += small
        assert command(flags) == 0, (line, capsys.readouterr())
        ran.append(module)
    assert len(ran) >= 4


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
    assert codes == {0, 1, process.PREEMPTED, process.INTERRUPTED, *refusals}
