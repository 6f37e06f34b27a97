"""Part: the parameters of a run with an adapter: those it trains, and its base.

The base (lm/adapters/base.py) is the weights of `init.source`, or those that the seed
gives where there is no source. A checkpoint holds none of them but their hash, by which
they are known again whenever the run is opened.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import transfer, vectors
from lm.config import match
from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.errors import CheckpointError, ConfigError
from lm.host import files
from lm.models.base import Model
from lm.training import step
from lm.training.step import Program
from lm.trees import flatten, merge, select
from lm.workdir import checkpoint

Identity = Mapping[str, str]


def make(config: Config, model: Model, objective: Any) -> Program:
    """Binds a model, with the adapter of a config, and an objective (`step.make`)."""
    adapter, fresh = match.open_adapter(config), config.init.get("missing", ())
    program = step.make(adapter.wrap(model, fresh), objective)
    return program._replace(trains=functools.partial(adapter.trains, fresh=fresh))


def begin(
    config: Config, program: Program, params: Any, note: Callable[[str], None]
) -> Any:
    """Returns the parameters of a new run, with the weights of `init.source` if set.

    Args:
      params: as the model's `init` gives them.
      note: writes what was loaded to the log.

    Raises:
      CheckpointError, ConfigError: as `transfer.load_params`; or the source is a run
        with an adapter.
    """
    check_source(config)
    adapter = match.open_adapter(config)
    init = configs.build(checkpoint.Init, config.init)
    own = select(params, lambda path: not adapter.adds(path))
    own = transfer.from_source(init, own, note)
    return merge(own, adapter.begin(own, select(params, adapter.adds)))


def check_source(config: Config) -> None:
    """Refuses a source that does not hold whole weights.

    Raises:
      ConfigError: it is a run with an adapter; or it gives word vectors alone, and this
        run would freeze what is new.
    """
    source = config.init.source
    if source is None:
        return
    if vectors.split(source) and match.open_adapter(config).freezes:
        found = f"{source}, word vectors, under an adapter"
        raise ConfigError("init.source", found, "a run, or the folder of a model")
    if (Path(source) / "config.json").is_file() and _freezes(Path(source)):
        raise ConfigError(
            "init.source",
            f"{source}, a run with an adapter, whose checkpoints lack its base",
            "whole weights",
            f"python -m lm.convert --workdir={source} --to=hf:DIR merges them.",
        )


def _freezes(workdir: Path) -> bool:
    return match.open_adapter(configs.of_run(workdir)).freezes


def open_base(config: Config, program: Program) -> Any:
    """Reads or computes the base of a run; {} if it has none.

    Raises:
      CheckpointError, ConfigError: as `transfer.load_params`.
    """
    wanted = program.frozen(program.params)
    if not wanted:
        return {}
    init = configs.build(checkpoint.Init, config.init)
    place = match.open_adapter(config).place
    if init.source is not None and place:
        return {place: transfer.load_params(init, wanted[place])[0]}
    if init.source is not None:
        return transfer.load_params(init, wanted)[0]
    return program.frozen(program.init(jax.random.key(config.seed)))


def identify(config: Config, base: Any) -> Identity | None:
    """Names a base by where it comes from and the SHA-256 of its values.

    None stands for no base. Where several processes share the arrays, all call this.
    """
    if not base:
        return None
    source = config.init.source
    name = f"seed {config.seed}" if source is None else source
    return {"source": name, "sha256": digest(base)}


def digest(params: Any) -> str:
    """Computes the SHA-256 of parameters: of paths, types, shapes and values.

    Where several processes share the arrays, all call this.
    """
    found = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        found.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        found.update(np.ascontiguousarray(_whole(leaf)).data)
    return found.hexdigest()


def _whole(leaf: jax.Array) -> np.ndarray:
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def check(host: Mapping[str, Any], now: Identity | None) -> None:
    """Refuses a base that is not the one of a checkpoint.

    Args:
      host: the JSON of the checkpoint, with the `identify` of its base, if it has one.
      now: the base at hand.

    Raises:
      CheckpointError: its values differ.
    """
    then = host.get("base")
    if now is None or (then is not None and then["sha256"] == now["sha256"]):
        return
    found = f"weights with SHA-256 {now['sha256'][:16]}..."
    expected = "a checkpoint with the hash of its base"
    if then is not None:
        expected = f"{then['sha256'][:16]}..., those under this run's adapter"
    raise CheckpointError(
        f"init.source {now['source']}",
        found,
        expected,
        "restore the weights that the run began with.",
    )


def load(
    init: checkpoint.Init, directory: Path, config: Config, program: Program
) -> Any:
    """Reads all parameters of a run: those of a checkpoint, and the base.

    Args:
      init: names the checkpoint, and which of its weights.
      directory: the verified folder of the checkpoint.

    Raises:
      CheckpointError: the checkpoint is of another model; the base is missing, or has
        changed since.
    """
    shapes = transfer.shapes_in(directory, program)
    params, _ = transfer.load_params(init, select(shapes, program.trains))
    base = open_base(config, program)
    host = files.read_json(directory / "host.json", {}, error=CheckpointError)
    check(host, identify(config, base))
    return merge(base, params)


def merged(config: Config, params: Any) -> dict[str, np.ndarray]:
    """Returns path -> parameter of the model alone that computes the same.

    Args:
      params: of `load`.
    """
    flat = {path: _whole(leaf) for path, leaf in flatten(params).items()}
    return match.open_adapter(config).merge(flat)
