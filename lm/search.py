"""Command: indexes a corpus once, and finds its documents for queries.

python -m lm.search --index=DIR --corpus=FILE [--workdir=RUN]
python -m lm.search --index=DIR [--workdir=RUN] --query=TEXT | --input=FILE
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lm.config import schema
from lm.config.flags import Parser, add_weights, describe_fields, flag, which_step
from lm.errors import CheckpointError, ConfigError, DataError
from lm.formats.texts import Texts
from lm.host import process, storage
from lm.retrieval.ranks import Found

if TYPE_CHECKING:
    from lm.retrieval.index import Index, Settings

USAGE = """python -m lm.search --index=DIR --corpus=FILE [--workdir=RUN|hf:DIR]
       python -m lm.search --index=DIR [--workdir=RUN|hf:DIR]
    --query=TEXT | --input=FILE|- [--output=FILE.jsonl|.run] [OPTION ...]

Builds the index of a corpus once, then ranks its documents for queries, all of
them compared: by words (BM25), or, with --workdir, by vectors or by both.
Corpus and queries are .jsonl files with "_id", "text" and perhaps "title" on a
line, .tsv files of ID<TAB>TEXT, or texts on each line, whose numbers are their
ids. With --qrels the log has the measures of the search."""

JSONL, RUN = (".jsonl", ".ndjson"), (".run", ".trec")
SHOWN = ("ndcg@10", "map", "mrr", "recall@100", "precision@10", "success@1")
DEPTH = 100  # documents of a query that the measures see, at least
FIX = "build another --index, or remove this one"


class Model(NamedTuple):
    """A run whose vectors are compared, and what an index says of it.

    Attributes:
      opened: as lm.embedder.open_run gives it, whose module is heavy to import.
    """

    opened: Any
    facts: dict[str, Any]


class Asked(NamedTuple):
    """Queries, and what was found for each.

    Attributes:
      vectors: (Q, D) of the queries; None where the method needs none.
    """

    queries: Texts
    method: str
    vectors: np.ndarray | None
    found: list[Found]


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    flags, settings = parse(argv)
    if flags.workdir is not None:
        process.platform_setup()

    from lm.retrieval import index as indexes

    folder = Path(flags.index)
    there = indexes.read_facts(folder)
    model = open_model(flags, there)
    if flags.corpus is not None:
        build(flags, folder, there, indexes.Settings(**settings), model)
    if flags.query is None and flags.input is None:
        return 0
    index = indexes.read(folder)
    method = method_of(flags, index)
    queries = read_queries(flags)
    qrels = read_qrels(flags, index, queries)
    depth = flags.k if qrels is None else max(flags.k, DEPTH)
    vectors = None
    if method != "bm25" and model is not None:
        vectors = embed(model, queries.texts, flags.batch_size)
    found = index.search(method, queries.texts, vectors, depth)
    asked = Asked(queries, method, vectors, found)
    if none := sum(not len(one.rows) for one in asked.found):
        note(f"{none:,} of {len(asked.found):,} queries find nothing")
    if qrels is not None:
        measure(index, asked, qrels)
    if flags.mine is not None and qrels is not None:
        mine(flags, index, asked, qrels)
    if flags.output is not None or qrels is None:
        show(flags, index, asked)
    return 0


def note(line: str) -> None:
    """Writes a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> tuple[Namespace, dict[str, Any]]:
    """Parses the flags; returns them, and apart from them the settings of words.

    Raises:
      ConfigError: a flag is unknown, out of bounds or excludes another one.
    """
    file = Path(__file__).parent / "retrieval" / "index.py"
    fields = schema.read_class(file, "Settings", file.parents[1])
    parser = Parser("lm.search", USAGE)
    parser.add_argument(
        "--index", required=True, metavar="DIR", help="the folder of the index"
    )
    parser.add_argument(
        "--corpus",
        metavar="FILE",
        help="the documents to build an index of, .gz too (default: none)",
    )
    parser.add_argument(
        "--workdir",
        metavar="RUN",
        help="the run, or the directory of Hugging Face, whose vectors are compared "
        "(default: none)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="its checkpoint: latest, best, or the number of a step (default: that of "
        "the index; of a new one, latest)",
    )
    add_weights(parser)
    parser.add_argument(
        "--batch-size",
        default="32",
        metavar="SIZE",
        help="texts whose vectors are computed at a time (from 1; default: 32)",
    )
    parser.add_argument("--query", metavar="TEXT", help="a query (default: none)")
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="queries, .gz too; - is standard input (default: none)",
    )
    parser.add_argument(
        "--method",
        choices=("dense", "bm25", "fusion"),
        help="what is compared: vectors, words, or both, whose ranked lists are fused "
        "by reciprocal ranks (default: fusion with --workdir, else bm25)",
    )
    parser.add_argument(
        "--k",
        default="10",
        metavar="NUMBER",
        help="documents of a query, at most (from 1; default: 10)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="a file for what is found: a row of JSON for each query "
        f"({', '.join(JSONL)}), or a run of TREC ({', '.join(RUN)}) (default: rows on "
        "the terminal)",
    )
    parser.add_argument(
        "--texts", action="store_true", help="rows have the texts of documents too"
    )
    parser.add_argument(
        "--qrels",
        metavar="FILE",
        help="which documents answer the queries, as TREC or BEIR write it; the log "
        "has the measures, as trec_eval defines them, with 95%% intervals over queries "
        "(default: none)",
    )
    parser.add_argument(
        "--mine",
        metavar="FILE.jsonl",
        help="a file for triples of text, positive and negative, to train on, where "
        "--qrels has the positives: the negatives stand at ranks 10 to 50, with a "
        "score of at most 0.95 of the positive's (default: none)",
    )
    parser.add_argument(
        "--negatives",
        default="1",
        metavar="NUMBER",
        help="negatives of a positive in --mine, at most (from 1; default: 1)",
    )
    parser.add_fields(fields, describe_fields(file, "Settings"))
    flags = parser.parse_args(argv)
    given = [name for name in fields if getattr(flags, name) is not None]
    settings = {
        name: schema.check(field, schema.Text(getattr(flags, name)), flag(name))
        if name in given
        else field.default
        for name, field in fields.items()
    }
    if given and flags.corpus is None:
        found = f"{flag(given[0])} without --corpus"
        raise ConfigError("flags", found, "--corpus=FILE: an index keeps its settings")
    check_flags(flags)
    return flags, settings


