"""Part: opens a run: the data, model, mesh and compiled functions of its config.

Every command opens a run by the functions of this file, so that a checkpoint means
the same to all of them. `open_run` opens a run that has been trained.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lm import adapted, trees, vectors
from lm.config import match
from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.data import pipeline
from lm.data.corpus import Corpus
from lm.data.pipeline import Data, Shares
from lm.data.stream import Stream
from lm.decoding import loop
from lm.errors import ConfigError, DataError
from lm.evaluators.likelihood import Scorer
from lm.hf import generation, source
from lm.hf.checkpoint import directory_of
from lm.models.base import Compute, Model
from lm.training import in_place, optim, sharding, step
from lm.training.criterion import Criterion, Plain
from lm.training.step import Program, Training
from lm.workdir import checkpoint
from lm.workdir.adopt import begun

Note = Callable[[str], None]


def check(config: Config, needs: Iterable[str] = (), asker: str = "") -> None:
    """Checks, without data or devices, that the parts of a config fit together.

    Args:
      needs, asker: the abilities that a command asks for, and its name.

    Raises:
      ConfigError: model, objective and evaluations do not fit (lm/config/match.py).
    """

    def build(config: Config) -> tuple[Any, Any]:
        objective = open_objective(config)
        return open_model(config, objective), objective

    match.check(config, build, needs, asker)
    if vectors.split(config.init.source):
        asker = f"init.source {config.init.source}"
        match.check(config, build, {"embeds"}, asker)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with the weights of one of its checkpoints.

    Attributes:
      config: complete; what is opened follows it.
      step: of the checkpoint.
      params: the weights, on the devices.
    """

    config: Config
    workdir: Path
    corpus: Corpus
    program: Program
    params: Any
    step: int

    def on_mesh(self) -> Any:
        """Returns the context in which the functions of the program are called."""
        return jax.set_mesh(self.program.mesh)


def open_run(
    workdir: Path,
    which: checkpoint.Which = "latest",
    *,
    config: Config | None = None,
    weights: Literal["averaged", "trained"] = "averaged",
    note: Note = print,
) -> Run:
    """Opens a run with the weights of a checkpoint, to evaluate or generate with it.

    Args:
      which: the checkpoint, "latest", "best" or a step.
      config: replaces the run's own config, such as to change its evaluations.
      weights: "averaged", where the run keeps an average (`optim.ema`), or "trained".
      note: takes lines for the user.

    Raises:
      ConfigError: the folder holds no run, or the config is refused.
      CheckpointError: no such checkpoint, a damaged one, or one of another model; or
        the base of its adapter is missing or has changed.
      DataError: the tokenizer is missing or damaged.
    """
    config = with_tokenizer(config or configs.of_run(workdir), workdir)
    with checkpoint.reading(workdir, which) as directory:
        corpus = open_corpus(config, workdir, note)
        program = open_program(config, corpus)
        at = int(directory.name)
        init = checkpoint.Init(str(workdir), checkpoint=at, weights=weights)
        with jax.set_mesh(program.mesh):
            params = adapted.load(init, directory, config, program)
    return Run(config, workdir, corpus, program, params, at)


def open_corpus(config: Config, workdir: Path, note: Note) -> Corpus:
    """Opens the tokenizer, trained on the first run, and a factory of streams.

    Raises:
      DataError: a source or the tokenizer is missing, damaged or does not fit.
    """
    shares = pipeline.this_process()
    objective = open_objective(config)
    codec = open_codec(config, workdir, objective, shares, note)

    def open_stream(
        section: Config,
        *,
        seed: int,
        train: bool,
        changes: Config | None = None,
        rows: int | None = None,
        limit: int | None = None,
    ) -> Stream:
        return pipeline.open_stream(
            configs.build(Data, section),
            match.changed(objective, changes or {}),
            codec,
            seq_len=config.seq_len,
            seed=seed,
            train=train,
            batch_size=rows or config.batch_size,
            limit=limit,
            multiple=config.mesh.get("sequence", 1),
            cache=workdir / "data",
            shares=shares,
            note=note,
            counts=None if train else corpus.token_counts,
        )

    ends = generation.ends(workdir / "tokenizer", codec.vocab_size)
    corpus = Corpus(config, objective, codec, shares, open_stream, note, ends)
    return corpus


def giver(config: Config) -> str | None:
    """Returns what gives a config without a tokenizer its own: a run or hf:DIR.

    It is `init.source`, or else the teacher.
    """
    given, teacher = config.init.source, config.teacher.get("source")
    return teacher if given is None else given


