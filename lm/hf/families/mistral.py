"""Describes Mistral (Jiang et al. 2023): Llama with a sliding window."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.hf.families import llama, tokens
from lm.hf.families.base import Family, shown
from lm.hf.formats.files import refuse


def adapt_in(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], set[str]]:
    """Reads `llama.shape`'s fields and the sliding window."""
    window = config.get("sliding_window", 4096)
    if window is not None and (type(window) is not int or window < 1):
        refuse(path, f"sliding_window {shown(window)}", "a whole number or null")
    more = llama.shape(config, path, kv_heads=8, max_len=4096 * 32)
    return more | {"attention.window": window}, llama.KEYS | {"sliding_window"}


def adapt_out(model: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the keys that `adapt_in` reads."""
    return llama.shape_out(model) | {"sliding_window": model["attention"]["window"]}


FAMILY = Family(
    model_type="mistral",
    prefix="model.",
    fields=llama.FIELDS,
    fixed=llama.FIXED | {"bias": "none"},
    required=llama.REQUIRED,
    task="causal_lm",
    tokenizer=tokens.LLAMA,
    rules=llama.rules,
    tied=llama.tied,
    adapted=llama.ADAPTED - {"bias"} | {"attention.window"},
    adapt_in=adapt_in,
    adapt_out=adapt_out,
    architectures=llama.architectures("Mistral"),
    unused=llama.ROTARY,
    summary="last",
)
