"""Part: gradient training, one function to be read from top to bottom."""

import functools
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import run as runs
from lm import transfer
from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.data import pipeline
from lm.errors import CheckpointError, NumericalError
from lm.host import process, storage, timing, watch
from lm.training import diagnose, guard, sharding
from lm.workdir import checkpoint
from lm.workdir.checkpoint import Checkpointer
from lm.workdir.writer import Log, Writer, read_rows


class Pending(NamedTuple):
    """A step that is dispatched, and whose measurements are still to be read."""

    step: int
    measurements: dict[str, jax.Array]
    tokens: int


def train(
    config: Config,
    workdir: Path,
    *,
    strict: bool = False,
    allow_change: tuple[str, ...] = (),
    notes: Sequence[str] = (),
) -> int:
    """Trains from where `workdir` stands to the end.

    Args:
      config: complete and checked.
      workdir: where the run lives; another run's weights come by config.init.
      strict: refuse a damaged checkpoint instead of using an older one.
      allow_change: frozen fields that may differ from the run's config.
      notes: lines for the beginning of the log.

    Returns:
      The exit code: 0, or that of a run that was told to stop and has saved.
    """
    primary = jax.process_index() == 0
    config = runs.with_tokenizer(config, workdir)
    writer = Writer(workdir, configs.build(Log, config.log), primary=primary)
    with writer, watch.of_run(workdir) as watching:
        # ── The workdir: a new run, or one to go on with ────────────────────────────
        for note in (*notes, *adopt(config, workdir, allow_change, primary)):
            writer.note(note)
        checkpointer = Checkpointer(
            workdir,
            configs.build(checkpoint.Checkpoint, config.checkpoint),
            run=workdir.name,
            note=writer.note,
            strict=strict,
        )

        # ── Data: tokenizer, rows, and from here on durations are steps ─────────────
        watching.at("data", times=math.inf)  # Nobody knows how long they are.
        corpus = runs.open_corpus(config, workdir, writer.note)
        steps_of = runs.durations(config, corpus)
        total = steps_of(config.steps)
        is_time = functools.partial(configs.is_time, total=total)
        save_every = steps_of(config.checkpoint.every)
        eval_every = {name: steps_of(e.every) for name, e in config.evals.items()}
        writer.note(describe_data(corpus, config, total))
        identity = pipeline.fingerprint(corpus.stream, corpus.codec, config.batch_size)

        # ── What the host follows: early stopping and the best checkpoint ───────────
        stop = configs.build(guard.Stop, config.stop)
        following = guard.follow(stop)
        best = guard.Best(config.checkpoint.best, config.checkpoint.best_mode)
        following = following.resume(newest_host(checkpointer).get("stop"))
        if checkpointer.latest() == total or guard.enough(stop, following):
            writer.note(summary(workdir, checkpointer.latest()))
            return 0

        # ── Model, optimiser and mesh; nothing is computed yet ──────────────────────
        program = runs.open_program(config, corpus)
        training = runs.open_training(config, corpus, program, steps_of)
        checkpointer.check_room(training.state)
        evals = runs.open_evaluators(config, workdir, corpus, program)
        needs = describe_memory(training.state)
        writer.note(needs)
        for line in runs.left_whole(config, program):
            writer.note(f"not sharded: {line}")

        with jax.set_mesh(program.mesh), checkpointer:
            # ── Start: the own workdir, else init.source, else scratch ──────────────
            watching.at("restore", times=10)
            faults = guard.Faults()
            if checkpointer.latest() is not None:
                state, host = checkpointer.restore(training.state)
                check_data(host["data"], identity)
                following = guard.follow(stop).resume(host["stop"])
                best = best.resume(host["best"])
                faults = guard.Faults.resume(host)
                writer.note(f"continuing from step {int(state.step)}")
            else:
                params = program.init(jax.random.key(config.seed))
                if config.init.source is not None:
                    init = configs.build(checkpoint.Init, config.init)
                    params, report = transfer.load_params(init, params)
                    writer.note(str(report))
                state = training.start(params)
            step = int(state.step)

            # ── Batches of this process, on their way to the devices ────────────────
            watching.at("compilation", times=10)
            first, last = faults.batch(step + 1), faults.batch(total) + 1
            batches = feed(config, corpus, program, first, last)
            batch, tokens = next(batches)
            began = time.perf_counter()
            update = training.update.lower(state, batch).compile()
            writer.note(f"compiled in {time.perf_counter() - began:.1f} s")
            timer = timing.StepTimer(
                flops_per_step=program.model.flops(batch),
                peak=timing.device_peak(config.compute.dtype),
                devices=program.mesh.size,
            )
            log_every = steps_of(config.log.every)
            writer.start(step, every=log_every, total_steps=total)

            def read(done: Pending) -> tuple[dict[str, Any], dict[str, float]] | None:
                """The row of a step, or None where the run has gone back behind it."""
                nonlocal faults
                values, lap = jax.device_get(done.measurements), timer.lap(done.tokens)
                faults, fault, action = guard.judge(stop, faults, done.step, values)
                if fault is not None:
                    number = faults.batch(done.step)
                    before = state._replace(step=jnp.int32(done.step - 1))
                    fault = look_into(fault, corpus, program, training, before, number)
                    if action == "stop":
                        raise fault
                    writer.note(f"warning: {fault}")
                    if action == "rollback":
                        return go_back(done.step, fault)
                return values | {"train/batch": faults.batch(done.step)}, lap

            def go_back(at: int, fault: NumericalError) -> None:
                """Returns to the last regular checkpoint, leaving out the batches."""
                nonlocal state, step, pending, following, best, faults
                nonlocal batches, batch, tokens
                checkpointer.wait()
                steps = [s for s in checkpointer.steps() if s < at]
                regular = [s for s in steps if is_time(s, save_every)]
                if not steps:
                    raise fault
                state, host = checkpointer.restore(
                    training.state, max(regular or steps)
                )
                step, pending = int(state.step), None
                checkpointer.drop_after(step)
                following = guard.follow(stop).resume(host["stop"])
                best = best.resume(host["best"])
                faults = faults.back_to(guard.Faults.resume(host), step, at)
                first, last = faults.batch(step + 1), faults.batch(total) + 1
                batches = feed(config, corpus, program, first, last)
                batch, tokens = next(batches)
                writer.start(step, every=log_every, total_steps=total)
                writer.note(f"back to step {step}, without the batches up to step {at}")

            # ── The loop ────────────────────────────────────────────────────────────
            pending: Pending | None = None
            exit_code = 0
            with process.Preemption() as preemption:
                while step < total:
                    step += 1
                    watching.at(f"step {step}")
                    recheck = stop.recheck and step % stop.recheck == 0
                    twin = copy(state) if recheck else None
                    state, measurements = update(state, batch)
                    if twin is not None:
                        again, _ = update(twin, batch)
                        guard.check_same(
                            step, diagnose.bits(state), diagnose.bits(again)
                        )
                    last, pending = pending, Pending(step, measurements, tokens)
                    if last is not None:  # read while the devices work
                        row = read(last)
                        if row is None:
                            continue
                        writer.row(last.step, *row)
                    if step < total:
                        watching.at(f"batch {step + 1}")
                        with timer.waiting():
                            ready = preemption.wait(lambda: next(batches))
                        batch, tokens = ready or (batch, tokens)

                    due = [name for name in evals if is_time(step, eval_every[name])]
                    asked = preemption.requested(step)
                    over = asked or step == total
                    if not (due or over or is_time(step, save_every)):
                        continue

                    # Evaluations and saves wait until the step is known to be sound.
                    row, pending = read(pending), None
                    if row is None:
                        continue
                    values, lap = row
                    with timer.aside():
                        for name in due:
                            watching.at(f"evaluation {name}", times=10)
                            values |= evals[name](state.params, step)
                    best = best.observe(step, values)
                    following = following.observe(step, values)
                    writer.row(step, values, lap)
                    over = over or guard.enough(stop, following)
                    if over or best.step == step or is_time(step, save_every):
                        watching.at(f"save {step}")
                        with timer.aside():
                            writer.sync()
                            checkpointer.save(
                                step,
                                state,
                                {
                                    "data": identity,
                                    "stop": following.asdict(),
                                    "best": best.asdict(),
                                    **faults.asdict(),
                                },
                                value=best.value if best.step == step else None,
                            )
                    if over:
                        exit_code = preemption.exit_code if asked else 0
                        break
                checkpointer.close()

        # ── The end ─────────────────────────────────────────────────────────────────
        if exit_code:
            writer.note(f"stopped and saved at step {step}; run again to continue")
            return exit_code
        writer.note(f"{needs}; {describe_peak(update)}")
        writer.note(summary(workdir, step))
        return 0


