"""WordPiece and byte-level BPE: parity with the references, training, refusals."""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tokenizers as library

import lm
from lm.errors import ConfigError, DataError
from lm.tokenizers.base import Codec
from lm.tokenizers.hf import Tokenizer, starts_word

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog jumps too.",
    "Die größte Übung: naïve Füchse! 東京 is the 1st; e\u0301tude, don't.",
    "A lobster (or two lobsters?) walked to the quickest café in London 2026.",
] * 3
STANDARD = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make(tmp_path: Path, texts=TEXTS, **options) -> Codec:
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    tokenizer = Tokenizer(**options)
    tokenizer.make(lambda: iter(texts), directory)
    return tokenizer.load(directory)


def write_vocabulary(tmp_path: Path, tokens) -> str:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return str(path)


def refused(error, *parts):
    """The refusal's one line names every part."""
    line = str(error.value)
    for part in parts:
        assert part in line, line


def test_bert_uncased_equals_the_reference_on_every_question(test_data, tmp_path):
    codec = make(tmp_path, path=str(test_data("vocab_bert_base_uncased")))
    file = (
        test_data("ref_tokenizer_bert") / "squad_questions_bert_base_uncased.jsonl.gz"
    )
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    assert len(cases) == 6936
    encoded = codec.encode_batch([case["text"] for case in cases])
    assert encoded == [case["ids"] for case in cases]
    for case, ids in zip(cases, encoded):
        assert [codec.token(id) for id in ids] == case["wordpiece"]
    assert codec.vocab_size == 30522
    assert [codec.pad_id, codec.unk_id, codec.cls_id, codec.sep_id, codec.mask_id] == [
        0, 100, 101, 102, 103,
    ]  # fmt: skip
    assert codec.bos_id is codec.eos_id is None


def test_bert_cased_and_chinese(test_data, tmp_path):
    cased = make(tmp_path, path=str(test_data("vocab_bert_base_cased")))
    pieces = [cased.token(id) for id in cased.encode("The naïve Cat")]
    assert pieces == ["The", "na", "##ï", "##ve", "Cat"]
    chinese = make(tmp_path, path=str(test_data("vocab_bert_base_chinese")))
    assert chinese.vocab_size == 21128
    pieces = [chinese.token(id) for id in chinese.encode("今天Good不错。")]
    assert pieces == ["今", "天", "good", "不", "错", "。"]


def test_gpt2_equals_the_reference_both_ways(test_data, tmp_path):
    codec = make(tmp_path, kind="bpe", path=str(test_data("vocab_gpt2")))
    file = test_data("ref_tokenizer_gpt2") / "encoded_tokens.json"
    case = json.loads(file.read_text(encoding="utf-8"))
    ids = codec.encode(case["text"])
    assert ids == case["token_ids"]
    assert [codec.token(id) for id in ids] == case["bpe_tokens"]
    assert codec.decode(case["token_ids"]) == case["text"]
    assert codec.vocab_size == 50257
    assert codec.bos_id == codec.eos_id == 50256
    assert codec.unk_id is codec.pad_id is codec.mask_id is None


def test_roberta_has_its_special_tokens_and_no_text_reaches_them(test_data, tmp_path):
    codec = make(tmp_path, kind="bpe", path=str(test_data("vocab_roberta_base")))
    special = [codec.bos_id, codec.pad_id, codec.eos_id, codec.unk_id, codec.mask_id]
    assert special == [0, 1, 2, 3, 50264]
    assert (codec.cls_id, codec.sep_id) == (0, 2)
    assert codec.encode("Hello world") == [31414, 232]
    text = "a <mask> and </s><s> <pad>"
    assert not codec.special_ids & {*codec.encode(text)}
    assert codec.decode([0, *codec.encode(text), 2, 1]) == text


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_letters_of_special_tokens_are_ordinary_text(tmp_path, kind):
    codec = make(tmp_path, kind=kind, vocab_size=400)
    written = [codec.token(id) for id in sorted(codec.special_ids)]
    ids = codec.encode(" ".join(written) + "".join(written))
    assert not (codec.special_ids - {codec.unk_id}) & {*ids}
    assert len(ids) > 2 * len(written)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_trained_tokenizer_reads_its_own_texts(tmp_path, kind):
    codec = make(tmp_path, kind=kind, vocab_size=400)
    assert codec.encode_batch(TEXTS) == [codec.encode(text) for text in TEXTS]
    for text in TEXTS:
        assert codec.unk_id not in codec.encode(text)
    if kind == "bpe":
        assert [codec.decode(ids) for ids in codec.encode_batch(TEXTS)] == TEXTS
        assert codec.decode(codec.encode("\x00 Ω\t\n")) == "\x00 Ω\t\n"
    else:
        assert codec.decode(codec.encode("The dog jumps.")) == "the dog jumps."
        assert [codec.token(id) for id in range(5)] == STANDARD
        assert len(codec.encode("lobster")) < len("lobster")
    assert codec.encode("") == []


