"""Describes the tokenizer classes of the families: the defaults that no file holds.

A specific class of the library, such as BertTokenizer, has default special tokens, and
some classes let keys of `tokenizer_config.json` override tokenizer.json. General
classes such as PreTrainedTokenizerFast have no defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# General classes, without defaults: a token that no file names does not exist.
GENERAL = frozenset({"PreTrainedTokenizer", "TokenizersBackend"})


@dataclass(frozen=True)
class TokenizerClass:
    """A tokenizer class of the library.

    Attributes:
      name: without "Fast" at its end.
      special: role -> token, for tokens that no file names.
      single, pair: templates for one text and for two; "" where tokenizer.json or the
        key add_bos_token decides.
      pieces: the name of its SentencePiece file, if it has one.
      overrides: keys of tokenizer_config.json that override tokenizer.json: key ->
        (part of tokenizer.json, field of that part, value of an absent key).
    """

    name: str
    special: Mapping[str, str] = field(default_factory=dict)
    single: str = ""
    pair: str = ""
    pieces: str | None = None
    overrides: Mapping[str, tuple[str, str, Any]] = field(default_factory=dict)


SPACE = {"add_prefix_space": ("pre_tokenizer", "add_prefix_space", False)}
END = "<|endoftext|>"
MARKS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
BERT = TokenizerClass(
    "BertTokenizer",
    {role: f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")},
    "{cls} $A {sep}",
    "{cls} $A {sep} $B:1 {sep}:1",
    overrides={
        "do_lower_case": ("normalizer", "lowercase", True),
        "strip_accents": ("normalizer", "strip_accents", None),
        "tokenize_chinese_chars": ("normalizer", "handle_chinese_chars", True),
    },
)
ROBERTA = TokenizerClass(
    "RobertaTokenizer",
    MARKS | {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"},
    "{cls} $A {sep}",
    "{cls} $A {sep} {sep} $B:1 {sep}:1",
    overrides=SPACE,
)
GPT2 = TokenizerClass(
    "GPT2Tokenizer", {"unk": END, "bos": END, "eos": END}, overrides=SPACE
)
LLAMA = TokenizerClass("LlamaTokenizer", MARKS, pieces="tokenizer.model")
QWEN2 = TokenizerClass("Qwen2Tokenizer", {"unk": END, "eos": END, "pad": END})
T5 = TokenizerClass(
    "T5Tokenizer",
    {"pad": "<pad>", "unk": "<unk>", "eos": "</s>"},
    "$A {eos}",
    "$A {eos} $B:1 {eos}:1",
    pieces="spiece.model",
)
