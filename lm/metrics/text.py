"""Metrics of generated texts, by sacrebleu and rouge-score, in per cent.

Each public function is a metric: (hypotheses, references per hypothesis, words) ->
(score of the corpus, signature). Scores can be compared if their signatures are equal.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from lm.metrics.words import Tokenizer, Words

References = Sequence[Sequence[str]]
Score = tuple[float, str]
WESTERN = Words()


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


def _sacrebleu(metric: Any, hypotheses: Sequence[str], references: References) -> Score:
    # sacrebleu wants the first references of all texts, then the second ones, and so
    # on; None stands for a missing one.
    most = max(map(len, references))
    streams = [
        [each[n] if n < len(each) else None for each in references] for n in range(most)
    ]
    score = metric.corpus_score(list(hypotheses), streams)
    return float(score.score), str(metric.get_signature())


def _rouge(
    kind: str, hypotheses: Sequence[str], references: References, words: Words
) -> Score:
    """Averages over texts the F1 with the reference for which it is highest."""
    from rouge_score.rouge_scorer import RougeScorer

    own = words.rouge == "rouge"
    cut = None if own else Tokenizer(words.rouge, words.stem)
    scorer = RougeScorer([kind], use_stemmer=words.stem, tokenizer=cut)
    total = sum(
        scorer.score_multi(list(right), generated)[kind].fmeasure
        for generated, right in zip(hypotheses, references)
    )
    stem = "porter" if words.stem else "none"
    how = f"{kind}|tok:{words.rouge}|stemmer:{stem}|refs:best"
    signature = f"{how}|version:{version('rouge-score')}"
    return 100.0 * total / len(hypotheses), signature
