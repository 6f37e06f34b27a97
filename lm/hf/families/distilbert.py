"""Describes DistilBERT (Sanh et al. 2019): BERT without token types and pooler."""

from collections.abc import Mapping
from typing import Any

from lm.hf.families import bert
from lm.hf.families.base import Family, Field
from lm.hf.families.keys import ACTIVATIONS
from lm.hf.families.table import Rule, linear, norm

EMBED, LAYER = "distilbert.embeddings", "distilbert.transformer.layer.{i}"


def rules(model: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Returns DistilBERT's table of tensors."""
    attention = f"{LAYER}.attention"
    return (
        Rule(f"{EMBED}.word_embeddings.weight", "embed/token/embedding", "V D -> V D"),
        Rule(
            f"{EMBED}.position_embeddings.weight",
            "embed/position/embedding",
            "P D -> P D",
        ),
        *norm(f"{EMBED}.LayerNorm", "embed/norm"),
        *linear(f"{attention}.q_lin", "layers/attention/query", "(N H) D -> D N H"),
        *linear(f"{attention}.k_lin", "layers/attention/key", "(N H) D -> D N H"),
        *linear(f"{attention}.v_lin", "layers/attention/value", "(N H) D -> D N H"),
        *linear(f"{attention}.out_lin", "layers/attention/output", "D (N H) -> N H D"),
        *norm(f"{LAYER}.sa_layer_norm", "layers/attention_norm"),
        *linear(f"{LAYER}.ffn.lin1", "layers/mlp/up", "F D -> D F"),
        *linear(f"{LAYER}.ffn.lin2", "layers/mlp/down", "D F -> F D"),
        *norm(f"{LAYER}.output_layer_norm", "layers/mlp_norm"),
        *linear("vocab_transform", "heads/mlm/dense", "D E -> E D", "mlm"),
        *norm("vocab_layer_norm", "heads/mlm/norm", "mlm"),
        Rule("vocab_projector.bias", "heads/mlm/bias", "V -> V", "mlm"),
        *linear("pre_classifier", "pooler", "D E -> E D", "classify"),
        *linear("classifier", "heads/classify", "C D -> D C", "classify"),
        *bert.HEADS,
    )


FAMILY = Family(
    model_type="distilbert",
    prefix="distilbert.",
    fields=(
        Field("vocab_size", "vocab_size", 30522),
        Field("max_position_embeddings", "max_len", 512),
        Field("n_layers", "num_layers", 6),
        Field("n_heads", "num_heads", 12),
        Field("dim", "d_model", 768),
        Field("hidden_dim", "d_ff", 3072),
        Field("dropout", "dropout", 0.1),
        Field("attention_dropout", "attention.dropout", 0.1),
        Field("activation", "activation", "gelu", ACTIVATIONS),
        Field("initializer_range", "init_std", 0.02),
    ),
    fixed=bert.FIXED | {"norm_epsilon": 1e-12},
    # Initialisation of the position embedding, which the checkpoint holds.
    inert=frozenset({"sinusoidal_pos_embds", "tie_weights_"}),
    dropouts=frozenset({"qa_dropout", "seq_classif_dropout"}),
    aliases={
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    },
    required={"tie_word_embeddings": (True,)},
    rules=rules,
    tied=lambda model: {"vocab_projector.weight": f"{EMBED}.word_embeddings.weight"},
    architectures={
        "DistilBertForMaskedLM": ("mlm",),
        "DistilBertForSequenceClassification": ("classify",),
        "DistilBertForTokenClassification": ("tag",),
        "DistilBertForQuestionAnswering": ("span",),
        "DistilBertModel": (),
    },
    unused=bert.UNUSED,
    summary="relu",
)
