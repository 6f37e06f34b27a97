"""A run's tokenizer as files that `transformers` reads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm import storage
from lm.errors import DataError
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
PIECES = {
    "t5": ("spiece.model", "T5Tokenizer"),
    "llama": ("tokenizer.model", "LlamaTokenizer"),
    "mistral": ("tokenizer.model", "LlamaTokenizer"),
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
    names = [name for name in ("chat_template.jinja",) if (folder / name).is_file()]
    if options["name"] == "hf":
        names.append("tokenizer.json")
        if not (folder / "tokenizer.json").is_file():
            _write_json(codec, kind, directory / "tokenizer.json")
        given, cls = folder, "PreTrainedTokenizerFast"
    elif options["name"] == "spm" and kind in PIECES:
        name, cls = PIECES[kind]
        shutil.copyfile(folder / "spm.model", directory / name)
        given = folder
    else:
        raise DataError(
            "tokenizer",
            f"name={options['name']} with a {kind}",
            "a tokenizer that transformers has for it: hf, or spm for t5 and llama",
            "train with tokenizer.name=hf, or give --tokenizer=none",
        )
    for name in names:
        if (given / name).is_file():
            shutil.copyfile(given / name, directory / name)
    settings = {"tokenizer_class": cls} | _specials(codec)
    if options["name"] == "spm":
        settings |= {"extra_ids": options["extra_ids"], "legacy": False}
    own = folder / "tokenizer_config.json"
    if own.is_file():
        settings = json.loads(own.read_text())
    storage.write_text(directory / "tokenizer_config.json", storage.to_json(settings))
    pieces = [PIECES[kind][0]] if options["name"] == "spm" else []
    return [*names, *pieces, "tokenizer_config.json"]


def _specials(codec: Any) -> dict[str, str]:
    ids = {f"{role}_token": getattr(codec, f"{role}_id") for role in ROLES}
    return {name: codec.token(id) for name, id in ids.items() if id is not None}


def _write_json(codec: Any, kind: str, path: Path) -> None:
    """The tokenizer with its special tokens recognised, and put where they belong."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(codec._tokenizer.to_str())
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
    storage.write_text(path, tokenizer.to_str(pretty=True))
