"""Lists keys that every family's config.json may have, and names of activations."""

from collections.abc import Mapping
from typing import Any

Translation = Mapping[str, str]

ACTIVATIONS: Translation = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
GATED: Translation = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "relu": "reglu",
}

# Keys of any config.json that do not change what a model computes: names, ids of the
# tokenizer, settings of generation, of storage, and of training elsewhere.
_INERT = """
    architectures model_type _name_or_path name_or_path transformers_version dtype
    torch_dtype use_cache return_dict output_hidden_states output_attentions torchscript
    use_bfloat16 tf_legacy_loss chunk_size_feed_forward gradient_checkpointing
    finetuning_task id2label label2id num_labels _num_labels problem_type
    tokenizer_class prefix bos_token_id pad_token_id eos_token_id sep_token_id
    decoder_start_token_id mask_token_id task_specific_params generation
    max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens output_past attn_implementation
    _attn_implementation _attn_implementation_autoset attention_type
    tie_last_hidden_states directionality pooler_fc_size pooler_num_attention_heads
    pooler_num_fc_layers pooler_size_per_head pooler_type is_encoder_decoder
"""
INERT = frozenset(_INERT.split())
# Rates of dropout for which this project has one field, `dropout`. They have no effect
# outside training; a note names those that differ.
DROPOUTS = frozenset({"classifier_dropout"})
# Keys that must have one of these values where they are given; the first is the default
# of the library.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "pruned_heads": ({}, None),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "is_decoder": (False,),
    # Weights that are not stored as floats of 16 or 32 bits.
    "quantization_config": (None,),
    "compression_config": (None,),
    # Sizes that differ from layer to layer.
    "per_layer_config": (None,),
}
