"""The tokenizer that comes with a checkpoint, as a section of our config.

`tokenizer.json` is read as it is; else `vocab.txt`, `vocab.json` and `merges.txt`, or a
SentencePiece model, with what `tokenizer_config.json` says of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.errors import DataError
from lm.hf.formats.files import is_file, parse_json, read_bytes, read_json

PIECES = ("spiece.model", "tokenizer.model")
KINDS = {"WordPiece": "wordpiece", "BPE": "bpe", "Unigram": "unigram"}
ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
MAX_TOKENIZER = 64 * 2**20
# Settings of the slow tokenizers that change ids, and the value that ours have.
PLAIN = {
    "strip_accents": (None,),
    "tokenize_chinese_chars": (True, None),
    "do_basic_tokenize": (True, None),
    "never_split": (None,),
}


def section(directory: Path, model_type: str) -> dict[str, Any]:
    """config.tokenizer for a directory of Hugging Face.

    Raises:
      DataError: no tokenizer is there, or one that we would not read as it is meant.
      CheckpointError: a JSON file is damaged.
    """
    settings = read_settings(directory)
    special = special_tokens(directory, settings)
    path = directory / "tokenizer.json"
    if is_file(path):
        kind = _kind(path)
        if kind not in KINDS:
            expected = f"one of {', '.join(KINDS)}"
            raise DataError(str(path), f"a model of type {kind[:40]!r}", expected)
        found = {"name": "hf", "kind": KINDS[kind], "path": str(path)}
        return found | {"special": special}
    added = directory / "added_tokens.json"
    if is_file(added) and read_json(added) and model_type != "t5":
        raise _slow(directory, "added_tokens.json")
    if is_file(directory / "vocab.txt"):
        for name, plain in PLAIN.items():
            if settings.get(name) not in plain:
                raise _slow(directory, f"{name}={settings[name]!r}")
        # Google's own directories say nothing of it: the vocabulary shows it.
        lowercase = settings.get("do_lower_case", True) if settings else None
        return {
            "name": "hf",
            "kind": "wordpiece",
            "path": str(directory / "vocab.txt"),
            "lowercase": lowercase,
            "special": special,
        }
    if is_file(directory / "vocab.json"):
        # Their pattern of words is GPT-2's; others say theirs in tokenizer.json alone.
        if model_type not in ("gpt2", "roberta"):
            raise _slow(directory, f"vocab.json of a {model_type}")
        return {
            "name": "hf",
            "kind": "bpe",
            "path": str(directory),
            "add_prefix_space": bool(settings.get("add_prefix_space", False)),
            "special": special,
        }
    for name in PIECES:
        if is_file(directory / name):
            extra = settings.get("extra_ids", 100 if model_type == "t5" else 0)
            # The model says itself which of its pieces these four are.
            named = {k: v for k, v in special.items() if k in ("cls", "sep", "mask")}
            return {
                "name": "spm",
                "path": str(directory / name),
                "extra_ids": extra if type(extra) is int else 0,
                "special": named,
            }
    there = ", ".join(sorted(path.name for path in directory.iterdir())[:8])
    raise DataError(
        str(directory),
        f"no tokenizer among {there}",
        "tokenizer.json, vocab.txt, vocab.json and merges.txt, or a .model file",
        "fetch the tokenizer's files too, or set config.tokenizer",
    )


def read_settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, and {} where there is none."""
    path = directory / "tokenizer_config.json"
    return read_json(path) if is_file(path) else {}


def special_tokens(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """role -> token, as far as the files name them."""
    path = directory / "special_tokens_map.json"
    named = (read_json(path) if is_file(path) else {}) | dict(settings)
    found = {}
    for role in ROLES:
        token = named.get(f"{role}_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str) and token:
            found[role] = token
    return found


def _kind(path: Path) -> str:
    """The type of the model in a tokenizer.json."""
    data = read_bytes(path, MAX_TOKENIZER)
    model = (parse_json(data, path, limit=MAX_TOKENIZER).get("model")) or {}
    kind = model.get("type") if isinstance(model, dict) else None
    if kind is None and isinstance(model, dict) and "merges" in model:
        return "BPE"  # The first versions did not say.
    return str(kind)


def _slow(directory: Path, found: str) -> DataError:
    return DataError(
        str(directory),
        found,
        "a tokenizer.json, which says all of it",
        "make it where transformers is installed: AutoTokenizer.from_pretrained(DIR)"
        ".save_pretrained(DIR)",
    )
