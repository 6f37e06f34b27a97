"""SentencePiece: parity with the references, sentinels, training, refusals."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import lm
from lm.errors import ConfigError, DataError
from lm.tokenizers.base import Codec
from lm.tokenizers.spm import Tokenizer

TEXTS = [f"the quick brown fox {i} jumps over\nthe lazy dog, naïve!" for i in range(40)]
MODELS = {
    "t5-base": "vocab_t5_base/spiece.model",
    "mistral-v1": "vocab_mistral_v1",
    "sp-test_model": "vocab_sentencepiece_test/test_model.model",
}


def make(tmp_path: Path, texts=TEXTS, **options) -> Codec:
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    tokenizer = Tokenizer(**options)
    tokenizer.make(lambda: iter(texts), directory)
    return tokenizer.load(directory)


@pytest.mark.parametrize("model", MODELS)
def test_equals_the_reference_both_ways(test_data, tmp_path, model):
    folder, _, file = MODELS[model].partition("/")
    codec = make(tmp_path, path=str(test_data(folder) / file))
    cases = test_data("ref_tokenizer_sentencepiece") / "cases.jsonl"
    lines = cases.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    cases = [json.loads(line) for line in lines]
    assert len(cases) == 106
    encoded = codec.encode_batch([case["text"] for case in cases])
    for case, ids in zip(cases, encoded):
        assert ids == case[model]["ids"]
        assert codec.encode(case["text"]) == ids
        assert codec.decode(ids) == case[model]["decoded"]


def test_t5_sentinels_follow_the_pieces_the_first_one_last(test_data, tmp_path):
    path = str(test_data("vocab_t5_base"))
    plain, codec = make(tmp_path, path=path), make(tmp_path, path=path, extra_ids=100)
    assert (plain.vocab_size, plain.sentinel_ids) == (32000, ())
    assert codec.vocab_size == 32100
    assert codec.sentinel_ids == tuple(range(32099, 31999, -1))
    assert codec.token(32099) == "<extra_id_0>"
    assert codec.token(32000) == "<extra_id_99>"
    assert (codec.pad_id, codec.eos_id, codec.unk_id) == (0, 1, 2)
    assert codec.bos_id is codec.mask_id is None
    assert codec.special_ids == {0, 1, 2, *range(32000, 32100)}
    text = "Hello <extra_id_0> world </s>"
    ids = codec.encode(text)
    assert ids == plain.encode(text) and not {*codec.sentinel_ids, 1} & {*ids}
    hello, world = codec.encode("Hello"), codec.encode("world")
    assert codec.decode([*hello, 32099, *world, 1, 0]) == "Hello world"
    assert codec.starts_word[hello[0]] and codec.starts_word[32099]
    assert plain.fingerprint != codec.fingerprint


def test_mistral_has_no_pad_and_its_bytes_do_not_begin_words(test_data, tmp_path):
    codec = make(tmp_path, path=str(test_data("vocab_mistral_v1")))
    assert (codec.unk_id, codec.bos_id, codec.eos_id) == (0, 1, 2)
    assert codec.pad_id is codec.mask_id is None
    ids = codec.encode("a\U00013000b")
    assert codec.starts_word[ids[0]]
    assert codec.token(ids[1]).startswith("<0x") and not codec.starts_word[ids[1]]
    assert codec.decode(ids) == "a\U00013000b"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training(tmp_path, kind):
    codec = make(tmp_path, kind=kind, vocab_size=60, character_coverage=1.0)
    names = [codec.token(id) for id in range(7)]
    assert names == ["<pad>", "<unk>", "<s>", "</s>", "<cls>", "<sep>", "<mask>"]
    roles = [codec.pad_id, codec.unk_id, codec.bos_id, codec.eos_id]
    assert [*roles, codec.cls_id, codec.sep_id, codec.mask_id] == [*range(7)]
    text = TEXTS[0].split("\n")[0]
    assert codec.decode(codec.encode(text)) == text
    assert not codec.special_ids & {*codec.encode(text)}
    written = codec.encode("<mask><pad> <cls> </s>")
    assert not (codec.special_ids - {1}) & {*written}
    assert codec.encode("Ж")[-1] == 1
    # Texts that do not hold vocab_size pieces give fewer.
    assert make(tmp_path, kind=kind, vocab_size=5000).vocab_size < 5000


def test_long_lines_are_trained_on_and_bytes_fall_back(tmp_path):
    texts = ["abc " * 20, "xyz " * 5000]
    codec = make(tmp_path, texts, vocab_size=300, byte_fallback=True)
    assert 1 not in codec.encode("xyz")
    assert not any(codec.token(id).startswith("<0x") for id in codec.encode("xyz"))
    assert codec.decode(codec.encode("Жx")) == "Жx"


TRAIN = """
import sys
from pathlib import Path
from lm.tokenizers.spm import Tokenizer
texts = ["".join(chr(97 + (i * j) % 26) + " " * (j % 5 == 0) for j in range(200))
         for i in range(60)]
