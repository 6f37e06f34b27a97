"""Word, character and byte vocabularies."""

import gzip
import tempfile
from pathlib import Path

import pytest

from lm.errors import ConfigError, DataError
from lm.tokenizers.base import Codec
from lm.tokenizers.word import Tokenizer

TEXTS = ["b a b c", "a b d\n<unk> <pad> d", "A é 東"]


def make(tmp_path: Path, texts=TEXTS, **options) -> Codec:
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    tokenizer = Tokenizer(**options)
    tokenizer.make(lambda: iter(texts), directory)
    return tokenizer.load(directory)


def tokens(codec: Codec) -> list[str]:
    return [codec.token(id) for id in range(codec.vocab_size)]


def test_words_by_frequency_then_alphabet_after_the_special_tokens(tmp_path):
    codec = make(tmp_path, specials=("pad", "unk"))
    assert tokens(codec) == ["<pad>", "<unk>", "b", "a", "d", "A", "c", "é", "東"]
    codec = make(tmp_path, specials=("unk",), vocab_size=3)
    assert tokens(codec) == ["<unk>", "b", "a"]
    codec = make(tmp_path, specials=("unk",), min_count=2)
    assert tokens(codec) == ["<unk>", "b", "a", "d"]
    codec = make(tmp_path, specials=("unk",), min_count=3, lowercase=True)
    assert tokens(codec) == ["<unk>", "a", "b"]
    assert codec.encode("A B c") == [1, 2, 0]
    assert codec.starts_word.all()


def test_wikitext2_has_its_published_types_and_tokens(test_data, tmp_path):
    folder = test_data("lm_wikitext2")

    def texts():
        with gzip.open(folder / "train.txt.gz", "rt", encoding="utf-8") as lines:
            yield from lines

    tokenizer = Tokenizer(specials=("unk", "eos"), line_ends=True)
    tokenizer.make(texts, tmp_path)
    codec = tokenizer.load(tmp_path)
    assert codec.vocab_size == 33278
    for name, count in (("valid", 217_646), ("test", 245_569)):
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        ids = codec.encode(text)
        assert len(ids) == count
        assert ids.count(codec.unk_id) == text.split().count("<unk>")
        assert ids.count(codec.eos_id) == text.count("\n")


def test_line_ends_and_back(tmp_path):
    codec = make(tmp_path, line_ends=True)
    a, b, eos = *codec.encode("a")[:1], *codec.encode("b")[:1], codec.eos_id
    assert codec.encode("a b\n\nb") == [a, b, eos, eos, b, eos]
    assert codec.encode("a\n") == codec.encode("a") == [a, eos]
    assert codec.encode("") == [eos]
    assert codec.decode(codec.encode("a b\n\nb\n")) == "a b\n\nb\n"
    plain = make(tmp_path)
    assert plain.encode("a b\n\nb") == [a, b, b]
    assert plain.decode([a, eos, b, plain.unk_id]) == "a b <unk>"
    assert plain.fingerprint != codec.fingerprint


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_letters_of_special_tokens_are_ordinary_text(tmp_path, kind):
    codec = make(tmp_path, kind=kind)
    text = " ".join(codec.token(id) for id in sorted(codec.special_ids))
    assert not (codec.special_ids - {codec.unk_id}) & {*codec.encode(text)}
    assert codec.special_ids == {*range(7)} and codec.encode("") == []


def test_characters(tmp_path):
    text = "a\tb\r\n é\u2028東\\n"
    codec = make(tmp_path, [text], kind="char", specials=("unk",))
    assert tokens(codec)[1:] == sorted({*text})
    assert codec.decode(codec.encode(text)) == text
    assert codec.encode("z") == [0]
    begins = {
        token for token, starts in zip(tokens(codec), codec.starts_word) if starts
    }
    assert begins == {"<unk>", "\t", "\r", "\n", " ", "\u2028"}
    assert make(tmp_path, ["aab"], kind="char", min_count=2).encode("ab")[-1] == 1
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size: found 5.*at least 12"):
        make(tmp_path, [text], kind="char", specials=("unk",), vocab_size=5)


