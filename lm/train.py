"""Part: gradient training, one function to be read from top to bottom."""

import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm import adapted, distilled, evaluations, vectors
from lm import run as runs
from lm.config import resolve as configs
from lm.config.durations import Times
from lm.config.resolve import Config
from lm.data.buckets import GROUP
from lm.data.corpus import Corpus
from lm.errors import NumericalError
from lm.host import process, timing, watch
from lm.training import diagnose, guard, optim, sharding
from lm.training.conclude import Life, Row, conclude
from lm.training.progress import Progress
from lm.training.step import Batch, PerShape, Program, State, Training
from lm.workdir import adopt
from lm.workdir.checkpoint import Checkpointer
from lm.workdir.summary import finished
from lm.workdir.writer import Log, Writer


class Parts(NamedTuple):
    """What a step works with.

    Attributes:
      corpus: the data.
      program: the model and its functions.
      training: the update.
      life: what the end of a step works with.
    """

    corpus: Corpus
    program: Program
    training: Training
    life: Life


# The properties of this job, which lm/config/jobs.py reads.
JOB = {"loss": True, "needs": (), "unused": ()}


class Pending(NamedTuple):
    """A step that was dispatched and whose measurements are not read yet."""

    step: int
    measurements: dict[str, jax.Array]
    tokens: int
    flops: float | None


def train(
    config: Config,
    workdir: Path,
    *,
    strict: bool = False,
    allow_change: tuple[str, ...] = (),
    notes: Sequence[str] = (),
) -> int:
    """Trains the run of a workdir to its last step, from its newest checkpoint if any.

    Args:
      config: complete and checked.
      workdir: the folder of the run.
      strict: refuse a damaged checkpoint instead of using an older one.
      allow_change: frozen fields that may differ from the run's config.
      notes: lines for the beginning of the log.

    Returns:
      The exit code: 0, or that of a run that a signal stopped, after a save.
    """
    distilled.look(config, workdir)
    config = runs.with_tokenizer(config, workdir)
    log = configs.build(Log, config.log)
    writer = Writer(workdir, log, primary=jax.process_index() == 0)
    with writer, watch.of_run(workdir) as watching:
        # ── The workdir: a new run, or one to go on with ────────────────────────────
        before, changes, checkpointer, latest = adopt.open_workdir(
            config,
            workdir,
            writer.note,
            strict=strict,
            allow_change=allow_change,
            notes=notes,
        )

        # ── Data: tokenizer, rows, and from here on durations are steps ─────────────
        watching.at("data", times=math.inf)  # Indexing has no known duration.
        corpus = runs.open_corpus(config, workdir, writer.note)
        steps_of = runs.durations(config, corpus)
        times = Times.of(config, steps_of)
        writer.note(corpus.describe(epochs(corpus, times.total)))

        # ── Where the run stands; perhaps it is finished ────────────────────────────
        at = Progress.begin(config, corpus.identity())
        if latest is not None and adopt.complete(workdir, latest, times.total):
            writer.note(finished(workdir, latest, times.total))
            return 0

        # ── Model, optimiser and mesh; nothing is computed yet ──────────────────────
        program = runs.open_program(config, corpus)
        teacher = distilled.open_teacher(config, corpus, program)
        criterion = teacher and teacher.teaching
        training = runs.open_training(config, corpus, program, steps_of, criterion)
        checkpointer.check_room(training.state.saved())
        evals = evaluations.open_evaluators(config, workdir, corpus, program)
        needs = sharding.describe_memory(training.state)
        for line in (needs, *sharding.describe_whole(program, config.mesh.rules)):
            writer.note(line)

        with jax.set_mesh(program.mesh), checkpointer:
            # ── Start: the own workdir, else init.source, else scratch ──────────────
            watching.at("restore", times=10)
            taught = distilled.load(teacher, writer.note)
            if latest is not None:
                base = adapted.open_base(config, program)
                at = hold(config, at, at.state._replace(frozen=base, teacher=taught))
                at = restore(checkpointer, training, at, resized=before is not None)
                if at.row is None and (at.enough or at.step >= times.total):
                    writer.note(finished(workdir, at.step, times.total, at.why))
                    return 0
                writer.note(f"continuing from step {at.step}")
                for line in resumed(before, config, corpus, at):
                    writer.note(line)
                adopt.adopt(config, workdir, changes)
            else:
                state = begin(config, corpus, program, training, writer)
                at = hold(config, at, state._replace(teacher=taught))

            # ── The first batch ──────────────────────────────────────────────────────
            watching.at("first batch", times=10)
            batches: Iterator[Any] | None
            batches = runs.open_batches(corpus, program, *at.batches(times.total))
            batch, tokens = next(batches)
            update = PerShape(training.update)
            timer = timing.StepTimer(
                peak=timing.device_peak(config.compute.dtype), devices=program.mesh.size
            )
            life = Life(
                *(times, evals, checkpointer, writer, watching, timer),
                weights=config.optim.weights,
            )
            parts = Parts(corpus, program, training, life)
            writer.start(at.rows, every=times.log, total_steps=times.total)

            # ── The loop ────────────────────────────────────────────────────────────
            pending: Pending | None = None
            exit_code = 0
            with process.Preemption() as preemption:
                if at.row is not None:  # An evaluation of this step has failed before.
                    at, _ = conclude(life, at, (dict(at.row), timer.lap(0)), last=True)
                while at.step < times.total and not at.enough:
                    if batches is None:  # The run has gone back.
                        span = at.batches(times.total)
                        batches = runs.open_batches(corpus, program, *span)
                        batch, tokens = next(batches)
                    step = at.step + 1
                    if not update.knows(batch):
                        watching.at("compilation", times=10)
                        with timer.aside():
                            writer.note(compile_for(update, at, batch))
                    watching.at(f"step {step}")
                    at, measurements = advance(update, at, batch)
                    flops = program.model.flops(batch)
                    last = pending
                    pending = Pending(step, measurements, tokens, flops)
                    if last is not None:  # read while the devices work
                        at, row = read(parts, at, last)
                        if row is None:
                            batches = pending = None
                            continue
                        writer.row(last.step, *row)
                    if step < times.total:
                        watching.at(f"batch {step + 1}")
                        with timer.waiting():
                            ready = preemption.wait(functools.partial(next, batches))
                        batch, tokens = ready or (batch, tokens)

                    # Evaluations and saves wait until the step is known to be sound.
                    asked = preemption.requested(step)
                    over = asked or step == times.total
                    if not (over or times.to_evaluate(step) or times.to_save(step)):
                        continue
                    at, row = read(parts, at, pending)
                    pending = None
                    if row is None:
                        batches = None
                        continue
                    at, over = conclude(life, at, row, last=over)
                    if over:
                        exit_code = preemption.exit_code if asked else 0
                        break
                checkpointer.close()

                # ── The end ─────────────────────────────────────────────────────────
                if exit_code:
                    writer.note(
                        f"stopped and saved at step {at.step}; run again to continue"
                    )
                    return exit_code
                writer.note(f"{needs}; {timing.describe_peak(update.largest)}")
                writer.note(finished(workdir, at.step, times.total, at.why))
                return 0


