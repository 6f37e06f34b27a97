"""Describes T5 (Raffel et al. 2020), its version 1.1 (Shazeer 2020) and Flan-T5.

Version 1.0 ties the output to the embedding and scales the hidden states before it; 1.1
has gated feed-forward layers and an untied output, and does not scale. Some classes are
the encoder alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm.hf.families import tokens
from lm.hf.families.base import Family, Field, flag, shown
from lm.hf.families.keys import ACTIVATIONS, GATED
from lm.hf.families.table import Rule, linear, norm
from lm.hf.formats.files import refuse


def rules(model: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Returns T5's table of tensors, of one stack or of two."""
    untied = Rule("lm_head.weight", "output/embedding", "V D -> V D", "lm")
    found = [Rule("shared.weight", "embed/token/embedding", "V D -> V D")]
    both = model["kind"] == "encoder_decoder"
    for stack, mlp in (("encoder", 1), ("decoder", 2)) if both else (("encoder", 1),):
        above = f"{stack}/" if both else ""
        block, to = f"{stack}.block.{{i}}.layer", f"{above}layers"
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        found += attention(f"{block}.0.SelfAttention", f"{to}/attention")
        found += norm(f"{block}.0.layer_norm", f"{to}/attention_norm", bias=False)
        if stack == "decoder":
            found += attention(f"{block}.1.EncDecAttention", f"{to}/cross_attention")
            to_norm = f"{to}/cross_attention_norm"
            found += norm(f"{block}.1.layer_norm", to_norm, bias=False)
        dense = f"{block}.{mlp}.DenseReluDense"
        names: tuple[tuple[str, str], ...] = (("up", "wi"),)
        if model["activation"] in GATED.values():
            names = (("gate", "wi_0"), ("up", "wi_1"))
        for ours, theirs in names:
            found += linear(
                f"{dense}.{theirs}", f"{to}/mlp/{ours}", "F D -> D F", bias=False
            )
        found += linear(f"{dense}.wo", f"{to}/mlp/down", "D F -> F D", bias=False)
        found += norm(f"{block}.{mlp}.layer_norm", f"{to}/mlp_norm", bias=False)
        found += [Rule(f"{first}.weight", f"{above}relative/embedding", "B N -> B N")]
        found += norm(f"{stack}.final_layer_norm", f"{above}norm", bias=False)
    return (
        *found,
        *((untied,) if both and model["output"] == "untied" else ()),
        *linear("classification_head.dense", "pooler", "D E -> E D", "classify"),
        *linear(
            "classification_head.out_proj", "heads/classify", "C D -> D C", "classify"
        ),
        *linear("classifier", "heads/tag", "C D -> D C", "tag"),
        *linear("qa_outputs", "heads/span", "T D -> D T", "span"),
    )


def attention(name: str, path: str) -> tuple[Rule, ...]:
    """Returns the rules of an attention layer without biases."""
    return (
        *linear(f"{name}.q", f"{path}/query", "(N H) D -> D N H", bias=False),
        *linear(f"{name}.k", f"{path}/key", "(N H) D -> D N H", bias=False),
        *linear(f"{name}.v", f"{path}/value", "(N H) D -> D N H", bias=False),
        *linear(f"{name}.o", f"{path}/output", "D (N H) -> N H D", bias=False),
    )


def tied(model: Mapping[str, Any]) -> dict[str, str]:
    """Returns the copies of the token embedding."""
    names = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    if model["output"] != "untied":
        names.append("lm_head.weight")
    return dict.fromkeys(names, "shared.weight")


def adapt_in(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], set[str]]:
    """Reads the depth of the decoder, the activation and whether the output is tied."""
    layers, decoder = config.get("num_layers", 6), config.get("num_decoder_layers")
    if decoder is None:
        decoder = layers
    if type(decoder) is not int or not 0 < decoder <= 1000:
        refuse(path, f"num_decoder_layers {shown(decoder)}", "a number up to 1000")
    positions = config.get("n_positions", 512)
    if type(positions) is not int or not 0 < positions < 2**31:
        refuse(path, f"n_positions {shown(positions)}", "a whole number")
    # transformers 5 writes tie_word_embeddings=true for every T5; scale_decoder_outputs
    # shows whether it is.
    tied = flag(config, "tie_word_embeddings", True, path)
    scaled = flag(config, "scale_decoder_outputs", tied, path)
    more = {
        "activation": activation(config, path),
        "num_layers": decoder,
        "output": "scaled" if scaled else "untied",
        "max_len": positions,
    }
    dropout = config.get("dropout_rate", 0.1)
    if isinstance(dropout, int | float):
        more["attention.dropout"] = float(dropout)
    keys = {"feed_forward_proj", "dense_act_fn", "is_gated_act", "n_positions"}
    keys |= {"num_decoder_layers", "tie_word_embeddings", "scale_decoder_outputs"}
    return more, keys


