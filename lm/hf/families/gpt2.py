"""Describes GPT-2 (Radford et al. 2019), with linear weights (in, out)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.hf.families import tokens
from lm.hf.families.base import Family, Field, flag
from lm.hf.families.keys import ACTIVATIONS
from lm.hf.families.table import Rule, linear, norm
from lm.hf.formats.files import refuse

LAYER = "transformer.h.{i}"
QKV = tuple(f"layers/attention/{name}" for name in ("query", "key", "value"))


def rules(model: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Returns GPT-2's table of tensors; one holds query, key and value."""
    untied = Rule("lm_head.weight", "output/embedding", "V D -> V D", "lm")
    kernels, biases = (tuple(f"{p}/{n}" for p in QKV) for n in ("kernel", "bias"))
    return (
        Rule("transformer.wte.weight", "embed/token/embedding", "V D -> V D"),
        Rule("transformer.wpe.weight", "embed/position/embedding", "P D -> P D"),
        *norm(f"{LAYER}.ln_1", "layers/attention_norm"),
        Rule(f"{LAYER}.attn.c_attn.weight", kernels, "D (p N H) -> p D N H"),
        Rule(f"{LAYER}.attn.c_attn.bias", biases, "(p N H) -> p N H"),
        Rule(
            f"{LAYER}.attn.c_proj.weight",
            "layers/attention/output/kernel",
            "(N H) D -> N H D",
        ),
        Rule(f"{LAYER}.attn.c_proj.bias", "layers/attention/output/bias", "D -> D"),
        *norm(f"{LAYER}.ln_2", "layers/mlp_norm"),
        Rule(f"{LAYER}.mlp.c_fc.weight", "layers/mlp/up/kernel", "D F -> D F"),
        Rule(f"{LAYER}.mlp.c_fc.bias", "layers/mlp/up/bias", "F -> F"),
        Rule(f"{LAYER}.mlp.c_proj.weight", "layers/mlp/down/kernel", "F D -> F D"),
        Rule(f"{LAYER}.mlp.c_proj.bias", "layers/mlp/down/bias", "D -> D"),
        *norm("transformer.ln_f", "norm"),
        *((untied,) if model["output"] == "untied" else ()),
        *linear("score", "heads/classify", "C D -> D C", "classify", bias=False),
        *linear("classifier", "heads/tag", "C D -> D C", "tag"),
        *linear("qa_outputs", "heads/span", "T D -> D T", "span"),
    )


def tied(model: Mapping[str, Any]) -> dict[str, str]:
    """Returns the copy of the token embedding, unless the output is untied."""
    if model["output"] == "untied":
        return {}
    return {"lm_head.weight": "transformer.wte.weight"}


def adapt_in(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], set[str]]:
    """Reads the width of the feed-forward layers and whether the output is tied."""
    inner, wide = config.get("n_inner"), config.get("n_embd", 768)
    if any(type(n) is not int or not 0 < n < 2**31 for n in (inner or 1, wide)):
        refuse(path, f"n_inner {inner!r}, n_embd {wide!r}"[:120], "whole numbers")
    tied = flag(config, "tie_word_embeddings", True, path)
    more = {"d_ff": inner or 4 * wide, "output": "tied" if tied else "untied"}
    # n_ctx is an old name for n_positions.
    return more, {"n_inner", "n_ctx", "tie_word_embeddings"}


def adapt_out(model: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the keys that `adapt_in` reads, and a rate of dropout."""
    return {
        "n_inner": model["d_ff"],
        "embd_pdrop": model["dropout"],
        "tie_word_embeddings": model["output"] == "tied",
    }


FAMILY = Family(
    model_type="gpt2",
    prefix="transformer.",
    fields=(
        Field("vocab_size", "vocab_size", 50257),
        Field("n_positions", "max_len", 1024),
        Field("n_embd", "d_model", 768),
        Field("n_layer", "num_layers", 12),
        Field("n_head", "num_heads", 12),
        Field("activation_function", "activation", "gelu_new", ACTIVATIONS),
        Field("resid_pdrop", "dropout", 0.1),
        Field("attn_pdrop", "attention.dropout", 0.1),
        Field("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Field("initializer_range", "init_std", 0.02),
    ),
    fixed={
        "kind": "decoder",
        "position": "learned",
        "norm": "layer",
        "norm_position": "pre",
        "bias": "all",
        "embedding": "plain",
    },
    required={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    # The order of operations in mixed precision, and keys of a head that is not here.
    inert=frozenset({"reorder_and_upcast_attn", "summary_type", "summary_use_proj"})
    | {"summary_activation", "summary_proj_to_labels"},
    dropouts=frozenset({"embd_pdrop", "summary_first_dropout", "hidden_dropout"}),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    rules=rules,
    tied=tied,
    adapted=frozenset({"d_ff", "output"}),
    adapt_in=adapt_in,
    adapt_out=adapt_out,
    task="causal_lm",
    tokenizer=tokens.GPT2,
    architectures={
        "GPT2LMHeadModel": ("lm",),
        "GPT2ForSequenceClassification": ("classify",),
        "GPT2ForTokenClassification": ("tag",),
        "GPT2ForQuestionAnswering": ("span",),
        "GPT2Model": (),
    },
    unused=r".*\.attn\.(bias|masked_bias)",
    summary="last",
)
