"""Makes the terms of a text, by which BM25 compares texts."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable

# The stop words of Lucene's English analyser.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for if in into is it no not of on or such that "
        "the their then there these they this to was will with",
    )
)
# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
UNSPACED = (
    r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff"
)
TERM = re.compile(f"(?=\\w)[{UNSPACED}]|[^\\W_{UNSPACED}]+")


@dataclasses.dataclass(frozen=True)
class Terms:
    """How texts become terms.

    A term is a run of letters and digits, in lower case and composed (NFKC); of scripts
    without spaces, a single character.

    Attributes:
      stem: whether English words are reduced to their stems (Porter 1980, as nltk has
        it).
      stop_words: whether the 33 most frequent English function words are left out.
    """

    stem: bool = True
    stop_words: bool = True

    def reader(self) -> Callable[[str], list[str]]:
        """Returns a function from a text to its terms, which remembers stems."""
        if self.stem:
            from nltk.stem.porter import PorterStemmer

            stem = PorterStemmer().stem
        else:
            stem = str
        known: dict[str, str] = dict.fromkeys(STOP_WORDS, "") if self.stop_words else {}

        def terms(text: str) -> list[str]:
            words = TERM.findall(unicodedata.normalize("NFKC", text).casefold())
            for word in words:
                if word not in known:
                    known[word] = stem(word)
            return [term for word in words if (term := known[word])]

        return terms
