"""Describes the tokenizer of a checkpoint as the section `tokenizer` of a config.

`tokenizer.json` comes first; else `vocab.txt`, `vocab.json` with `merges.txt`, or a
SentencePiece model, with the settings of `tokenizer_config.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.errors import DataError
from lm.hf.checkpoint import families
from lm.hf.families.tokens import GENERAL, TokenizerClass
from lm.hf.formats.files import is_file, parse_json, read_bytes, read_json
from lm.tokenizers.base import ROLES

PIECES = ("spiece.model", "tokenizer.model")
KINDS = {"WordPiece": "wordpiece", "BPE": "bpe", "Unigram": "unigram"}
MAX_TOKENIZER = 64 * 2**20
# Settings of slow tokenizers that change ids -> the values that this project has.
PLAIN = {
    "strip_accents": (None,),
    "tokenize_chinese_chars": (True, None),
    "do_basic_tokenize": (True, None),
    "never_split": (None,),
}


def section(directory: Path, model_type: str) -> dict[str, Any]:
    """Returns config.tokenizer for a directory of Hugging Face.

    In `special`, a role for which neither the files nor the tokenizer class name a
    token is "", so that no token is taken for it by its usual name.

    Raises:
      DataError: the directory has no tokenizer, or one that would give other ids here
        than in `transformers`.
      CheckpointError: a JSON file is damaged.
    """
    settings = read_settings(directory)
    cls = class_of(settings, model_type)
    special = special_tokens(directory, settings)
    if cls is not None:
        absent = {*ROLES} - {*special} - {"unk"} - cls.special.keys()
        vocabulary = _vocabulary(directory)
        usual = (role for role in sorted(absent) if vocabulary & {*ROLES[role]})
        special |= dict.fromkeys(usual, "")
    family = families()[model_type]
    if family.task == "causal_lm":
        first, _, _ = tokens_around(directory, model_type)
        special |= {"bos": first} if first else {}
    elif "decoder_start_token_id" in family.usage:
        special["bos"] = _start(directory, settings)
    path = directory / "tokenizer.json"
    if is_file(path):
        whole = read_tokenizer_json(path)
        kind = _kind(whole)
        disagreement = disagrees(whole, settings, cls)
        if disagreement:
            raise DataError(
                str(directory),
                disagreement,
                "two files that agree",
                "tokenizer_config.json comes first in transformers; write both files "
                "again with it: AutoTokenizer.from_pretrained(DIR)"
                ".save_pretrained(DIR).",
            )
        if kind not in KINDS:
            expected = f"one of {', '.join(KINDS)}"
            raise DataError(str(path), f"a model of type {kind[:40]!r}", expected)
        found = {"name": "hf", "kind": KINDS[kind], "path": str(path)}
        return found | {"special": special}
    added = directory / "added_tokens.json"
    if is_file(added) and read_json(added) and model_type != "t5":
        raise _needs_json(directory, "added_tokens.json")
    if is_file(directory / "vocab.txt"):
        for name, plain in PLAIN.items():
            if settings.get(name) not in plain:
                raise _needs_json(directory, f"{name}={settings[name]!r}")
        # Google's directories have no such setting: the vocabulary shows the case.
        lowercase = settings.get("do_lower_case", True) if settings else None
        return {
            "name": "hf",
            "kind": "wordpiece",
            "path": str(directory / "vocab.txt"),
            "lowercase": lowercase,
            "special": special,
        }
    if is_file(directory / "vocab.json"):
        # These split a text by GPT-2's pattern; others need tokenizer.json for theirs.
        if model_type not in ("gpt2", "roberta"):
            raise _needs_json(directory, f"vocab.json of a {model_type}")
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
            # The model itself names pad, unk, bos and eos.
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
    """Returns tokenizer_config.json, and the tokenizer class of config.json if any."""
    path, config = directory / "tokenizer_config.json", directory / "config.json"
    settings = read_json(path) if is_file(path) else {}
    name = read_json(config).get("tokenizer_class") if is_file(config) else None
    return {"tokenizer_class": name} | settings


def special_tokens(directory: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns role -> token, for the roles that the files name."""
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


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """Returns the content of a tokenizer.json."""
    return parse_json(read_bytes(path, MAX_TOKENIZER), path, limit=MAX_TOKENIZER)


def class_of(settings: Mapping[str, Any], model_type: str) -> TokenizerClass | None:
    """Returns the tokenizer class; None for one that no family describes.

    It is the one that the settings name, or else the family's.
    """
    name = settings.get("tokenizer_class")
    if not isinstance(name, str):
        return families()[model_type].tokenizer
    name = name.removesuffix("Fast").replace("DistilBert", "Bert")
    if name in GENERAL:
        return TokenizerClass(name)
    known = {family.tokenizer.name: family.tokenizer for family in families().values()}
    return known.get(name)


def tokens_around(
    directory: Path, model_type: str
) -> tuple[str | None, str | None, str]:
    """Returns the tokens that the library puts before and after a text.

    Returns:
      The token before (None: no token), the token after, and the reason, for the log.
    """
    settings = read_settings(directory)
    cls, special = class_of(settings, model_type), special_tokens(directory, settings)
    path = directory / "tokenizer.json"
    whole = read_tokenizer_json(path) if is_file(path) else {}
    keys = ("add_bos_token", "add_eos_token")
    if cls is not None and "{cls}" in cls.single:
        named = dict(cls.special) | special
        return named["cls"], named["sep"], f"the default of {cls.name}"
    if any(key in settings for key in keys):
        first, last = (
            special.get(key.split("_")[1]) if settings.get(key) is True else None
            for key in keys
        )
        given = ", ".join(f"{k}={settings[k]}" for k in keys if k in settings)
        return first, last, f"from {given} in tokenizer_config.json"
    first, last = _around_text(whole.get("post_processor"))
    return (
        first,
        last,
        "from the post-processor of tokenizer.json" if whole else ("no file names one"),
    )