def activation(config: dict[str, Any], path: Path) -> str:
    """Returns `activation` of config.model.

    `feed_forward_proj` names the function and whether there is a gate. The library lets
    `dense_act_fn` and `is_gated_act` override it, so they do here.
    """
    given = config.get("feed_forward_proj", "relu")
    gate, _, function = given.rpartition("-") if isinstance(given, str) else ("", "", 0)
    if gate not in ("", "gated"):
        refuse(path, f"feed_forward_proj {shown(given)}", "FUNCTION or gated-FUNCTION")
    function = "gelu_new" if given == "gated-gelu" else function
    function = config.get("dense_act_fn", function)
    known = GATED if flag(config, "is_gated_act", bool(gate), path) else ACTIVATIONS
    if not isinstance(function, str) or function not in known:
        found = f"feed_forward_proj {shown(given)}, dense_act_fn {shown(function)}"
        refuse(path, found, f"one of {', '.join(known)}", "use another model.")
    return known[function]


def activation_out(chosen: str) -> dict[str, Any]:
    """Returns the keys that `activation` reads."""
    gated = chosen in GATED.values()
    known = GATED if gated else ACTIVATIONS
    function = next(theirs for theirs, ours in known.items() if ours == chosen)
    # The library reads "gated-gelu" as gelu_new, so another gelu needs dense_act_fn.
    name = "gelu" if gated and function.startswith("gelu") else function
    return {
        "feed_forward_proj": f"gated-{name}" if gated else name,
        "dense_act_fn": "gelu_new" if chosen == "geglu_tanh" else function,
        "is_gated_act": gated,
    }


def adapt_out(model: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the keys that `adapt_in` reads."""
    tied = model["output"] == "scaled"
    return activation_out(model["activation"]) | {
        "num_layers": model["encoder_layers"] or model["num_layers"],
        "num_decoder_layers": model["num_layers"],
        "n_positions": model["max_len"],
        "is_encoder_decoder": True,
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": tied,
    }


def encoder_in(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], set[str]]:
    """Reads the keys of a model that is the encoder alone."""
    more, keys = adapt_in(config, path)
    del more["num_layers"]
    return more | {"output": "tied"}, keys


def encoder_out(model: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the keys of a model that is the encoder alone."""
    keys = {"n_positions": model["max_len"], "is_encoder_decoder": False}
    return keys | activation_out(model["activation"])


ENCODER = Family(
    model_type="t5",
    prefix="",
    fields=(
        Field("vocab_size", "vocab_size", 32128),
        Field("d_model", "d_model", 512),
        Field("d_kv", "attention.head_dim", 64),
        Field("d_ff", "d_ff", 2048),
        Field("num_layers", "num_layers", 6),
        Field("num_heads", "num_heads", 8),
        Field("relative_attention_num_buckets", "attention.buckets", 32),
        Field("relative_attention_max_distance", "attention.max_distance", 128),
        Field("dropout_rate", "dropout", 0.1),
        Field("layer_norm_epsilon", "norm_epsilon", 1e-6),
    ),
    fixed={
        "kind": "encoder",
        "position": "relative",
        "norm": "rms",
        "norm_position": "pre",
        "bias": "none",
        "embedding": "plain",
        "init_std": None,
        "attention.scale": 1.0,
    },
    rules=rules,
    tied=tied,
    adapted=frozenset({"output", "max_len", "attention.dropout", "activation"}),
    inert=frozenset({"initializer_factor"}),
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
    adapt_in=encoder_in,
    adapt_out=encoder_out,
    tokenizer=tokens.T5,
    architectures={"T5ForTokenClassification": ("tag",), "T5EncoderModel": ()},
    prefixes={"T5ForTokenClassification": "transformer."},
)
LAYERS = {"num_layers": Field("num_layers", "encoder_layers", 6)}
FAMILY = replace(
    ENCODER,
    fields=tuple(LAYERS.get(item.key, item) for item in ENCODER.fields),
    fixed={**ENCODER.fixed, "kind": "encoder_decoder"},
    adapted=ENCODER.adapted | {"num_layers", "encoder_layers"},
    adapt_in=adapt_in,
    adapt_out=adapt_out,
    task="span_corruption",
    usage=frozenset({"decoder_start_token_id"}),
    architectures={
        "T5ForConditionalGeneration": ("lm",),
        "T5WithLMHeadModel": ("lm",),  # its name until 2020
        "T5ForSequenceClassification": ("classify",),
        "T5ForQuestionAnswering": ("span",),
        "T5Model": (),
    },
    summary="decoder",
    prefixes={"T5ForSequenceClassification": "transformer."},
    others=(ENCODER,),
)
