"""Words that are one token, whatever else a tokenizer adds to a text."""

from lm.objectives.base import whole_token
from lm.tokenizers import spm, word

CHINESE = ["我们去北京大学", "他在北京大学学习", "北京大学很大", "去北京大学"] * 20


def codec_of(tokenizer, texts, folder):
    folder.mkdir()
    tokenizer.make(lambda: iter(texts), folder)
    return tokenizer.load(folder)


def test_a_word_with_the_end_of_its_line(tmp_path):
    tokenizer = word.Tokenizer(kind="word", line_ends=True, specials=("unk", "eos"))
    codec = codec_of(tokenizer, ["the dog\nthe cat\n"], tmp_path / "word")
    assert len(codec.encode("dog")) == 2
    assert codec.token(whole_token("dog", codec)) == "dog"
    assert whole_token("bird", codec) == whole_token("the dog", codec) == -1


def test_a_word_of_a_script_without_spaces(tmp_path):
    """SentencePiece sets the sign of a space before it, which is a token apart."""
    tokenizer = spm.Tokenizer(vocab_size=24, character_coverage=1.0)
    codec = codec_of(tokenizer, CHINESE, tmp_path / "spm")
    texts = {codec.token(id): id for id in range(codec.vocab_size)}
    whole = [piece for piece in texts if len(piece) > 1 and "北京" in piece]
    alone = [piece for piece in whole if not piece.startswith("▁")]
    assert alone and len(codec.encode(alone[0])) == 2
    assert whole_token(alone[0], codec) == texts[alone[0]]
    assert whole_token(alone[0] * 2, codec) == whole_token("猫", codec) == -1
