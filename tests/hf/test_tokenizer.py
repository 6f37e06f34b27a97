"""Tests the tokenizers of checkpoints."""

import json
import shutil

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lm.errors import DataError
from lm.hf import pieces, source, tokenizer
from lm.tokenizers import spm
from tests.hf.folders import VOCABULARY

TEXTS = ["Hello, world!", "  two  spaces ", "naïve 北京 [MASK] </s> <extra_id_0>", ""]


def opened(place, model_type="bert"):
    """Loads the codec of a run that starts from the directory."""
    (place / "config.json").write_text(json.dumps({"model_type": model_type}))
    return source.open_tokenizer(place)


def settings(place, **values):
    (place / "tokenizer_config.json").write_text(json.dumps(values))


def test_a_vocabulary_file_is_read_with_its_settings(tmp_path):
    words = [*VOCABULARY, *"ABC", "naive"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    settings(tmp_path, do_lower_case=False, unk_token={"content": "[UNK]"})
    codec = opened(tmp_path)
    upper = codec.encode("A b")
    assert [codec.token(id) for id in upper] == ["A", "b"]
    assert (codec.pad_id, codec.cls_id, codec.sep_id, codec.mask_id) == (0, 2, 3, 4)
    # lowercase=True contradicts a vocabulary with capitals, so it is refused.
    settings(tmp_path, do_lower_case=True)
    with pytest.raises(DataError, match="lowercase"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["strip_accents", "tokenize_chinese_chars"])
def test_settings_that_we_do_not_have_are_refused(tmp_path, name):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    settings(tmp_path, **{name: name == "strip_accents"} if name else {})
    if name == "tokenize_chinese_chars":
        settings(tmp_path, tokenize_chinese_chars=False)
    with pytest.raises(DataError, match=name):
        opened(tmp_path)


def test_without_settings_the_vocabulary_shows_the_case(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    codec = opened(tmp_path)
    assert codec.encode("ABC") == codec.encode("abc")


def byte_level(place):
    """Writes a tokenizer.json like Llama 3's: bytes, then special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([*alphabet, "he", "ll", "hell"])}
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    built = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    split = tokenizers.Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(["<|begin|>", "<|end|>"])
    built.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", len(vocabulary))]
    )
    built.save(str(place / "tokenizer.json"))
    settings(place, bos_token="<|begin|>", eos_token="<|end|>", chat_template="x")
    return built


def test_a_tokenizer_json_is_read_completely(tmp_path):
    built = byte_level(tmp_path)
    codec = opened(tmp_path, "llama")
    for text in TEXTS:
        ids = built.encode(text, add_special_tokens=False).ids
        assert codec.encode(text) == ids
        assert codec.decode(ids) == text
    assert codec.token(codec.bos_id) == "<|begin|>"
    assert codec.token(codec.eos_id) == "<|end|>"
    # A special token written in a text stays text, unlike in the library.
    assert codec.bos_id not in codec.encode("<|begin|>")
    assert codec.bos_id in built.encode("<|begin|>", add_special_tokens=False).ids


def test_the_chat_template_stays_with_the_run(tmp_path):
    place, run = tmp_path / "hf", tmp_path / "run"
    place.mkdir()
    run.mkdir()
    byte_level(place)
    section = source.tokenizer_of(place, "llama")
    made = source.configs.build(
        source.configs.load_class("tokenizer", section.name), section
    )
    made.make(lambda: iter(()), run)
    kept = json.loads((run / "tokenizer_config.json").read_text())
    assert kept["chat_template"] == "x"


def test_a_unigram_tokenizer_json_with_sentinels(tmp_path):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{c}", -2.0) for c in "helowrd"] + [(c, -3.0) for c in "helowrd,!"]
    built = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    built.normalizer = normalizers.NFKC()
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Metaspace()
    sentinels = [f"<extra_id_{k}>" for k in reversed(range(3))]
    built.add_special_tokens(["<pad>", "</s>", "<unk>", *sentinels])
    built.save(str(tmp_path / "tokenizer.json"))
    settings(tmp_path, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    codec = opened(tmp_path, "t5")
    size = len(pieces) + 3
    assert codec.sentinel_ids == (size - 1, size - 2, size - 3)
    assert codec.token(codec.sentinel_ids[0]) == "<extra_id_0>"
    assert codec.encode("hello") == built.encode("hello").ids
    assert (codec.pad_id, codec.eos_id, codec.unk_id) == (0, 1, 2)
    assert not set(codec.encode("<extra_id_0>")) & {*codec.sentinel_ids}


def test_a_byte_level_vocabulary_of_two_files(tmp_path, test_data):
    given = test_data("vocab_roberta_base")
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(given / name, tmp_path / name)
    codec = opened(tmp_path, "roberta")
    assert (codec.pad_id, codec.cls_id, codec.sep_id, codec.mask_id) == (1, 0, 2, 50264)
    assert [codec.token(id) for id in codec.encode("Hello world")] == [
        "Hello",
        "Ġworld",
    ]
    with pytest.raises(DataError, match=r"vocab\.json of a qwen2"):
        tokenizer.section(tmp_path, "qwen2")
    (tmp_path / "added_tokens.json").write_text('{"<x>": 50265}')
    with pytest.raises(DataError, match="added_tokens"):
        tokenizer.section(tmp_path, "roberta")


def test_sentencepiece_models(tmp_path, test_data):
    shutil.copyfile(
        test_data("vocab_t5_base") / "spiece.model", tmp_path / "spiece.model"
    )
    codec = opened(tmp_path, "t5")
    assert codec.vocab_size == 32100 and codec.sentinel_ids[0] == 32099
    assert (codec.pad_id, codec.eos_id, codec.bos_id) == (0, 1, None)
    assert codec.encode("Hello world") == [8774, 296]
    mistral = tmp_path / "mistral"
    mistral.mkdir()
    model = test_data("vocab_mistral_v1") / "tokenizer.model"
    shutil.copyfile(model, mistral / "tokenizer.model")
    codec = opened(mistral, "mistral")
    assert (codec.bos_id, codec.eos_id, codec.pad_id) == (1, 2, None)
    assert codec.vocab_size == 32000 and codec.encode("Hello") == [22557]


@pytest.mark.parametrize(
    "name, extra",
    [
        ("vocab_t5_base/spiece.model", 100),
        ("vocab_mistral_v1/tokenizer.model", 0),
        ("vocab_sentencepiece_test/test_model.model", 0),
    ],
)
def test_sentencepiece_models_as_tokenizer_json(tmp_path, test_data, name, extra):
    """The exported files give the same ids."""
    folder, file = name.split("/")
    model = test_data(folder) / file
    options = spm.Tokenizer(path=str(model), extra_ids=extra)
    options.make(lambda: iter(()), tmp_path)
    codec = options.load(tmp_path)
    built = pieces.to_tokenizer(model.read_bytes(), codec, model)
    cases = test_data("ref_tokenizer_sentencepiece") / "cases.jsonl"
    texts = [json.loads(line)["text"] for line in cases.read_text().splitlines()]
    for text in [*texts, "  two  spaces ", "a\tb\nc", "x"]:
        found = built.encode(text, add_special_tokens=False).ids
        assert found == codec.encode(text), text
        if codec.unk_id not in found:
            assert built.decode(found) == codec.decode(found)


def test_the_error_without_a_tokenizer_names_the_files(tmp_path):
    (tmp_path / "tokenizer.model.v3").touch()
    with pytest.raises(DataError, match=r"no tokenizer among .*tokenizer\.model\.v3"):
        tokenizer.section(tmp_path, "mistral")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordLevel"}}')
    with pytest.raises(DataError, match="WordLevel"):
        tokenizer.section(tmp_path, "llama")
