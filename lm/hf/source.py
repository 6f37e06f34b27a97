"""Completes and checks a run that starts from `init.source="hf:DIR"`."""

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.errors import CheckpointError
from lm.hf.checkpoint import (
    PREFIX,
    Checkpoint,
    directory_of,
    open_checkpoint,
    read_config,
)
from lm.hf.families.base import (
    DEFAULTS,
    DERIVED,
    TRAINING,
    Family,
    get,
    is_unused,
    shown,
)
from lm.hf.tokenizer import section


def is_hf(source: str | None) -> bool:
    """Returns whether `init.source` names a Hugging Face directory or model."""
    return source is not None and source.startswith(PREFIX)


def with_shape(workdir: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns a function that fills a config's model with the shape of its checkpoint.

    It applies where `init.source` is "hf:DIR" and `model.preset` is "hf" or None, or
    where `init.source` is a run and `model.preset` is given as None. The fields that
    the config gives override those of the checkpoint. A run that has begun takes the
    shape from its own config.json.
    """

    def fill(tree: dict[str, Any]) -> dict[str, Any]:
        init, model = tree.get("init"), tree.get("model")
        given = init.get("source") if isinstance(init, Mapping) else None
        if not isinstance(model, Mapping) or not isinstance(given, str):
            return tree
        of_run = Path(given) / "config.json"
        if is_hf(given):
            takes = model.get("preset") in (None, "None", "hf")
        else:
            takes = model.get("preset", "") in (None, "None") and of_run.exists()
        if not takes:
            return tree
        if (workdir / "config.json").exists():
            shape = dict(configs.of_run(workdir).model)
        elif not is_hf(given):
            shape = dict(configs.of_run(of_run.parent).model)
            if model.get("name", shape["name"]) != shape["name"]:
                return tree
        else:
            family, theirs, path = read_config(directory_of(str(given)))
            shape = family.read(theirs, path)
        own = {key: value for key, value in model.items() if key != "preset"}
        for key, value in own.items():
            inner = shape.get(key)
            if isinstance(value, Mapping) and isinstance(inner, Mapping):
                value = {**inner, **value}
            shape[key] = value
        return tree | {"model": shape}

    return fill


def check(config: Config, workdir: Path) -> None:
    """Checks the directory that a new run starts from; needs no jax.

    Raises:
      CheckpointError: the directory is damaged or unsafe, holds another model than the
        config's, or a classifier that the objective does not continue.
    """
    if is_hf(config.init.source) and not (workdir / "config.json").exists():
        complete(config, workdir)
        missing = [p for p in config.init.missing if _is_regex(p)]
        opened = open_checkpoint(directory_of(config.init.source), missing)
        if "classify" in opened.parts and "summary" in config.objective:
            if continues_head(opened, config):
                check_classes(opened, config.objective.get("kind", "softmax"))
            _check_rows(opened.family, config)
        if "tag" in opened.parts and "pieces" in config.objective:
            _check_tags(opened, config)
        if "span" in opened.parts and "answer_len" in config.objective:
            _check_fields(opened.family, config, ["separators"], "a head of answers")


def continues_head(opened: Checkpoint, config: Config, part: str = "classify") -> bool:
    """Returns whether a run takes over the parameters that give the classes of texts.

    It does not where `init.map` renames them. A pooler below them may be continued
    under a new head.

    Args:
      part: the head, "classify", or "tag" for the classes of tokens.
    """
    patterns = [pattern for pattern, _ in config.init.map if _is_regex(pattern)]
    head = (
        path
        for path, source in opened.sources.items()
        if source.rule.part == part and source.rule.has_axis("C")
    )
    return any(not any(re.fullmatch(p, path) for p in patterns) for path in head)


# `problem_type` of config.json -> `objective.kind`, the other way round on export.
KINDS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "regression",
}


def kind_of(opened: Checkpoint) -> str:
    """Returns the kind of labels that a classifier of texts is for.

    Without a `problem_type` one output is a regression, as in other libraries.

    Raises:
      CheckpointError: no kind has so many outputs.
    """
    outputs = opened.sizes["C"]
    given = opened.config.get("problem_type")
    kind = KINDS.get(given or list(KINDS)[2 * (outputs == 1)])
    if kind is not None and (outputs == 1) == (kind == "regression"):
        return kind
    raise CheckpointError(
        f"{opened.directory / 'config.json'}: problem_type",
        f"{given!r} with {outputs} output{'s' * (outputs != 1)}",
        "one of one output (regression), or a classification of several",
        NEW_HEAD,
    )


NEW_HEAD = (
    "start with a new head on its layers: init.source with "
    "init.map=[('heads/classify/(.*)', 'unused/\\1')] and "
    "init.missing=('heads/classify/.*',)."
)


def check_classes(opened: Checkpoint, kind: str) -> None:
    """Refuses a classifier of texts that is for labels of another kind.

    Its shapes may fit, and training it with another loss would be silently wrong.

    Args:
      kind: `objective.kind`.

    Raises:
      CheckpointError: names both kinds.
    """
    found = kind_of(opened)
    if found != kind:
        raise CheckpointError(
            f"{opened.directory / 'config.json'}: problem_type",
            f"a head for objective.kind={found!r} with {opened.sizes['C']} outputs",
            f"one for objective.kind={kind!r}",
            NEW_HEAD,
        )


def _check_tags(opened: Checkpoint, config: Config) -> None:
    """Refuses tags in another order than those that the head was trained on."""
    known, found = opened.labels, tuple(config.objective.labels)
    named = not all(re.fullmatch(r"LABEL_\d+", name) for name in known)
    same = len(known) == len(found)  # Otherwise the shapes of the head differ.
    if named and same and known != found and continues_head(opened, config, "tag"):
        raise CheckpointError(
            f"init.source {config.init.source}",
            f"a head for the tags {', '.join(known)}",
            f"{', '.join(found)}, the config's objective.labels",
            "set objective.labels in that order, or start with a new head: "
            "init.map=[('heads/tag/(.*)', 'unused/\\1')] and "
            "init.missing=('heads/tag/.*',).",
        )


def _check_rows(family: Family, config: Config) -> None:
    """Refuses rows of another form than those that the classifier was trained on."""
    fields = ["summary"]
    if config.objective.pair and family.summary in ("tanh", "relu"):
        fields.append("separators")
    _check_fields(family, config, fields, "a classifier")


def _check_fields(family: Family, config: Config, fields: list[str], what: str) -> None:
    """Refuses values of the objective's fields that differ from the family's."""
    for field in fields:
        theirs, found = getattr(family, field), config.objective[field]
        if found != theirs:
            raise CheckpointError(
                f"init.source {config.init.source}",
                f"{what} with {field} {theirs!r}",
                f"{found!r}, the config's objective.{field}",
                f"set objective.{field}={theirs}.",
            )


def _is_regex(pattern: str) -> bool:
    """Returns whether a pattern compiles; `lm.transfer` refuses those that do not."""
    try:
        return bool(re.compile(pattern))
    except re.error:
        return False


def complete(config: Config, workdir: Path) -> Config:
    """Returns the config with the directory's tokenizer and size of the vocabulary.

    Only fields that are None are filled. A run that has begun takes both from its own
    config.json.

    Raises:
      CheckpointError: config.model and the checkpoint's model compute different things.
    """
    if (workdir / "config.json").exists():
        own = configs.of_run(workdir)
        return _filled(config, own.tokenizer, own.model.vocab_size)
    family, theirs, path = read_config(directory_of(config.init.source))
    model = family.read(theirs, path)
    config = with_vocabulary(config, config.init.source)
    found = different(config.model, model)
    if found:
        raise CheckpointError(
            f"init.source {config.init.source}",
            "; ".join(f"{field}={shown(there)}" for field, there, _ in found),
            "; ".join(f"{field}={shown(here)}" for field, _, here in found),
            "set model.preset=hf and leave these fields out: the checkpoint has them.",
        )
    return config


def with_vocabulary(config: Config, place: str) -> Config:
    """Fills the tokenizer and `model.vocab_size`, where None, from "hf:DIR"."""
    directory = directory_of(place)
    family, theirs, path = read_config(directory)
    tokenizer = tokenizer_of(directory, family.model_type)
    return _filled(config, tokenizer, family.read(theirs, path)["vocab_size"])


def different(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Returns (field, theirs, ours) of each difference that changes the computation."""
    fields = {field for field in theirs if not isinstance(theirs[field], Mapping)}
    fields |= DEFAULTS.keys()
    found = []
    for field in sorted(fields - TRAINING - {"name"}):
        here, there = get(ours, field), get(theirs, field)
        if field in DERIVED:
            here = DERIVED[field](ours) if here is None else here
            there = DERIVED[field](theirs) if there is None else there
        free = field == "max_len" and theirs["position"] != "learned"
        output = field == "output" and theirs["kind"] == "encoder"
        if here != there and not (free or output or is_unused(field, theirs)):
            found.append((field, there, here))
    return found


def tokenizer_of(directory: Path, model_type: str) -> Config:
    """Returns config.tokenizer for the directory's tokenizer, with all its fields."""
    found = section(directory, model_type)
    tokenizer = configs.build(configs.load_class("tokenizer", found["name"]), found)
    whole = {"name": found["name"]} | dataclasses.asdict(tokenizer)
    return configs.from_json(json.dumps(whole))


def open_tokenizer(directory: Path) -> Any:
    """Returns the directory's tokenizer, loaded (a codec of lm.tokenizers)."""
    given = tokenizer_of(directory, read_config(directory)[0].model_type)
    tokenizer = configs.build(configs.load_class("tokenizer", given.name), given)
    with tempfile.TemporaryDirectory() as place:
        tokenizer.make(lambda: iter(()), Path(place))
        return tokenizer.load(Path(place))


def _filled(config: Config, tokenizer: Config, vocab_size: int | None) -> Config:
    if config.tokenizer is not None:
        tokenizer = config.tokenizer
    if config.model.vocab_size is not None:
        vocab_size = config.model.vocab_size
    model = Config(config.model | {"vocab_size": vocab_size})
    return Config(config | {"tokenizer": tokenizer, "model": model})
