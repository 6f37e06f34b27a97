"""A run's tokenizer as files that `transformers` reads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm import storage
from lm.errors import DataError
from lm.hf import pieces
from lm.hf.tokenizer import ROLES

# What a family puts around one text and around two; ours does the same in training.
PAIRS = {
    "bert": ("{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1"),
    "distilbert": ("{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1"),
    "roberta": ("{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1"),
    "llama": ("{bos} $A", "{bos} $A {bos}:1 $B:1"),
    "mistral": ("{bos} $A", "{bos} $A {bos}:1 $B:1"),
    "t5": ("$A {eos}", "$A {eos} $B:1 {eos}:1"),
}
# The name under which others look for a SentencePiece model.
PIECES = {
    "t5": "spiece.model",
    "llama": "tokenizer.model",
    "mistral": "tokenizer.model",
}


def token_ids(codec: Any) -> dict[str, int]:
    """The ids that config.json and generation_config.json name."""
    found = {f"{role}_token_id": getattr(codec, f"{role}_id") for role in ROLES[:4]}
    del found["unk_token_id"]
    return {name: id for name, id in found.items() if id is not None}


def write(
    codec: Any, options: Mapping[str, Any], folder: Path, kind: str, directory: Path
) -> list[str]:
    """Writes the tokenizer's files; gives their names.

    Args:
      codec: the run's tokenizer.
      options: config.tokenizer.
      folder: where the run keeps it.
      kind: the family's model type.
      directory: exists.

    Raises:
      DataError: `transformers` has no such tokenizer.
    """
    import tokenizers

    names = ["tokenizer.json", "tokenizer_config.json"]
    if options["name"] not in ("hf", "spm"):
        found = f"name={options['name']}"
        raise DataError("tokenizer", found, "hf or spm", "train with one of these")
    if (folder / "tokenizer.json").is_file():
        shutil.copyfile(folder / "tokenizer.json", directory / "tokenizer.json")
    elif options["name"] == "hf":
        built = tokenizers.Tokenizer.from_str(codec._tokenizer.to_str())
        _write_json(built, codec, kind, directory)
    else:
        model = folder / "spm.model"
        built = pieces.to_tokenizer(model.read_bytes(), codec, model)
        _write_json(built, codec, kind, directory)
        if kind in PIECES:
            names.append(PIECES[kind])
            shutil.copyfile(model, directory / PIECES[kind])
    if (folder / "chat_template.jinja").is_file():
        names.append("chat_template.jinja")
        shutil.copyfile(folder / names[-1], directory / names[-1])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | _specials(codec)
    own = folder / "tokenizer_config.json"
    if own.is_file():
        settings = json.loads(own.read_text()) | settings
    storage.write_text(directory / "tokenizer_config.json", storage.to_json(settings))
    return names


def _specials(codec: Any) -> dict[str, str]:
    ids = {f"{role}_token": getattr(codec, f"{role}_id") for role in ROLES}
    return {name: codec.token(id) for name, id in ids.items() if id is not None}


def _write_json(tokenizer: Any, codec: Any, kind: str, directory: Path) -> None:
    """The tokenizer with its special tokens recognised, and put where they belong."""
    import tokenizers

    tokenizer.encode_special_tokens = False
    special = [codec.token(id) for id in sorted(codec.special_ids)]
    tokenizer.add_special_tokens(special)
    names = {role: getattr(codec, f"{role}_id") for role in ROLES}
    names = {role: codec.token(id) for role, id in names.items() if id is not None}
    if kind in PAIRS and all(
        f"{{{r}}}" not in PAIRS[kind][0] or r in names for r in ROLES
    ):
        single, pair = (template.format(**names) for template in PAIRS[kind])
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=single,
            pair=pair,
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in names.values()],
        )
    text = tokenizer.to_str(pretty=True)
    storage.write_text(directory / "tokenizer.json", text)
