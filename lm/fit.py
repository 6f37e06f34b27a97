"""Part: fitting by passes over the data, for models that need no gradients.

    params, memory = model.start(corpus)
    each pass:  statistics = the sum of model.statistics(params, batch) over all batches
                params, memory, measurements = model.improve(params, memory, statistics)

A pass takes every row of every source once, in the order of the index. It is to a fit
what a step is to training: a row of metrics, perhaps evaluations and a checkpoint, from
which the run goes on bit for bit. A pass that is interrupted begins again.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm import evaluations, transfer
from lm import run as runs
from lm.config import resolve as configs
from lm.config.durations import Times
from lm.config.resolve import Config
from lm.data import pipeline
from lm.data.corpus import Corpus
from lm.errors import ConfigError, NumericalError
from lm.host import process, timing, watch
from lm.training import sharding
from lm.training.conclude import Life, conclude, save
from lm.training.progress import Progress
from lm.training.step import Program, State
from lm.workdir import adopt, checkpoint
from lm.workdir.summary import finished
from lm.workdir.writer import Log, Writer

# The properties of this job, which lm/config/jobs.py reads.
JOB = {
    "loss": False,
    "needs": ("fit",),
    "unused": ("optim", "update", "adapter", "teacher", "grad_accum"),
}


class Parts(NamedTuple):
    """The records that a pass works with."""

    corpus: Corpus
    program: Program
    timer: timing.StepTimer
    preemption: process.Preemption
    note: Callable[[str], None]


def fit(
    config: Config,
    workdir: Path,
    *,
    strict: bool = False,
    allow_change: tuple[str, ...] = (),
    notes: Sequence[str] = (),
) -> int:
    """Fits the run of a workdir to its last pass, from its newest checkpoint if any.

    The arguments are those of `train.train`.

    Returns:
      The exit code: 0, or that of a run that a signal stopped.
    """
    config = runs.with_tokenizer(config, workdir)
    check_weights(config)
    log = configs.build(Log, config.log)
    writer = Writer(workdir, log, primary=jax.process_index() == 0)
    with writer, watch.of_run(workdir) as watching:
        # ── The workdir: a new run, or one to go on with ────────────────────────────
        _, changes, checkpointer, latest = adopt.open_workdir(
            config,
            workdir,
            writer.note,
            strict=strict,
            allow_change=allow_change,
            notes=notes,
        )

        # ── Data: a pass over all rows is a step, and an epoch ──────────────────────
        watching.at("data", times=math.inf)  # Indexing has no known duration.
        corpus = runs.open_corpus(config, workdir, writer.note)
        whole = Config(config | {"batch_size": len(corpus.stream)})
        times = Times.of(config, runs.durations(whole, corpus))
        writer.note(corpus.describe(f"passes over them: {times.total:,}"))

        # ── Where the run stands; perhaps it is finished ────────────────────────────
        at = Progress.begin(config, corpus.identity())
        if latest is not None and adopt.complete(workdir, latest, times.total):
            writer.note(finished(workdir, latest, times.total))
            return 0

        # ── Model and mesh; nothing is computed yet ─────────────────────────────────
        program = runs.open_program(config, corpus)
        sharding.check_batch(config.batch_size, 1, program.mesh)
        evals = evaluations.open_evaluators(config, workdir, corpus, program)

        with jax.set_mesh(program.mesh), checkpointer:
            # ── Start: the own workdir, else the model's beginning ──────────────────
            watching.at("restore", times=10)
            if latest is not None:
                found, host = checkpointer.restore(as_saved(program))
                adopt.check_data(host["data"], at.data, resized=True)
                at = at.resume(host, State(**found))
                if at.row is None and (at.enough or at.step >= times.total):
                    writer.note(finished(workdir, at.step, times.total, at.why))
                    return 0
                adopt.adopt(config, workdir, changes)
                writer.note(f"continuing from step {at.step}")
            else:
                at = replace(at, state=begin(config, corpus, program, writer.note))
            writer.start(at.rows, every=times.log, total_steps=times.total)
            timer = timing.StepTimer(devices=program.mesh.size)

            # ── The passes ──────────────────────────────────────────────────────────
            life = Life(times, evals, checkpointer, writer, watching, timer)
            exit_code = 0
            with process.Preemption() as preemption:
                parts = Parts(corpus, program, timer, preemption, writer.note)
                if at.row is not None:  # An evaluation of this pass has failed before.
                    at, _ = conclude(life, at, (dict(at.row), timer.lap(0)), last=True)
                while at.step < times.total and not at.enough:
                    sums, tokens = sum_up(parts, at, watching)
                    if sums is None:
                        exit_code = preemption.exit_code
                        break
                    at, values = improve(program, at, sums)
                    row = values, timer.lap(tokens)
                    at, _ = conclude(life, at, row, last=at.step == times.total)
                if exit_code and at.step:
                    save(life, at)
                checkpointer.close()

        # ── The end ─────────────────────────────────────────────────────────────────
        if exit_code:
            writer.note(f"stopped after step {at.step}; run again to continue")
            return exit_code
        writer.note(f"{size(at.state.params)}; {timing.describe_peak()}")
        writer.note(finished(workdir, at.step, times.total, at.why))
        return 0


def check_weights(config: Config) -> None:
    """Refuses weights of sources, since a pass takes every row once.

    Raises:
      ConfigError: names the source.
    """
    for i, source in enumerate(config.data.sources):
        if source.weight != 1:
            raise ConfigError(
                f"data.sources.{i}.weight",
                f"{source.weight}",
                "1: a pass of job fit takes every row of every source once",
                "leave it out",
            )


def size(params: Any) -> str:
    """Returns how many parameters there are, and their bytes, for the log."""
    leaves = jax.tree.leaves(params)
    count, octets = (
        sum(getattr(x, name) for x in leaves) for name in ("size", "nbytes")
    )
    return f"{count:,} parameters of {octets / 2**20:,.1f} MiB"


# ── The state ───────────────────────────────────────────────────────────────────────


def begin(
    config: Config, corpus: Corpus, program: Program, note: Callable[[str], None]
) -> State:
    """Returns the state before the first pass, with init.source's weights if it is set.

    Raises:
      CheckpointError: a parameter is not in the source, or of another shape.
    """
    params, memory = program.model.start(corpus)
    state = place(program, 0, params, memory)
    init = configs.build(checkpoint.Init, config.init)
    return state._replace(params=transfer.from_source(init, state.params, note))


def place(program: Program, step: int, params: Any, memory: Any) -> State:
    """Returns a state whose arrays are whole on every device.

    Args:
      memory: the model's state between passes beside its parameters.
    """
    whole = NamedSharding(program.mesh, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, whole)
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, whole, array.__getitem__)

    given = {"step": np.int32(step), "params": params, "opt_state": memory}
    return State(**jax.tree.map(put, given))


def as_saved(program: Program) -> Callable[[Path], dict[str, Any]]:
    """Returns a function from a checkpoint to the shapes of its state.

    They are known from the checkpoint alone, since the data decide how many parameters
    a fitted model has.
    """
    whole = NamedSharding(program.mesh, PartitionSpec())

    return lambda step: transfer.saved_shapes(step, whole)


# ── A pass ──────────────────────────────────────────────────────────────────────────


def sum_up(parts: Parts, at: Progress, watching: watch.Watch) -> tuple[Any, int]:
    """Adds up the statistics of all batches, over all processes.

    Returns:
      The statistics, None if a signal stops the run, and the number of tokens.
    """
    corpus, model = parts.corpus, parts.program.model
    config, rows = corpus.config, len(corpus.stream)
    count = math.ceil(rows / config.batch_size)
    kinds: dict[str, type[OnHost | OnDevice]] = {"host": OnHost, "device": OnDevice}
    sums, tokens = kinds[model.statistics_on](parts.program, at.state.params), 0
    host = pipeline.batches(
        # Each row once, in order.
        replace(corpus.stream, mixture=None, lanes=None, group=0),
        batch_size=config.batch_size,
        first_step=0,
        last_step=count,
        data=configs.build(pipeline.Data, config.data),
        shares=corpus.shares,
        rows=rows,
    )
    for number in timing.with_progress(
        range(count),
        count,
        lambda text: parts.note(f"pass {at.step + 1}: batch {text}"),
    ):
        watching.at(f"batch {number + 1} of pass {at.step + 1}")
        with parts.timer.waiting():
            batch = parts.preemption.wait(functools.partial(next, host))
        if batch is None or parts.preemption.requested(at.step * count + number + 1):
            return None, 0
        sums.add(batch)
        tokens += corpus.objective.tokens(batch) * corpus.shares.processes
    watching.at(f"step {at.step + 1}", times=10)
    return sums.total(), tokens


class OnDevice:
    """Statistics by a compiled program over global batches: arrays that are added."""

    def __init__(self, program: Program, params: Any):
        self._program, self._params = program, params
        self._total: Any = None
        self._add = _compiled_sum(program.model)

    def add(self, batch: dict[str, np.ndarray]) -> None:
        on_devices = runs.on_devices(batch, self._program.mesh)
        if self._total is None:
            shapes = jax.eval_shape(
                self._program.model.statistics, self._params, on_devices
            )
            self._total = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
        before = self._total
        self._total = self._add(before, self._params, on_devices)
        # Where more than two programs wait, simulated devices may each begin another
        # one, and a sum over all of them never ends.
        jax.block_until_ready(before)

    def total(self) -> Any:
        return self._total


@functools.cache
def _compiled_sum(model: Any) -> Callable:
    def add(total: Any, params: Any, batch: Any) -> Any:
        found = jax.tree.map(jax.numpy.add, total, model.statistics(params, batch))
        return jax.lax.with_sharding_constraint(found, PartitionSpec())

    return jax.jit(add)


class OnHost:
    """Statistics of this process's rows in numpy, of any size, merged by the model."""

    def __init__(self, program: Program, params: Any):
        self._model, self._params = program.model, jax.device_get(params)
        # (batches, their statistics): as in a binary counter, only those of as many
        # batches are merged, so that a batch takes part in few merges.
        self._parts: list[tuple[int, Any]] = []

    def add(self, batch: dict[str, np.ndarray]) -> None:
        self._parts.append((1, self._model.statistics(self._params, batch)))
        while len(self._parts) > 1 and self._parts[-1][0] == self._parts[-2][0]:
            self._merge_last()

    def _merge_last(self) -> None:
        (more, last), (count, before) = self._parts.pop(), self._parts.pop()
        self._parts.append((count + more, self._model.merge(before, last)))

    def total(self) -> Any:
        while len(self._parts) > 1:
            self._merge_last()
        ((_, own),) = self._parts
        return functools.reduce(self._model.merge, from_all_processes(own))


