"""Describes Qwen2 and 2.5 (Yang et al. 2024): Llama with biases in attention."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.hf.families import llama, tokens
from lm.hf.families.base import Family, shown
from lm.hf.formats.files import refuse

WINDOW = {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}


def adapt_in(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], set[str]]:
    """Reads `llama.shape`'s fields; refuses sliding windows."""
    kinds = config.get("layer_types") or ["full_attention"]
    whole = isinstance(kinds, list) and all(k == "full_attention" for k in kinds)
    sliding = config.get("use_sliding_window", False)
    if sliding is not False or not whole:
        found = f"use_sliding_window {shown(sliding)}, layer_types {shown(kinds)}"
        refuse(path, found, "full attention in all layers", "use another model.")
    more = llama.shape(config, path, kv_heads=32, max_len=32768)
    return more, llama.KEYS | WINDOW


def adapt_out(model: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the keys that `adapt_in` reads."""
    return llama.shape_out(model) | {"use_sliding_window": False}


FAMILY = Family(
    model_type="qwen2",
    prefix="model.",
    fields=llama.FIELDS,
    fixed=llama.FIXED | {"bias": "qkv"},
    required=llama.REQUIRED,
    task="causal_lm",
    tokenizer=tokens.QWEN2,
    rules=llama.rules,
    tied=llama.tied,
    adapted=llama.ADAPTED - {"bias"},
    adapt_in=adapt_in,
    adapt_out=adapt_out,
    architectures=llama.architectures("Qwen2"),
    prefixes={"Qwen2ForQuestionAnswering": "transformer."},
    unused=llama.ROTARY,
    summary="last",
)
