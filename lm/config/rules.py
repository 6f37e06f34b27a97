"""The rules between the fields of a config."""

import ast
import difflib
import functools
import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.config import durations
from lm.errors import ConfigError
from lm.ops.attention.limits import Wanted, check_implementation

# (holds, field, found, expected, fix)
Rule = tuple[bool, str, Any, str, str | None]


def check_rules(config: Mapping, examples_per_epoch: int | None = None) -> None:
    """Checks what no field shows alone; again when the size of the data is known.

    Durations in epochs, and what depends on them, pass as long as
    `examples_per_epoch` is None.

    Raises:
      ConfigError: the first rule that does not hold.
    """
    for rules in (
        _time_rules(config, examples_per_epoch),
        _shape_rules(config),
        _pair_rules(config),
        _objective_rules(config),
        _metric_rules(config),
        _holdout_rules(config),
        _optimiser_rules(config),
    ):
        for holds, where, found, expected, fix in rules:
            if not holds:
                raise ConfigError(where, str(found), expected, fix)
    _check_attention(config)


def _time_rules(c: Mapping, examples_per_epoch: int | None) -> Iterator[Rule]:
    total = None

    def steps(where: str, duration: int | str, least: int = 1) -> int | None:
        """None as long as it depends on what is unknown; refuses one below `least`."""
        number, unit = durations.parse(duration)
        unknown = {"epochs": examples_per_epoch, "percent": total}
        if number and unknown.get(unit, 0) is None:
            return None
        return durations.to_steps(
            duration,
            batch_size=c["batch_size"],
            seq_len=c["seq_len"],
            examples_per_epoch=examples_per_epoch or 0,
            total_steps=total or 0,
            where=where,
            least=least,
        )

    percent = durations.parse(c["steps"])[1] == "percent"
    expected = "a duration in steps, epochs, examples or tokens"
    yield not percent, "steps", repr(c["steps"]), expected, None
    total = steps("steps", c["steps"])
    optim = c["optim"]
    warmup = steps("optim.warmup", optim.get("warmup", 0), least=0)
    wsd = optim.get("schedule") == "wsd" and "decay" in optim
    decay = steps("optim.decay", optim["decay"]) if wsd else 0
    if None not in (total, warmup, decay):
        found = f"{warmup} steps" + f" and {decay} of optim.decay" * wsd
        most = f"at most steps={total}"
        fix = "lower it, or raise steps."
        yield warmup + decay <= total, "optim.warmup", found, most, fix
    for section in ("checkpoint", "log", *(f"evals.{name}" for name in c["evals"])):
        head, _, name = section.partition(".")
        fields = c[head][name] if name else c[head]
        if "every" in fields:
            steps(f"{section}.every", fields["every"])


def _shape_rules(c: Mapping) -> Iterator[Rule]:
    yield (
        c["batch_size"] % c["grad_accum"] == 0,
        "batch_size",
        c["batch_size"],
        f"a multiple of grad_accum={c['grad_accum']}",
        None,
    )
    model = c["model"]
    learned = model.get("position") == "learned"
    places = model.get("max_len", math.inf) if learned else math.inf
    yield (
        c["seq_len"] <= places,
        "seq_len",
        c["seq_len"],
        f"at most model.max_len={places}, the positions that are learned",
        "lower seq_len, or raise model.max_len.",
    )
    width, heads = model.get("d_model"), model.get("num_heads")
    attention = model.get("attention", {})
    if width and heads and not attention.get("head_dim"):
        expected = f"a multiple of model.num_heads={heads}"
        fix = "change one of them, or set model.attention.head_dim."
        yield width % heads == 0, "model.d_model", width, expected, fix
    shared = attention.get("kv_heads")
    if shared and heads:
        where, expected = "model.attention.kv_heads", f"a divisor of num_heads={heads}"
        yield heads % shared == 0, where, shared, expected, None
    if model.get("position") == "rope" and width and heads:
        size = attention.get("head_dim") or width // heads
        where, expected = "model.position", "heads of an even size"
        yield size % 2 == 0, where, f"rope with heads of {size}", expected, None


def _check_attention(c: Mapping) -> None:
    """What the implementation cannot do, as far as the config shows it."""
    compute, model = c.get("compute", {}), c["model"]
    options = model.get("attention", {})
    prefix = c["objective"]["name"] == "prefix_lm" and model.get("kind") == "decoder"
    width, heads = model.get("d_model"), model.get("num_heads")
    shared = width // heads if width and heads else None
    wanted = Wanted(
        dtype=compute.get("dtype", "float32"),
        head_dim=options.get("head_dim") or shared,
        position=model.get("position", "none"),
        softcap=options.get("softcap"),
        dropout=options.get("dropout", 0.0),
        prefix=prefix,
        precision=compute.get("precision"),
    )
    check_implementation(compute.get("attention", "xla"), wanted)


