"""Runs with an adapter: what they save, continue from and need; merged and PEFT's."""

import shutil

import jax
import numpy as np
import pytest

from lm import convert, evaluate, main
from lm import run as runs
from lm.adapters import lora
from lm.checks import invariances
from lm.config import resolve as configs
from lm.errors import CheckpointError, ConfigError
from lm.hf import checkpoint as hf
from lm.hf import importing, peft
from lm.hf.formats import safetensors
from lm.trees import flatten
from lm.workdir import checkpoint
from tests import tiny
from tests.hf import folders

ITEMS = [{"text": "good dog.", "label": 1}, {"text": "bad cat.", "label": 0}] * 8
DATA = {"sources": [{"name": "memory", "items": ITEMS}]}
LORA = {"name": "lora", "kernels": [r"layers/(attention|mlp)/\w+/kernel"], "rank": 3}
FRESH = ["pooler/.*", "heads/classify/.*"]


def settings(base, **changes):
    """A classifier beside the frozen weights of a folder."""
    given = {
        "model": dict(folders.model_of(base)) | {"vocab_size": None},
        "objective": {"name": "classification", "classes": 2},
        "adapter": LORA | {"dropout": 0.1},
        "data": DATA,
        "tokenizer": None,
        "init": {"source": f"hf:{base}", "missing": FRESH},
        "evals": {"dev": {"evaluator": "mean", "data": DATA, "every": 2}},
        "checkpoint": {"every": 2, "keep_last": 9},
        "optim__ema": 0.5,
        "steps": 4,
    }
    return configs.resolve(tiny.tree(**given | changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return folders.bert(tmp_path_factory.mktemp("hf") / "bert")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """The workdir of a run of four steps."""
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    assert tiny.run(settings(base), workdir) == 0
    return workdir


def saved(workdir, part="params"):
    leaves = checkpoint.read_leaves(checkpoint.find(workdir))
    prefix = f"{part}/"
    return {p.removeprefix(prefix) for p in leaves if p.startswith(prefix)}


@pytest.mark.slow
def test_a_checkpoint_holds_what_is_trained_and_names_its_base(base, run):
    heads = {
        f"{at}/{x}" for at in ("pooler", "heads/classify") for x in ("kernel", "bias")
    }
    pairs = {path for path in saved(run) if "/lora_" in path}
    assert saved(run) == saved(run, "averaged") == heads | pairs and len(pairs) == 12
    named = tiny.host(run)["base"]
    assert named["source"] == f"hf:{base}" and len(named["sha256"]) == 64
    log = (run / "run.log").read_text()
    assert "are trained; per device: trained" in log


@pytest.mark.slow
def test_it_continues_to_the_same_bits(base, run, tmp_path):
    assert tiny.run(settings(base, steps=2), tmp_path) == 0
    assert tiny.run(settings(base), tmp_path) == 0
    assert "continuing from step 2" in (tmp_path / "run.log").read_text()
    assert tiny.raw_rows(tmp_path) == tiny.raw_rows(run)
    assert tiny.state_bits(tmp_path) == tiny.state_bits(run)


@pytest.mark.slow
def test_it_is_opened_and_exported_beside_its_base(base, run, tmp_path, capsys):
    capsys.readouterr()
    with tiny.some_devices(settings(base)):
        assert evaluate.main([f"--workdir={run}"]) == 0
        opened = runs.open_run(run, note=lambda line: None)
        assert convert.main([f"--workdir={run}", f"--to=hf:{tmp_path / 'hf'}"]) == 0
    found = capsys.readouterr().out
    assert f'"dev/loss": {tiny.rows(run)[-1]["dev/loss"]}' in found
    params = jax.device_get(flatten(opened.params))
    merged = lora.Adapter(rank=3).merge(params)
    theirs = hf.open_checkpoint(tmp_path / "hf")
    exported = importing.load(theirs, importing.shapes(theirs))
    assert exported.keys() == merged.keys()
    for path, leaf in merged.items():
        np.testing.assert_array_equal(exported[path], leaf, path)
    source = hf.open_checkpoint(base)
    source = importing.load(source, importing.shapes(source))
    moved = {
        p for p in merged if p in source and not np.array_equal(merged[p], source[p])
    }
    assert {path.partition("/")[0] for path in moved} == {"layers", "pooler"}


@pytest.mark.slow
def test_the_form_of_peft_gives_the_same_run_again(base, run, tmp_path, capsys):
    out, again = tmp_path / "peft", tmp_path / "again"
    with tiny.some_devices(settings(base)):
        assert convert.main([f"--workdir={run}", f"--to=peft:{out}"]) == 0
        assert (
            convert.main(
                [f"--from=peft:{out}", f"--workdir={again}", "--config.mesh.data=1"]
            )
            == 0
        )
        one, two = (runs.open_run(w, note=lambda line: None) for w in (run, again))
    for path, leaf in flatten(one.params).items():
        np.testing.assert_array_equal(flatten(two.params)[path], leaf, path)
    assert tiny.host(run)["base"] == tiny.host(again)["base"]
    other = folders.bert(tmp_path / "other", "bert_classify")
    tensors = safetensors.read(out / peft.WEIGHTS)
    name = "base_model.model.bert.encoder.layer.1.output.dense.lora_A.weight"
    wide = {
        n: np.ones((3, 99), np.float32) if n == name else x for n, x in tensors.items()
    }
    shapes = {n: (x.dtype, x.shape) for n, x in wide.items()}
    safetensors.write(
        out, shapes, {n: np.array(x) for n, x in wide.items()}.__getitem__
    )
    (out / "model.safetensors").replace(out / peft.WEIGHTS)
    capsys.readouterr()
    argv = [f"--from=peft:{out}", f"--workdir={tmp_path / 'new'}"]
    assert convert.main([*argv, f"--config.init.source=hf:{other}"]) == 4
    assert "shape (3, 99)" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_base_that_has_changed_or_is_gone_is_refused(base, run):
    """By a command and by the training itself."""
    aside = base.with_name("aside")
    base.rename(aside)
    try:
        for word in ("SHA-256", "no such folder"):
            if word == "SHA-256":
                shutil.copytree(aside, base)
                change_a_weight(base)
            with tiny.some_devices(settings(aside)):
                with pytest.raises(CheckpointError, match=word):
                    runs.open_run(run, note=lambda line: None)
                assert evaluate.main([f"--workdir={run}"]) == 4
            with pytest.raises(CheckpointError, match=word):
                tiny.run(configs.of_run(run, ["--config.steps=6"]), run)
            shutil.rmtree(base, ignore_errors=True)
    finally:
        aside.rename(base)


def change_a_weight(place):
    """Changes one number of a layer by a bit."""
    tensors = {
        n: np.array(x) for n, x in safetensors.read(place / "model.safetensors").items()
    }
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors[name].view(np.uint32)[3, 5] ^= 1
    shapes = {n: (x.dtype, x.shape) for n, x in tensors.items()}
    safetensors.write(place, shapes, tensors.__getitem__)


@pytest.mark.slow
def test_another_run_does_not_start_from_a_part(base, run, tmp_path):
    tree = settings(base, init={"source": str(run), "missing": FRESH}, adapter={})
    with pytest.raises(ConfigError, match=r"a run with an adapter.*lm\.convert"):
        tiny.run(tree, tmp_path / "new")


@pytest.mark.slow
def test_shards_of_the_model_on_eight_devices_change_nothing(tmp_path):
    given = tiny.config(adapter=LORA, evals={}, model__num_heads=4)
    subject = invariances.Subject(given, tmp_path, lambda line: None)
    trained = {name.split("/")[0] for name in subject.expected}
    assert trained == {"loss", "layers", "heads"}
    found = subject.numbers(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    assert invariances.compare(subject.expected, found).first is None


def test_the_job_without_gradients_and_updates_in_place_refuse_it(capsys, tmp_path):
    argv = ["--config=configs/ngram.py:quick", f"--workdir={tmp_path / 'run'}"]
    assert main.main([*argv, "--config.adapter.name=lora"]) == 2
    assert "adapter" in capsys.readouterr().err.splitlines()[-1]
    argv = ["--config=configs/word2vec.py:quick", f"--workdir={tmp_path / 'run'}"]
    assert main.main([*argv, "--config.adapter.name=lora"]) == 2
    assert "an adapter" in capsys.readouterr().err.splitlines()[-1]
