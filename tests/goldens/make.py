"""Makes the reference models here with `transformers`: tiny, random, and their outputs.

python tests/goldens/make.py [CASE ...]     (development only: needs PyTorch)

A case is a folder as `save_pretrained` writes it, and `outputs.npz`: the inputs, the
states after the embeddings and after each layer, and the logits. Made with transformers
5.23.0 and PyTorch 2.13.0.
"""

import sys
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers as t

PLACE = Path(__file__).parent
LENGTHS, T = (7, 12, 5), 12

ENCODER = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
DECODER = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
SEQ2SEQ = {
    "vocab_size": 61,
    "d_model": 24,
    "d_ff": 40,
    "num_layers": 2,
    "dropout_rate": 0,
}
LABELS = {"id2label": {0: "no", 1: "maybe", 2: "yes"}}
ODD = {"hidden_size": 20, "num_attention_heads": 5, "num_key_value_heads": 5}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}
CASES = {
    "bert_pretraining": (t.BertForPreTraining, t.BertConfig(**ENCODER)),
    "bert_classify": (
        t.BertForSequenceClassification,
        t.BertConfig(**ENCODER | {"hidden_act": "relu"}, **LABELS),
    ),
    "bert_tag": (
        t.BertForTokenClassification,
        t.BertConfig(**ENCODER | {"hidden_act": "gelu_new"}, **LABELS),
    ),
    "bert_span": (t.BertForQuestionAnswering, t.BertConfig(**ENCODER)),
    "distilbert_mlm": (
        t.DistilBertForMaskedLM,
        t.DistilBertConfig(
            vocab_size=61,
            dim=24,
            n_layers=2,
            n_heads=4,
            hidden_dim=40,
            max_position_embeddings=40,
        ),
    ),
    "roberta_mlm": (
        t.RobertaForMaskedLM,
        t.RobertaConfig(**ENCODER, type_vocab_size=1, layer_norm_eps=1e-5),
    ),
    "roberta_classify": (
        t.RobertaForSequenceClassification,
        t.RobertaConfig(**ENCODER, type_vocab_size=1, **LABELS),
    ),
    "gpt2": (
        t.GPT2LMHeadModel,
        t.GPT2Config(vocab_size=61, n_positions=40, n_embd=21, n_layer=3, n_head=3),
    ),
    "gpt2_relu": (
        t.GPT2LMHeadModel,
        t.GPT2Config(
            vocab_size=61,
            n_positions=40,
            n_embd=24,
            n_layer=2,
            n_head=4,
            n_inner=30,
            activation_function="relu",
        ),
    ),
    "t5_v1_0": (
        t.T5ForConditionalGeneration,
        t.T5Config(
            **SEQ2SEQ,
            d_kv=8,
            num_heads=3,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
        ),
    ),
    "t5_v1_1": (
        t.T5ForConditionalGeneration,
        t.T5Config(
            **SEQ2SEQ | {"d_model": 16},
            d_kv=5,
            num_heads=4,
            num_decoder_layers=3,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        ),
    ),
    "llama": (t.LlamaForCausalLM, t.LlamaConfig(**DECODER | ODD)),
    "llama_3_1": (
        t.LlamaForCausalLM,
        t.LlamaConfig(**DECODER, rope_parameters=LLAMA3, tie_word_embeddings=True),
    ),
    "llama_linear": (
        t.LlamaForCausalLM,
        t.LlamaConfig(
            **DECODER,
            head_dim=6,
            rope_parameters=LINEAR,
            attention_bias=True,
            mlp_bias=True,
            hidden_act="gelu",
        ),
    ),
    "mistral": (t.MistralForCausalLM, t.MistralConfig(**DECODER, sliding_window=4)),
    "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config(**DECODER, tie_word_embeddings=True)),
}
DISTILBERT = {
    "vocab_size": 61,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 40,
    "max_position_embeddings": 40,
}
ROBERTA = {**ENCODER, "type_vocab_size": 1}
GPT2 = {"vocab_size": 61, "n_positions": 40, "n_embd": 24, "n_layer": 2, "n_head": 4}
SMALL = DECODER | {"num_hidden_layers": 2}
# These have a list of their own: the seed of a case above is its alphabetical index.
HEADS = {
    "roberta_tag": (t.RobertaForTokenClassification, t.RobertaConfig(**ROBERTA)),
    "roberta_span": (t.RobertaForQuestionAnswering, t.RobertaConfig(**ROBERTA)),
    "distilbert_classify": (
        t.DistilBertForSequenceClassification,
        t.DistilBertConfig(**DISTILBERT),
    ),
    "distilbert_tag": (
        t.DistilBertForTokenClassification,
        t.DistilBertConfig(**DISTILBERT),
    ),
    "distilbert_span": (
        t.DistilBertForQuestionAnswering,
        t.DistilBertConfig(**DISTILBERT),
    ),
    "gpt2_classify": (t.GPT2ForSequenceClassification, t.GPT2Config(**GPT2)),
    "gpt2_tag": (t.GPT2ForTokenClassification, t.GPT2Config(**GPT2)),
    "llama_classify": (t.LlamaForSequenceClassification, t.LlamaConfig(**SMALL)),
    "llama_tag": (t.LlamaForTokenClassification, t.LlamaConfig(**SMALL)),
    "mistral_classify": (
        t.MistralForSequenceClassification,
        t.MistralConfig(**SMALL, sliding_window=4),
    ),
    "mistral_tag": (
        t.MistralForTokenClassification,
        t.MistralConfig(**SMALL, sliding_window=4),
    ),
    "qwen2_classify": (t.Qwen2ForSequenceClassification, t.Qwen2Config(**SMALL)),
    "qwen2_tag": (t.Qwen2ForTokenClassification, t.Qwen2Config(**SMALL)),
}
T5 = {"d_kv": 8, "num_heads": 3, "decoder_start_token_id": 0}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MORE = {
    "t5_classify": (t.T5ForSequenceClassification, t.T5Config(**SEQ2SEQ, **T5)),
    "t5_span": (
        t.T5ForQuestionAnswering,
        t.T5Config(**SEQ2SEQ, **T5, **GATED, num_decoder_layers=1),
    ),
    "t5_tag": (t.T5ForTokenClassification, t.T5Config(**SEQ2SEQ, **T5, **GATED)),
    "t5_encoder": (t.T5EncoderModel, t.T5Config(**SEQ2SEQ, **T5)),
    "gpt2_span": (t.GPT2ForQuestionAnswering, t.GPT2Config(**GPT2)),
    "llama_span": (t.LlamaForQuestionAnswering, t.LlamaConfig(**SMALL)),
    "mistral_span": (
        t.MistralForQuestionAnswering,
        t.MistralConfig(**SMALL, sliding_window=4),
    ),
    "qwen2_span": (t.Qwen2ForQuestionAnswering, t.Qwen2Config(**SMALL)),
}
# Cases that differ in one key from those above.
KEYS = {
    "t5_dense_act": (
        t.T5ForConditionalGeneration,
        t.T5Config(**SEQ2SEQ, d_kv=8, num_heads=3, dense_act_fn="gelu"),
    ),
    "t5_gated": (
        t.T5EncoderModel,
        t.T5Config(
            **SEQ2SEQ, **T5, feed_forward_proj="gated-gelu", dense_act_fn="gelu"
        ),
    ),
    "gpt2_untied": (
        t.GPT2LMHeadModel,
        t.GPT2Config(**GPT2, tie_word_embeddings=False, embd_pdrop=0.3),
    ),
    "llama_attention_bias": (
        t.LlamaForCausalLM,
        t.LlamaConfig(**SMALL, attention_bias=True),
    ),
    "llama_mlp_bias": (t.LlamaForCausalLM, t.LlamaConfig(**SMALL, mlp_bias=True)),
    "roberta_classify_gelu_new": (
        t.RobertaForSequenceClassification,
        t.RobertaConfig(**ROBERTA, hidden_act="gelu_new", **LABELS),
    ),
}
for case, (_, config) in (HEADS | MORE).items():
    if case.endswith(("classify", "tag")):
        config.id2label = LABELS["id2label"]
