"""How texts are cut into words before a metric compares them.

BLEU and ROUGE count words, which some scripts write without spaces: by the usual
tokenizer an exact copy of a Chinese text scores 0.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

# Tokenizers of sacrebleu, and the package that one needs beside it.
PACKAGES = {"ja-mecab": "MeCab", "ko-mecab": "mecab_ko"}


@dataclasses.dataclass(frozen=True)
class Words:
    """How the texts of a corpus are cut.

    Attributes:
      bleu: a tokenizer of sacrebleu.
      rouge: the same, or "rouge" for rouge-score's own, which keeps only a-z and 0-9.
      stem: whether ROUGE compares English stems (Porter 1980).
    """

    bleu: str = "13a"
    rouge: str = "rouge"
    stem: bool = True


def choose(tokenize: str, stem: str, references: Iterable[Sequence[str]]) -> Words:
    """Chooses how to cut a corpus.

    With "auto" the script of most letters of the references decides: "zh" for Chinese
    (each character a word), "char" for Japanese, Korean, Thai and others without spaces
    (each character; the "-mecab" tokenizers know words), else what sacrebleu and
    rouge-score use. ROUGE's own tokenizer knows Latin letters only; other alphabets are
    cut by "intl". Stems are English: "auto" takes them of Latin letters.

    Args:
      tokenize: "auto" or a tokenizer of sacrebleu.
      stem: "auto", "porter" or "none".
      references: of each text.
    """
    script = script_of(text for texts in references for text in texts)
    bleu = {"han": "zh", "asian": "char"}.get(script, "13a")
    rouge = {"latin": "rouge", "other": "intl"}.get(script, bleu)
    if tokenize != "auto":
        bleu, rouge = tokenize, "rouge" if tokenize == "13a" else tokenize
    stems = script == "latin" if stem == "auto" else stem == "porter"
    return Words(bleu, rouge, stems)


# The first word of a letter's Unicode name, by what it means for cutting.
NAMES = {"LATIN": "latin", "CJK": "han"} | dict.fromkeys(
    ("HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
    "asian",
)


def script_of(texts: Iterable[str]) -> str:
    """Returns what most letters are: "latin", "han", "asian" or "other".

    Japanese mixes Han characters and kana: a tenth of kana among them is "asian".
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
    """Cuts texts for rouge-score by a tokenizer of sacrebleu, without punctuation."""

    def __init__(self, name: str, stem: bool):
        from nltk.stem.porter import PorterStemmer
        from sacrebleu.metrics import BLEU

        self._cut: Callable[[str], str] = BLEU(tokenize=name).tokenizer
        self._stemmer = PorterStemmer() if stem else None

    def tokenize(self, text: str) -> list[str]:
        words = [w for w in self._cut(text.lower()).split() if any(map(str.isalnum, w))]
        if self._stemmer is None:
            return words
        return [self._stemmer.stem(w) if len(w) > 3 else w for w in words]