def test_bytes_need_no_text_and_know_every_text(tmp_path):
    codec = make(tmp_path, [], kind="byte", specials=("pad", "eos"))
    assert codec.vocab_size == 258
    text = "a é東\x00\n"
    assert codec.encode("a") == [2 + 97] and codec.unk_id is None
    assert len(codec.encode(text)) == len(text.encode())
    assert codec.decode([0, *codec.encode(text), 1]) == text
    assert codec.decode(codec.encode("é")[:1]) == "\ufffd"
    assert codec.starts_word[2 + 32] and not codec.starts_word[2 + 97]
    assert make(tmp_path, [], kind="byte", lowercase=True).decode([7 + 97]) == "a"


def test_a_given_vocabulary_keeps_its_ids(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("dog\r\n[UNK]\r\nnaïve\r\n[PAD]\r\n".encode())
    codec = make(tmp_path, path=str(path))
    assert codec.encode("naïve dog cat [PAD]") == [2, 0, 1, 1]
    assert (codec.unk_id, codec.pad_id, codec.eos_id) == (1, 3, None)
    path.write_text("dog\n<oov>\n")
    codec = make(tmp_path, path=str(path), special={"unk": "<oov>"})
    assert codec.encode("dog cat") == [0, 1]


def test_refusals_name_the_place_and_the_fix(tmp_path):
    path = tmp_path / "words.txt"

    def attempt(content, *parts, **options):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DataError) as error:
            make(tmp_path, path=str(path), **options)
        for part in parts:
            assert part in str(error.value), str(error.value)

    attempt("dog\ncat\n", "vocab.txt", "none for 'unk'", "<unk>")
    attempt("<unk>\ndog\n", "none for 'eos'", line_ends=True)
    attempt("<unk>\ndog\ncat\ndog\n", "vocab.txt:4", "'dog'", "line 2")
    attempt("<unk>\nhot dog\n", "vocab.txt:2", "'hot dog'", "white space")
    attempt("<unk>\na\nbc\n", "vocab.txt:3", "'bc'", "single character", kind="char")
    attempt("<unk>\n<0x00>\n", "no token '<0x01>'", kind="byte")
    attempt("", "no token")
    for place, part in ((tmp_path / "none", "no file"), (tmp_path, "no vocab.txt")):
        with pytest.raises(DataError, match=part):
            make(tmp_path, path=str(place))
    (tmp_path / "a.model").touch()
    with pytest.raises(DataError, match='"spm"'):
        make(tmp_path, path=str(tmp_path / "a.model"))
    for options in ({}, {"min_count": 9}, {"kind": "char", "min_count": 9}):
        with pytest.raises(DataError, match="without a single word"):
            make(tmp_path, [" \n", ""] if not options else TEXTS, **options)
    with pytest.raises(DataError, match=r"found 7, expected at least 8"):
        make(tmp_path, vocab_size=7)


def test_options_that_do_not_go_together(tmp_path):
    for options, part in (
        ({"specials": ("pad", "end")}, "'end'"),
        ({"specials": ("unk", "unk")}, "each once"),
        ({"specials": ("pad",)}, "'unk' among them"),
        ({"specials": ("unk",), "line_ends": True}, "line_ends is set"),
        ({"kind": "char", "line_ends": True}, 'kind="word"'),
    ):
        with pytest.raises(ConfigError, match=part):
            make(tmp_path, **options)


def test_load_refuses_a_directory_made_with_other_options(tmp_path):
    Tokenizer().make(lambda: iter(TEXTS), tmp_path)
    assert Tokenizer(min_count=5).load(tmp_path).vocab_size == 14
    with pytest.raises(DataError, match=r"tokenizer\.lowercase: found True"):
        Tokenizer(lowercase=True).load(tmp_path)
    (tmp_path / "options.json").write_text("{")
    with pytest.raises(DataError, match="broken JSON"):
        Tokenizer().load(tmp_path)
