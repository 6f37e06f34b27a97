"""Part: a config made into what a run works with: data, model, mesh, compiled functions.

Training, evaluation and the tools open a run by the same functions, so that a
checkpoint means the same to each of them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import config as configs
from lm import optim, sharding, step, trees
from lm.config import Config
from lm.data import pipeline
from lm.data.pipeline import Data, Shares, Stream
from lm.errors import ConfigError, DataError
from lm.evaluators.base import Tools
from lm.models.layers import Compute

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The data of a run.

    Attributes:
      codec: the tokenizer.
      objective: the task, which says how rows become examples.
      stream: the training examples.
      shares: which process this is.
    """

    codec: Any
    objective: Any
    stream: Stream
    shares: Shares


@dataclasses.dataclass(frozen=True)
class Program:
    """A model and its functions, compiled for a mesh at their first call.

    Attributes:
      model: the module.
      mesh: the devices.
      abstract: the state's shapes, types and shardings.
      init: key -> parameters.
      start: parameters -> State, before the first update.
      update: (State, batch) -> (State, measurements); the state is donated.
      metrics, predict: of (params, batch); the latter also gives the batch, and both
        give whole arrays on every process.
    """

    model: Any
    mesh: Any
    abstract: step.State
    init: Callable
    start: Callable
    update: Any
    metrics: Callable
    predict: Callable


def this_process() -> Shares:
    """The share of this process, and waiting for the others by jax's barrier."""
    if jax.process_count() == 1:
        return Shares()
    from jax.experimental import multihost_utils

    return Shares(
        jax.process_index(), jax.process_count(), multihost_utils.sync_global_devices
    )


def open_objective(config: Config) -> Any:
    cls = configs.load_class("objective", config.objective.name)
    return configs.build(cls, config.objective)


def open_corpus(config: Config, workdir: Path, note: Note) -> Corpus:
    """The tokenizer and the training stream; both are made at the first run.

    Raises:
      DataError: a source or the tokenizer is missing, damaged or does not fit.
    """
    shares = this_process()
    objective = open_objective(config)
    data = configs.build(Data, config.data, sources=config.data.sources)
    codec = open_codec(config, workdir, objective, data, shares, note)
    stream = pipeline.open_stream(
        data,
        objective,
        codec,
        seq_len=config.seq_len,
        seed=config.seed,
        train=True,
        cache=workdir / "data",
        shares=shares,
        note=note,
    )
    return Corpus(codec, objective, stream, shares)


def open_codec(
    config: Config,
    workdir: Path,
    objective: Any,
    data: Data,
    shares: Shares,
    note: Note,
) -> Any:
    """The run's tokenizer: its own, that of `init.source`, or one made from its data."""
    sources = pipeline.open_sources(data)
    own = workdir / "tokenizer"
    section = config.tokenizer
    if config.init.source is not None:
        source = Path(config.init.source)
        theirs = configs.from_json((source / "config.json").read_text())
        inherited = pipeline.open_tokenizer(
            theirs.tokenizer, source / "tokenizer", iter, shares, note
        )
        if section is None:
            section = theirs.tokenizer
            if shares.process == 0 and not own.exists():
                pipeline.copy_tokenizer(source / "tokenizer", own)
            shares.wait("tokenizer copied")
    codec = pipeline.open_tokenizer(
        section,
        own,
        lambda: pipeline.texts_of(sources, objective.columns()),
        shares,
        note,
    )
    if config.init.source is not None and codec.fingerprint != inherited.fingerprint:
        raise DataError(
            "tokenizer",
            "another one than that of the weights",
            f"the tokenizer of {config.init.source}",
            "leave tokenizer=None, to take it from init.source",
        )
    return codec


def durations(config: Config, corpus: Corpus) -> Callable[[Any], int]:
    """What turns a duration of this run into steps; an epoch is all rows, once.

    Raises:
      ConfigError: durations in epochs that do not go together.
    """
    configs.check_rules(config, examples_per_epoch=len(corpus.stream))
    known = {
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "examples_per_epoch": len(corpus.stream),
    }
    total = configs.to_steps(config.steps, **known, total_steps=None)
    return functools.partial(configs.to_steps, **known, total_steps=total)


def open_model(config: Config, corpus: Corpus) -> Any:
    """The module, its vocabulary as large as the tokenizer's or as the config says."""
    size = corpus.codec.vocab_size
    wanted = config.model.vocab_size
    if wanted is None:
        multiple = config.model.vocab_multiple
        wanted = math.ceil(size / multiple) * multiple
    if wanted < size:
        raise ConfigError(
            "model.vocab_size",
            str(wanted),
            f"at least the tokenizer's {size}",
            "leave it None, or use a smaller tokenizer",
        )
    compute = configs.build(Compute, config.compute, rules=config.mesh.rules)
    return configs.build(
        configs.load_class("model", config.model.name),
        config.model | {"vocab_size": wanted},
        compute=compute,
        heads=corpus.objective.heads(),
    )