def test_trained_vocabulary_is_a_normal_bert_file(tmp_path):
    (tmp_path / "made").mkdir()
    Tokenizer(vocab_size=200).make(lambda: iter(TEXTS), tmp_path / "made")
    reference = library.BertWordPieceTokenizer(str(tmp_path / "made" / "vocab.txt"))
    codec = Tokenizer(vocab_size=200).load(tmp_path / "made")
    for text in TEXTS:
        assert (
            codec.encode(text) == reference.encode(text, add_special_tokens=False).ids
        )
    # Chinese characters always stand alone, so none is a continuation.
    lines = (tmp_path / "made" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert "東" in lines and "##東" not in lines and "##x" in lines


def test_rare_characters_are_unknown_by_coverage(tmp_path):
    texts = ["common words " * 50, "q"]
    codec = make(tmp_path, texts, character_coverage=0.99)
    assert codec.encode("q") == [codec.unk_id]
    codec = make(tmp_path, texts, character_coverage=1.0)
    assert codec.unk_id not in codec.encode("q")


def test_cased_training_keeps_case_and_accents(tmp_path):
    codec = make(tmp_path, lowercase=False, vocab_size=300)
    assert codec.decode(codec.encode("Die größte Übung")) == "Die größte Übung"
    lowered = make(tmp_path, kind="bpe", lowercase=True, vocab_size=300)
    assert lowered.decode(lowered.encode("The ÜBUNG")) == "the übung"


def test_prefix_space_reads_the_first_word_like_the_others(tmp_path):
    plain = make(tmp_path, kind="bpe", vocab_size=350)
    spaced = make(tmp_path, kind="bpe", vocab_size=350, add_prefix_space=True)
    assert spaced.encode("the dog") == spaced.encode(" the dog")
    assert plain.encode("the dog") != plain.encode(" the dog")
    assert plain.fingerprint != spaced.fingerprint


def test_words_begin_where_the_space_was(tmp_path):
    codec = make(tmp_path, vocab_size=120)
    ids = codec.encode("lobsters walked")
    starts = [bool(codec.starts_word[id]) for id in ids]
    assert sum(starts) == 2 and starts[0] and not starts[1]
    codec = make(tmp_path, kind="bpe", vocab_size=270)
    ids = codec.encode("a zebra\nyes")
    text = [codec.token(id) for id in ids if codec.starts_word[id]]
    assert [token[0] for token in text] == ["Ġ", "Ċ"]
    assert all(codec.starts_word[list(codec.special_ids)])
    assert starts_word("▁the", "bpe") and not starts_word("the", "bpe")


def test_decode_leaves_special_tokens_out_and_shows_unknown_ones(tmp_path):
    codec = make(tmp_path, vocab_size=150)
    ids = [codec.cls_id, *codec.encode("the Ж dog"), codec.sep_id, codec.pad_id]
    assert codec.decode(ids) == "the [UNK] dog"
    for id in (-1, codec.vocab_size):
        with pytest.raises(IndexError):
            codec.decode([id])
        with pytest.raises(IndexError):
            codec.token(id)


TRAIN = """
import sys
from pathlib import Path
from lm.tokenizers.hf import Tokenizer
texts = ["".join(chr(97 + (i * j) % 26) + " " * (j % 5 == 0) for j in range(200))
         + " naïve 東京 Übung" for i in range(60)]
Tokenizer(kind=sys.argv[1], vocab_size=500).make(lambda: iter(texts), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_is_the_same_bytes_in_every_process(tmp_path, kind):
    running = []
    for seed in ("0", "1", "2"):
        (tmp_path / seed).mkdir()
        place = {
            "PYTHONPATH": str(Path(lm.__file__).parents[1]),
            "PYTHONHASHSEED": seed,
        }
        command = [sys.executable, "-c", TRAIN, kind, str(tmp_path / seed)]
        running.append(subprocess.Popen(command, env=os.environ | place))
    assert [process.wait(120) for process in running] == [0, 0, 0]
    made = [
        {file.name: file.read_bytes() for file in (tmp_path / seed).iterdir()}
        for seed in ("0", "1", "2")
    ]
    assert made[0] == made[1] == made[2]
    names = {"vocab.txt"} if kind == "wordpiece" else {"vocab.json", "merges.txt"}
    assert made[0].keys() == names | {"options.json"}


def test_fingerprint_follows_what_changes_ids(tmp_path):
    path = write_vocabulary(tmp_path, [*STANDARD, "dog", "##s"])
    first = make(tmp_path, path=path).fingerprint
    assert len(first) == 64
    assert make(tmp_path, path=path, vocab_size=7).fingerprint == first
    assert make(tmp_path, path=path, lowercase=False).fingerprint != first
    path = write_vocabulary(tmp_path, [*STANDARD, "##s", "dog"])
    assert make(tmp_path, path=path).fingerprint != first


def tokenizer_json(tmp_path: Path, model, splitter) -> Path:
    """A file as the library saves it, with truncation and padding left on."""
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens(["[PAD]", "[MASK]", "<turn>"])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


VOCABULARY = {t: i for i, t in enumerate([*STANDARD, "mask", "[", "]", "dog", "##s"])}


def test_tokenizer_json_neither_cuts_nor_pads_nor_sees_special_tokens(tmp_path):
    model = library.models.WordPiece(VOCABULARY, unk_token="[UNK]")
    path = tokenizer_json(tmp_path, model, library.pre_tokenizers.BertPreTokenizer())
    for place in (path, path.parent):
        codec = make(tmp_path, path=str(place))
        pieces = [codec.token(id) for id in codec.encode("dogs [mask] dog dog dog")]
        assert pieces == ["dog", "##s", "[", "mask", "]", "dog", "dog", "dog"]
        assert codec.token(10) == "<turn>" and 10 in codec.special_ids
        assert not codec.special_ids & {*codec.encode("[PAD]<turn>")} - {codec.unk_id}
    with pytest.raises(DataError) as error:
        make(tmp_path, path=str(path), lowercase=False)
    refused(error, "tokenizer.json", "lowercase")


def test_tokenizer_json_that_cannot_be_trusted_is_refused(tmp_path):
    model = library.models.WordPiece(VOCABULARY, unk_token="[UNK]")
    path = tokenizer_json(tmp_path, model, library.pre_tokenizers.WhitespaceSplit())
    with pytest.raises(DataError) as error:
        make(tmp_path, path=str(path))
    refused(error, "[PAD]", "ordinary text")
    model = library.models.WordPiece(VOCABULARY, unk_token="[OOV]")
    path = tokenizer_json(tmp_path, model, library.pre_tokenizers.BertPreTokenizer())
    with pytest.raises(DataError, match=r"no token '\[OOV\]'"):
        make(tmp_path, path=str(path))
    model = library.models.Unigram([("a", 0.0)])
    path = tokenizer_json(tmp_path, model, library.pre_tokenizers.Whitespace())
    with pytest.raises(DataError) as error:
        make(tmp_path, path=str(path), kind="bpe")
    refused(error, "Unigram", "spm")
    model = library.models.BPE({"a": 0, "b": 1}, [])
    path = tokenizer_json(tmp_path, model, library.pre_tokenizers.Whitespace())
    with pytest.raises(DataError) as error:
        make(tmp_path, path=str(path), kind="bpe")
    refused(error, "unknown characters would vanish")
    spoilt = path.read_text().replace('"merges"', '"merge"')
    path.write_text(spoilt)
    with pytest.raises(DataError, match="broken tokenizer"):
        make(tmp_path, path=str(path), kind="bpe")


def test_unusual_special_names_are_given_by_role(tmp_path):
    path = write_vocabulary(tmp_path, ["<blank>", "<oov>", "dog"])
    with pytest.raises(DataError) as error:
        make(tmp_path, path=path)
    refused(error, "[UNK]", "vocab.txt", "tokenizer.special")
    codec = make(tmp_path, path=path, special={"unk": "<oov>", "pad": "<blank>"})
    assert (codec.unk_id, codec.pad_id, codec.encode("cat")) == (1, 0, [1])
    with pytest.raises(ConfigError, match="'unknown'"):
        make(tmp_path, path=path, special={"unk": "<oov>", "unknown": "<oov>"})
    with pytest.raises(DataError, match="'<none>'"):
        make(tmp_path, path=path, special={"unk": "<oov>", "mask": "<none>"})


def test_refusals_name_the_place_and_the_fix(tmp_path, test_data):
    with pytest.raises(DataError) as error:
        make(tmp_path, path="/no/such/place")
    refused(error, "tokenizer.path", "/no/such/place")
    path = write_vocabulary(tmp_path, [*STANDARD, "dog", "cat", "dog"])
    with pytest.raises(DataError) as error:
        make(tmp_path, path=path)
    refused(error, "vocab.txt:8", "'dog'", "line 6")
    with pytest.raises(DataError) as error:
        make(tmp_path, kind="bpe", path=path)
    refused(error, 'kind="wordpiece"')
    with pytest.raises(DataError) as error:
        make(tmp_path, path=str(test_data("vocab_gpt2")))
    refused(error, 'kind="bpe"')
    with pytest.raises(DataError) as error:
        make(tmp_path, path=str(test_data("vocab_t5_base")))
    refused(error, 'name="spm"')
    Path(path).write_bytes(b"[UNK]\n\xff\xfe\n")
    with pytest.raises(DataError, match="not UTF-8 at offset 6"):
        make(tmp_path, path=path)
    path = write_vocabulary(tmp_path, [*STANDARD, "Dog", "dog"])
    with pytest.raises(DataError, match="'Dog'"):
        make(tmp_path, path=path, lowercase=True)


def test_inconsistent_bpe_files_are_refused(tmp_path):
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"

    def attempt(match, tokens, merge_lines, more=""):
        ids = json.dumps({token: id for id, token in enumerate(tokens)})
        vocab.write_text(ids[:-1] + more + "}" if more else ids)
        merges.write_text("#version: 0.2\n" + merge_lines)
        with pytest.raises(DataError, match=match):
            make(tmp_path, kind="bpe", path=str(vocab))

    attempt("1 of the 256 bytes", alphabet[1:], "")
    attempt("merges.txt:3.*'b c'", [*alphabet, "ab"], "a b\nb c\n")
    attempt("merges.txt:2", [*alphabet, "ab"], "a b c\n")
    attempt("'a' twice", alphabet, "", more=', "a": 256')
    attempt("each id from 0 once", alphabet, "", more=', "ab": 300')
    attempt("not ids", alphabet, "", more=', "ab": "x"')
    vocab.write_text("{")
    with pytest.raises(DataError, match="broken JSON"):
        make(tmp_path, kind="bpe", path=str(vocab))
    merges.unlink()
    for place in (tmp_path, vocab):
        with pytest.raises(DataError, match=r"merges\.txt"):
            make(tmp_path, kind="bpe", path=str(place))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_refuses_what_it_cannot_use(tmp_path, kind):
    for texts in ([], ["", " \n"]):
        with pytest.raises(DataError, match="without a single word"):
            make(tmp_path, texts, kind=kind)
    with pytest.raises(DataError) as error:
        make(tmp_path, kind=kind, vocab_size=40)
    refused(error, "tokenizer.vocab_size: found 40", "at least")


def test_load_refuses_a_directory_made_with_other_options(tmp_path):
    Tokenizer(vocab_size=150).make(lambda: iter(TEXTS), tmp_path)
    assert Tokenizer(vocab_size=300).load(tmp_path).vocab_size == 150
    with pytest.raises(DataError) as error:
        Tokenizer(lowercase=False).load(tmp_path)
    refused(error, "tokenizer.lowercase", "False", "None")
    with pytest.raises(DataError, match=r"tokenizer\.kind: found 'bpe'"):
        Tokenizer(kind="bpe").load(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(DataError, match=r"vocab\.txt"):
        Tokenizer().load(tmp_path)
    (tmp_path / "options.json").unlink()
    with pytest.raises(DataError, match=r"options\.json"):
        Tokenizer().load(tmp_path)