def from_all_processes(own: Any) -> Iterator[Any]:
    """Yields the numpy trees of all processes on every process, one at a time.

    The trees differ only in the sizes of their arrays.
    """
    if jax.process_count() == 1:
        yield own
        return
    from jax.experimental import multihost_utils

    leaves, structure = jax.tree.flatten(own)
    for process_index in range(jax.process_count()):
        mine = process_index == jax.process_index()

        def share(array: np.ndarray, mine: bool = mine) -> np.ndarray:
            return np.asarray(multihost_utils.broadcast_one_to_all(array, mine))

        arrays = []
        for leaf in leaves:
            shape = share(np.asarray(leaf.shape, np.int32)).tolist()
            # As bytes: jax would make 64-bit numbers 32-bit ones.
            data = np.zeros(math.prod(shape) * leaf.itemsize, np.uint8)
            if mine:
                data = np.frombuffer(np.ascontiguousarray(leaf).tobytes(), np.uint8)
            arrays.append(share(data).view(leaf.dtype).reshape(shape))
        yield jax.tree.unflatten(structure, arrays)


def improve(program: Program, at: Progress, sums: Any) -> tuple[Progress, dict]:
    """Improves the parameters by the statistics of a pass.

    Returns:
      The progress after the pass, and its measurements as train/<name>.

    Raises:
      NumericalError: a measurement is not finite; the last checkpoint is from before.
    """
    state, model = at.state, program.model
    given = (state.params, state.opt_state)
    if model.statistics_on == "host":
        given = jax.device_get(given)
    params, memory, found = model.improve(*given, sums)
    values = {f"train/{name}": value for name, value in jax.device_get(found).items()}
    bad = {n: float(v) for n, v in values.items() if not math.isfinite(float(v))}
    if bad:
        raise NumericalError(
            f"pass {at.step + 1}",
            ", ".join(f"{name} = {value}" for name, value in sorted(bad.items())),
            "finite numbers",
            "look at the data and the model's options; nothing of this pass is saved",
        )
    return at.advance(place(program, at.step + 1, params, memory)), values
