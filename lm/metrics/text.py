"""Metrics of generated texts, by sacrebleu and rouge-score, in per cent.

Each public function is a metric: (hypotheses, references per hypothesis, words) ->
`Score`. Scores can be compared if their signatures are equal.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from lm.metrics.words import Tokenizer, Words

References = Sequence[Sequence[str]]
WESTERN = Words()


class Score(NamedTuple):
    """The score of a corpus.

    Attributes:
      value: of all texts.
      signature: how it was computed.
      parts: numbers of each text, whose sums make the score.
      measure: makes it of such sums (K,), of all texts or of a resample.
    """

    value: float
    signature: str
    parts: Shaped[np.ndarray, "n K"]
    measure: Callable[[Shaped[np.ndarray, "K"]], float]


def bleu(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """Computes BLEU (Papineni et al. 2002) by sacrebleu (Post 2018)."""
    from sacrebleu.metrics import BLEU

    return _sacrebleu(BLEU(tokenize=words.bleu), hypotheses, references)


def chrf(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """Computes chrF (Popović 2015) of character 6-grams; `words` has no effect."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu(CHRF(), hypotheses, references)


def rouge1(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """Computes ROUGE-1 (Lin 2004): F1 of single words."""
    return _rouge("rouge1", hypotheses, references, words)


def rouge2(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """Computes ROUGE-2 (Lin 2004): F1 of pairs of words."""
    return _rouge("rouge2", hypotheses, references, words)


def rougeL(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """Computes ROUGE-L (Lin 2004): F1 of the longest common subsequence of words."""
    return _rouge("rougeL", hypotheses, references, words)


def exact_match(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """Computes the share of texts that equal a reference, but for runs of white space.

    White space at both ends does not count either; `words` has no effect.
    """

    def plain(text: str) -> str:
        return " ".join(text.split())

    hits = [
        float(plain(text) in map(plain, right))
        for text, right in zip(hypotheses, references)
    ]
    return _mean(hits, "exact|case:mixed|spaces:joined|refs:any")


def _sacrebleu(metric: Any, hypotheses: Sequence[str], references: References) -> Score:
    # sacrebleu wants the first references of all texts, then the second ones, and so
    # on; None stands for a missing one.
    most = max(map(len, references))
    streams = [
        [each[n] if n < len(each) else None for each in references] for n in range(most)
    ]
    score = metric.corpus_score(list(hypotheses), streams)
    # Its own bootstrap gives the mean and half the width of an interval; these numbers
    # of each text, which it draws from, have no public name.
    parts = np.asarray(metric._extract_corpus_statistics(list(hypotheses), streams))

    def measure(sums: np.ndarray) -> float:
        found = metric._compute_score_from_stats([round(x) for x in sums.tolist()])
        return float(found.score)

    return Score(float(score.score), str(metric.get_signature()), parts, measure)


def _rouge(
    kind: str, hypotheses: Sequence[str], references: References, words: Words
) -> Score:
    """Averages over texts the F1 with the reference for which it is highest."""
    from rouge_score.rouge_scorer import RougeScorer

    own = words.rouge == "rouge"
    cut = None if own else Tokenizer(words.rouge, words.stem)
    scorer = RougeScorer([kind], use_stemmer=words.stem, tokenizer=cut)
    each = [
        float(scorer.score_multi(list(right), generated)[kind].fmeasure)
        for generated, right in zip(hypotheses, references)
    ]
    stem = "porter" if words.stem else "none"
    how = f"{kind}|tok:{words.rouge}|stemmer:{stem}|refs:best"
    signature = f"{how}|version:{version('rouge-score')}"
    return _mean(each, signature)


def _mean(values: Sequence[float], signature: str) -> Score:
    """Returns the mean over texts of values from 0 to 1, in per cent."""
    parts = np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)
    mean = 100.0 * sum(values) / len(values)
    return Score(mean, signature, parts, lambda sums: float(100.0 * sums[0] / sums[1]))