def open_program(
    config: Config, corpus: Corpus, steps_of: Callable[[Any], int]
) -> Program:
    """Everything that runs on the devices, laid out over the mesh of the config.

    Raises:
      ConfigError: the mesh or the batch does not fit the devices.
    """
    mesh_config = configs.build(sharding.MeshConfig, config.mesh)
    mesh = sharding.make_mesh(mesh_config)
    sharding.check_batch(config.batch_size, config.grad_accum, mesh)
    model = open_model(config, corpus)
    settings = configs.build(optim.Optim, config.optim)
    schedule = optim.schedule(settings, steps_of)

    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(lambda k: step.initial_params(model, k), key)
    optimizer = optim.make(settings, shapes, schedule)
    functions = step.make(
        model,
        corpus.objective,
        optimizer,
        schedule,
        seed=config.seed,
        grad_accum=config.grad_accum,
    )
    state = jax.eval_shape(functions.start, shapes)
    shardings = sharding.state_shardings(
        state, step.logical_axes(model), mesh, mesh_config.rules
    )
    abstract = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        state,
        shardings,
    )
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return Program(
        model=model,
        mesh=mesh,
        abstract=abstract,
        init=jax.jit(functions.init, out_shardings=shardings.params),
        start=jax.jit(functions.start, out_shardings=shardings),
        update=jax.jit(
            functions.update, out_shardings=(shardings, whole), donate_argnums=0
        ),
        metrics=jax.jit(functions.metrics, out_shardings=whole),
        predict=jax.jit(
            lambda params, batch: (batch, functions.predict(params, batch)),
            out_shardings=whole,
        ),
    )


def on_devices(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, jax.Array]:
    """A process's share of a batch as global arrays; what only the host needs is left."""
    arrays = {name: rows for name, rows in batch.items() if name != "example_ids"}
    return sharding.put_batch(arrays, mesh)


def open_evaluators(
    config: Config, workdir: Path, corpus: Corpus, program: Program, note: Note
) -> dict[str, Callable[[Any, int], Iterator[tuple[str, float]]]]:
    """By name, a function of (params, step) that runs the evaluation."""
    evaluators = {}
    for name, section in config.evals.items():
        cls = configs.load_class("evaluator", section.evaluator)
        evaluator = configs.build(cls, section)
        data = configs.build(Data, section.data, sources=section.data.sources)
        stream = pipeline.open_stream(
            data,
            corpus.objective,
            corpus.codec,
            seq_len=config.seq_len,
            seed=section.seed,
            train=False,
            cache=workdir / "data",
            shares=corpus.shares,
            note=note,
        )
        rows = min(len(stream), section.limit or len(stream))
        batch_size = section.batch_size or config.batch_size
        sharding.check_batch(batch_size, 1, program.mesh)

        def batches(
            stream: Stream = stream,
            rows: int = rows,
            batch_size: int = batch_size,
            data: Data = data,
        ) -> Iterator[dict[str, jax.Array]]:
            host = pipeline.batches(
                stream,
                batch_size=batch_size,
                first_step=0,
                last_step=math.ceil(rows / batch_size),
                data=data,
                shares=corpus.shares,
                rows=rows,
            )
            put = functools.partial(on_devices, mesh=program.mesh)
            return pipeline.prefetch(host, put)

        tools = Tools(
            stream=stream,
            rows=rows,
            batches=batches,
            metrics=program.metrics,
            predict=program.predict,
            codec=corpus.codec,
            show=getattr(corpus.objective, "show", None),
            train_counts=functools.partial(token_counts, corpus),
            samples=workdir / "samples",
        )
        evaluators[name] = functools.partial(_run, evaluator, tools, name)
    return evaluators


def _run(evaluator: Any, tools: Tools, name: str, params: Any, step: int) -> dict:
    tools = dataclasses.replace(tools, samples=tools.samples / f"{name}-{step}.txt")
    return {f"{name}/{key}": value for key, value in evaluator.run(tools, params)}


def token_counts(corpus: Corpus) -> np.ndarray:
    """(V,) how often each token stands in the training rows."""
    size = corpus.codec.vocab_size
    return sum(index.token_counts(size) for index in corpus.stream.indices)


def model_flops(model: Any, params: Any, batch: dict[str, Any]) -> float:
    """FLOPs of one update that the model needs, recomputation aside.

    3 (forward, and twice that backward) x 2 x [multiplications of each token with the
    kernels of the layers, of scores and sums of attention (2 x T x N x H a layer), and
    of each target place with the vocabulary head].
    """
    leaves = trees.flatten(params)
    rows, length = batch["inputs"].shape
    kernels = {path: math.prod(leaf.shape) for path, leaf in leaves.items()}
    layers = sum(
        size
        for path, size in kernels.items()
        if path.startswith("layers/") and path.endswith("/kernel")
    )
    heads = (model.head_dim or model.d_model // model.num_heads) * model.num_heads
    attention = 2 * model.num_layers * length * heads
    products = rows * length * (layers + attention)
    if "target_positions" in batch:
        places = math.prod(batch["target_positions"].shape)
        products += places * model.d_model * (model.d_model + model.vocab_size)
    return 6.0 * products
