"""Metrics of generated texts, by sacrebleu and rouge-score, in per cent.

Each takes hypotheses and, for each of them, its references, and gives the score of the
corpus and a signature: what one must know to compare the number.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version

References = Sequence[Sequence[str]]
Score = tuple[float, str]


def bleu(hypotheses: Sequence[str], references: References) -> Score:
    """BLEU (Papineni et al. 2002) as sacrebleu computes it (Post 2018)."""
    from sacrebleu.metrics import BLEU

    return _sacrebleu(BLEU(), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: References) -> Score:
    """chrF (Popović 2015), of character 6-grams."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu(CHRF(), hypotheses, references)


def rouge1(hypotheses: Sequence[str], references: References) -> Score:
    """ROUGE-1 (Lin 2004): F1 of single words."""
    return _rouge("rouge1", hypotheses, references)


def rouge2(hypotheses: Sequence[str], references: References) -> Score:
    """ROUGE-2: F1 of pairs of words."""
    return _rouge("rouge2", hypotheses, references)


def rougeL(hypotheses: Sequence[str], references: References) -> Score:
    """ROUGE-L: F1 of the longest common subsequence of a text's words."""
    return _rouge("rougeL", hypotheses, references)


METRICS: dict[str, Callable[[Sequence[str], References], Score]] = {
    function.__name__: function for function in (bleu, chrf, rouge1, rouge2, rougeL)
}


def _sacrebleu(metric, hypotheses: Sequence[str], references: References) -> Score:
    most = max(map(len, references))
    # One list for each number of a reference; None where a text has fewer.
    streams = [
        [each[n] if n < len(each) else None for each in references] for n in range(most)
    ]
    score = metric.corpus_score(list(hypotheses), streams)
    return float(score.score), str(metric.get_signature())


def _rouge(kind: str, hypotheses: Sequence[str], references: References) -> Score:
    """The mean over texts, each by the reference with the highest F1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    total = sum(
        scorer.score_multi(list(right), said)[kind].fmeasure
        for said, right in zip(hypotheses, references)
    )
    signature = f"{kind}|stemmer:porter|refs:best|version:{version('rouge-score')}"
    return 100.0 * total / len(hypotheses), signature
