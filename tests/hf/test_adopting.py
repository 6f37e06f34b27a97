"""Tests the runs that lm.convert --from makes: objective, tokenizer, failures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from lm import convert
from lm.config import resolve as configs
from lm.errors import CheckpointError, DataError
from lm.hf import adopting, checkpoint, source, tokenizer
from lm.hf.formats import safetensors
from tests.hf import folders, goldens

ROOT = Path(__file__).resolve().parents[2]


def changed(case, place, tensors=None, **config):
    """Makes a golden case with changes of config.json or of tensors."""
    shutil.copytree(goldens.PLACE / case, place)
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if tensors:
        held = dict(safetensors.read(place / "model.safetensors"))
        held = {name: np.array(value) for name, value in held.items()} | tensors(held)
        (place / "model.safetensors").unlink()
        shapes = {name: (value.dtype, value.shape) for name, value in held.items()}
        safetensors.write(place, shapes, held.__getitem__)
    return place


def letters(place, template=None, tokens=("<s>", "</s>"), **settings):
    """Writes a tokenizer.json of single letters, with a template of a text if given."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = {word: id for id, word in enumerate([*tokens, *letters, "Ġ"])}
    built = tokenizers.Tokenizer(models.BPE(words, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([*tokens])
    if template:
        ids = [(token, words[token]) for token in tokens]
        built.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=ids
        )
    built.save(str(place / "tokenizer.json"))
    path = place / "tokenizer_config.json"
    path.write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | settings)
    )
    return place


@pytest.mark.parametrize(
    ("template", "settings", "begins"),
    [
        (None, {}, None),
        (None, {"bos_token": "<s>"}, None),
        ("<s> $A", {"bos_token": "<s>"}, "<s>"),
        ("<s> $A", {}, "<s>"),
        ("<s> $A", {"bos_token": "<s>", "add_bos_token": False}, None),
        (None, {"bos_token": "<s>", "add_bos_token": True}, "<s>"),
        (None, {"tokenizer_class": "LlamaTokenizerFast"}, None),
    ],
)
def test_a_text_begins_as_the_tokenizer_says(tmp_path, template, settings, begins):
    place = letters(changed("llama", tmp_path / "hf"), template, **settings)
    found, notes = adopting.tree(checkpoint.open_checkpoint(place), f"hf:{place}")
    codec = source.open_tokenizer(place)
    assert found["objective"]["bos"] == (begins is not None)
    assert any("each text begins with" in note for note in notes)
    if begins:
        assert codec.token(codec.bos_id) == begins
    named = begins or "bos_token" in settings or "tokenizer_class" in settings
    assert (codec.bos_id is None) == (not named), "none is invented"


def test_a_decoder_with_berts_tokenizer_begins_with_its_first_token(tmp_path):
    place = changed("gpt2", tmp_path / "hf", tokenizer_class="BertTokenizer")
    (place / "vocab.txt").write_text("\n".join(folders.VOCABULARY) + "\n")
    found, notes = adopting.tree(checkpoint.open_checkpoint(place), f"hf:{place}")
    codec = source.open_tokenizer(place)
    assert found["objective"]["bos"] and codec.bos_id == codec.cls_id == 2
    assert any("without the tokenizer's '[SEP]'" in note for note in notes)