Tokenizer(kind=sys.argv[1], vocab_size=200).make(lambda: iter(texts), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_is_the_same_bytes_in_every_process(tmp_path, kind):
    running = []
    for seed in ("0", "1"):
        (tmp_path / seed).mkdir()
        place = {
            "PYTHONPATH": str(Path(lm.__file__).parents[1]),
            "PYTHONHASHSEED": seed,
        }
        command = [sys.executable, "-c", TRAIN, kind, str(tmp_path / seed)]
        running.append(subprocess.Popen(command, env=os.environ | place))
    assert [process.wait(120) for process in running] == [0, 0]
    first, second = ((tmp_path / s / "spm.model").read_bytes() for s in ("0", "1"))
    assert first == second and len(first) > 1000


def test_refusals_name_the_place_and_the_fix(test_data, tmp_path):
    def attempt(*parts, error=DataError, texts=TEXTS, **options):
        with pytest.raises(error) as caught:
            make(tmp_path, texts, **options)
        for part in parts:
            assert part in str(caught.value), str(caught.value)

    attempt("tokenizer.path", "/no/such", path="/no/such")
    bert = test_data("vocab_bert_base_uncased")
    attempt("0 .model files", "vocab.txt", 'name="hf"', path=str(bert))
    attempt("spm.model", 'name="hf"', path=str(bert / "vocab.txt"))
    attempt(
        "2 .model files",
        "name the file itself",
        path=str(test_data("vocab_sentencepiece_test")),
    )
    whole = (test_data("vocab_t5_base") / "spiece.model").read_bytes()
    (tmp_path / "cut.model").write_bytes(whole[:400_000])
    attempt("no readable model", path=str(tmp_path / "cut.model"))
    for texts in ([], ["", "\n \n"]):
        attempt("without a single word", texts=texts, vocab_size=60)
    attempt("tokenizer.vocab_size: found 10", "at least", vocab_size=10)
    attempt("'nothing'", error=ConfigError, vocab_size=60, special={"nothing": "<s>"})
    attempt("'[MASK]'", vocab_size=60, special={"mask": "[MASK]"})


def test_an_error_in_the_texts_comes_through_as_it_is(tmp_path):
    def texts():
        yield "some words"
        raise DataError("train.txt:2", "broken UTF-8", "UTF-8")

    with pytest.raises(DataError) as error:
        Tokenizer(vocab_size=60).make(texts, tmp_path)
    assert error.value.where == "train.txt:2"


def test_a_directory_without_its_model_is_refused(tmp_path):
    Tokenizer(vocab_size=60).make(lambda: iter(TEXTS), tmp_path)
    (tmp_path / "spm.model").unlink()
    with pytest.raises(DataError, match=r"spm\.model: found no such file"):
        Tokenizer(vocab_size=60).load(tmp_path)


def test_sentinels_that_the_model_holds_already_are_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "own"),
        vocab_size=60,
        user_defined_symbols=["<extra_id_0>"],
        pad_id=3,
        pad_piece="<blank>",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = str(tmp_path / "own.model")
    codec = make(tmp_path, path=path)
    assert (codec.sentinel_ids, codec.pad_id) == ((), 3)
    with pytest.raises(DataError, match="<extra_id_0>"):
        make(tmp_path, path=path, extra_ids=2)
    with pytest.raises(DataError, match=r"tokenizer\.extra_ids: found 1"):
        directory = Path(tempfile.mkdtemp(dir=tmp_path))
        Tokenizer(path=path).make(lambda: iter(()), directory)
        Tokenizer(path=path, extra_ids=1).load(directory)
