"""The tokenizer that comes with a checkpoint, as a section of our config.

`tokenizer.json` is read as it is; else `vocab.txt`, `vocab.json` and `merges.txt`, or a
SentencePiece model, with what `tokenizer_config.json` says of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.errors import DataError
from lm.hf.checkpoint import families
from lm.hf.families.tokens import PLAIN as PLAIN_CLASSES
from lm.hf.families.tokens import TokenizerClass
from lm.hf.formats.files import is_file, parse_json, read_bytes, read_json
from lm.tokenizers.base import ROLES

PIECES = ("spiece.model", "tokenizer.model")
KINDS = {"WordPiece": "wordpiece", "BPE": "bpe", "Unigram": "unigram"}
MAX_TOKENIZER = 64 * 2**20
# Settings of the slow tokenizers that change ids, and the value that ours have.
PLAIN = {
    "strip_accents": (None,),
    "tokenize_chinese_chars": (True, None),
    "do_basic_tokenize": (True, None),
    "never_split": (None,),
}


def section(directory: Path, model_type: str) -> dict[str, Any]:
    """Returns config.tokenizer for a directory of Hugging Face.

    A role of special tokens that neither the files nor their tokenizer class have is ""
    in `special`: no token of a usual name is taken for it.

    Raises:
      DataError: no tokenizer is there, or one that we would not read as it is meant.
      CheckpointError: a JSON file is damaged.
    """
    settings = read_settings(directory)
    cls = class_of(settings, model_type)
    special = special_tokens(directory, settings)
    if cls is not None:
        absent = {*ROLES} - {*special} - {"unk"} - cls.special.keys()
        words = _vocabulary(directory)
        usual = (role for role in sorted(absent) if words & {*ROLES[role]})
        special |= dict.fromkeys(usual, "")
    family = families()[model_type]
    if family.task == "causal_lm":
        first, _, _ = text_marks(directory, model_type)
        special |= {"bos": first} if first else {}
    elif "decoder_start_token_id" in family.reads:
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
                "transformers goes by tokenizer_config.json: make the files one where "
                "it is installed: AutoTokenizer.from_pretrained(DIR)"
                ".save_pretrained(DIR).",
            )
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
    """Returns tokenizer_config.json, with the class that config.json may name."""
    path, config = directory / "tokenizer_config.json", directory / "config.json"
    settings = read_json(path) if is_file(path) else {}
    name = read_json(config).get("tokenizer_class") if is_file(config) else None
    return {"tokenizer_class": name} | settings


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


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """Returns the content of a tokenizer.json."""
    return parse_json(read_bytes(path, MAX_TOKENIZER), path, limit=MAX_TOKENIZER)


def class_of(settings: Mapping[str, Any], model_type: str) -> TokenizerClass | None:
    """Returns what is known of the tokenizer class; None where nothing is.

    `tokenizer_config.json` names it, else it is the family's.
    """
    name = settings.get("tokenizer_class")
    if not isinstance(name, str):
        return families()[model_type].tokenizer
    name = name.removesuffix("Fast").replace("DistilBert", "Bert")
    if name in PLAIN_CLASSES:
        return TokenizerClass(name)
    known = {family.tokenizer.name: family.tokenizer for family in families().values()}
    return known.get(name)


def text_marks(directory: Path, model_type: str) -> tuple[str | None, str | None, str]:
    """Returns the tokens that the library puts before and after a text, and why."""
    settings = read_settings(directory)
    cls, special = class_of(settings, model_type), special_tokens(directory, settings)
    path = directory / "tokenizer.json"
    whole = read_tokenizer_json(path) if is_file(path) else {}
    keys = ("add_bos_token", "add_eos_token")
    if cls is not None and "{cls}" in cls.single:
        named = dict(cls.special) | special
        return named["cls"], named["sep"], f"a {cls.name} does so"
    if any(key in settings for key in keys):
        first, last = (
            special.get(key.split("_")[1]) if settings.get(key) is True else None
            for key in keys
        )
        said = ", ".join(f"{k}={settings[k]}" for k in keys if k in settings)
        return first, last, f"tokenizer_config.json says {said}"
    first, last = _around(whole.get("post_processor"))
    return (
        first,
        last,
        "so says the post-processor of tokenizer.json"
        if whole
        else ("no file says otherwise"),
    )


def _around(processor: Any) -> tuple[str | None, str | None]:
    """Returns the special tokens before and after a text, of a post-processor."""
    if not isinstance(processor, dict):
        return None, None
    if processor.get("type") == "Sequence":
        each = [_around(item) for item in processor.get("processors") or []]
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
    """Returns how tokenizer_config.json contradicts tokenizer.json, if it does.

    The library goes by the first of them: the ids of a text would be others.
    """
    for key, (part, name, default) in (cls.decides if cls else {}).items():
        given, inner = settings.get(key, default), whole.get(part)
        if isinstance(inner, dict) and name in inner and inner[name] != given:
            here = f"{key} {given!r}" + " (as it is not given)" * (key not in settings)
            there = f"{part}.{name} {inner[name]!r} in tokenizer.json"
            return f"{here} in tokenizer_config.json, and {there}"
    if settings.get("split_special_tokens"):
        return (
            "split_special_tokens in tokenizer_config.json, which no tokenizer.json has"
        )
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
        return "BPE"  # The first versions did not say.
    return str(kind)


def _vocabulary(directory: Path) -> set[str]:
    """Returns all tokens of the files in which a text's tokens have no other role."""
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
    """Returns the token that a decoder starts with; "" where it is the padding.

    Raises:
      DataError: config.json names an id that is no token's.
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
    """Returns the piece of an id in the directory's SentencePiece model."""
    import sentencepiece

    for name in PIECES:
        if is_file(directory / name):
            file = str(directory / name)
            model = sentencepiece.SentencePieceProcessor(model_file=file)
            whole = type(id) is int and 0 <= id < model.get_piece_size()
            return model.id_to_piece(id) if whole else None
    return None


def _slow(directory: Path, found: str) -> DataError:
    return DataError(
        str(directory),
        found,
        "a tokenizer.json, which says all of it",
        "make it where transformers is installed: AutoTokenizer.from_pretrained(DIR)"
        ".save_pretrained(DIR)",
    )