@pytest.mark.parametrize(
    ("start", "begins"), [(None, None), (0, None), (1, "</s>"), (3, "<go>")]
)
def test_a_decoder_starts_with_the_token_that_config_json_names(
    tmp_path, start, begins
):
    more = {} if start is None else {"decoder_start_token_id": start}
    place = changed("t5_v1_0", tmp_path / "hf", **more)
    tokens = ("<pad>", "</s>", "<unk>", "<go>")
    letters(place, tokens=tokens, pad_token="<pad>", eos_token="</s>")
    codec = source.open_tokenizer(place)
    assert codec.bos_id == (tokens.index(begins) if begins else None)
    workdir, out = tmp_path / "run", tmp_path / "out"
    assert convert.main([f"--from=hf:{place}", f"--workdir={workdir}"]) == 0
    assert convert.main([f"--to=hf:{out}", f"--workdir={workdir}"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["decoder_start_token_id"] == (start or 0)
    again = source.open_tokenizer(out)
    assert again.bos_id == codec.bos_id and again.encode("cab") == codec.encode("cab")


def test_a_start_id_outside_the_tokenizer_is_refused(tmp_path):
    place = changed("t5_v1_0", tmp_path / "hf", decoder_start_token_id=900)
    letters(place, tokens=("<pad>", "</s>"))
    with pytest.raises(DataError, match="decoder_start_token_id 900"):
        source.open_tokenizer(place)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"add_prefix_space": True}, "add_prefix_space True in tokenizer_config.json"),
        ({"added_tokens_decoder": {"0": {"content": "<x>"}}}, "content '<x>'"),
        ({"added_tokens_decoder": {"90": {"content": "<y>"}}}, "token 90"),
        ({"added_tokens_decoder": {"0": {"special": False}}}, "special False"),
        ({"split_special_tokens": True}, "split_special_tokens"),
    ],
)
def test_two_files_that_disagree_are_refused(tmp_path, settings, found):
    place = letters(changed("gpt2", tmp_path / "hf"), tokenizer_class="GPT2Tokenizer")
    source.open_tokenizer(place)
    path = place / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(DataError, match="two files that agree") as caught:
        source.open_tokenizer(place)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("normalizer", "settings", "right"),
    [
        ({"lowercase": True}, {}, True),
        ({"lowercase": False}, {}, False),
        ({"lowercase": False}, {"do_lower_case": False}, True),
        ({"lowercase": True}, {"do_lower_case": False}, False),
        ({"lowercase": True, "strip_accents": False}, {}, False),
        ({"lowercase": True, "handle_chinese_chars": False}, {}, False),
    ],
)
def test_berts_two_files_must_agree_on_case(tmp_path, normalizer, settings, right):
    words = {word: id for id, word in enumerate(folders.VOCABULARY)}
    built = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    built.normalizer = tokenizers.normalizers.BertNormalizer(**normalizer)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.add_special_tokens([*folders.SPECIAL])
    place = folders.bert(tmp_path / "hf")
    built.save(str(place / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizerFast"} | settings
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    if right:
        assert source.open_tokenizer(place).cls_id == 2
        return
    with pytest.raises(DataError, match="normalizer"):
        source.open_tokenizer(place)


@pytest.mark.parametrize(
    ("case", "config", "evals"),
    [
        ("bert_pretraining", {}, True),
        ("t5_encoder", {}, False),
        ("t5_v1_1", {}, True),
        ("t5_v1_1", {"architectures": ["T5Model"]}, True),
        ("gpt2", {"architectures": ["GPT2Model"]}, True),
        ("llama_span", {}, False),
        ("llama", {}, True),
    ],
)
def test_an_evaluation_is_written_where_the_weights_can_run_it(
    tmp_path, case, config, evals
):
    place = letters(changed(case, tmp_path / "hf", **config), eos_token="</s>")
    found, notes = adopting.tree(checkpoint.open_checkpoint(place), f"hf:{place}")
    assert bool(found["evals"]) == evals
    assert any("no head that predicts tokens" in note for note in notes) == (not evals)


def test_the_kind_of_a_head_is_adopted(tmp_path):
    several = {"problem_type": "multi_label_classification"}
    place = changed("bert_classify", tmp_path / "several", **several)
    opened = checkpoint.open_checkpoint(place)
    assert adopting.task(opened)[0]["kind"] == "sigmoid"
    wrong = {"problem_type": "regression"}
    place = changed("bert_classify", tmp_path / "wrong", **wrong)
    opened = checkpoint.open_checkpoint(place)
    with pytest.raises(CheckpointError, match=r"'regression' with 3 outputs.*init\."):
        adopting.task(opened)


@pytest.mark.parametrize(("family", "separators"), [("bert", 1), ("roberta", 2)])
def test_a_head_of_answers_is_adopted(tmp_path, family, separators):
    opened = checkpoint.open_checkpoint(goldens.PLACE / f"{family}_span")
    objective, evals, _ = adopting.task(opened)
    assert objective["name"] == "span_qa" and not evals
    assert objective["separators"] == separators


def test_one_output_is_a_regression_and_not_a_class(tmp_path):
    def one(held):
        return {
            name: held[name][:1] for name in ("classifier.weight", "classifier.bias")
        }

    place = changed(
        "distilbert_classify", tmp_path / "hf", one, id2label={"0": "LABEL_0"}
    )
    opened = checkpoint.open_checkpoint(place)
    assert opened.sizes["C"] == 1
    objective = adopting.task(opened)[0]
    assert objective["kind"] == "regression" and "classes" not in objective


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, capsys, number):
    name = "bert.encoder.layer.1.output.dense.weight"

    def spoil(held):
        array = np.array(held[name])
        array[3, 4] = number
        return {name: array}

    place = folders.bert(tmp_path / "whole")
    spoiled = changed("bert_pretraining", tmp_path / "hf", spoil)
    shutil.copyfile(place / "vocab.txt", spoiled / "vocab.txt")
    workdir = tmp_path / "run"
    assert convert.main([f"--from=hf:{spoiled}", f"--workdir={workdir}"]) == 6
    assert name in capsys.readouterr().err
    assert not workdir.exists() and not (tmp_path / "run.partial").exists()


KILLED = """
import os, sys
from lm import convert
from lm.hf import importing
importing.load = lambda *_: os._exit(9)
convert.main(sys.argv[1:])
"""


def test_a_conversion_that_was_killed_is_made_by_the_same_command(tmp_path, capsys):
    place = folders.bert(tmp_path / "hf")
    flags = [f"--from=hf:{place}", f"--workdir={tmp_path}/run"]
    done = subprocess.run([sys.executable, "-c", KILLED, *flags], cwd=ROOT)
    assert done.returncode == 9
    assert (tmp_path / "run.partial" / "tokenizer").exists()
    assert convert.main(flags) == 0
    assert configs.of_run(tmp_path / "run").model.d_model == 24
    assert not (tmp_path / "run.partial").exists()
    # Files without a config.json are named, and not overwritten.
    (tmp_path / "run" / "config.json").unlink()
    assert convert.main(flags) == 2
    assert "which holds checkpoints" in capsys.readouterr().err


def test_an_export_ignores_a_torn_row_of_metrics(tmp_path):
    place, workdir = folders.bert(tmp_path / "hf"), tmp_path / "run"
    assert convert.main([f"--from=hf:{place}", f"--workdir={workdir}"]) == 0
    row = {"step": 0, "builtin/mlm_loss": 0.125}
    for torn in ('{"step": 1, "bui', "[]", '{"nothing": 1}'):
        text = json.dumps(row) + "\n" + torn
        (workdir / "metrics.jsonl").write_text(text)
        out = tmp_path / f"out{len(torn)}"
        assert convert.main([f"--to=hf:{out}", f"--workdir={workdir}"]) == 0
        assert "| builtin/mlm_loss | 0.125 |" in (out / "README.md").read_text()


def test_a_failed_export_leaves_nothing(tmp_path):
    place, workdir = folders.bert(tmp_path / "hf"), tmp_path / "run"
    assert convert.main([f"--from=hf:{place}", f"--workdir={workdir}"]) == 0
    (workdir / "tokenizer" / "vocab.txt").unlink()
    flags = [f"--to=hf:{tmp_path}/out", f"--workdir={workdir}"]
    assert convert.main(flags) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "run"}


def test_a_model_of_no_family_is_refused_in_a_line(tmp_path, capsys):
    place, workdir = folders.bert(tmp_path / "hf"), tmp_path / "run"
    assert convert.main([f"--from=hf:{place}", f"--workdir={workdir}"]) == 0
    from lm.hf import exporting

    config = configs.of_run(workdir)
    other = configs.Config({"name": "lm.models.gru", "width": 8})
    with pytest.raises(configs.ConfigError, match="which no family"):
        exporting.plan(configs.Config(config | {"model": other}), {})


def test_the_roles_of_a_known_class_are_kept(tmp_path):
    """Without tokenizer_config.json no role of BERT is set to none."""
    place = folders.bert(tmp_path / "hf")
    (place / "tokenizer_config.json").unlink()
    assert tokenizer.section(place, "bert")["special"] == {}
