"""Makes tiny random decoders with real tokenizers, as directories of Hugging Face.

They are made without PyTorch and are the same on every machine. The answers that
`transformers` gives with them are in tests/goldens/answers.json (see
tests/goldens/make_answers.py).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = (
    "The old dog sees",
    " two  spaces, and a line\nend",
    "naïve café 北京",
    "x",
)
TURNS = (
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello, you."},
    {"role": "user", "content": " and a cat?"},
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
    "{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24, "num_key_value_heads": 1}
SMALL |= {"max_position_embeddings": 128, "rms_norm_eps": 1e-5}
FAST = "PreTrainedTokenizerFast"
# Case: config.json, tokenizer_config.json, generation_config.json.
CASES: dict[str, tuple[dict, dict, dict]] = {
    "gpt2": (
        {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 16, "n_layer": 2}
        | {"n_head": 2, "n_positions": 128, "architectures": ["GPT2LMHeadModel"]},
        {"tokenizer_class": "GPT2Tokenizer"},
        {"eos_token_id": 50256, "bos_token_id": 50256, "max_new_tokens": 12},
    ),
    "qwen2": (
        SMALL
        | {"model_type": "qwen2", "vocab_size": 50260}
        | {"architectures": ["Qwen2ForCausalLM"]},
        {"tokenizer_class": FAST, "eos_token": "<|im_end|>", "chat_template": CHATML}
        | {"pad_token": "<|endoftext|>", "add_bos_token": False},
        {"max_new_tokens": 12, "repetition_penalty": 1.3},
    ),
    "smollm": (
        SMALL
        | {"model_type": "llama", "vocab_size": 50260}
        | {"architectures": ["LlamaForCausalLM"]},
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>"}
        | {"eos_token": "<|im_end|>", "chat_template": CHATML},
        {"max_length": 30, "num_beams": 3, "length_penalty": 0.7},
    ),
    "mistral": (
        SMALL
        | {"model_type": "mistral", "vocab_size": 32000, "sliding_window": None}
        | {"architectures": ["MistralForCausalLM"]},
        {"tokenizer_class": FAST, "bos_token": "<s>", "eos_token": "</s>"}
        | {"unk_token": "<unk>", "chat_template": INST},
        {"max_new_tokens": 12},
    ),
}
ENDS = ("<|im_start|>", "<|im_end|>", "<|pad|>")


def make(case: str, place: Path, data: Path) -> Path:
    """Makes the directory of a case and returns its path.

    Args:
      place: does not exist.
      data: the folder with vocab_gpt2/ and vocab_mistral_v1/.
    """
    from lm.hf import checkpoint
    from lm.hf.families.base import layers, sizes
    from lm.hf.families.table import sources
    from lm.hf.formats import safetensors

    config, settings, generation = CASES[case]
    place.mkdir(parents=True)
    ends = _tokenizer(case, place, data)
    if case != "gpt2":
        config = config | {"eos_token_id": ends[0], "bos_token_id": 1}
        generation = generation | {"eos_token_id": ends}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", settings),
        ("generation_config.json", generation),
    ):
        (place / name).write_text(json.dumps(content))
    family, given, path = checkpoint.read_config(place)
    model = family.read(given, path)
    known = sizes(model, 2)
    parts = {"", *family.architectures[config["architectures"][0]]}
    rules = [rule for rule in family.rules(model) if rule.part in parts]
    rng = np.random.default_rng(sorted(CASES).index(case))
    tensors: dict[str, Any] = {}
    for source in sources(rules, known, layers(model)).values():
        for name in source.names:
            shape = source.rule.tensor_shape(known)
            noise = rng.standard_normal(shape, np.float32)
            norm = len(shape) == 1 and name.endswith("weight")
            tensors[name] = np.float32(1) + noise / 5 if norm else noise / 2
    shapes = {name: (value.dtype, value.shape) for name, value in tensors.items()}
    safetensors.write(place, shapes, tensors.__getitem__)
    return place


def _tokenizer(case: str, place: Path, data: Path) -> list[int]:
    """Writes a case's tokenizer; returns the ids that end an answer."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    if case == "mistral":
        from lm.hf import pieces
        from lm.tokenizers import spm

        folder = place / "made"
        folder.mkdir()
        options = spm.Tokenizer(path=str(data / "vocab_mistral_v1/tokenizer.model"))
        options.make(lambda: iter(()), folder)
        codec, file = options.load(folder), folder / "spm.model"
        built = pieces.to_tokenizer(file.read_bytes(), codec, file)
        built.normalizer = None
        metaspace = {"prepend_scheme": "first", "split": False}
        built.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
        built.add_special_tokens(["<unk>", "<s>", "</s>"])
        built.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
        )
        built.save(str(place / "tokenizer.json"))
        shutil.rmtree(folder)
        return [2]
    for ours, theirs in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        shutil.copyfile(data / "vocab_gpt2" / ours, place / theirs)
    if case == "gpt2":
        return [50256]
    names = str(place / "vocab.json"), str(place / "merges.txt")
    built = tokenizers.Tokenizer(models.BPE.from_file(*names))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(["<|endoftext|>", *ENDS])
    built.save(str(place / "tokenizer.json"))
    for name in names:
        Path(name).unlink()
    # Many more ids are ends, so that most answers of a random model meet one.
    return [built.token_to_id("<|im_end|>"), 50256, *range(300, 50000, 40)]
