"""Updates of a run that are timed, with its first batches in memory."""

import time
from pathlib import Path
from typing import Any

import jax

from lm import run as runs
from lm.config import resolve as configs
from lm.data import pipeline
from lm.training.step import PerShape


class Updates:
    """The first updates of a run.

    Attributes:
      objective: of the run.
      batches: of the first `count` steps, as the data gives them.
      state: after the updates so far.
    """

    def __init__(self, config: Any, workdir: Path, count: int):
        config = runs.with_tokenizer(config, workdir)
        corpus = runs.open_corpus(config, workdir, lambda line: None)
        program = runs.open_program(config, corpus)
        training = runs.open_training(
            config, corpus, program, runs.durations(config, corpus)
        )
        rows = pipeline.batches(
            corpus.stream,
            batch_size=config.batch_size,
            first_step=0,
            last_step=count,
            data=configs.build(pipeline.Data, config.data),
            shares=corpus.shares,
        )
        self.objective, self.batches, self._mesh = (
            corpus.objective,
            [*rows],
            program.mesh,
        )
        self.state = training.start(program.init(jax.random.key(0)))
        self.update = PerShape(training.update)

    def compile(self) -> None:
        """Puts the batches on the devices, and compiles the update for each shape."""
        self._given = [runs.on_devices(batch, self._mesh) for batch in self.batches]
        for batch in self._given:
            if not self.update.knows(batch):
                self.update.compile(self.state, batch)

    def seconds(self) -> float:
        """Makes an update of each batch; returns how long all of them took."""
        start = time.perf_counter()
        for batch in self._given:
            self.state, measured = self.update(self.state, batch)
        jax.block_until_ready(measured)
        return time.perf_counter() - start