def adopt(
    config: Config, workdir: Path, allow_change: tuple[str, ...], primary: bool
) -> list[str]:
    """Makes the workdir this config's, or refuses one whose run is another.

    Returns:
      What changed, as lines for the log.

    Raises:
      CheckpointError: the workdir has checkpoints of a config that differs in a field
        that may not change.
    """
    file = workdir / "config.json"
    begun = runs.begun(workdir)
    changes = []
    if file.exists():
        changes = configs.changes(configs.from_json(file.read_text()), config)
        for path, old, new, changeable in changes:
            if begun and not changeable and path not in allow_change:
                raise CheckpointError(
                    path,
                    f"{new!r} in the config",
                    f"{old!r}, as the run in {workdir} began",
                    f"use another --workdir, or --allow-change={path}",
                )
    if primary:
        if changes and not begun:
            storage.remove_tree(workdir / "tokenizer")
        storage.write_text(file, configs.to_json(config))
    return [f"changed: {path} from {old!r} to {new!r}" for path, old, new, _ in changes]


def newest_host(checkpointer: Checkpointer) -> dict[str, Any]:
    """What the host kept with the newest checkpoint, not yet verified; or nothing."""
    step = checkpointer.latest()
    if step is None:
        return {}
    try:
        return json.loads((checkpointer.directory / f"{step}/host.json").read_text())
    except (OSError, ValueError):
        return {}  # restore finds the damage and says so