def _pair_rules(c: Mapping) -> Iterator[Rule]:
    objective, pair = c["objective"], c["objective"].get("next", "none")
    if pair == "none" and objective["name"] != "classification":
        return
    sections = {"data": c["data"]}
    sections |= {f"evals.{name}.data": e["data"] for name, e in c["evals"].items()}
    for where, data in sections.items():
        expected = f"false: objective {objective['name']} has one example in a row"
        fix = f"set {where}.pack=false" + " or objective.next=none" * (pair != "none")
        yield not data.get("pack"), f"{where}.pack", "true", expected, fix + "."
    types = c["model"].get("token_types")
    expected = f"2, for the two sentences of objective.next={pair}, or 0"
    yield pair == "none" or types != 1, "model.token_types", types, expected, None


# The kinds of model that an objective can train.
_KINDS = {
    "mlm": ("encoder",),
    "classification": ("encoder", "decoder", "encoder_decoder"),
    "causal_lm": ("decoder",),
    "prefix_lm": ("decoder", "encoder_decoder"),
    "seq2seq": ("encoder_decoder",),
    "span_corruption": ("encoder_decoder",),
    "denoising": ("encoder_decoder",),
}

# Where classification can read a row: a decoder's first token sees no other.
_SUMMARIES = {
    "encoder": ("tanh", "relu", "last"),
    "decoder": ("last",),
    "encoder_decoder": ("decoder",),
}


def _objective_rules(c: Mapping) -> Iterator[Rule]:
    objective, model = c["objective"], c["model"]
    name, kind = objective["name"], model.get("kind")
    kinds = _KINDS.get(name, (kind,))
    expected = f"{' or '.join(map(str, kinds))}, for objective {name}"
    fix = "choose a model of that kind, or another objective."
    yield kind in (None, *kinds), "model.kind", repr(kind), expected, fix
    if name == "classification":
        found = objective.get("summary")
        words = _SUMMARIES.get(kind, (found,))
        expected = f"{' or '.join(map(repr, words))}, with model.kind={kind!r}"
        yield found in words, "objective.summary", repr(found), expected, None
    typed = name == "mlm" or (name == "classification" and kind != "encoder_decoder")
    types = model.get("token_types") or 0
    expected = f"0: with objective {name} and kind={kind!r} no token has a type"
    holds = typed or name not in _KINDS or types == 0
    yield holds, "model.token_types", types, expected, None
    if name == "prefix_lm" and kind is not None:
        fix = "set objective.kind to the model's."
        expected = f"model.kind={kind!r}"
        found = objective["kind"]
        yield found == kind, "objective.kind", repr(found), expected, fix
    learned = model.get("position") == "learned"
    places = model.get("max_len", math.inf) if learned else math.inf
    for field in ("source_len", "target_len"):
        length = objective.get(field)
        expected = f"at most model.max_len={places}, the positions that are learned"
        fix = f"lower objective.{field}, or raise model.max_len."
        yield (length or 0) <= places, f"objective.{field}", length, expected, fix


def _metric_rules(c: Mapping) -> Iterator[Rule]:
    known = ", ".join(f"{name}/<metric>" for name in c["evals"]) or "none: add evals"
    for section, field in (("checkpoint", "best"), ("stop", "metric")):
        metric = c[section].get(field)
        name, _, rest = (metric or "").partition("/")
        holds = metric is None or (name in c["evals"] and rest != "")
        expected = f"a metric of an evaluation ({known})"
        yield holds, f"{section}.{field}", repr(metric), expected, None


def _holdout_rules(c: Mapping) -> Iterator[Rule]:
    """What is held out for an evaluation is not trained on."""

    def content(source: Mapping) -> dict:
        shares = ("weight", "part", "holdout")
        return {key: value for key, value in source.items() if key not in shares}

    for name, evaluation in c["evals"].items():
        for i, held in enumerate(evaluation["data"]["sources"]):
            if held.get("part") != "heldout":
                continue
            wanted = {"part": "train", "holdout": held["holdout"]}
            for j, source in enumerate(c["data"]["sources"]):
                found = {key: source[key] for key in wanted}
                yield (
                    found == wanted or content(source) != content(held),
                    f"data.sources.{j}",
                    found,
                    f"{wanted}, as evals.{name}.data.sources.{i} holds out of it",
                    None,
                )


def _optimiser_rules(c: Mapping) -> Iterator[Rule]:
    """A name that optax does not even mention; the rest `lm.training.optim` tells."""
    name, known = c["optim"].get("name"), _optax_names()
    close = difflib.get_close_matches(str(name), known, n=1)
    fix = f"did you mean {close[0]}?" if close else None
    holds = name in known or not known or not c["optim"]
    yield holds, "optim.name", repr(name), "an optimiser of optax, such as adamw", fix


@functools.cache
def _optax_names() -> frozenset[str]:
    """All names of optax and optax.contrib, read and not imported: that loads jax."""
    found = importlib.util.find_spec("optax")
    names: set[str] = set()
    for place in found.submodule_search_locations or () if found else ():
        for file in ("__init__.py", "contrib/__init__.py"):
            text = (Path(place) / file).read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom):
                    names |= {alias.asname or alias.name for alias in node.names}
                elif isinstance(node, ast.Assign):
                    names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return frozenset(names)
