"""The tokenizer classes of the families: what they add when no file says it.

A class of the library that has files of its own, such as BertTokenizer, brings special
tokens, and some of them decide by `tokenizer_config.json` alone what tokenizer.json
says too. PreTrainedTokenizerFast and its like bring nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Classes that have nothing of their own: what no file names is not there.
PLAIN = frozenset({"PreTrainedTokenizer", "TokenizersBackend"})


@dataclass(frozen=True)
class TokenizerClass:
    """A tokenizer class of the library.

    Attributes:
      name: without "Fast" at its end.
      special: role -> token, where no file names it.
      single, pair: what it puts around one text and around two; "" where tokenizer.json
        or the key add_bos_token says it.
      pieces: the name of its SentencePiece file.
      decides: keys of tokenizer_config.json that it reads in any case: key -> (part of
        tokenizer.json, field of that part that says the same, an absent key's value).
    """

    name: str
    special: Mapping[str, str] = field(default_factory=dict)
    single: str = ""
    pair: str = ""
    pieces: str | None = None
    decides: Mapping[str, tuple[str, str, Any]] = field(default_factory=dict)


SPACE = {"add_prefix_space": ("pre_tokenizer", "add_prefix_space", False)}
END = "<|endoftext|>"
MARKS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
BERT = TokenizerClass(
    "BertTokenizer",
    {role: f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")},
    "{cls} $A {sep}",
    "{cls} $A {sep} $B:1 {sep}:1",
    decides={
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
    decides=SPACE,
)
GPT2 = TokenizerClass(
    "GPT2Tokenizer", {"unk": END, "bos": END, "eos": END}, decides=SPACE
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
