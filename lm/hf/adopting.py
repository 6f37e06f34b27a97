"""Builds the config of the run that `lm.convert --from` makes of a checkpoint."""

import re
from typing import Any

from lm.hf import sentences, source
from lm.hf.checkpoint import Checkpoint
from lm.hf.tokenizer import tokens_around

LENGTH = 512  # tokens of a text that is made a vector, where no file says it
TEXT = {"sources": [{"name": "builtin"}]}


def tree(
    opened: Checkpoint, name: str, *, vectors: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Returns the config, as a config file gives it, and notes for the log.

    The objective is the one that the weights were trained on, as far as their names
    and config.json show it.

    Args:
      opened: the checkpoint.
      name: of the checkpoint, as in `init.source`: "hf:DIR".
      vectors: whether the objective is `contrastive` in any case, which gives vectors
        of texts; a directory of sentence-transformers has it anyway.

    Raises:
      CheckpointError: the head is no classifier with one class for each text.
      DataError: the directory has no tokenizer that this project can read.
    """
    length = min(opened.model["max_len"], 128)
    evals: dict[str, Any] = {}
    if sentences.is_sentence_encoder(opened.directory):
        objective, most = sentences.read(opened.directory)
        length = min(opened.model["max_len"], most or LENGTH)
        notes = ["no evaluation: its pairs of texts are not known"]
    elif vectors:
        first, last, _ = tokens_around(opened.directory, opened.family.model_type)
        wrap = "none" if not first else "delimiters" if last else "bos"
        objective, notes = {"name": "contrastive", "wrap": wrap}, []
        length = min(opened.model["max_len"], LENGTH)
    else:
        objective, evals, notes = task(opened)
        if "question_len" in objective:
            length = min(opened.model["max_len"], 384)
    tokenizer = source.tokenizer_of(opened.directory, opened.family.model_type)
    if objective.get("wrap") == "bos" and not vectors:
        first, _, why = tokens_around(opened.directory, opened.family.model_type)
        objective["wrap"] = "bos" if first else "none"
        begins = repr(first) if first else "no special token"
        notes.append(f"each sentence begins with {begins}: {why} (objective.wrap)")
    if "bos" in objective:
        first, last, why = tokens_around(opened.directory, opened.family.model_type)
        objective["bos"] = first is not None
        begins = repr(first) if first else "no special token"
        notes.append(f"each text begins with {begins}: {why} (objective.bos)")
        if last and objective["name"] == "causal_lm":
            notes.append(f"a prompt ends without the tokenizer's {last!r}")
    found = {
        "steps": 1000,
        "batch_size": 8,
        "seq_len": length,
        "model": dict(opened.model),
        "objective": objective,
        "tokenizer": dict(tokenizer),
        "optim": {"name": "adamw", "lr": 1e-5},
        "data": TEXT,
        "evals": evals,
        "init": {"source": name},
    }
    return found, [*opened.notes, *notes]


def task(opened: Checkpoint) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Returns the objective, the evaluations that the weights can run, and notes."""
    family, parts = opened.family, opened.parts
    objective: dict[str, Any]
    if "classify" in parts:
        kind = source.kind_of(opened)
        plain = all(re.fullmatch(r"LABEL_\d+", name) for name in opened.labels)
        objective = {"name": "classification", "kind": kind}
        if kind != "regression":
            objective |= {"classes": opened.sizes["C"]}
            objective |= {"labels": () if plain else opened.labels}
        objective |= {"summary": family.summary, "separators": family.separators}
        objective |= {"bos": False} if family.summary == "last" else {}
        return objective, {}, ["no evaluation: its labelled texts are not known"]
    if "tag" in parts and family.summary != "decoder":
        objective = {"name": "tagging", "labels": opened.labels}
        objective |= {"wrap": "bos"} if family.summary == "last" else {}
        return objective, {}, ["no evaluation: its tagged sentences are not known"]
    if "span" in parts and family.summary in ("tanh", "relu"):
        objective = {"name": "span_qa", "separators": family.separators}
        # A row is shorter where the model reads no more.
        objective["question_len"] = min(64, opened.model["max_len"] // 4)
        return objective, {}, ["no evaluation: its questions are not known"]
    objective = {"name": family.task}
    if family.task == "causal_lm":
        objective["bos"] = False
    if {"mlm", "nsp"} <= {*parts}:
        objective["next"] = "nsp"
    if not predicts_tokens(opened):
        name = (opened.config.get("architectures") or ["a bare model"])[0]
        note = f"no evaluation: {name} has no head that predicts tokens"
        return objective, {}, [f"{note}; a run can start from it (init.source)"]
    return objective, {"builtin": {"evaluator": "mean", "data": TEXT}}, []


def predicts_tokens(opened: Checkpoint) -> bool:
    """Returns whether the weights hold the heads that predict tokens."""
    heads = {rule.part for rule in opened.family.rules(opened.model)} & {"mlm", "lm"}
    if opened.family.task == "mlm":
        heads.add("mlm")
    return heads <= {*opened.parts}
