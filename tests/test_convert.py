"""Tests lm.convert, and runs that start from init.source="hf:DIR"."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import convert, evaluate, main
from lm.config import resolve as configs
from lm.errors import CheckpointError, ConfigError
from lm.hf import checkpoint, source
from lm.hf.formats import safetensors
from lm.transfer import load_params
from lm.trees import flatten
from lm.workdir.checkpoint import Init
from tests import tiny
from tests.hf import folders, goldens

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return folders.bert(tmp_path_factory.mktemp("hf") / "bert")


@pytest.fixture(scope="module")
def workdir(bert, tmp_path_factory):
    """Gives the workdir that lm.convert --from makes of it."""
    workdir = tmp_path_factory.mktemp("converted") / "run"
    assert convert.main([f"--from=hf:{bert}", f"--workdir={workdir}"]) == 0
    return workdir


def test_a_workdir_has_the_weights_the_tokenizer_and_a_config(bert, workdir):
    config = configs.of_run(workdir)
    assert config.model.vocab_size == 61 and config.objective.next == "nsp"
    assert (workdir / "tokenizer" / "vocab.txt").exists()
    opened = checkpoint.open_checkpoint(bert)
    wanted = goldens.params(opened)
    found, report = load_params(Init(source=str(workdir)), wanted)
    assert len(report.loaded) == len(opened.sources) and not report.unused
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_workdir_can_be_evaluated(workdir, capsys):
    items = [dict(item) for item in tiny.documents(6)]
    data = {"sources": [{"name": "memory", "items": items}]}
    evals = {"few": {"evaluator": "mean", "data": data}}
    flags = [f"--workdir={workdir}", f"--config.evals={json.dumps(evals)}"]
    with tiny.some_devices(tiny.config()):
        code = evaluate.main([*flags, "--config.mesh.data=1"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    found = json.loads(shown.out)
    assert found["step"] == 0 and np.isfinite(found["few/mlm_loss"])


def test_it_is_exported_bit_for_bit(bert, workdir, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [f"--to=hf:{out}", f"--workdir={workdir}"]
    assert convert.main(flags) == 0
    names = {path.name for path in out.iterdir()}
    wanted = {"config.json", "model.safetensors", "README.md", "tokenizer.json"}
    assert names == wanted | {"tokenizer_config.json"}
    theirs = safetensors.read(bert / "model.safetensors")
    ours = safetensors.read(out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, name)
    card = (out / "README.md").read_text()
    assert "`BertForPreTraining` of 12,839 parameters, after 0 steps" in card
    assert "objective: `name=mlm" in card and '"d_model": 24' in card
    assert source.different(folders.model_of(out), folders.model_of(bert)) == []
    # The same command again does not overwrite it.
    assert convert.main(flags) == 2
    assert "which exists" in capsys.readouterr().err


def test_the_exported_tokenizer_gives_the_same_ids(bert, workdir, tmp_path):
    import tokenizers

    out = tmp_path / "out"
    assert convert.main([f"--to=hf:{out}", f"--workdir={workdir}"]) == 0
    theirs = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    codec = source.open_tokenizer(bert)
    for text in ("Hello, world!", "  a b  ", "naïve 北京 x"):
        ids = codec.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.encode(text).ids == [codec.cls_id, *ids, codec.sep_id]
    assert theirs.encode("[MASK]").ids[1:-1] == [codec.mask_id]
    again = source.open_tokenizer(out)
    assert again.encode("[MASK] hello") == codec.encode("[MASK] hello")
    assert (again.pad_id, again.cls_id) == (codec.pad_id, codec.cls_id)


def fine_tune(bert, **changes):
    items = [{"text": "good dog.", "label": 1}, {"text": "bad cat.", "label": 0}] * 8
    given = {
        "model": dict(folders.model_of(bert)) | {"vocab_size": None},
        "objective": {"name": "classification", "classes": 2},
        "data": {"sources": [{"name": "memory", "items": items}]},
        "tokenizer": None,
        "init": {"source": f"hf:{bert}", "missing": ["heads/classify/.*"]},
        "evals": {},
        "steps": 2,
    }
    return configs.resolve(tiny.tree(**given | changes))


def test_a_run_starts_from_a_directory_and_is_exported(bert, tmp_path):
    """Fine-tuning takes the tokenizer and the size of the vocabulary from it."""
    assert tiny.run(fine_tune(bert), tmp_path / "run") == 0
    config = configs.of_run(tmp_path / "run")
    assert config.model.vocab_size == 61 and config.tokenizer.kind == "wordpiece"
    log = (tmp_path / "run" / "run.log").read_text()
    assert "46 tensors float32" in log and "unused: heads/mlm/bias" in log
    # A run that has begun does not need the directory.
    longer = fine_tune(bert, steps=3, init=dict(config.init))
    assert tiny.run(longer, tmp_path / "run") == 0
    out = tmp_path / "out"
    workdir = tmp_path / "run"
    assert convert.main([f"--to=hf:{out}", f"--workdir={workdir}"]) == 0
    found = checkpoint.open_checkpoint(out)
    assert found.config["architectures"] == ["BertForSequenceClassification"]
    assert "after 3 steps" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "summary", "bos", "architecture"),
    [
        ("gpt2_classify", "last", False, "GPT2ForSequenceClassification"),
        ("t5_classify", "decoder", True, "T5ForSequenceClassification"),
    ],
)
def test_a_classifying_decoder_is_imported_and_exported(
    tmp_path, name, summary, bos, architecture
):
    case, workdir = goldens.PLACE / name, tmp_path / "run"
    assert convert.main([f"--from=hf:{case}", f"--workdir={workdir}"]) == 0
    objective = configs.of_run(workdir).objective
    assert (objective.name, objective.summary, objective.bos) == (
        *("classification", summary),
        bos,
    )
    assert tuple(objective.labels) == ("no", "maybe", "yes")
    out = tmp_path / "out"
    assert convert.main([f"--to=hf:{out}", f"--workdir={workdir}"]) == 0
    theirs = safetensors.read(case / "model.safetensors")
    ours = safetensors.read(out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, name)
    config = checkpoint.open_checkpoint(out).config
    assert config["architectures"] == [architecture]
    assert config["pad_token_id"] == 0


@pytest.mark.parametrize("preset", [None, "hf"])
def test_a_run_takes_the_shape_of_the_directory(bert, tmp_path, preset):
    """Given fields override it; a run that has begun does not need the directory."""
    given = configs.plain(fine_tune(bert), "config")
    given["model"] = {"name": "transformer", "preset": preset, "vocab_size": None}
    place = tmp_path / "run"

    def load(**model):
        tree = given | {"model": given["model"] | model}
        return configs.load(tree, {}, fill=source.with_shape(place))

    shape = folders.model_of(bert)
    found = load(dropout=0.25, attention={"dropout": 0.5})
    assert (found.model.d_model, found.model.num_layers) == (24, 2)
    assert found.model.dropout == 0.25 and found.model.attention.dropout == 0.5
    assert found.model.attention.buckets == shape["attention"]["buckets"]
    source.check(found, place)
    with pytest.raises(CheckpointError, match=r"num_layers=3.*model\.preset=hf"):
        source.check(load(num_layers=3), place)
    assert tiny.run(found, place) == 0
    given["init"]["source"] = "hf:gone"
    assert load().model.d_model == 24


def test_the_first_weights_are_those_of_the_directory(bert, tmp_path):
    settings = fine_tune(bert)
    config = source.complete(settings, tmp_path / "new")
    _, program = tiny.program(config, tmp_path / "run")
    found, _ = load_params(configs.build(Init, config.init), abstract(program))
    wanted = flatten(goldens.params(checkpoint.open_checkpoint(bert)))
    for path, leaf in flatten(found).items():
        if path in wanted:
            np.testing.assert_array_equal(leaf, wanted[path])


def abstract(program):
    with tiny.some_devices(tiny.config()):
        return program.init(jax.random.key(0))


def test_a_model_that_computes_something_else_is_refused(bert, tmp_path):
    model = dict(folders.model_of(bert)) | {"norm_epsilon": 1e-5}
    with pytest.raises(CheckpointError, match=r"norm_epsilon=1e-12, .*1e-05"):
        source.check(fine_tune(bert, model=model), tmp_path)
    with pytest.raises(CheckpointError, match="hub/a/name: found no such folder"):
        init = {"source": "hf:hub/a/name", "missing": []}
        source.check(fine_tune(bert, init=init), tmp_path)


def test_flags(bert, workdir, tmp_path, capsys):
    new = f"--workdir={tmp_path}/new"
    for flags, found in {
        (new,): "both or none",
        (new, f"--from=hf:{bert}", "--to=hf:x"): "both or none",
        (new, f"--from={bert}"): "expected hf:DIR",
        (f"--workdir={workdir}", f"--from=hf:{bert}"): "expected a new folder",
        (new, "--to=hf:x"): "no such folder",
        (f"--workdir={workdir}", "--to=hf:x", "--family=bart"): "--family",
        (new, f"--from=hf:{bert}", "--config.modle=1"): "modle",
    }.items():
        assert convert.main(list(flags)) == 2, flags
        assert found in capsys.readouterr().err, flags


def test_a_recurrent_run_is_of_no_family(tmp_path, capsys):
    config, workdir = "--config=configs/gru.py:quick", tmp_path / "run"
    flags = [
        "--config.steps=2",
        "--config.batch_size=8",
        "--config.evals={}",
        "--config.tokenizer.vocab_size=300",
    ]
    assert main.main([config, f"--workdir={workdir}", *flags]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    assert convert.main([f"--to=hf:{out}", f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert "name=rnn, which no family" in error[-1] and "Traceback" not in error
    assert not out.exists() and not (tmp_path / "out.partial").exists()


HOSTILE = {
    "header": (2**60).to_bytes(8, "little") + b"{}",
    "truncated": None,
    "zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", ["convert", "main"])
def test_hostile_files_end_both_commands_at_once(tmp_path, name, command):
    """The exit code is 4, and the line names the file, before jax is imported."""
    place = folders.bert(tmp_path / "bad")
    file = place / "model.safetensors"
    file.write_bytes(HOSTILE[name] or file.read_bytes()[:-5])
    flags = [f"--from=hf:{place}", f"--workdir={tmp_path}/new"]
    if command == "main":
        model = "vocab_size=61,d_model=24,num_layers=2,num_heads=3,d_ff=40,max_len=40"
        pairs = [f"--config.model.{pair}" for pair in model.split(",")]
        flags = ["--config=configs/bert_tiny.py:quick", *pairs, *flags[1:]]
        flags += [f"--config.init.source=hf:{place}", "--config.tokenizer=None"]
        flags += ["--config.seq_len=32"]
    code = (
        "import sys, time; start = time.time()\n"
        f"from lm import {command}\n"
        "code = " + command + ".main(sys.argv[1:])\n"
        "print(code, 'jax' in sys.modules, time.time() - start)"
    )
    run = [sys.executable, "-c", code, *flags]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    code, jax_is_there, _ = done.stdout.split()
    assert (code, jax_is_there) == ("4", "False"), done.stderr
    assert str(file) in done.stderr


def test_main_is_the_same_module():
    assert main.source is source
    with pytest.raises(ConfigError):
        convert.run([])