def check_data(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on with data that are not those of the checkpoint.

    Raises:
      CheckpointError: names the part that differs.
    """
    for part, value in now.items():
        if saved.get(part) != value:
            raise CheckpointError(
                f"data fingerprint: {part}",
                f"{value}",
                f"{saved.get(part)}, as in the checkpoint",
                "restore the files of the run, or use another --workdir",
            )


copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def look_into(
    fault: NumericalError,
    corpus: runs.Corpus,
    program: runs.Program,
    training: runs.Training,
    before: Any,
    number: int,
) -> NumericalError:
    """The fault of an update, with its batch, its examples and where it began.

    Args:
      before: the state that the update was to change.
      number: of the batch.
    """
    size = corpus.config.batch_size
    places = (corpus.stream.locate(number * size + row) for row in range(size))
    examples = " ".join(":".join(map(str, place)) for place in places)
    batch, _ = next(feed(corpus.config, corpus, program, number, number + 1))
    where = ""
    if fault.expected == guard.FINITE:
        found = diagnose.first_bad(training.loss, training.gradients, before, batch)
        where = f"first bad: {found}; "
    return NumericalError(
        fault.where,
        f"{fault.found}; {where}batch {number} of the examples (source:epoch:row) "
        f"{examples}",
        fault.expected,
        fault.fix,
    )


def feed(
    config: Config,
    corpus: runs.Corpus,
    program: runs.Program,
    first: int,
    last: int,
) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """The batches `first` to `last` - 1 on the devices, and their tokens."""
    host = pipeline.batches(
        corpus.stream,
        batch_size=config.batch_size,
        first_step=first,
        last_step=last,
        data=configs.build(pipeline.Data, config.data),
        shares=corpus.shares,
    )

    def put(batch: dict[str, np.ndarray]) -> tuple[dict[str, jax.Array], int]:
        tokens = corpus.objective.tokens(batch) * corpus.shares.processes
        return runs.on_devices(batch, program.mesh), tokens

    return pipeline.prefetch(host, put)


def describe_data(corpus: runs.Corpus, config: Config, total: int) -> str:
    rows = len(corpus.stream)
    tokens = sum(index.facts["tokens"] for index in corpus.stream.indices)
    epochs = total * config.batch_size / rows
    return (
        f"data: {rows:,} rows, {tokens:,} tokens, vocabulary "
        f"{corpus.codec.vocab_size:,}; {total:,} steps of {config.batch_size} rows "
        f"are {epochs:.1f} epochs"
    )


def describe_memory(state: Any) -> str:
    """Bytes per device that the parameters and the optimiser need."""

    def size(tree: Any) -> str:
        places = jax.tree.map(lambda leaf: leaf.sharding, tree)
        return megabytes(sharding.bytes_per_device(tree, places))

    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    return (
        f"{count:,} parameters; per device: parameters {size(state.params)}, "
        f"optimiser {size(state.opt_state)}"
    )


def describe_peak(update: Any) -> str:
    peak = timing.peak_memory(update)
    return "peak: " + ", ".join(
        f"{name.removesuffix('_bytes').replace('_', ' ')} {megabytes(value)}"
        for name, value in peak.items()
    )


def megabytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def summary(workdir: Path, step: int | None) -> str:
    """What came out: the last evaluations, and samples where there are some."""
    rows = read_rows(workdir / "metrics.jsonl")
    found = {
        name: value
        for name, value in (rows[-1] if rows else {}).items()
        if "/" in name and not name.startswith(("train/", "optim/"))
    }
    lines = [f"finished at step {step}: {workdir}"]
    for name in sorted({name.partition("/")[0] for name in found}):
        values = ", ".join(
            f"{key.partition('/')[2].replace('_', ' ')} {value:.4f}"
            for key, value in sorted(found.items())
            if key.startswith(f"{name}/")
        )
        lines.append(f"  {name}: {values}")
    for file in sorted((workdir / "samples").glob(f"*-{step}.txt")):
        lines.append(f"  {file}, a guess as [guess] or [guess|truth]:")
        lines += [f"    {line}" for line in file.read_text().splitlines() if line]
    return "\n".join(lines)