def check_flags(flags: Namespace) -> None:
    """Reads the numbers, and checks which flags stand together.

    Raises:
      ConfigError: a number is out of bounds, or flags do not go together.
    """
    if flags.checkpoint is not None:
        flags.checkpoint = which_step(flags.checkpoint)
    for name in ("k", "negatives", "batch_size"):
        value = schema.literal(getattr(flags, name))
        if type(value) is not int or not 1 <= value <= 1 << 20:
            expected = "a whole number from 1 to 1048576"
            raise ConfigError(flag(name), getattr(flags, name), expected)
        setattr(flags, name, value)
    if flags.query is not None and flags.input is not None:
        raise ConfigError("flags", "--query and --input", "one of them")
    asks = flags.query is not None or flags.input is not None
    if not asks and flags.corpus is None:
        expected = "--corpus=FILE to build, --query=TEXT or --input=FILE to ask"
        raise ConfigError("flags", "nothing to do", expected)
    for name in ("method", "output", "texts", "qrels", "mine"):
        if getattr(flags, name) and not asks:
            raise ConfigError("flags", f"{flag(name)} without queries", "--input=FILE")
    if flags.qrels and flags.query is not None:
        raise ConfigError("flags", "--qrels with --query", "--input=FILE, with ids")
    if flags.mine and not flags.qrels:
        raise ConfigError(
            "flags", "--mine without --qrels", "--qrels=FILE, the answers"
        )
    if flags.mine and Path(flags.mine).suffix not in JSONL:
        raise ConfigError("--mine", repr(flags.mine), "a name that ends in .jsonl")
    if flags.mine and flags.method == "fusion":
        expected = "dense or bm25: fused ranks have no scores to compare"
        raise ConfigError("--method", "fusion with --mine", expected)
    if flags.method in ("dense", "fusion") and flags.workdir is None:
        found = f"--method={flags.method} without --workdir"
        raise ConfigError("flags", found, "--workdir=RUN, whose vectors are compared")
    if flags.output and Path(flags.output).suffix not in (*JSONL, *RUN):
        expected = f"a name that ends in {', '.join((*JSONL, *RUN))}"
        raise ConfigError("--output", repr(flags.output), expected)


def open_model(flags: Namespace, there: Mapping[str, Any] | None) -> Model | None:
    """Opens the run of --workdir; None where there is none, or words alone count.

    Args:
      there: what the manifest of the index says, if there is one.

    Raises:
      CheckpointError: the vectors of the index are of another run or another step.
    """
    if flags.workdir is None or (flags.method == "bm25" and flags.corpus is None):
        return None
    from lm import embedder

    config = embedder.config_of(flags.workdir)
    facts = {"run": embedder.name_of(flags.workdir), "weights": flags.weights}
    made = None if there is None else there["model"]
    check_model(flags, made, facts)
    which = flags.checkpoint
    if which is None:
        which = "latest" if made is None else made["step"]
    opened = embedder.open_run(
        flags.workdir, which, config=config, weights=flags.weights, note=note
    )
    facts["step"] = opened.step
    check_model(flags, made, facts)
    return Model(opened, facts)


def check_model(
    flags: Namespace, made: Mapping[str, Any] | None, facts: Mapping[str, Any]
) -> None:
    """Raises a CheckpointError where an index has vectors of another run or step."""
    for name, value in facts.items():
        if made is not None and made.get(name) != value:
            found = f"vectors made with {name} {made.get(name)!r}"
            expected = f"{name} {value!r}, that of --workdir={flags.workdir}"
            raise CheckpointError(flags.index, found, expected, FIX)


def embed(model: Model, texts: list[str], batch_size: int) -> np.ndarray:
    """Computes the vectors of texts, (N, D) float32."""
    from lm import embedder

    with model.opened.on_mesh():
        made = embedder.open_embedder(model.opened, batch_size=batch_size)
        return made.embed(texts)


