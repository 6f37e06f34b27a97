"""Describes BERT (Devlin et al. 2019)."""

from collections.abc import Mapping
from typing import Any

from lm.errors import ConfigError
from lm.hf.families.base import Family, Field
from lm.hf.families.keys import ACTIVATIONS
from lm.hf.families.table import Rule, linear, norm

FIELDS = (
    Field("vocab_size", "vocab_size"),
    Field("hidden_size", "d_model", 768),
    Field("num_hidden_layers", "num_layers", 12),
    Field("num_attention_heads", "num_heads", 12),
    Field("intermediate_size", "d_ff", 3072),
    Field("hidden_act", "activation", "gelu", ACTIVATIONS),
    Field("hidden_dropout_prob", "dropout", 0.1),
    Field("attention_probs_dropout_prob", "attention.dropout", 0.1),
    Field("type_vocab_size", "token_types", 2),
    Field("initializer_range", "init_std", 0.02),
    Field("layer_norm_eps", "norm_epsilon", 1e-12),
)
FIXED = {
    "kind": "encoder",
    "position": "learned",
    "norm": "layer",
    "norm_position": "post",
    "bias": "all",
    "embedding": "norm",
    "output": "tied",
}
REQUIRED = {"tie_word_embeddings": (True,), "position_embedding_type": ("absolute",)}
UNUSED = r".*embeddings\.(position_ids|token_type_ids)"


def check_token_types(model: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses a model without token types; BERT and RoBERTa both have an embedding."""
    if not model["token_types"]:
        raise ConfigError("model", "token_types=0", "1 or more")
    return {}


def encoder(prefix: str) -> tuple[Rule, ...]:
    """Returns the rules of embeddings and layers, which BERT and RoBERTa share."""
    embed, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}"
    tokens, positions = f"{embed}.word_embeddings", f"{embed}.position_embeddings"
    types, attention = f"{embed}.token_type_embeddings", f"{layer}.attention"
    return (
        Rule(f"{tokens}.weight", "embed/token/embedding", "V D -> V D"),
        Rule(f"{positions}.weight", "embed/position/embedding", "P D -> P D"),
        Rule(f"{types}.weight", "embed/type/embedding", "Y D -> Y D"),
        *norm(f"{embed}.LayerNorm", "embed/norm"),
        *linear(
            f"{attention}.self.query", "layers/attention/query", "(N H) D -> D N H"
        ),
        *linear(f"{attention}.self.key", "layers/attention/key", "(N H) D -> D N H"),
        *linear(
            f"{attention}.self.value", "layers/attention/value", "(N H) D -> D N H"
        ),
        *linear(
            f"{attention}.output.dense", "layers/attention/output", "D (N H) -> N H D"
        ),
        *norm(f"{attention}.output.LayerNorm", "layers/attention_norm"),
        *linear(f"{layer}.intermediate.dense", "layers/mlp/up", "F D -> D F"),
        *linear(f"{layer}.output.dense", "layers/mlp/down", "D F -> F D"),
        *norm(f"{layer}.output.LayerNorm", "layers/mlp_norm"),
    )


# Heads on the hidden state of each token.
HEADS = (
    *linear("classifier", "heads/tag", "C D -> D C", "tag"),
    *linear("qa_outputs", "heads/span", "T D -> D T", "span"),
)


def rules(model: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Returns BERT's table of tensors."""
    transform = "cls.predictions.transform"
    return (
        *encoder("bert."),
        *linear("bert.pooler.dense", "pooler", "D E -> E D", "pooler"),
        *linear(f"{transform}.dense", "heads/mlm/dense", "D E -> E D", "mlm"),
        *norm(f"{transform}.LayerNorm", "heads/mlm/norm", "mlm"),
        Rule("cls.predictions.bias", "heads/mlm/bias", "V -> V", "mlm"),
        *linear("cls.seq_relationship", "heads/nsp", "T D -> D T", "nsp"),
        *linear("classifier", "heads/classify", "C D -> D C", "classify"),
        *HEADS,
    )


FAMILY = Family(
    model_type="bert",
    prefix="bert.",
    fields=(*FIELDS, Field("max_position_embeddings", "max_len", 512)),
    fixed=FIXED,
    required=REQUIRED,
    rules=rules,
    tied=lambda model: {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    architectures={
        "BertForPreTraining": ("pooler", "mlm", "nsp"),
        "BertForMaskedLM": ("mlm",),
        "BertForNextSentencePrediction": ("pooler", "nsp"),
        "BertForSequenceClassification": ("pooler", "classify"),
        "BertForTokenClassification": ("tag",),
        "BertForQuestionAnswering": ("span",),
        "BertModel": ("pooler",),
    },
    adapt_out=check_token_types,
    unused=UNUSED,
)
