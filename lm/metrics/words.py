"""Splits texts into words for metrics that count words.

Some scripts have no spaces between words: with the usual tokenizers of BLEU and ROUGE
an exact copy of a Chinese text scores 0.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

# Tokenizers of sacrebleu that need another package, and its name.
PACKAGES = {"ja-mecab": "MeCab", "ko-mecab": "mecab_ko"}


@dataclasses.dataclass(frozen=True)
class Words:
    """The tokenizers for the texts of a corpus.

    Attributes:
      bleu: the name of a tokenizer of sacrebleu.
      rouge: the same, or "rouge" for that of rouge-score, which keeps only a-z and 0-9.
      stem: whether ROUGE compares English stems (Porter 1980).
    """

    bleu: str = "13a"
    rouge: str = "rouge"
    stem: bool = True


def choose(tokenize: str, stem: str, references: Iterable[Sequence[str]]) -> Words:
    """Chooses the tokenizers for a corpus.

    With "auto" the most frequent script of the references decides. Chinese is split by
    "zh" and other scripts without spaces (Japanese, Thai) by "char", both into
    characters; so is Korean, whose words have endings ("ja-mecab" and "ko-mecab" split
    into words). Latin script is split by the defaults of sacrebleu and rouge-score.
    rouge-score drops all other letters: those are split by "intl". Stems are English,
    so "auto" uses them for Latin script alone.

    Args:
      tokenize: "auto" or the name of a tokenizer of sacrebleu.
      stem: "auto", "porter" or "none".
      references: the references of each text.
    """
    script = script_of(text for texts in references for text in texts)
    bleu = {"han": "zh", "asian": "char"}.get(script, "13a")
    rouge = {"latin": "rouge", "other": "intl"}.get(script, bleu)
    if tokenize != "auto":
        bleu, rouge = tokenize, "rouge" if tokenize == "13a" else tokenize
    stems = script == "latin" if stem == "auto" else stem == "porter"
    return Words(bleu, rouge, stems)


# The first word of a letter's Unicode name -> the script as `script_of` groups it.
NAMES = {"LATIN": "latin", "CJK": "han"} | dict.fromkeys(
    ("HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
    "asian",
)


def script_of(texts: Iterable[str]) -> str:
    """Returns the most frequent script: "latin", "han", "asian" or "other".

    Japanese mixes Han characters and kana: Han characters with more than a tenth of
    kana are "asian".
    """
    counts = dict.fromkeys(("latin", "han", "asian", "other"), 0)
    for text in texts:
        for letter in filter(str.isalpha, text):
            name = re.split("[ -]", unicodedata.name(letter, ""))[0]
            counts[NAMES.get(name, "other")] += 1
    without_spaces = counts["han"] + counts["asian"]
    if without_spaces > sum(counts.values()) / 2:
        return "asian" if counts["asian"] > without_spaces / 10 else "han"
    return "latin" if counts["latin"] >= counts["other"] else "other"


class Tokenizer:
    """A tokenizer for rouge-score: one of sacrebleu without punctuation marks."""

    def __init__(self, name: str, stem: bool):
        from nltk.stem.porter import PorterStemmer
        from sacrebleu.metrics import BLEU

        self._split: Callable[[str], str] = BLEU(tokenize=name).tokenizer
        self._stemmer = PorterStemmer() if stem else None

    def tokenize(self, text: str) -> list[str]:
        """Returns the words of a text in lower case, stemmed if they are to be."""
        words = [
            w for w in self._split(text.lower()).split() if any(map(str.isalnum, w))
        ]
        if self._stemmer is None:
            return words
        return [self._stemmer.stem(w) if len(w) > 3 else w for w in words]
