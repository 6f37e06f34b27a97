"""How well the vectors of a run find the documents that answer queries."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lm.errors import Rule
from lm.evaluators import base
from lm.formats import texts, trec
from lm.host import storage
from lm.metrics import ranking, statistics
from lm.objectives.base import Objective
from lm.retrieval import index as indexes
from lm.retrieval import mining
from lm.retrieval.index import Index, Settings

BOUNDS = {
    "depth": "[1, 100000]",
    "level": "(0, 1)",
    "resamples": "[0, 100000]",
    "negatives": "[0, 1000]",
}
CHANGEABLE = ("level", "resamples", "negatives")


class Task(NamedTuple):
    """A corpus, the queries that are judged, and their judgements."""

    corpus: texts.Texts
    queries: texts.Texts
    qrels: Mapping[str, Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class Evaluator(base.Evaluator):
    """Measures of the search in a corpus: by vectors, by words, and by both.

    Every document is compared. "dense" ranks by the inner product of vectors, "bm25" by
    words, and "fusion" fuses both lists by reciprocal ranks (Cormack et al. 2009).
    Yields `<method>_<metric>`, as in `dense_ndcg@10`, equal to trec_eval's figure, and
    with `_low` and `_high` after it the bootstrap interval over the queries. For each
    method a run of TREC is written to samples/. What is judged is a part of the queries
    and of the corpus, or the evaluation is refused.

    Attributes:
      corpus: the documents, as lm.search reads them: .jsonl, .tsv or lines.
      queries: likewise; those that nobody judged are left out.
      qrels: the judgements, of TREC or BEIR.
      methods: how the corpus is searched.
      metrics: ndcg, map, mrr, recall, precision, success, r_precision, each within a
        number of ranks, as in ndcg@10, or over the whole list.
      depth: documents of a list.
      stem, stop_words: of BM25, whether English words are reduced to their stems, and
        frequent ones left out.
      level: of the interval.
      resamples: how many the interval is of; 0 gives none.
      negatives: hard negatives of each positive that are written as triples, to
        `samples/<evaluation>-<step>.triples.jsonl`; they stand at ranks 10 to 50 of the
        first method, which is not "fusion", with a score of at most 0.95 of the
        positive's.
    """

    corpus: str = ""
    queries: str = ""
    qrels: str = ""
    methods: tuple[Literal["dense", "bm25", "fusion"], ...] = (
        "dense",
        "bm25",
        "fusion",
    )
    metrics: tuple[str, ...] = ("ndcg@10", "map", "mrr", "recall@100")
    depth: int = 100
    stem: bool = True
    stop_words: bool = True
    level: float = 0.95
    resamples: int = 1000
    negatives: int = 0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"embeddings"})

    def rules(self, config: Mapping[str, Any], where: str) -> Iterator[Rule]:
        for field in ("corpus", "queries", "qrels"):
            file = getattr(self, field)
            yield Rule(Path(file).is_file(), f"{where}.{field}", repr(file), "a file")
        wrong = [name for name in self.metrics if ranking.parse(name) is None]
        expected = f"{', '.join(ranking.MEASURES)}, or one with @ and a depth after it"
        yield Rule(not wrong, f"{where}.metrics", ", ".join(wrong), expected)
        expected = "a method at least"
        yield Rule(bool(self.methods), f"{where}.methods", "none", expected)
        holds = not self.negatives or self.methods[0] != "fusion"
        expected = "dense or bm25 as the first method, whose scores can be compared"
        yield Rule(holds, f"{where}.negatives", self.negatives, expected)

    def yields(self, objective: Objective) -> tuple[str, ...]:
        ends = ("", "_low", "_high") if self.resamples else ("",)
        return tuple(
            f"{method}_{metric}{end}"
            for method in self.methods
            for metric in self.metrics
            for end in ends
        )

    def run(
        self, examples: base.Examples, model: base.Functions, out: base.Outputs
    ) -> Iterator[tuple[str, float]]:
        task, index = self._open(examples)
        asked = None
        if {*self.methods} != {"bm25"}:
            both = model.embed_texts([*task.corpus.texts, *task.queries.texts])
            documents, asked = np.split(both, [len(task.corpus.ids)])
            index = dataclasses.replace(index, vectors=documents)
        lines = [" " * 8 + "".join(f"{name:>15}" for name in self.metrics)]
        for method in self.methods:
            found = index.search(method, task.queries.texts, asked, self.depth)
            run = index.run(task.queries.ids, found)
            judged = ranking.judge(run, task.qrels, task.queries.ids)
            values = ranking.compute(judged, self.metrics)
            shown = "".join(f"{values[name].mean():>15.4f}" for name in self.metrics)
            lines.append(f"{method:<8}{shown}")
            for name in self.metrics:
                yield from self._figures(f"{method}_{name}", values[name])
            if jax.process_index() == 0:
                _write(method, run, out)
        out.note("\n".join([f"{len(task.queries.ids):,} queries", *lines]))
        if self.negatives and jax.process_index() == 0:
            self._mine(task, index, asked, out)

    def _figures(self, name: str, values: np.ndarray) -> Iterator[tuple[str, float]]:
        yield name, float(values.mean())
        if self.resamples:
            yield from statistics.bootstrap(
                lambda rows: float(values[rows].mean()),
                len(values),
                resamples=self.resamples,
                level=self.level,
                seed=self.seed,
            ).named(name)

    def _open(self, examples: base.Examples) -> tuple[Task, Index]:
        """Reads the files and counts the words, once for all steps.

        Raises:
          DataError: a file is wrong, or judges what is not there.
        """
        if "task" not in examples.memo:
            corpus, asked = (texts.read(Path(f)) for f in (self.corpus, self.queries))
            path = Path(self.qrels)
            qrels = trec.read_qrels(path)
            trec.check_known(qrels, path, {*asked.ids}, {*corpus.ids})
            pairs = [pair for pair in zip(*asked) if pair[0] in qrels][: self.limit]
            queries = texts.Texts(*map(list, zip(*pairs)))
            settings = Settings(stem=self.stem, stop_words=self.stop_words)
            index = indexes.make(*corpus, settings)
            examples.memo["task"] = Task(corpus, queries, qrels), index
        return examples.memo["task"]

    def _mine(
        self, task: Task, index: Index, asked: np.ndarray | None, out: base.Outputs
    ) -> None:
        """Writes hard negatives as triples, to train on."""
        queries, documents = task.queries.texts, task.corpus.texts
        found = mining.mine(
            index,
            self.methods[0],
            queries,
            asked,
            mining.numbered(task.qrels, task.queries.ids, task.corpus.ids),
            each=self.negatives,
        )
        lines = mining.format_triples(found, queries, documents)
        place = out.samples.with_suffix(".triples.jsonl")
        storage.write_text(place, "".join(lines))
        out.note(f"{len(lines):,} triples in {place}")


def _write(method: str, run: Mapping[str, Mapping[str, float]], out: Any) -> None:
    """Writes what a method found as a run of TREC."""
    place = out.samples.with_suffix(f".{method}.run")
    storage.write_text(place, trec.format_run(run, method))
