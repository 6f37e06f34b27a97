"""Published shapes by name; `config.model.preset` is expanded from this table.

BERT: Devlin et al. 2019 (base, large) and Turc et al. 2019 (the smaller ones).
RoBERTa: Liu et al. 2019. Plain dictionaries: importing this file imports no jax.
"""


def _bert(num_layers: int, d_model: int) -> dict:
    return {
        "vocab_size": 30522,
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": d_model // 64,
        "d_ff": 4 * d_model,
        "max_len": 512,
        "token_types": 2,
        "norm_epsilon": 1e-12,
    }


PRESETS: dict[str, dict] = {
    "bert_tiny": _bert(2, 128),
    "bert_mini": _bert(4, 256),
    "bert_small": _bert(4, 512),
    "bert_medium": _bert(8, 512),
    "bert_base": _bert(12, 768),
    "bert_large": _bert(24, 1024),
    "roberta_base": _bert(12, 768)
    | {
        "vocab_size": 50265,
        "token_types": 1,
        "position_offset": 2,
        "norm_epsilon": 1e-5,
    },
}