def epochs(corpus: Corpus, total: int) -> str:
    """Describes how long the training is, for the log."""
    rows, batch_size = len(corpus.stream), corpus.config.batch_size
    share = total * batch_size / rows
    return f"{total:,} steps of {batch_size} rows are {share:.1f} epochs"


def begin(
    config: Config,
    corpus: Corpus,
    program: Program,
    training: Training,
    writer: Writer,
) -> State:
    """Makes the state before the first update, with the weights of init.source if set.

    Raises:
      CheckpointError: a parameter is not in the source, or of another shape.
    """
    params = program.init(jax.random.key(config.seed))
    if "counts" in program.model.can:
        params = program.model.counted(params, corpus.token_counts())
    if vectors.split(config.init.source):
        source, model = config.init.source, program.model
        adapted.check_source(config)
        params = vectors.start(source, params, model, corpus, writer.note)
        return training.start(params)
    return training.start(adapted.begin(config, program, params, writer.note))


def hold(config: Config, at: Progress, state: State) -> Progress:
    """Returns the progress with a state, and with the names of what stays in it."""
    base = adapted.identify(config, state.frozen)
    teacher = distilled.identify(config, state.teacher)
    return replace(at, state=state, base=base, teacher=teacher)


def restore(
    checkpointer: Checkpointer,
    training: Training,
    at: Progress,
    step: int | None = None,
    resized: bool = True,
) -> Progress:
    """Restores the progress from the newest intact checkpoint, or that of `step`.

    Args:
      resized: whether the batch size may differ from the checkpoint's.

    Raises:
      CheckpointError: there is none, or it is of other data, or of another model, base
        or teacher.
    """
    saved, host = checkpointer.restore(training.state.saved(), step)
    adopt.check_data(host["data"], at.data, resized=resized)
    adapted.check(host, at.base)
    distilled.check(host, at.teacher)
    still = {"frozen": at.state.frozen, "teacher": at.state.teacher}
    return at.resume(host, State(**saved, **still))