def build(
    flags: Namespace,
    folder: Path,
    there: Mapping[str, Any] | None,
    settings: "Settings",
    model: Model | None,
) -> None:
    """Builds the index of a corpus, or finds that it is there.

    Args:
      there: what the manifest of the folder says, if there is one.

    Raises:
      DataError: the corpus is wrong, or the folder has another index.
    """
    from lm.formats import texts as formats
    from lm.retrieval import index as indexes

    corpus = formats.read(Path(flags.corpus), note)
    facts = indexes.facts_of(*corpus, settings, model and model.facts)
    if there is None:
        vectors, width = None, ""
        if model is not None:
            vectors = embed(model, corpus.texts, flags.batch_size)
            width = f", vectors of {vectors.shape[1]} dimensions"
        if model is None or process.is_primary():
            index = indexes.make(*corpus, settings, vectors)
            indexes.write(index, corpus.texts, folder, facts)
        note(f"{folder}: {len(corpus.ids):,} documents{width}")
        return
    for name, value in facts.items():
        if there.get(name) != value:
            found = f"an index with {name} {there.get(name)!r:.80}"
            raise DataError(str(folder), found, f"{name} {value!r:.80}, as now", FIX)
    note(f"{folder}: the index of these {len(corpus.ids):,} documents is there")


def method_of(flags: Namespace, index: "Index") -> str:
    """Returns the method.

    Raises:
      ConfigError: it needs vectors, and the index has none.
    """
    best = "dense" if flags.mine else "fusion"
    method = flags.method or ("bm25" if flags.workdir is None else best)
    if method != "bm25" and index.vectors is None:
        found = f"--method={method}, and an index without vectors"
        raise ConfigError("flags", found, "bm25", "build one with --workdir=RUN")
    return method


def read_queries(flags: Namespace) -> Texts:
    """Reads the queries."""
    from lm.formats import texts as formats

    if flags.query is not None:
        return formats.Texts(["1"], [flags.query])
    return formats.read(None if flags.input == "-" else Path(flags.input), note)


def read_qrels(
    flags: Namespace, index: "Index", queries: Texts
) -> dict[str, dict[str, int]] | None:
    """Reads --qrels, which may judge only what is there."""
    from lm.formats import trec

    if flags.qrels is None:
        return None
    path = Path(flags.qrels)
    qrels = trec.read_qrels(path, note)
    trec.check_known(qrels, path, {*queries.ids}, {*index.ids})
    return qrels


def show(flags: Namespace, index: "Index", asked: Asked) -> None:
    """Writes the documents of each query, to a file or to the terminal."""
    from lm.formats import trec
    from lm.retrieval import index as indexes

    path = None if flags.output is None else Path(flags.output)
    if path is not None and path.suffix in RUN:
        found = index.run(asked.queries.ids, asked.found, flags.k)
        storage.write_text(path, trec.format_run(found, asked.method))
        return
    texts = indexes.read_texts(Path(flags.index)) if flags.texts else None
    lines = rows(index, asked, flags.k, texts)
    if path is not None:
        storage.write_text(path, "".join(lines))
        return
    for line in lines:
        sys.stdout.write(line)
    sys.stdout.flush()


def rows(
    index: "Index", asked: Asked, count: int, texts: list[str] | None
) -> Iterator[str]:
    """Yields the row of each query as JSON."""
    run = index.run(asked.queries.ids, asked.found, count)
    for id, query, found in zip(*asked.queries, asked.found):
        hits: list[dict[str, Any]] = [
            {"id": document, "score": score} for document, score in run[id].items()
        ]
        if texts is not None:
            for hit, row in zip(hits, found.rows.tolist()):
                hit["text"] = texts[row]
        line = {"id": id, "query": query, "hits": hits}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def measure(
    index: "Index", asked: Asked, qrels: Mapping[str, Mapping[str, int]]
) -> None:
    """Notes the measures of the search over the queries that are judged."""
    from lm.metrics import ranking

    judged = ranking.judge(index.run(asked.queries.ids, asked.found), qrels, qrels)
    for name, values in ranking.compute(judged, SHOWN).items():
        mean, (low, high) = ranking.mean(values)
        note(f"{name:<12} {mean:.4f}   {low:.4f} to {high:.4f}")
    note(f"{asked.method}, over {len(qrels):,} judged queries of {len(asked.found):,}")


def mine(
    flags: Namespace,
    index: "Index",
    asked: Asked,
    qrels: Mapping[str, Mapping[str, int]],
) -> None:
    """Writes triples for contrastive training."""
    from lm.retrieval import index as indexes
    from lm.retrieval import mining

    gains = mining.numbered(qrels, asked.queries.ids, index.ids)
    texts, queries = indexes.read_texts(Path(flags.index)), asked.queries.texts
    found = mining.mine(
        index, asked.method, queries, asked.vectors, gains, each=flags.negatives
    )
    lines = mining.format_triples(found, queries, texts)
    storage.write_text(Path(flags.mine), "".join(lines))
    note(f"{flags.mine}: {len(lines):,} triples")


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
