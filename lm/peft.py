"""Part: an adapter out of a run, and into a new workdir, in the form of PEFT."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from lm import adapted
from lm import run as runs
from lm.config import match
from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.errors import CheckpointError, ConfigError
from lm.hf import adopting, checkpoint, exporting, peft
from lm.hf.families.base import layers, sizes
from lm.hf.families.table import sources
from lm.trees import flatten, nest

Arrays = dict[str, np.ndarray]


def export(
    opened: runs.Run, family: str | None, drop: re.Pattern[str], directory: Path
) -> str:
    """Writes the adapter of a run, and what was trained beside it.

    Args:
      family: of Hugging Face, as for `exporting.plan`.
      drop: matches parameters to leave out.
      directory: an existing folder.

    Returns:
      The class of `transformers` whose base it fits.

    Raises:
      ConfigError: the run has no adapter of low rank, or PEFT cannot hold it.
      CheckpointError: as `exporting.plan`.
    """
    config, adapter = opened.config, match.open_adapter(opened.config)
    flat = {path: np.asarray(leaf) for path, leaf in flatten(opened.params).items()}
    pairs = adapter.factors(flat)
    if not pairs:
        found = f"peft: of a run with adapter {config.adapter.name}"
        raise ConfigError("--to", found, "a run with adapter.name=lora")
    own = {path: x for path, x in flat.items() if not adapter.adds(path)}
    own = {path: x for path, x in own.items() if not drop.fullmatch(path)}
    plan = exporting.plan(config, {path: x.shape for path, x in own.items()}, family)
    fresh, source = config.init.missing, config.init.source
    whole = {path: x for path, x in own.items() if adapter.trains(path, fresh)}
    base = None
    if source is not None and source.startswith(checkpoint.PREFIX):
        base = source.removeprefix(checkpoint.PREFIX)
    peft.write(plan, config.adapter, pairs, whole, base, directory)
    return plan.architecture


def read(directory: Path, overrides: list[str]) -> tuple[Config, list[str], Arrays]:
    """Reads a folder of PEFT.

    Args:
      overrides: `--config.a.b=VALUE`; `init.source` is the base, where the folder does
        not name it.

    Returns:
      The config of its run, notes for the log, and path -> parameter that is trained.

    Raises:
      CheckpointError: the folder is damaged, of another kind, or not of this base.
      ConfigError: no base is named, or an override does not hold.
    """
    options, theirs = peft.read_options(directory)
    name = _base(theirs, overrides)
    opened = checkpoint.open_checkpoint(checkpoint.directory_of(name))
    family, task = opened.family, theirs.get("task_type")
    fitting = [n for n in family.architectures if peft.task_of(n) == task]
    if not fitting:
        raise CheckpointError(
            str(directory / peft.CONFIG),
            f"task_type {task!r}"[:200],
            "that of a class of " + ", ".join(family.architectures),
        )
    table = family.table(opened.model, fitting[0])
    count = peft.classes(directory, table)
    known = sizes(opened.model, count or 2)
    found = sources(table, known, layers(opened.model))
    pairs, whole = peft.read(directory, found, known, options["rank"])
    headed = dataclasses.replace(
        opened,
        parts=tuple(sorted(family.architectures[fitting[0]])),
        labels=tuple(f"LABEL_{i}" for i in range(count or 0)),
        sizes=known,
    )
    tree, notes = adopting.tree(headed, name)
    tree["adapter"] = {"name": "lora", "kernels": sorted(pairs), **options}
    tree["init"] |= {"missing": sorted(whole)}
    params = dict(whole)
    for path, (a, b) in pairs.items():
        head = path.removesuffix("/kernel")
        params |= {f"{head}/lora_a/kernel": a, f"{head}/lora_b/kernel": b}
    return configs.load(tree, overrides), notes, params


def _base(theirs: dict[str, Any], overrides: list[str]) -> str:
    """Returns the base: that of the command line, else that of adapter_config.json."""
    flag = "--config.init.source="
    given = [each.removeprefix(flag) for each in overrides if each.startswith(flag)]
    name = theirs.get("base_model_name_or_path")
    if not given and not (isinstance(name, str) and name):
        fix = "give --config.init.source=hf:DIR."
        raise ConfigError("init.source", "no base", "the folder of the base", fix)
    return given[-1] if given else f"{checkpoint.PREFIX}{name}"


def checked(
    config: Config, workdir: Path, params: Arrays
) -> tuple[Any, adapted.Identity | None]:
    """Compares parameters with those that a run of a config trains.

    Args:
      workdir: in which the run's tokenizer is made.

    Returns:
      The parameters as a tree, and the identity of their base.

    Raises:
      CheckpointError: one is missing, too many or of another shape; or the base is.
    """
    corpus = runs.open_corpus(config, workdir, lambda line: None)
    program = runs.open_program(config, corpus)
    wanted = flatten(program.trained(program.params))
    here = {path: x.shape for path, x in params.items()}
    there = {path: x.shape for path, x in wanted.items()}
    for path in sorted(here.keys() | there.keys()):
        if here.get(path) != there.get(path):
            found = f"{path} of shape {here.get(path, 'none')}"
            expected = f"shape {there.get(path, 'none')}"
            raise CheckpointError(peft.WEIGHTS, found, expected)
    base = adapted.open_base(config, program)
    return nest(params), adapted.identify(config, base)