def resumed(
    before: Config | None, config: Config, corpus: Corpus, at: Progress
) -> Iterator[str]:
    """Yields log lines on what a changed config changes for the steps that remain.

    Args:
      before: the config of the run so far.
    """
    if before is None:
        return
    old, new = (
        (configs.build(optim.Optim, each.optim), runs.durations(each, corpus))
        for each in (before, config)
    )
    if (line := diagnose.describe_change(old, new, at.step)) is not None:
        yield line
    if before.batch_size != config.batch_size:
        first = at.faults.batch(at.step + 1) * config.batch_size
        yield f"batch_size {config.batch_size}: the data go on with example {first}"
        if corpus.stream.buckets is not None:
            yield (
                f"rows are sorted by length within {GROUP} batches: of this group some "
                "may come again, and others not"
            )


def compile_for(update: PerShape, at: Progress, batch: Batch) -> str:
    """Compiles the update for batches of a new shape; returns a line for the log."""
    began = time.perf_counter()
    update.compile(at.state, batch)
    shape = " x ".join(map(str, next(iter(batch.values())).shape))
    return f"compiled in {time.perf_counter() - began:.1f} s, for inputs of {shape}"


def advance(update: Any, at: Progress, batch: Batch) -> tuple[Progress, Batch]:
    """Makes one update; every `stop.recheck` steps, twice, to compare the bits.

    Returns:
      The progress and the measurements, which are not waited for.

    Raises:
      NumericalError: the second update has other bits.
    """
    step, every = at.step + 1, at.stop.recheck
    if not every or step % every:
        state, measurements = update(at.state, batch)
        return at.advance(state), measurements
    twin = diagnose.copy(at.state)
    state, measurements = update(at.state, batch)
    again, _ = update(twin, batch)
    guard.check_same(step, diagnose.bits(state), diagnose.bits(again))
    return at.advance(state), measurements


def read(parts: Parts, at: Progress, done: Pending) -> tuple[Progress, Row | None]:
    """Reads the measurements of a step and judges them.

    Returns:
      The progress and the step's row; the row is None if the run has gone back to an
      earlier step.

    Raises:
      NumericalError: the step ends the run.
    """
    values = jax.device_get(done.measurements)
    lap = parts.life.timer.lap(done.tokens, done.flops)
    faults, fault, action = guard.judge(at.stop, at.faults, done.step, values)
    at, number = replace(at, faults=faults), faults.batch(done.step)
    if fault is not None:
        before = at.state._replace(step=jnp.int32(done.step - 1))
        batches = runs.open_batches(parts.corpus, parts.program, number, number + 1)
        fault = diagnose.look_into(
            fault,
            parts.training,
            before,
            next(batches)[0],
            parts.corpus.stream.describe_batch(number, parts.corpus.config.batch_size),
        )
        if action == "stop":
            raise fault
        parts.life.writer.note(f"warning: {fault}")
        if action == "rollback":
            return go_back(parts, at, done.step, fault), None
    return at, (values | {"train/batch": number}, lap)


def go_back(parts: Parts, at: Progress, bad: int, fault: NumericalError) -> Progress:
    """Goes back to the last regular checkpoint before step `bad`.

    The batches from there up to that of the step are left out.

    Raises:
      NumericalError: `fault`, since there is no checkpoint to go back to.
    """
    parts.life.checkpointer.wait()
    steps = [s for s in parts.life.checkpointer.steps() if s < bad]
    regular = [s for s in steps if parts.life.times.to_save(s)]
    if not steps:
        raise fault
    back = restore(parts.life.checkpointer, parts.training, at, max(regular or steps))
    parts.life.checkpointer.drop_after(back.step)
    faults = at.faults.back_to(back.faults, back.step, bad)
    parts.life.writer.start(
        back.step, every=parts.life.times.log, total_steps=parts.life.times.total
    )
    parts.life.writer.note(
        f"back to step {back.step}, without the batches up to step {bad}"
    )
    return replace(back, faults=faults)
