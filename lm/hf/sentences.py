"""The folders of sentence-transformers: an encoder, and how its states are pooled.

Beside the files of the encoder, `modules.json` lists `1_Pooling` and perhaps
`2_Normalize` (Reimers and Gurevych 2019).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.errors import ConfigError
from lm.hf.formats.files import beside, is_file, read_json, read_json_list, refuse
from lm.host import storage

MODULES = "modules.json"
LENGTH = "sentence_bert_config.json"
SIMILARITY = "config_sentence_transformers.json"
# objective.pooling -> the key of 1_Pooling/config.json.
POOLING = {
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
}
# The words of `pooling_mode`, which version 6 writes in place of these keys.
NAMES = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}
OTHERS = ("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
KINDS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
FIX = "use another model."


def is_sentence_encoder(directory: Path) -> bool:
    """Tells whether a directory of Hugging Face says how texts become vectors."""
    return is_file(directory / MODULES)


def read(directory: Path) -> tuple[dict[str, Any], int | None]:
    """Returns the fields of objective `contrastive`, and the most tokens of a text.

    The second is None where the directory does not say it.

    Raises:
      CheckpointError: a module or an option that this project does not compute.
    """
    path = directory / MODULES
    modules = [m if isinstance(m, Mapping) else {} for m in read_json_list(path)]
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds not in KINDS or modules[0].get("path"):
        expected = "Transformer in this folder, Pooling and perhaps Normalize"
        refuse(path, f"the modules {', '.join(kinds)}"[:120], expected, FIX)
    place = beside(directory, modules[1].get("path"), path) / "config.json"
    found: dict[str, Any] = {"name": "contrastive", "pooling": _pooling(place)}
    found["normalize"] = "Normalize" in kinds
    length = None
    if is_file(directory / LENGTH):
        length = read_json(directory / LENGTH).get("max_seq_length")
        if length is not None and (type(length) is not int or length < 1):
            found_text = f"max_seq_length {length!r:.80}"
            refuse(directory / LENGTH, found_text, "a number of tokens")
    if is_file(file := directory / SIMILARITY):
        similarity = read_json(file).get("similarity_fn_name") or "cosine"
        if similarity not in ("cosine", "dot", "euclidean"):
            expected = "cosine, dot or euclidean"
            refuse(file, f"similarity_fn_name {similarity!r:.80}", expected, FIX)
        found["similarity"] = similarity
        if similarity == "euclidean":  # Only triplets are learned by distances.
            found |= {"kind": "triplet", "texts": ["text", "positive", "negative"]}
    return found, length


def _pooling(path: Path) -> str:
    """Returns `objective.pooling`.

    Raises:
      CheckpointError: a pooling that this project does not compute.
    """
    config = read_json(path)
    chosen = [
        key for key, on in config.items() if key.startswith("pooling_mode_") and on
    ]
    if "pooling_mode" in config:
        given = config["pooling_mode"]
        chosen = [f"pooling_mode_{NAMES.get(str(given), given)}"]
    known = {key: word for word, key in POOLING.items()}
    if len(chosen) != 1 or chosen[0] not in known:
        found = ", ".join(chosen) or "no pooling"
        refuse(path, found[:120], f"one of {', '.join(known)}", FIX)
    return known[chosen[0]]


def write(
    directory: Path, objective: Mapping[str, Any], *, width: int, length: int
) -> None:
    """Adds to an exported encoder the files by which texts become vectors.

    Args:
      objective: the config of a `contrastive` objective.
      width: of a vector.
      length: the most tokens of a text, special tokens included.

    Raises:
      ConfigError: special tokens that other libraries would not put around a text.
    """
    if objective["wrap"] != "delimiters":
        found = repr(objective["wrap"])
        expected = "'delimiters', as other libraries put [CLS] and [SEP] around a text"
        raise ConfigError("objective.wrap", found, expected)
    library = "sentence_transformers.models"
    names = ["", "1_Pooling", *(["2_Normalize"] if objective["normalize"] else [])]
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": n, "name": str(n), "path": name, "type": f"{library}.{kind}"}
        for n, (name, kind) in enumerate(zip(names, kinds))
    ]
    pooling: dict[str, Any] = {"word_embedding_dimension": width}
    pooling |= {key: word == objective["pooling"] for word, key in POOLING.items()}
    pooling |= dict.fromkeys(OTHERS, False) | {"include_prompt": True}
    files: dict[str, Any] = {
        MODULES: modules,
        "1_Pooling/config.json": pooling,
        LENGTH: {"max_seq_length": length, "do_lower_case": False},
        SIMILARITY: {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": objective["similarity"],
        },
    }
    for name in names[1:]:
        (directory / name).mkdir()
    for name, content in files.items():
        storage.write_text(directory / name, storage.to_json(content))
