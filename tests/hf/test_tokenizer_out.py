"""Tests that an exported tokenizer gives the rows that the run was trained on."""

import json
import os
import subprocess
import types

import pytest
import tokenizers

from lm.config import resolve as configs
from lm.hf import tokenizer_out
from lm.hf.checkpoint import families
from lm.tokenizers.base import ROLES
from tests import tiny

PEER = os.environ.get("LM_TRANSFORMERS_PYTHON")
TEXT, PAIR = "the old dog sees a bird", "and it runs"
ITEMS = tuple({"text": TEXT, "pair": PAIR, "label": i % 2} for i in range(8))
ENCODER = {"kind": "encoder"}
DECODER = {"kind": "decoder", "token_types": 0}
BOTH = {"kind": "encoder_decoder", "token_types": 0}
# Family, tokenizer, model and objective of a classifier.
CASES = {
    "bert": ("bert", "wordpiece", ENCODER, {}),
    "distilbert": ("distilbert", "wordpiece", ENCODER | {"token_types": 0}, {}),
    "roberta": ("roberta", "bpe", ENCODER | {"token_types": 1}, {"separators": 2}),
    "roberta, one": ("roberta", "bpe", ENCODER | {"token_types": 1}, {}),
    "gpt2": ("gpt2", "bpe", DECODER, {"summary": "last"}),
    "gpt2 without bos": ("gpt2", "bpe", DECODER, {"summary": "last", "bos": False}),
    "llama": ("llama", "bpe", DECODER, {"summary": "last"}),
    "llama without bos": ("llama", "bpe", DECODER, {"summary": "last", "bos": False}),
    "t5": ("t5", "bpe", BOTH, {"summary": "decoder"}),
}


def run(place, case, pair, **tokenizer):
    """Starts a classifier's run; returns (corpus, config)."""
    _, kind, model, objective = CASES[case]
    config = tiny.config(
        objective={"name": "classification", "pair": pair, **objective},
        model=tiny.tree()["model"] | model,
        data={"sources": [{"name": "memory", "items": ITEMS}]},
        tokenizer={"name": "hf", "kind": kind, "vocab_size": 280} | tokenizer,
        evals={},
    )
    with tiny.some_devices(config):
        return tiny.program(config, place)[0], config


def written(place, case, corpus, config):
    """Exports the tokenizer and returns the folder."""
    out = place / "out"
    out.mkdir()
    folder = place / "tokenizer"
    family = families()[CASES[case][0]]
    tokenizer_out.write(corpus.codec, config, folder, family, out)
    return out


def trained_on(corpus):
    """Returns the tokens of an example, and their types."""
    example = corpus.stream.example(0)
    side = "source_" if "source_inputs" in example else ""
    length = int(example[f"{side}segment_ids"].sum())
    ids = example[f"{side}inputs"][:length].tolist()
    return ids, example.get("token_types", example["inputs"] * 0)[:length].tolist()


def of_library(out, *texts):
    found = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).encode(*texts)
    return found.ids, found.type_ids


@pytest.mark.parametrize("pair", [None, "pair"])
@pytest.mark.parametrize("case", CASES)
def test_texts_become_the_rows_of_the_run(tmp_path, case, pair):
    corpus, config = run(tmp_path, case, pair)
    out = written(tmp_path, case, corpus, config)
    ids, kinds = of_library(out, TEXT, *([PAIR] if pair else []))
    wanted, segments = trained_on(corpus)
    assert ids == wanted
    settings = json.loads((out / "tokenizer_config.json").read_text())
    has_types = config.model.token_types > 1
    assert kinds == (segments if has_types else [0] * len(ids))
    assert ("token_type_ids" in settings["model_input_names"]) == has_types


FROM_TRANSFORMERS = """
import json, sys, transformers
found = transformers.AutoTokenizer.from_pretrained(sys.argv[1])(*sys.argv[2:])
print(json.dumps(dict(found)))
"""


