"""encode_with_offsets: which characters of a text each token stands for."""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from lm.errors import DataError
from lm.tokenizers import hf, spm, word

TEXTS = ["The quick brown fox, naïve Füchse! Don't jump: 東京 is the 1st.", "a b c"] * 4
ODD = [
    "",
    " ",
    "plain words",
    "  leading and  double   spaces ",
    "emoji 😀👩‍👩‍👧 in the middle",
    "e\u0301tude with a combining mark, a\u0308\u0323",
    "①② ﬁne ｆｕｌｌ ﷺ ½",
    "line\r\nends\n\n\tand tabs\x85next\u2028line",
    "İstanbul ΑΣ ΑΣ. ẞ",
    "unknown ܫܠܡܐ 𐍈 \U0001f9ff",
    "<s> [MASK] </s><mask> <pad>",
    "the end\n",
]
KINDS = {
    "wordpiece": (hf, {"kind": "wordpiece", "vocab_size": 120}),
    "bpe": (hf, {"kind": "bpe", "vocab_size": 300}),
    "unigram": (spm, {"vocab_size": 90}),
    "bytes": (spm, {"vocab_size": 340, "kind": "bpe", "byte_fallback": True}),
    "word": (word, {}),
    "word lines": (word, {"line_ends": True}),
    "word lower": (word, {"lowercase": True}),
    "char": (word, {"kind": "char"}),
    "char lower": (word, {"kind": "char", "lowercase": True}),
    "byte": (word, {"kind": "byte"}),
    "byte lower": (word, {"kind": "byte", "lowercase": True}),
}


def make(tmp_path, kind):
    module, options = KINDS[kind]
    tokenizer = module.Tokenizer(**options)
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    tokenizer.make(lambda: iter(TEXTS), directory)
    return tokenizer.load(directory)


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_in_order_and_cover_the_text(tmp_path, kind):
    codec = make(tmp_path, kind)
    for text in ODD:
        ids, spans = codec.encode_with_offsets(text)
        assert ids == codec.encode(text)
        assert len(spans) == len(ids)
        assert all(0 <= start <= end <= len(text) for start, end in spans), text
        for (start, end), (after, last) in zip(spans, spans[1:]):
            assert start <= after and end <= last, text
        covered = {at for start, end in spans for at in range(start, end)}
        left_out = [c for at, c in enumerate(text) if at not in covered]
        # White space, and what normalisation drops of control characters and accents.
        assert all(c.isspace() or not c.isalnum() for c in left_out), (text, left_out)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "wordpiece"])
def test_the_token_is_what_stands_there(tmp_path, kind):
    codec = make(tmp_path, kind)
    text = "  the quick\r\nfox 東京"
    ids, spans = codec.encode_with_offsets(text)
    for id, (start, end) in zip(ids, spans):
        piece = codec.decode([id]).strip()
        if id != codec.unk_id and piece.isascii():
            assert piece == text[start:end].strip()
    where = text.index("fox")
    inside = [(s, e) for s, e in spans if s < where + 3 and e > where]
    assert text[inside[0][0] : inside[-1][1]].strip() == "fox"


def test_bytes_of_a_character_all_have_it(tmp_path):
    for kind in ("bytes", "byte", "bpe"):
        _, spans = make(tmp_path, kind).encode_with_offsets("x 😀y")
        at = [span for span in spans if span[0] <= 2 < span[1]]
        assert len(at) >= 4, kind
        assert {end for _, end in at} == {3}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_those_of_the_library_are_the_librarys(tmp_path, kind):
    codec = make(tmp_path, kind)
    for text in ODD:
        found = codec._tokenizer.encode(text, add_special_tokens=False)
        assert codec.encode_with_offsets(text) == (found.ids, found.offsets)


def unigram_json(normalizer=None):
    names = ["<pad>", "</s>", "<unk>", "▁", "x", "y", "z", "/", "s", "<", ">"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": names[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in range(3)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "never",
            "split": True,
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[name, -1.0 - i] for i, name in enumerate(names)],
            "byte_fallback": False,
        },
    }


def load_json(tmp_path, content, kind="unigram"):
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "tokenizer.json"
    path.write_text(json.dumps(content))
    tokenizer = hf.Tokenizer(kind=kind, path=str(path))
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    tokenizer.make(lambda: iter(()), directory)
    return tokenizer.load(directory)


def test_spaces_put_into_written_special_tokens_are_no_characters(tmp_path):
    codec = load_json(tmp_path, unigram_json())
    text = "x</s>y<pad></s>z"
    ids, spans = codec.encode_with_offsets(text)
    assert ids == codec.encode(text) and codec.eos_id not in ids
    found = [(codec.token(id), text[start:end]) for id, (start, end) in zip(ids, spans)]
    assert [piece for token, piece in found if token in "xyz"] == ["x", "y", "z"]
    assert all(piece == token for token, piece in found if token in "</s>xyz"), found


def test_F8_what_makes_the_library_panic_is_refused_with_the_file(tmp_path, capfd):
    """A map of SentencePiece that is cut short panics as soon as a text is read."""
    broken = {"type": "Precompiled", "precompiled_charsmap": "AAEAAAAAAAA="}
    with pytest.raises(DataError, match=r"tokenizer\.json") as caught:
        load_json(tmp_path, unigram_json(broken))
    assert caught.value.exit_code == 3 and "\n" not in caught.value.line()


MUTATIONS = [None, [], {}, "x", -1, 3.5, 2**70, [None], {"type": "Nothing"}]


def places(value, path=()):
    """Every place of a JSON tree; of a long list the first."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = list(enumerate(value))[:2]
    for key, item in items:
        yield from places(item, (*path, key))


@pytest.mark.slow
def test_F8_any_mutated_tokenizer_is_read_or_refused(tmp_path, capfd):
    """No exception of the library, nor of ours, leaves the reader as itself."""
    base = unigram_json({"type": "Lowercase"})
    refused = 0
    for path in places(base):
        for value in MUTATIONS:
            changed = json.loads(json.dumps(base))
            if path:
                node = changed
                for key in path[:-1]:
                    node = node[key]
                node[path[-1]] = value
            else:
                changed = value
            try:
                load_json(tmp_path, changed).encode_with_offsets("x y 東")
            except DataError as error:
                assert "\n" not in error.line(), (path, value)
                refused += 1
    assert refused > 100


def test_every_white_space_of_str_split_parts_words(tmp_path):
    codec = make(tmp_path, "word")
    for number in range(sys.maxunicode + 1):
        if not 0xD800 <= number < 0xE000 and chr(number).isspace():
            _, spans = codec.encode_with_offsets(f"a{chr(number)}b")
            assert spans == [(0, 1), (2, 3)], hex(number)
