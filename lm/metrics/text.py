"""Metrics of generated texts, by sacrebleu and rouge-score, in per cent.

Each public function is a metric of this name: (hypotheses, references of each, words)
-> (score, signature). The score is the corpus's; the signature holds what one must know
to compare it.
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
    """BLEU (Papineni et al. 2002) as sacrebleu computes it (Post 2018)."""
    from sacrebleu.metrics import BLEU

    return _sacrebleu(BLEU(tokenize=words.bleu), hypotheses, references)


def chrf(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """chrF (Popović 2015), of character 6-grams; it needs no words."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu(CHRF(), hypotheses, references)


def rouge1(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """ROUGE-1 (Lin 2004): F1 of single words."""
    return _rouge("rouge1", hypotheses, references, words)


def rouge2(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """ROUGE-2: F1 of pairs of words."""
    return _rouge("rouge2", hypotheses, references, words)


def rougeL(
    hypotheses: Sequence[str], references: References, words: Words = WESTERN
) -> Score:
    """ROUGE-L: F1 of the longest common subsequence of a text's words."""
    return _rouge("rougeL", hypotheses, references, words)


def _sacrebleu(metric: Any, hypotheses: Sequence[str], references: References) -> Score:
    most = max(map(len, references))
    # One list for each number of a reference; None where a text has fewer.
    streams = [
        [each[n] if n < len(each) else None for each in references] for n in range(most)
    ]
    score = metric.corpus_score(list(hypotheses), streams)
    return float(score.score), str(metric.get_signature())


def _rouge(
    kind: str, hypotheses: Sequence[str], references: References, words: Words
) -> Score:
    """The mean over texts, each by the reference with the highest F1."""
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