def with_tokenizer(config: Config, workdir: Path) -> Config:
    """Completes a config that names no tokenizer with that of its run or its `giver`.

    From a directory of Hugging Face it takes the size of the vocabulary too.
    """
    if source.is_hf(config.init.source):
        return source.complete(config, workdir)
    if vectors.split(config.init.source) and not begun(workdir):
        vectors.check(config.init.source, config.tokenizer)
    if config.tokenizer is not None:
        return config
    place = giver(config)
    assert place is not None  # lm.config.resolve has checked it.
    begun_here = (workdir / "config.json").exists()
    if source.is_hf(place) and not begun_here:
        return source.with_vocabulary(config, place)
    theirs = configs.of_run(workdir if begun_here else Path(place))
    return Config(config | {"tokenizer": theirs.tokenizer})


def open_codec(
    config: Config, workdir: Path, objective: Any, shares: Shares, note: Note
) -> Any:
    """Opens the run's own tokenizer, copies that of its `giver`, or trains one.

    Raises:
      DataError: it cannot be made, or differs from the tokenizer of the weights.
    """
    own, section, inherited = workdir / "tokenizer", config.tokenizer, None
    place = giver(config)
    if place is not None and not vectors.split(place) and not begun(workdir):
        inherited = tokenizer_of(place, shares, note)
        if not source.is_hf(place):
            same = section == configs.of_run(Path(place)).tokenizer
            if same and shares.process == 0 and not own.exists():
                pipeline.copy_tokenizer(Path(place) / "tokenizer", own)
            shares.wait("tokenizer copied")

    texts = functools.partial(train_texts, config, objective)
    codec = pipeline.open_tokenizer(section, own, texts, shares, note)
    if inherited is not None and codec.fingerprint != inherited.fingerprint:
        raise DataError(
            "tokenizer",
            "another one than that of the weights",
            f"the tokenizer of {place}",
            "set tokenizer to None, and it is taken from there",
        )
    return codec


def tokenizer_of(place: str, shares: Shares, note: Note) -> Any:
    """Opens the tokenizer of another run, or of a directory of Hugging Face.

    Raises:
      ConfigError, CheckpointError, DataError: there is none, or it is damaged.
    """
    if source.is_hf(place):
        return source.open_tokenizer(directory_of(place))
    theirs, folder = configs.of_run(Path(place)).tokenizer, Path(place) / "tokenizer"
    return pipeline.open_tokenizer(theirs, folder, lambda: iter(()), shares, note)


def train_texts(config: Config, objective: Any) -> Iterator[str]:
    """Begins a pass over the texts of the training records."""
    data = configs.build(Data, config.data)
    sources = pipeline.open_sources(data, train=True)
    return pipeline.texts_of(sources, objective.columns())


def durations(config: Config, corpus: Corpus) -> Callable[..., int]:
    """Returns a function from a duration of this run to steps.

    An epoch is one pass over all rows.

    Raises:
      ConfigError: durations in epochs contradict each other.
    """
    rows = len(corpus.stream)
    configs.check_rules(config, examples_per_epoch=rows)
    known = {
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "examples_per_epoch": rows,
    }
    total = configs.to_steps(config.steps, **known)
    return functools.partial(configs.to_steps, **known, total_steps=total)


def open_program(
    config: Config, corpus: Corpus, devices: Sequence[Any] | None = None
) -> Program:
    """Builds the model and compiles its functions for the mesh of the config.

    Args:
      devices: of the mesh; None is all devices of all processes.

    Raises:
      ConfigError: the mesh does not fit the devices, or the model the tokenizer.
    """
    mesh_config = configs.build(sharding.MeshConfig, config.mesh)
    mesh = sharding.make_mesh(mesh_config, devices)
    model = open_model(
        config, corpus.objective, vocab_size(config, corpus.codec.vocab_size)
    )
    program = adapted.make(config, model, corpus.objective)
    return step.compile_program(program, mesh, mesh_config.rules)


def open_objective(config: Config) -> Any:
    """Builds the objective of a config."""
    return match.build_class("objective", config.objective, "objective")


def open_model(config: Config, objective: Any, vocab_size: int | None = None) -> Model:
    """Builds the model of a config, with the objective's heads and no parameters.

    Before the tokenizer is known it can still be asked what it can do (lm.models.base).

    Args:
      vocab_size: None is that of the config, if it has one.
    """
    size = vocab_size or config.model.get("vocab_size")
    return configs.build(
        configs.load_class("model", config.model.name),
        config.model | {"vocab_size": size},
        compute=configs.build(Compute, config.compute, rules=config.mesh.rules),
        heads=objective.heads(),
    )


