"""Part: opens the evaluations of a run: evaluators, their sets, and what they ask."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import embedder
from lm import run as runs
from lm.config import match
from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.data import pipeline
from lm.data.corpus import Corpus
from lm.data.pipeline import Data
from lm.decoding import loop
from lm.evaluators.base import Examples
from lm.evaluators.evaluation import Evaluation, progress
from lm.training import passes, sharding
from lm.training.step import Program


def make_embedder(
    config: Config, workdir: Path, corpus: Corpus, program: Program, batch_size: int
) -> Callable[[Any], Callable[[Sequence[str]], np.ndarray]]:
    """Makes what gives the vectors of texts with the weights of a run.

    Returns:
      params -> a function from texts to their vectors (N, D), to be called in the run's
      mesh. It is compiled when it is first called.
    """
    opened = runs.Run(config, workdir, corpus, program, None, 0)

    @functools.cache
    def make() -> embedder.Embedder:
        return embedder.open_embedder(opened, batch_size=batch_size)

    return lambda params: make().with_params(params).embed


def open_evaluators(
    config: Config, workdir: Path, corpus: Corpus, program: Program
) -> dict[str, Evaluation]:
    """Opens the evaluations of a config, by name; they share one decoder."""
    decoder = functools.cache(lambda: runs.make_decoder(corpus, program))
    return {
        name: open_evaluator(name, section, config, workdir, corpus, program, decoder)
        for name, section in config.evals.items()
    }


def open_evaluator(
    name: str,
    section: Config,
    config: Config,
    workdir: Path,
    corpus: Corpus,
    program: Program,
    decoder: Callable[[], loop.Decoder],
) -> Evaluation:
    """Opens one evaluation, its set indexed.

    Args:
      decoder: returns the run's decoder; see `run.make_decoder`.

    Raises:
      ConfigError: a batch does not divide over the mesh.
      DataError: the set is missing, damaged or does not fit the objective.
    """
    batch_size = section.batch_size or config.batch_size
    sharding.check_batch(batch_size, 1, program.mesh)
    cls = configs.load_class("evaluator", section.evaluator)
    carried = batch_size if runs.carries(section.data, program.model) else 0
    functions = passes.begin(program, carried)
    return Evaluation(
        name=name,
        evaluator=configs.build(cls, section),
        examples=open_examples(name, section, batch_size, corpus, program),
        batch_size=batch_size,
        metrics=functions.metrics,
        by_row=functions.by_row,
        predict=functions.predict,
        scorer=functools.partial(runs.make_scorer, corpus, program),
        embed_texts=make_embedder(config, workdir, corpus, program, batch_size),
        embed=program.embed,
        module=program.model,
        decoder=decoder,
        workdir=workdir,
        note=corpus.note,
    )


def open_examples(
    name: str, section: Config, batch_size: int, corpus: Corpus, program: Program
) -> Examples:
    """Opens the set of an evaluation, a section of config.evals."""
    changes = section.objective
    stream = corpus.evals[name]
    data = configs.build(Data, section.data)
    rows = min(len(stream), section.limit or len(stream))
    count = math.ceil(stream.evaluated(rows) / batch_size)

    def batches(by_length: bool = False) -> Iterator[dict[str, jax.Array]]:
        host = pipeline.batches(
            stream,
            batch_size=batch_size,
            first_step=0,
            last_step=count,
            data=data,
            shares=corpus.shares,
            rows=rows,
            by_length=by_length,
        )
        put = functools.partial(runs.on_devices, mesh=program.mesh)
        ahead = pipeline.prefetch(host, put)
        return progress(ahead, count, name, corpus.note)

    return Examples(
        stream=stream,
        rows=rows,
        batches=batches,
        records=lambda: pipeline.records_of(stream, data, rows),
        objective=match.changed(corpus.objective, changes),
        codec=corpus.codec,
        train_counts=functools.cache(corpus.token_counts),
        train_texts=functools.partial(
            runs.train_texts, corpus.config, corpus.objective
        ),
        train=lambda: corpus.stream,
    )
