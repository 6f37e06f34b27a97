"""Published shapes by name; `config.model.preset` is expanded from this table.

BERT: Devlin et al. 2019 (base, large) and Turc et al. 2019 (the smaller ones). RoBERTa:
Liu et al. 2019. GPT-2: Radford et al. 2019. Llama 2: Touvron et al. 2023; Llama 3 and
3.1: 2024. Transformer: Vaswani et al. 2017, table 3. T5: Raffel et al. 2020; version
1.1: Shazeer 2020 and the released checkpoints. Plain dictionaries: importing this file
imports no jax.
"""


def _bert(num_layers: int, d_model: int) -> dict:
    return {
        "kind": "encoder",
        "vocab_size": 30522,
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": d_model // 64,
        "d_ff": 4 * d_model,
        "max_len": 512,
        "token_types": 2,
        "norm_epsilon": 1e-12,
    }


def _gpt2(num_layers: int, d_model: int, num_heads: int) -> dict:
    return {
        "kind": "decoder",
        "vocab_size": 50257,
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": num_heads,
        "d_ff": 4 * d_model,
        "max_len": 1024,
        "position": "learned",
        "token_types": 0,
        "norm_position": "pre",
        "norm_epsilon": 1e-5,
        "activation": "gelu_tanh",
        "embedding": "plain",
        "output": "tied",
    }


def _llama(
    num_layers: int,
    d_model: int,
    num_heads: int,
    kv_heads: int,
    d_ff: int,
    *,
    vocab_size: int,
    max_len: int,
    output: str = "untied",
    rope: dict | None = None,
) -> dict:
    return {
        "kind": "decoder",
        "vocab_size": vocab_size,
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": num_heads,
        "d_ff": d_ff,
        "max_len": max_len,
        "position": "rope",
        "token_types": 0,
        "norm": "rms",
        "norm_position": "pre",
        "norm_epsilon": 1e-5,
        "activation": "swiglu",
        "bias": "none",
        "embedding": "plain",
        "output": output,
        "dropout": 0.0,
        "attention": {"kv_heads": kv_heads, "dropout": 0.0},
        "rope": rope or {},
    }


def _llama3(*shape: int, **more) -> dict:
    return _llama(*shape, **{"vocab_size": 128256, "max_len": 8192} | more)


def _longer(factor: float) -> dict:
    """Returns how Llama 3.1 and 3.2 extend Llama 3's 8,192 positions to 131,072."""
    return {
        "base": 500000.0,
        "scaling": "llama3",
        "factor": factor,
        "low": 1.0,
        "high": 4.0,
        "original_len": 8192,
    }


def _transformer(d_model: int, dropout: float) -> dict:
    return {
        "kind": "encoder_decoder",
        # Source and target share one vocabulary, whose size is the tokenizer's.
        "num_layers": 6,
        "d_model": d_model,
        "num_heads": d_model // 64,
        "d_ff": 4 * d_model,
        "max_len": 1024,
        "position": "sinusoidal",
        "token_types": 0,
        "norm_position": "post",
        "norm_epsilon": 1e-6,
        "activation": "relu",
        "embedding": "scaled",
        "output": "tied",
        "dropout": dropout,
        "init_std": None,
        "attention": {"dropout": 0.0},
    }


def _t5(num_layers: int, d_model: int, num_heads: int, d_ff: int) -> dict:
    return {
        "kind": "encoder_decoder",
        "vocab_size": 32128,
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": num_heads,
        "d_ff": d_ff,
        "max_len": 512,
        "position": "relative",
        "token_types": 0,
        "norm": "rms",
        "norm_position": "pre",
        "norm_epsilon": 1e-6,
        "activation": "relu",
        "bias": "none",
        "embedding": "plain",
        "output": "scaled",
        "dropout": 0.1,
        "init_std": None,
        "attention": {"head_dim": 64, "scale": 1.0, "buckets": 32, "max_distance": 128},
    }


def _t5_v1_1(num_layers: int, d_model: int, num_heads: int, d_ff: int) -> dict:
    gated = {"activation": "geglu_tanh", "output": "untied", "dropout": 0.0}
    base = _t5(num_layers, d_model, num_heads, d_ff)
    return base | gated | {"attention": base["attention"] | {"dropout": 0.0}}


_LLAMA2: dict = {"vocab_size": 32000, "max_len": 4096}
_ROPE3 = {"base": 500000.0}

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
    "gpt2_small": _gpt2(12, 768, 12),
    "gpt2_medium": _gpt2(24, 1024, 16),
    "gpt2_large": _gpt2(36, 1280, 20),
    "gpt2_xl": _gpt2(48, 1600, 25),
    "llama_tiny": _llama(4, 256, 8, 4, 688, vocab_size=32000, max_len=2048),
    "llama2_7b": _llama(32, 4096, 32, 32, 11008, **_LLAMA2),
    "llama2_13b": _llama(40, 5120, 40, 40, 13824, **_LLAMA2),
    "llama2_70b": _llama(80, 8192, 64, 8, 28672, **_LLAMA2),
    "llama3_8b": _llama3(32, 4096, 32, 8, 14336, rope=_ROPE3),
    "llama3_70b": _llama3(80, 8192, 64, 8, 28672, rope=_ROPE3),
    "llama3_1_8b": _llama3(32, 4096, 32, 8, 14336, max_len=131072, rope=_longer(8.0)),
    "llama3_2_1b": _llama3(
        16, 2048, 32, 8, 8192, max_len=131072, rope=_longer(32.0), output="tied"
    ),
    "transformer_base": _transformer(512, 0.1),
    "transformer_big": _transformer(1024, 0.3),
    "t5_small": _t5(6, 512, 8, 2048),
    "t5_base": _t5(12, 768, 12, 3072),
    "t5_large": _t5(24, 1024, 16, 4096),
    "t5_v1_1_small": _t5_v1_1(8, 512, 6, 1024),
    "t5_v1_1_base": _t5_v1_1(12, 768, 12, 2048),
    "t5_v1_1_large": _t5_v1_1(24, 1024, 16, 2816),
}
