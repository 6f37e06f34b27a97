"""Describes Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024).

Its functions serve Mistral and Qwen2 too, which have the same layers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.errors import ConfigError
from lm.hf.families import tokens
from lm.hf.families.base import Family, Field, flag, shown
from lm.hf.families.keys import GATED
from lm.hf.families.table import Rule, linear, norm
from lm.hf.formats.files import refuse

LAYER = "model.layers.{i}"
FIELDS = (
    Field("vocab_size", "vocab_size"),
    Field("hidden_size", "d_model"),
    Field("intermediate_size", "d_ff"),
    Field("num_hidden_layers", "num_layers"),
    Field("num_attention_heads", "num_heads"),
    Field("hidden_act", "activation", "silu", GATED),
    Field("rms_norm_eps", "norm_epsilon", 1e-6),
    Field("attention_dropout", "attention.dropout", 0.0),
    Field("initializer_range", "init_std", 0.02),
)
FIXED = {
    "kind": "decoder",
    "position": "rope",
    "norm": "rms",
    "norm_position": "pre",
    "embedding": "plain",
    "dropout": 0.0,
}
# Keys that only the library's code of the rotary embedding reads, for all classes.
REQUIRED = {
    "partial_rotary_factor": (None, 1.0),
    "original_max_position_embeddings": (None,),
}
# Keys that `shape` and `rope` below read.
KEYS = {"num_key_value_heads", "head_dim", "max_position_embeddings"}
KEYS |= {"tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters"}
ADAPTED = frozenset(
    {"attention.kv_heads", "attention.head_dim", "max_len", "output", "bias"}
    | {f"rope.{n}" for n in ("base", "scaling", "factor", "low", "high")}
    | {"rope.original_len"}
)
# Our field -> their key in the dict of a scaling.
LLAMA3 = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original_len": "original_max_position_embeddings",
}
SCALINGS = {"none": (), "linear": ("factor",), "llama3": tuple(LLAMA3)}


# `bias` of config.model -> which dense layers have a bias: query, key and value; the
# output of attention; the feed-forward layers.
BIASED = {
    "none": (False, False, False),
    "qkv": (True, False, False),
    "attention": (True, True, False),
    "mlp": (False, False, True),
    "all": (True, True, True),
}


def rules(model: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Returns the table of tensors of Llama, Mistral and Qwen2."""
    attention, to = f"{LAYER}.self_attn", "layers/attention"
    qkv, out, mlp = BIASED[model["bias"]]
    untied = Rule("lm_head.weight", "output/embedding", "V D -> V D", "lm")
    return (
        Rule("model.embed_tokens.weight", "embed/token/embedding", "V D -> V D"),
        *norm(f"{LAYER}.input_layernorm", "layers/attention_norm", bias=False),
        *linear(f"{attention}.q_proj", f"{to}/query", "(N H) D -> D N H", bias=qkv),
        *linear(f"{attention}.k_proj", f"{to}/key", "(K H) D -> D K H", bias=qkv),
        *linear(f"{attention}.v_proj", f"{to}/value", "(K H) D -> D K H", bias=qkv),
        *linear(f"{attention}.o_proj", f"{to}/output", "D (N H) -> N H D", bias=out),
        *norm(f"{LAYER}.post_attention_layernorm", "layers/mlp_norm", bias=False),
        *linear(f"{LAYER}.mlp.gate_proj", "layers/mlp/gate", "F D -> D F", bias=mlp),
        *linear(f"{LAYER}.mlp.up_proj", "layers/mlp/up", "F D -> D F", bias=mlp),
        *linear(f"{LAYER}.mlp.down_proj", "layers/mlp/down", "D F -> F D", bias=mlp),
        *norm("model.norm", "norm", bias=False),
        *((untied,) if model["output"] == "untied" else ()),
        *linear("score", "heads/classify", "C D -> D C", "classify", bias=False),
        *linear("score", "heads/tag", "C D -> D C", "tag"),
        *linear("qa_outputs", "heads/span", "T D -> D T", "span"),
    )


def tied(model: Mapping[str, Any]) -> dict[str, str]:
    """Returns the copy of the token embedding, unless the output is untied."""
    if model["output"] == "untied":
        return {}
    return {"lm_head.weight": "model.embed_tokens.weight"}


def shape(
    config: dict[str, Any], path: Path, *, kv_heads: int | None, max_len: int
) -> dict[str, Any]:
    """Returns the fields that need more than a table of keys.

    Args:
      kv_heads, max_len: the family's values where config.json gives none; None is as
        many key-value heads as heads.

    Raises:
      CheckpointError: a value that this project cannot compute.
    """
    found = {
        "attention.kv_heads": config.get("num_key_value_heads", kv_heads),
        "attention.head_dim": config.get("head_dim"),
        "max_len": config.get("max_position_embeddings", max_len),
    }
    for field, value in found.items():
        none = value is None and field != "max_len"
        if not none and (type(value) is not int or not 0 < value < 2**31):
            refuse(path, f"{field} {shown(value)}", "a whole number")
    heads = config.get("num_attention_heads")
    kv = found["attention.kv_heads"]
    if kv and isinstance(heads, int) and heads % kv:
        refuse(path, f"num_key_value_heads {kv}", f"a divisor of {heads}")
    tie = flag(config, "tie_word_embeddings", False, path)
    return found | {"output": "tied" if tie else "untied"} | rope(config, path)


