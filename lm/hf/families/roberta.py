"""Describes RoBERTa (Liu et al. 2019): BERT's layers, other first positions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.hf.families import bert, tokens
from lm.hf.families.base import Family
from lm.hf.families.table import Rule, linear, norm
from lm.hf.formats.files import refuse


def rules(model: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Returns RoBERTa's table of tensors."""
    return (
        *bert.encoder("roberta."),
        *linear("roberta.pooler.dense", "pooler", "D E -> E D", "pooler"),
        *linear("lm_head.dense", "heads/mlm/dense", "D E -> E D", "mlm"),
        *norm("lm_head.layer_norm", "heads/mlm/norm", "mlm"),
        Rule("lm_head.bias", "heads/mlm/bias", "V -> V", "mlm"),
        # The classifier has its own pooler: a dense layer and tanh.
        *linear("classifier.dense", "pooler", "D E -> E D", "classify"),
        *linear("classifier.out_proj", "heads/classify", "C D -> D C", "classify"),
        *bert.HEADS,
    )


def adapt_in(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], set[str]]:
    """Reads the positions, which begin after the padding's id."""
    keys = {"max_position_embeddings", "pad_token_id"}
    rows, pad = (
        config.get("max_position_embeddings", 512),
        config.get("pad_token_id", 1),
    )
    if type(rows) is not int or type(pad) is not int or not 0 <= pad < rows - 1 < 2**31:
        found = f"max_position_embeddings {rows!r}, pad_token_id {pad!r}"[:120]
        refuse(path, found, "a number of rows, and a row below the last but one")
    # As in fairseq, the position embedding has a row for the padding's id and unused
    # rows before it; position 0 is the row after it.
    return {"position_offset": pad + 1, "max_len": rows - pad - 1}, keys


def adapt_out(model: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the keys that `adapt_in` reads."""
    offset = model["position_offset"]
    return bert.check_token_types(model) | {
        "max_position_embeddings": model["max_len"] + offset,
        "pad_token_id": offset - 1,
    }


FAMILY = Family(
    model_type="roberta",
    prefix="roberta.",
    fields=bert.FIELDS,
    fixed=bert.FIXED,
    required=bert.REQUIRED,
    tokenizer=tokens.ROBERTA,
    limits={"mlm": {"activation": "gelu"}},
    rules=rules,
    tied=lambda model: {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    adapted=frozenset({"position_offset", "max_len"}),
    adapt_in=adapt_in,
    adapt_out=adapt_out,
    architectures={
        "RobertaForMaskedLM": ("mlm",),
        "RobertaForSequenceClassification": ("classify",),
        "RobertaForTokenClassification": ("tag",),
        "RobertaForQuestionAnswering": ("span",),
        "RobertaModel": ("pooler",),
    },
    unused=bert.UNUSED,
    separators=2,
)