NAMES = (*sorted(CASES), *sorted(HEADS), *sorted(MORE), *sorted(KEYS))
CASES |= HEADS | MORE | KEYS


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draws weights so large that every part of the model affects the outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else 0.25 * noise)


def inputs(cls, config, seed: int) -> dict[str, np.ndarray]:
    """Draws three rows, padded on the right."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < np.array(LENGTHS)[:, None]
    ids = rng.integers(3, config.vocab_size, (len(LENGTHS), T))
    found = {
        "input_ids": np.where(mask, ids, config.pad_token_id or 0),
        "attention_mask": mask.astype(np.int64),
    }
    if config.model_type == "bert":
        found["token_type_ids"] = (np.arange(T) >= 4).astype(np.int64) * mask
    if cls is t.T5ForSequenceClassification:
        # The classifier reads the end token of the row, in the decoder's copy of it.
        last = np.array(LENGTHS)[:, None] - 1
        np.put_along_axis(found["input_ids"], last, config.eos_token_id, 1)
        again = np.roll(found["input_ids"], 1, 1)
        again[:, 0] = config.decoder_start_token_id
        found["decoder_input_ids"] = np.where(mask, again, 0)
        found["decoder_attention_mask"] = found["attention_mask"]
    elif config.is_encoder_decoder:
        rows = rng.permutation(len(LENGTHS))
        ids = rng.integers(3, config.vocab_size, (len(LENGTHS), T))
        found["decoder_input_ids"] = np.where(mask[rows], ids, 0)
        found["decoder_attention_mask"] = mask[rows].astype(np.int64)
    return found


def outputs(model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = model(
            **{name: torch.tensor(value) for name, value in given.items()},
            output_hidden_states=True,
            use_cache=False,
        )
    kept = {}
    for name in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        if found.get(name) is not None:
            kept[name] = torch.stack(found[name])
    for name in ("logits", "prediction_logits", "seq_relationship_logits"):
        if found.get(name) is not None:
            kept[name] = found[name]
    if "start_logits" in found:
        kept["logits"] = torch.stack([found.start_logits, found.end_logits], -1)
    return {name: value.numpy() for name, value in kept.items()}


def tokenizer(place: Path, size: int, end: tuple[str, ...]) -> None:
    """Makes a tokenizer of single letters, without bos."""
    letters = [chr(code) for code in range(33, 33 + size - 2 - len(end))]
    words = {word: id for id, word in enumerate(("<pad>", *end, *letters, "\u0120"))}
    whole = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = tokenizers.decoders.ByteLevel()
    special = {"pad_token": "<pad>", **({"eos_token": end[0]} if end else {})}
    fast = t.PreTrainedTokenizerFast(tokenizer_object=whole, **special)
    fast.save_pretrained(place)


# Cases that also have a tokenizer -> its end token.
SPEAKING = {"gpt2_classify": (), "t5_classify": ("</s>",)}
# Cases that also continue 50 prompts; not t5_v1_1: `generate` fails where the decoder
# has more layers than the encoder.
GENERATING = ("gpt2", "llama_3_1", "mistral", "qwen2", "t5_v1_0")
EOS, NEW = 2, 10


def continuations(model, seed: int) -> dict[str, np.ndarray]:
    """Returns prompts and their greedy and beam answers, each padded with -1."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 50)
    prompts = [rng.integers(3, model.config.vocab_size, n) for n in lengths]
    found = {"prompts": prompts, "greedy": [], "beam": []}
    for prompt in prompts:
        for name, beams in (("greedy", 1), ("beam", 4)):
            ids = model.generate(
                torch.tensor(prompt)[None],
                attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
                max_new_tokens=NEW,
                num_beams=beams,
                do_sample=False,
                length_penalty=1.0,
                early_stopping=False,
                eos_token_id=EOS,
                pad_token_id=0,
                decoder_start_token_id=0,
                suppress_tokens=[0],
            )[0].numpy()
            said = ids[1 if model.config.is_encoder_decoder else len(prompt) :]
            found[name].append(said[said != 0])
    return {
        name: np.stack([np.pad(r, (0, NEW - len(r)), constant_values=-1) for r in rows])
        for name, rows in found.items()
    }


def make(name: str, place: Path) -> None:
    cls, config = CASES[name]
    config.pad_token_id = 1 if config.model_type == "roberta" else 0
    config._attn_implementation = "eager"
    seed = NAMES.index(name)
    torch.manual_seed(seed)
    model = cls(config).eval()
    untied = getattr(config, "scale_decoder_outputs", True) is False
    if untied and hasattr(model, "lm_head"):
        # transformers 5 ties the two in a new model, but not in a loaded one.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    randomise(model, seed)
    model.save_pretrained(place)
    (place / "generation_config.json").unlink(missing_ok=True)
    given = inputs(cls, config, seed)
    np.savez_compressed(place / "outputs.npz", **given, **outputs(model, given))
    if name in SPEAKING:
        tokenizer(place, config.vocab_size, SPEAKING[name])
    if name in GENERATING:
        said = continuations(model, seed)
        np.savez_compressed(place / "generated.npz", **said)


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case, PLACE / case)