def rope(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the fields of the rotary embedding.

    They come from `rope_theta` and `rope_scaling`, or from `rope_parameters`, which
    holds both in newer versions of the library.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        refuse(path, f"rope_scaling {shown(given)}", "a dict")
    given, outer = dict(given), config.get("rope_theta")
    base = given.pop("rope_theta", 10000.0 if outer is None else outer)
    if outer is not None and base != outer:
        both = f"rope_theta {shown(outer)}, and {shown(base)} in the rope settings"
        refuse(path, both, "one number: versions differ in which of them they read")
    if given.get("partial_rotary_factor", 1.0) == 1.0:
        given.pop("partial_rotary_factor", None)
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    found = {"rope.base": base, "rope.scaling": "none" if kind == "default" else kind}
    if not isinstance(kind, str) or found["rope.scaling"] not in SCALINGS:
        expected = "rope_type default, linear or llama3"
        refuse(path, f"rope_type {shown(kind)}", expected, "use another model.")
    for ours in SCALINGS[found["rope.scaling"]]:
        found[f"rope.{ours}"] = given.pop(LLAMA3[ours], None)
    if found.get("rope.original_len", 0) is None:
        found["rope.original_len"] = config.get("max_position_embeddings", 2048)
    if given:
        refuse(path, f"rope settings {shown(given)}", f"those of {kind}")
    for field, value in found.items():
        number = type(value) in (int, float) and 0 < value < 1e12
        if field != "rope.scaling" and not number:
            refuse(path, f"{field} {shown(value)}", "a positive number")
    whole = {"rope.original_len": int, "rope.scaling": str}
    return {field: whole.get(field, float)(value) for field, value in found.items()}


def shape_out(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that `shape` reads."""
    attention, rope = model["attention"], model["rope"]
    heads = model["num_heads"]
    scaling: dict[str, Any] = {"rope_type": rope["scaling"].replace("none", "default")}
    for ours in SCALINGS[rope["scaling"]]:
        scaling[LLAMA3[ours]] = rope[ours]
    return {
        "num_key_value_heads": attention["kv_heads"] or heads,
        "head_dim": attention["head_dim"] or model["d_model"] // heads,
        "max_position_embeddings": model["max_len"],
        "tie_word_embeddings": model["output"] == "tied",
        "rope_theta": rope["base"],
        "rope_scaling": scaling if rope["scaling"] != "none" else None,
    }


def adapt_in(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], set[str]]:
    """Reads `shape`'s fields and which dense layers have a bias."""
    names = ("attention_bias", "mlp_bias")
    attention, mlp = (flag(config, name, False, path) for name in names)
    biases = {biased: name for name, biased in BIASED.items()}
    more = shape(config, path, kv_heads=None, max_len=2048)
    return more | {"bias": biases[attention, attention, mlp]}, KEYS | {*names}


def adapt_out(model: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the keys that `adapt_in` reads."""
    qkv, out, mlp = BIASED[model["bias"]]
    if qkv != out:
        expected = "what a llama has: biases of all of its attention, or none"
        raise ConfigError("model", f"bias={model['bias']!r}", expected)
    return shape_out(model) | {"attention_bias": out, "mlp_bias": mlp}


def architectures(name: str) -> dict[str, tuple[str, ...]]:
    """Returns the classes of Llama, or of a family with the same layers."""
    return {
        f"{name}ForCausalLM": ("lm",),
        f"{name}ForSequenceClassification": ("classify",),
        f"{name}ForTokenClassification": ("tag",),
        f"{name}ForQuestionAnswering": ("span",),
        f"{name}Model": (),
    }


ROTARY = r".*rotary_emb\.inv_freq"
FAMILY = Family(
    model_type="llama",
    prefix="model.",
    fields=FIELDS,
    fixed=FIXED,
    # It splits a matrix product, which changes the order of the sums alone.
    inert=frozenset({"pretraining_tp"}),
    required=REQUIRED,
    task="causal_lm",
    tokenizer=tokens.LLAMA,
    rules=rules,
    tied=tied,
    adapted=ADAPTED,
    adapt_in=adapt_in,
    adapt_out=adapt_out,
    architectures=architectures("Llama"),
    prefixes={"LlamaForQuestionAnswering": "transformer."},
    unused=ROTARY,
    summary="last",
)
