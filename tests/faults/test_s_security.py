"""S1 to S8: data are never code, and nothing listens, loads or tells in secret."""

import ast
import collections
import json
import pickle
import re
import shutil
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lm import convert, evaluate, generate
from lm.config import resolve as configs
from lm.errors import CheckpointError
from lm.host import storage
from lm.main import main
from lm.workdir import checkpoint
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    p
    for folder in ("lm", "configs", "experiments")
    for p in sorted((ROOT / folder).rglob("*.py"))
]
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"),
    *("pickle.load", "pickle.loads", "torch.load", "joblib.load", "marshal.loads"),
    *("tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive", "extractall"),
}
MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "yaml"}
NETWORK = {"socketserver", "http", "urllib", "requests", "ftplib", "smtplib", "aiohttp"}
KEYWORDS = {"shell", "allow_pickle", "trust_remote_code"}


def banned(tree):
    """What a module must not contain, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        for name in names:
            if name.split(".")[0] in MODULES | NETWORK:
                yield node.lineno, name
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name.endswith((".extractall", ".listen")):
                yield node.lineno, name
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", True)
                if keyword.arg in KEYWORDS and value is not False:
                    yield node.lineno, f"{keyword.arg}={value}"


@pytest.mark.parametrize("row", ["S2", "S5", "S6"])
def test_S2_S5_S6_no_code_from_data_no_server_no_download(row):
    """S2: no pickle, eval, shell; S5: nothing listens; S6: nothing is downloaded.

    jaxlib's own coordinator and profiler are started by the user's variables alone.
    """
    found = {
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in FILES
        for line, name in banned(ast.parse(file.read_text()))
    }
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from http import server",
        "eval(x)",
        "a.extractall()",
        "np.load(f, allow_pickle=True)",
        "run(c, shell=True)",
        "os.system(c)",
    ],
)
def test_S2_the_ban_sees_what_it_bans(code):
    assert list(banned(ast.parse(code)))


def test_S2_the_linter_bans_them_too():
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    wanted = {"S102", "S301", "S302", "S307", "S506", "S602", "S202"}
    assert wanted <= set(rules["select"])
    assert not wanted & {
        r for rules in rules["per-file-ignores"].values() for r in rules
    }


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["weights.pkl", "state", "MANIFEST.json", "host.json"])
def test_S1_a_pickle_in_a_checkpoint_is_not_run(tmp_path, name):
    canary = tmp_path / "canary"
    step = tmp_path / "checkpoints" / "3"
    step.mkdir(parents=True)
    (step / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.find(tmp_path)
    assert caught.value.exit_code == 4 and not canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.npz"])
def test_S1_a_pickle_as_weights_of_hugging_face_is_refused(tmp_path, name, monkeypatch):
    pytest.importorskip("lm.hf.checkpoint")
    canary, folder = tmp_path / "canary", tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    if name.endswith("npz"):
        with open(folder / name, "wb") as file:
            np.savez(file, np.array([Canary(canary)], dtype=object))
    else:
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    monkeypatch.chdir(ROOT)
    workdir = f"--workdir={tmp_path / 'run'}"
    init = f"--config.init.source=hf:{folder}"
    assert main(["--config=tests/faults/config.py", workdir, init]) in (2, 4)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside"])
def test_S3_a_manifest_cannot_point_outside(tmp_path, name):
    (tmp_path / "outside").write_bytes(b"secret")
    step = tmp_path / "7"
    step.mkdir()
    content = {"step": 7, "files": {name: {"bytes": 6, "sha256": "0" * 64}}}
    (step / "MANIFEST.json").write_text(storage._manifest_text(content))
    with pytest.raises(CheckpointError, match="files within it"):
        storage.verify(step)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "1" * 1_000_000,
        '{"files": {}, "files": 3, "sha256": "x"}',
        '{"sha256": NaN}',
        "\x00" * 1000,
        '{"step": 1e999}',
    ],
    ids=range(7),
)
def test_S4_a_hostile_manifest_is_refused_at_once(tmp_path, text):
    (tmp_path / "MANIFEST.json").write_text(text)
    began = time.monotonic()
    with pytest.raises(CheckpointError):
        storage.verify(tmp_path)
    assert time.monotonic() - began < 2


def test_S7_S8_secrets_stay_out_of_the_workdir_and_nothing_calls_out(server, tmp_path):
    """S7: a token of the environment is nowhere in the files; S8: no connections."""
    token = "hf_c4n4ry0000000000"
    done = server.run(
        tmp_path,
        "--config.steps=1",
        "--config.optim.warmup=0",
        before="tests.faults.hooks:no_network",
        HF_TOKEN=token,
        WANDB_API_KEY=token,
    )
    assert done.code == 0 and "NETWORK" not in done.text(), done.text()
    assert token not in done.text()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert token.encode() not in file.read_bytes(), file


def test_S8_each_requirement_is_bounded():
    for name in ("requirements.txt", "tests/requirements.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                assert re.search(r"[<=]", line), line


def test_S8_the_lock_holds_each_requirement_with_its_hashes():
    lock = (ROOT / "launch" / "requirements.lock").read_text().replace("\\\n", "")
    pins = collections.defaultdict(list)
    for line in lock.splitlines():
        if line and not line.startswith("#"):
            pinned = Requirement(line.partition("--hash")[0].strip())
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), pinned
            pins[canonicalize_name(pinned.name)].append(pinned)
    for file in ("requirements.txt", "tests/requirements.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if line and not line.startswith("#"):
                wanted = Requirement(line)
                found = pins[canonicalize_name(wanted.name)]
                assert found, f"{line}: make the lock again, as its head says"
                for pinned in found:
                    (version,) = pinned.specifier
                    assert wanted.specifier.contains(version.version), (line, pinned)


DOORS = {  # the section whose name is code: the class that it must define
    "model": "Model",
    "objective": "Objective",
    "tokenizer": "Tokenizer",
    "data.sources.0": "Source",
    "evals.heldout": "Evaluator",
    "evals.heldout.data.sources.0": "Source",
}


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A function that makes somebody's run, whose config.json names code in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(door: str, module: str = "") -> tuple[Path, str, Path]:
        workdir, canary = tmp_path / "runs" / "theirs", tmp_path / "canary"
        name = module or f"runs.theirs.evil_{door.replace('.', '_')}"
        file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        for folder in (workdir, file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        code = (
            f"open({str(canary)!r}, 'w')\nclass {DOORS[door]}:\n    weight: float = 1"
        )
        file.write_text(code + "\n    data: int = 0\n")
        tree = json.loads(configs.to_json(tiny.config()))
        section = tree
        for key in door.split("."):
            section = section[int(key) if key.isdecimal() else key]
        section.clear()
        section["evaluator" if door == "evals.heldout" else "name"] = name
        if door == "evals.heldout":
            section["data"] = {"sources": [{"name": "builtin"}]}
        (workdir / "config.json").write_text(json.dumps(tree))
        return workdir, name, canary

    return make


# A command, its flags, and the section that it leaves unread.
COMMANDS = {
    "evaluate": (evaluate.main, [], None),
    "generate": (generate.main, ["a prompt"], "evals"),
    "convert": (convert.main, ["--to=hf:out"], None),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("command", COMMANDS)
def test_S9_no_command_runs_code_that_a_workdir_names(theirs, capsys, command, door):
    workdir, name, canary = theirs(door)
    act, flags, unread = COMMANDS[command]
    assert act([f"--workdir={workdir}", *flags]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "Traceback" not in said
    assert not canary.exists()
    if door.partition(".")[0] != unread:
        assert f"--allow-code={name}" in said and door in said


@pytest.mark.parametrize("door", DOORS)
def test_S9_no_run_starts_from_a_run_that_names_code(theirs, tmp_path, capsys, door):
    """The config of a run that is given as `init.source` is read for its tokenizer."""
    workdir, name, canary = theirs(door)
    tree = tiny.tree(init={"source": str(workdir)})
    for given in (tree, {k: v for k, v in tree.items() if k != "tokenizer"}):
        file = tmp_path / "mine.py"
        file.write_text(f"def get_config(): return {given!r}")
        assert main([f"--config={file}", f"--workdir={tmp_path / 'mine'}"]) == 2
        said = capsys.readouterr().err
        assert f"--allow-code={name}" in said and not canary.exists()


def test_S9_what_is_allowed_by_name_runs_and_nothing_else(theirs, capsys):
    workdir, name, canary = theirs("tokenizer")
    flags = [f"--workdir={workdir}", "--allow-code=another.module"]
    assert evaluate.main(flags) == 2 and not canary.exists()
    assert "--allow-code" in capsys.readouterr().err
    evaluate.main([f"--workdir={workdir}", f"--allow-code={name}"])
    assert "--allow-code" not in capsys.readouterr().err  # it has no checkpoint
    evaluate.main([f"--workdir={workdir}"])  # what one command allows, the next not
    assert "--allow-code" in capsys.readouterr().err


def test_S9_code_of_ones_own_config_and_command_line_counts(theirs, tmp_path):
    """An override names it, and it is imported; the config.json alone is not enough."""
    workdir, name, _ = theirs("evals.heldout")
    mine = tmp_path / "mine"
    shutil.copytree(workdir, mine)
    tree = json.loads((mine / "config.json").read_text())
    tree["evals"]["heldout"] = {"evaluator": "mean", "data": tree["data"]}
    (mine / "config.json").write_text(json.dumps(tree))
    named = configs.of_run(
        mine,
        [
            f"--config.evals.heldout={{'evaluator': {name!r}, "
            "'data': {'sources': [{'name': 'builtin'}]}}"
        ],
    )
    assert named.evals.heldout.evaluator == name
    replaced = ["--config.evals.heldout.evaluator=mean"]
    assert configs.of_run(workdir, replaced).evals.heldout.evaluator == "mean"


def test_S9_a_folder_cannot_pass_for_lm(theirs, capsys):
    """A file lm/models/evil.py of the current folder is no module of lm."""
    workdir, _, canary = theirs("model", "lm.models.evil")
    assert evaluate.main([f"--workdir={workdir}"]) == 2
    assert "looked in" in capsys.readouterr().err and not canary.exists()


def test_S9_a_check_imports_no_package_on_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    canary, package = tmp_path / "canary", tmp_path / "somebodys"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(canary)!r}, 'w')")
    (package / "model.py").write_text("class Model:\n    size: int = 1\n")
    found = tiny.config(model={"name": "somebodys.model"})
    assert found.model.size == 1 and not canary.exists()
