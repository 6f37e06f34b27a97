"""Writes a run's tokenizer as files that `transformers` reads."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from lm.config.resolve import Config
from lm.errors import DataError
from lm.hf import pieces
from lm.hf.families.base import Family
from lm.host import storage
from lm.tokenizers.base import ROLES


def roles(config: Config, codec: Any) -> dict[str, int]:
    """Returns role -> id of the special tokens.

    A classifier that reads the last token of a row needs a padding token, so that the
    library finds that token. Where the tokenizer has none, eos serves, as is usual for
    GPT-2.
    """
    found = {role: getattr(codec, f"{role}_id") for role in ROLES}
    if found["pad"] is None and config.objective.get("summary") == "last":
        found["pad"] = found["eos"]
    return {role: id for role, id in found.items() if id is not None}


def token_ids(config: Config, codec: Any) -> dict[str, int]:
    """Returns the keys of ids for config.json and generation_config.json."""
    found = roles(config, codec)
    return {f"{r}_token_id": found[r] for r in ("pad", "bos", "eos") if r in found}


def rows(config: Config, family: Family, codec: Any) -> tuple[str, str] | None:
    """Returns the templates of one text and of two, as TemplateProcessing takes them.

    They give the rows that the run was trained on, so `bos`, `summary` and `separators`
    of the objective decide, and the family's templates where it has none. None where no
    template is known.
    """
    objective, own = config.objective, family.tokenizer
    found = (own.single, own.pair)
    starts = objective.get("bos") and codec.bos_id is not None
    bos = "{bos} " if starts else ""
    last = (f"{bos}$A", f"{bos}$A {bos.replace('} ', '}:1 ')}$B:1")
    if "separators" in objective:
        between = " ".join(["{sep}"] * objective.separators)
        pooled = ("{cls} $A {sep}", f"{{cls}} $A {between} $B:1 {{sep}}:1")
        ends = ("$A {eos}", "$A {eos} $B:1 {eos}:1")
        last = (f"{bos}$A", f"{bos}$A $B:1")
        found = {"last": last, "decoder": ends}.get(objective.get("summary"), pooled)
    elif "bos" in objective:
        found = last
    if not found[0]:
        return None
    single, pair = found
    if config.model.token_types < 2:  # Type 1 would be outside the embedding.
        pair = pair.replace(":1", "")
    names = _specials(config, codec)
    if not names.keys() >= set(re.findall(r"{(\w+)}", pair)):
        return None
    return single.format(**names), pair.format(**names)


def write(
    codec: Any, config: Config, folder: Path, family: Family, directory: Path
) -> list[str]:
    """Writes the tokenizer's files; returns their names.

    Args:
      codec: the run's tokenizer, loaded.
      config: the run's config.
      folder: the run's folder of the tokenizer.
      family: the family of the export.
      directory: an existing folder, in which the files are written.

    Raises:
      DataError: `transformers` has no tokenizer of this kind.
    """
    import tokenizers

    name, around = config.tokenizer["name"], rows(config, family, codec)
    if name not in ("hf", "spm"):
        found = f"name={name}"
        raise DataError("tokenizer", found, "hf or spm", "train with one of these")
    written = ["tokenizer.json", "tokenizer_config.json"]
    settings_file, own = folder / written[1], folder / written[0]
    settings = json.loads(settings_file.read_text()) if settings_file.is_file() else {}
    changed = not own.is_file()
    if not changed:
        built = tokenizers.Tokenizer.from_file(str(own))
    else:
        if name == "hf":
            built = tokenizers.Tokenizer.from_str(codec._tokenizer.to_str())
        else:
            model = folder / "spm.model"
            built = pieces.to_tokenizer(model.read_bytes(), codec, model)
            if family.tokenizer.pieces:
                written.append(family.tokenizer.pieces)
                shutil.copyfile(model, directory / family.tokenizer.pieces)
        built.encode_special_tokens = False
        built.add_special_tokens([codec.token(id) for id in sorted(codec.special_ids)])
    own_rows = "bos" in config.objective or "separators" in config.objective
    if around and (changed or own_rows):
        changed |= _surround(built, {*_specials(config, codec).values()}, *around)
        for again in ("add_bos_token", "add_eos_token"):
            settings.pop(again, None)
    if changed:
        storage.write_text(directory / written[0], built.to_str(pretty=True))
    else:
        shutil.copyfile(own, directory / written[0])
    if (folder / "chat_template.jinja").is_file():
        written.append("chat_template.jinja")
        shutil.copyfile(folder / written[-1], directory / written[-1])
    types = ["token_type_ids"] * (config.model.token_types > 1)
    special = _specials(config, codec)
    settings |= {f"{role}_token": token for role, token in special.items()}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = ["input_ids", *types, "attention_mask"]
    storage.write_text(directory / written[1], storage.to_json(settings))
    return written


def _specials(config: Config, codec: Any) -> dict[str, str]:
    """Returns role -> token."""
    return {role: codec.token(id) for role, id in roles(config, codec).items()}


def _surround(tokenizer: Any, special: set[str], single: str, pair: str) -> bool:
    """Sets the templates of one text and of two; returns whether ids change."""
    from tokenizers.processors import TemplateProcessing

    def encoded() -> list:
        found = (tokenizer.encode("a"), tokenizer.encode("a", "a"))
        return [(each.ids, each.type_ids) for each in found]

    before = encoded()
    ids = [(token, tokenizer.token_to_id(token)) for token in sorted(special)]
    tokenizer.post_processor = TemplateProcessing(
        single=single, pair=pair, special_tokens=ids
    )
    return encoded() != before
