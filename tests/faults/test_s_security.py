"""S1 to S8: data are never code, and nothing listens, loads or tells in secret."""

import ast
import collections
import pickle
import re
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lm.errors import CheckpointError
from lm.host import storage
from lm.main import main
from lm.workdir import checkpoint

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