def open_training(
    config: Config,
    corpus: Corpus,
    program: Program,
    steps_of: Callable[..., int],
    criterion: Criterion | None = None,
) -> Training:
    """Builds the optimiser and compiles the update of the program's model.

    Args:
      criterion: what is minimised; None is the loss of the corpus's objective.

    Raises:
      ConfigError: the batch does not divide over the mesh, the optimiser refuses, or
        there is nothing to train.
    """
    if not jax.tree.leaves(program.params):
        found = f"{config.job!r}, with a model whose parameters are made of the data"
        raise ConfigError("job", found, "fit")
    mesh = program.mesh
    sharding.check_batch(config.batch_size, config.grad_accum, mesh)
    settings, update = configs.build(optim.Optim, config.optim), config["update"]
    if settings.average_from is not None:
        begins = steps_of(settings.average_from, where="optim.average_from", least=0)
        settings = dataclasses.replace(settings, average_from=begins)
    schedule = optim.schedule(settings, steps_of)
    gradient = match.build_class("update", update, "update")
    halt = config.stop.on_nonfinite != "skip"
    if gradient.in_place:
        training = in_place.make_training(
            program.model,
            corpus.objective,
            config.optim,
            schedule,
            seed=config.seed,
            update=gradient,
            halt=halt,
        )
        return step.compile_training(training, program, config.mesh.rules)
    drawn, trained = corpus.stream.drawn is not None, program.trained(program.params)
    criterion = criterion or Plain(program.model, corpus.objective)
    own = jax.eval_shape(criterion.start, jax.random.key(0))
    trained = trees.merge(trained, own)
    make = functools.partial(
        step.make_training,
        optimizer=optim.make(settings, trained, schedule),
        schedule=schedule,
        seed=config.seed,
        grad_accum=config.grad_accum,
        gradient=gradient,
        rows=config.batch_size if carries(config.data, program.model) else 0,
        pace=step.share_of(config.seq_len) if drawn else None,
        halt=halt,
        trains=program.trains,
    )
    training = make(criterion)
    # The search for the first bad value needs each module's output, which
    # rematerialisation hides in one traced piece.
    compute = dataclasses.replace(program.model.compute, remat="none")
    visible = make(criterion.of(program.model.clone(compute=compute)))
    training = training._replace(loss=visible.loss)
    return step.compile_training(training, program, config.mesh.rules)


def carries(data: Config, model: Model) -> bool:
    """Tells whether the model's state is carried from one batch of data to the next."""
    return data.get("order") == "stream" and "carry" in model.can


def vocab_size(config: Config, tokens: int) -> int:
    """Returns the size of the model's vocabulary.

    That is `model.vocab_size`, or else the tokenizer's, rounded up to a multiple of
    `model.vocab_multiple`.

    Args:
      tokens: those of the tokenizer.

    Raises:
      ConfigError: it is smaller than the tokenizer's.
    """
    wanted = config.model.get("vocab_size")
    if wanted is None:
        multiple = config.model.get("vocab_multiple", 1)
        return math.ceil(tokens / multiple) * multiple
    if wanted < tokens:
        raise ConfigError(
            "model.vocab_size",
            str(wanted),
            f"at least the tokenizer's {tokens}",
            "leave it None, or use a smaller tokenizer",
        )
    return wanted


def on_devices(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, jax.Array]:
    """Puts this process's rows on the mesh as global arrays.

    `example_ids` stay on the host.
    """
    arrays = {name: rows for name, rows in batch.items() if name != "example_ids"}
    return sharding.put_batch(arrays, mesh)


def open_batches(
    corpus: Corpus, program: Program, first: int, last: int
) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """Opens the training batches `first` to `last` - 1, counted from 0.

    Yields:
      A batch on the devices, and how many tokens it has over all processes.
    """
    config, shares = corpus.config, corpus.shares
    host = pipeline.batches(
        corpus.stream,
        batch_size=config.batch_size,
        first_step=first,
        last_step=last,
        data=configs.build(Data, config.data),
        shares=shares,
    )

    def put(batch: dict[str, np.ndarray]) -> tuple[dict[str, jax.Array], int]:
        tokens = corpus.objective.tokens(batch) * shares.processes
        return on_devices(batch, program.mesh), tokens

    return pipeline.prefetch(host, put)


def make_decoder(corpus: Corpus, program: Program) -> loop.Decoder:
    """Builds the run's decoder, without parameters; see `loop.make_decoder`."""
    prefix = corpus.objective.sees_prompt
    codec, ends = corpus.codec, corpus.ends
    if "dialogue" in corpus.objective.can:  # An answer ends where it did in training.
        own = corpus.objective.form(codec).ends
        ends = tuple(dict.fromkeys((*own, *(ends or ()))))
    return loop.make_decoder(program.model, codec, prefix=prefix, ends=ends)


def make_scorer(corpus: Corpus, program: Program, params: Any) -> Scorer:
    """Makes what scores texts with the weights of a run; call it in the run's mesh."""
    mesh, shares = program.mesh, corpus.shares

    def judge(batch: dict[str, np.ndarray]) -> Any:
        (rows,) = {len(array) for array in batch.values()}
        size = rows // shares.processes
        own = slice(shares.process * size, (shares.process + 1) * size)
        mine = {name: array[own] for name, array in batch.items()}
        return program.score(params, on_devices(mine, mesh))

    context, shards = program.model.context, sharding.row_shards(mesh)
    return Scorer(corpus.objective, corpus.codec, context, judge, shards)
