"""Writes the config.json and the weights of a run, as `transformers` loads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lm.config.resolve import Config
from lm.errors import CheckpointError, ConfigError
from lm.hf.checkpoint import families, families_of
from lm.hf.families.base import Family, layers, sizes
from lm.hf.families.table import Shape, Source, nearest, sources
from lm.hf.formats import safetensors
from lm.hf.source import KINDS
from lm.host import storage

Shapes = Mapping[str, Shape]
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Plan:
    """The form of an export, decided from the shapes of the parameters alone.

    Attributes:
      family: the family, whose tables are used.
      architecture: the class of `transformers`.
      model: config.model with the size of its vocabulary.
      config: the content of config.json, without the ids of the tokenizer.
      sizes: axis of the tables -> size.
      sources: path of a parameter -> the tensors that are made from it.
    """

    family: Family
    architecture: str
    model: Mapping[str, Any]
    config: dict[str, Any]
    sizes: Mapping[str, int]
    sources: Mapping[str, Source]


def plan(config: Config, shapes: Shapes, family: str | None = None) -> Plan:
    """Finds the family and class whose parameters are exactly those of a run.

    Args:
      config: the run's config.
      shapes: path of a parameter -> its shape.
      family: a model type; None searches all families.

    Raises:
      ConfigError: no family computes this model; the line names what differs in each.
        Or the classifier of the family reads a row otherwise.
      CheckpointError: parameters without a tensor in the family, or the reverse.
    """
    labels = config.objective.get("labels") or ()
    heads = (shapes.get(f"heads/{name}/kernel") for name in ("classify", "tag"))
    count = next((shape[-1] for shape in heads if shape), 2)
    chosen, keys = _family(config.model, family)
    vocab_size = shapes["embed/token/embedding"][0]
    model = Config(config.model | {"vocab_size": vocab_size})
    keys["vocab_size"] = vocab_size
    known = sizes(model, count)
    problems = {}
    for architecture, parts in chosen.architectures.items():
        rules = chosen.table(model, architecture)
        found = sources(rules, known, layers(model))
        here = {path: source.shape for path, source in found.items()}
        if here == dict(shapes):
            chosen.check_parts(model, parts, "model")
            keys["architectures"] = [architecture]
            if "classify" in parts:
                _check_summary(config.objective, chosen, architecture)
                keys |= _problem(config.objective)
            if {"classify", "tag"} & {*parts}:
                keys |= _labels(labels, count)
            return Plan(chosen, architecture, model, keys, known, found)
        problems[architecture] = _difference(shapes, here)
    architecture, problem = min(problems.items(), key=lambda item: len(item[1]))
    raise CheckpointError(
        "params",
        "; ".join(problem),
        f"the parameters of a {architecture}",
        "--family chooses another family; --drop=REGEX leaves parameters out.",
    )


def _problem(objective: Config) -> dict[str, Any]:
    """Returns `problem_type`, where it is not the usual one.

    Raises:
      ConfigError: a regression whose output is not the prediction itself.
    """
    kind, scale = objective.get("kind", "softmax"), objective.get("scale", 1.0)
    if kind == "regression" and scale != 1.0:
        raise ConfigError(
            "objective.scale",
            f"{scale:g}",
            "1, since other libraries take the output itself for the prediction",
            "train a run to be exported with objective.scale=1.",
        )
    names = {own: name for name, own in KINDS.items()}
    return {} if kind == "softmax" else {"problem_type": names[kind]}


def _check_summary(objective: Config, family: Family, architecture: str) -> None:
    """Refuses a classifier with another summary than the family's.

    The shapes do not show it: a pooler's parameters are the same with tanh and relu.
    """
    found = objective.get("summary", family.summary)
    if found != family.summary:
        raise ConfigError(
            "objective.summary",
            repr(found),
            f"{family.summary!r}, which is what a {architecture} computes",
            "train it with that, or choose another family by --family.",
        )


def _family(model: Config, name: str | None) -> tuple[Family, dict[str, Any]]:
    if name is not None and name not in families():
        raise ConfigError("--family", repr(name), f"one of {', '.join(families())}")
    kinds = {each.model for each in families().values()}
    if model["name"] not in kinds:
        found = f"name={model['name']}, which no family of Hugging Face is"
        expected = f"{' or '.join(sorted(kinds))}, as {', '.join(families())} are"
        raise ConfigError("model", found, expected)
    problems = []
    for kind in [name] if name else families():
        for family in families_of(kind):
            try:
                return family, family.write(model)
            except ConfigError as error:
                problems.append(f"{kind}: {error.found}")
    raise ConfigError("model", " | ".join(problems), "the model of one of these")


def _difference(ours: Shapes, theirs: Shapes) -> list[str]:
    found = []
    for path in sorted(ours.keys() | theirs.keys()):
        if path not in theirs:
            found.append(f"{path}: no tensor (nearest: {nearest(path, theirs)})")
        elif path not in ours:
            found.append(f"{path}: missing (nearest: {nearest(path, ours)})")
        elif ours[path] != theirs[path]:
            found.append(f"{path}: shape {ours[path]}, not {theirs[path]}")
    return found


def _labels(labels: tuple[str, ...], count: int) -> dict[str, Any]:
    names = labels or [f"LABEL_{i}" for i in range(count)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def write(
    plan: Plan,
    params: Mapping[str, np.ndarray],
    directory: Path,
    *,
    dtype: str = "float32",
    shard_bytes: int = safetensors.SHARD_BYTES,
) -> list[str]:
    """Writes config.json and the weights; returns the names of the files.

    Args:
      params: path -> parameter, layers stacked on axis 0.
      directory: an existing folder.
      dtype: of the tensors, "float32" or "bfloat16" (rounded to even).
      shard_bytes: the most bytes of a file of weights, if no tensor is larger.
    """
    rules = {source.rule for source in plan.sources.values()}
    made: dict[str, tuple[Any, int | None]] = {}
    for rule in sorted(rules, key=lambda rule: list(plan.sources).index(rule.paths[0])):
        source = plan.sources[rule.paths[0]]
        for i, name in enumerate(source.names):
            made[name] = (rule, i if rule.layered else None)
    kind = DTYPES[dtype]
    shapes = {n: (kind, rule.tensor_shape(plan.sizes)) for n, (rule, _) in made.items()}

    def value(name: str) -> np.ndarray:
        rule, layer = made[name]
        leaves = [np.asarray(params[path]) for path in rule.paths]
        leaves = leaves if layer is None else [leaf[layer] for leaf in leaves]
        return rule.out_of(leaves, plan.sizes).astype(kind)

    names = safetensors.write(directory, shapes, value, shard_bytes=shard_bytes)
    config = plan.config | {"torch_dtype": dtype}
    storage.write_text(directory / "config.json", storage.to_json(config))
    return [*names, "config.json"]