def _around_text(processor: Any) -> tuple[str | None, str | None]:
    """Returns the special tokens that a post-processor puts before and after a text."""
    if not isinstance(processor, dict):
        return None, None
    if processor.get("type") == "Sequence":
        each = [_around_text(item) for item in processor.get("processors") or []]
        firsts, lasts = [f for f, _ in each if f], [n for _, n in each if n]
        return firsts[-1] if firsts else None, lasts[0] if lasts else None
    if processor.get("type") == "TemplateProcessing":
        items = processor.get("single") or [{}]
        ends = (items[0], items[-1])
        named = (e.get("SpecialToken") if isinstance(e, dict) else None for e in ends)
        first, last = (e.get("id") if isinstance(e, dict) else None for e in named)
        return first, last
    ends = (processor.get("cls"), processor.get("sep"))
    first, last = (e[0] if isinstance(e, list) and e else None for e in ends)
    return first, last


def disagrees(
    whole: Mapping[str, Any], settings: Mapping[str, Any], cls: TokenizerClass | None
) -> str | None:
    """Returns how tokenizer_config.json contradicts tokenizer.json; None if not at all.

    In the library tokenizer_config.json comes first, so tokenizer.json alone would give
    other ids.
    """
    for key, (part, name, default) in (cls.overrides if cls else {}).items():
        given, inner = settings.get(key, default), whole.get(part)
        if isinstance(inner, dict) and name in inner and inner[name] != given:
            here = f"{key} {given!r}" + " (the default)" * (key not in settings)
            there = f"{part}.{name} {inner[name]!r} in tokenizer.json"
            return f"{here} in tokenizer_config.json, and {there}"
    if settings.get("split_special_tokens"):
        return "split_special_tokens, which tokenizer.json does not have"
    items = whole.get("added_tokens") or []
    items = [item for item in items if isinstance(item, dict)]
    added = {str(item.get("id")): item for item in items}
    named = settings.get("added_tokens_decoder")
    for id, token in (named if isinstance(named, dict) else {}).items():
        if not isinstance(token, dict):
            continue
        other = added.get(id, {})
        fields = ["content", "special"]
        if not token.get("special"):
            fields += ["lstrip", "rstrip", "single_word", "normalized"]
        for name in fields:
            if name in token and token[name] != other.get(name):
                here = (
                    f"token {id} with {name} {token[name]!r} in tokenizer_config.json"
                )
                return f"{here}, and {other.get(name)!r} in tokenizer.json"
    return None


def _kind(whole: Mapping[str, Any]) -> str:
    """Returns the type of the model in a tokenizer.json."""
    model = whole.get("model") or {}
    kind = model.get("type") if isinstance(model, dict) else None
    if kind is None and isinstance(model, dict) and "merges" in model:
        return "BPE"  # The first versions did not write the type.
    return str(kind)


def _vocabulary(directory: Path) -> set[str]:
    """Returns all tokens of the tokenizer's files; none for a SentencePiece model."""
    path = directory / "tokenizer.json"
    if is_file(path):
        whole = read_tokenizer_json(path)
        model = whole.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        items = vocab if isinstance(vocab, dict | list) else ()
        found = [item[0] if isinstance(item, list) and item else item for item in items]
        added = whole.get("added_tokens") or []
        found += [item.get("content") for item in added if isinstance(item, dict)]
        return {item for item in found if isinstance(item, str)}
    path = directory / "vocab.txt"
    if is_file(path):
        lines = read_bytes(path, MAX_TOKENIZER).decode(errors="replace")
        return set(lines.splitlines())
    path = directory / "vocab.json"
    if is_file(path):
        return {*parse_json(read_bytes(path, MAX_TOKENIZER), path, MAX_TOKENIZER)}
    return set()


def _start(directory: Path, settings: Mapping[str, Any]) -> str:
    """Returns the token that a decoder starts with; "" where it is the padding token.

    Raises:
      DataError: config.json names an id that the tokenizer does not have.
    """
    config = read_json(directory / "config.json")
    start = config.get("decoder_start_token_id")
    if start is None or start == config.get("pad_token_id", 0):
        return ""
    path = directory / "tokenizer.json"
    if is_file(path):
        import tokenizers

        token = None
        if type(start) is int and 0 <= start < 2**31:
            token = tokenizers.Tokenizer.from_file(str(path)).id_to_token(start)
    else:
        token = _piece(directory, start)
    if token is None:
        found = f"decoder_start_token_id {str(start)[:40]}"
        where = str(directory / "config.json")
        raise DataError(where, found, "the id of a token of its tokenizer")
    return token


def _piece(directory: Path, id: Any) -> str | None:
    """Returns the piece with an id in the directory's SentencePiece model, or None."""
    import sentencepiece

    for name in PIECES:
        if is_file(directory / name):
            file = str(directory / name)
            model = sentencepiece.SentencePieceProcessor(model_file=file)
            whole = type(id) is int and 0 <= id < model.get_piece_size()
            return model.id_to_piece(id) if whole else None
    return None


def _needs_json(directory: Path, found: str) -> DataError:
    """Returns the error for files that only tokenizer.json describes completely."""
    return DataError(
        str(directory),
        found,
        "a tokenizer.json, which is complete",
        "write it where transformers is installed: AutoTokenizer.from_pretrained(DIR)"
        ".save_pretrained(DIR)",
    )