@pytest.mark.skipif(not PEER, reason="LM_TRANSFORMERS_PYTHON names no Python")
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_transformers_makes_the_same_rows(tmp_path, case):
    corpus, config = run(tmp_path, case, "pair")
    out = written(tmp_path, case, corpus, config)
    command = [PEER, "-c", FROM_TRANSFORMERS, out, TEXT, PAIR]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, (ids, kinds) = json.loads(done.stdout), trained_on(corpus)
    assert found.pop("input_ids") == ids
    assert found.pop("attention_mask") == [1] * len(ids)
    assert found == ({"token_type_ids": kinds} if case == "bert" else {})


@pytest.mark.parametrize("separators", [1, 2])
def test_the_rows_of_a_reader_are_pairs_with_its_separators(tmp_path, separators):
    corpus, config = run(tmp_path, "bert", "pair")
    own = {"name": "span_qa", "separators": separators}
    config = configs.Config(config | {"objective": configs.Config(own)})
    family = families()["roberta"]  # whose own template has two
    between = " ".join(["[SEP]"] * separators)
    _, pair = tokenizer_out.rows(config, family, corpus.codec)
    assert pair == f"[CLS] $A {between} $B:1 [SEP]:1"


def test_an_imported_tokenizer_is_changed_where_the_rows_differ(tmp_path):
    """RoBERTa's tokenizer puts two separators between texts."""
    corpus, config = run(tmp_path / "first", "roberta", "pair")
    theirs = written(tmp_path / "first", "roberta", corpus, config)
    settings = json.loads((theirs / "tokenizer_config.json").read_text())
    settings |= {"add_bos_token": True, "model_max_length": 77}
    (theirs / "tokenizer_config.json").write_text(json.dumps(settings))
    as_it_came = json.dumps(json.loads((theirs / "tokenizer.json").read_text()))
    (theirs / "tokenizer.json").write_text(as_it_came)
    for case, same in (("roberta", True), ("roberta, one", False)):
        place = tmp_path / case
        corpus, config = run(place, case, "pair", path=str(theirs))
        out = written(place, case, corpus, config)
        assert ((out / "tokenizer.json").read_text() == as_it_came) == same
        assert of_library(out, TEXT, PAIR)[0] == trained_on(corpus)[0]
        kept = json.loads((out / "tokenizer_config.json").read_text())
        assert kept["model_max_length"] == 77 and "add_bos_token" not in kept


@pytest.mark.parametrize("summary", ["last", None])
def test_a_row_read_at_its_end_needs_a_padding_token(tmp_path, summary):
    """GPT-2 has no padding token: eos serves."""
    corpus, config = run(tmp_path, "gpt2", None)
    codec = corpus.codec
    if summary is None:
        config = tiny.config(objective={"name": "mlm"}, evals={})
    assert tokenizer_out.roles(config, codec)["pad"] == codec.pad_id != codec.eos_id
    bare = types.SimpleNamespace(**{f"{role}_id": None for role in ROLES})
    bare.eos_id = 7
    wanted = {"pad": 7, "eos": 7} if summary else {"eos": 7}
    assert tokenizer_out.roles(config, bare) == wanted
    ids = {f"{role}_token_id": id for role, id in wanted.items()}
    assert tokenizer_out.token_ids(config, bare) == ids


def test_only_objectives_with_rows_of_their_own_change_the_template(tmp_path):
    corpus, config = run(tmp_path, "roberta, one", None)
    words = tiny.config(
        objective={"name": "mlm"},
        model=tiny.tree()["model"] | {"token_types": 1},
        tokenizer=dict(config.tokenizer),
        evals={},
    )
    codec = corpus.codec
    rows = tokenizer_out.rows(words, families()["roberta"], codec)
    assert rows == ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
    assert tokenizer_out.rows(words, families()["gpt2"], codec) is None
    assert tokenizer_out.rows(words, families()["bert"], codec) == (
        *("<s> $A </s>", "<s> $A </s> $B </s>"),
    )
