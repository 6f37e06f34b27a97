"""`generation_config.json`: how the authors of a checkpoint have it answer.

It is kept beside a run's tokenizer. lm.generate takes from it what no flag says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.errors import DataError
from lm.hf.formats.files import is_file, read_json

FILE = "generation_config.json"
# Keys that are no matter of what is said, or whose part in it is elsewhere.
_INERT = """
    bos_token_id pad_token_id eos_token_id decoder_start_token_id transformers_version
    _from_model_config use_cache return_dict_in_generate output_scores output_logits
    output_attentions output_hidden_states remove_invalid_values cache_implementation
    max_new_tokens max_length do_sample num_beams num_return_sequences
    stop_strings renormalize_logits low_memory
"""
INERT = frozenset(_INERT.split())
# Keys of sampling and of beam search, and the fields of lm.decoding.loop.Settings that
# they are; with what the library takes where they are absent.
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}
STOPPING = {False: "heuristic", True: "full", "never": "exact"}


def read(directory: Path) -> dict[str, Any]:
    """Returns the file's content, without what is null; {} where there is none."""
    path = directory / FILE
    content = read_json(path) if is_file(path) else {}
    return {key: value for key, value in content.items() if value is not None}


def ends(directory: Path, vocab_size: int) -> tuple[int, ...] | None:
    """Returns the ids that end an answer; None where the file does not say it.

    Raises:
      DataError: they are no ids of the tokenizer.
    """
    found = read(directory).get("eos_token_id")
    if found is None:
        return None
    ids = found if isinstance(found, list) else [found]
    if not ids or not all(type(id) is int and 0 <= id < vocab_size for id in ids):
        expected = f"ids below {vocab_size}, the size of the tokenizer"
        where = f"{directory / FILE}: eos_token_id"
        raise DataError(where, str(found)[:80], expected)
    return tuple(ids)


def settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of lm.decoding.loop.Settings, by the keys that say them."""
    found: dict[str, Any] = {}
    if "max_new_tokens" in content:
        found["max_tokens"] = content["max_new_tokens"]
    beams = content.get("num_beams", 1)
    if content.get("do_sample"):
        given = {key: content.get(key, value) for key, value in SAMPLING.items()}
        found |= {key: value for key, value in given.items() if value is not None}
    elif beams != 1:
        stopping = content.get("early_stopping", False)
        found |= {
            "beams": beams,
            "n_best": content.get("num_return_sequences", 1),
            "length_penalty": content.get("length_penalty", 1.0),
            "penalty": "length",
            "early_stop": STOPPING.get(stopping, str(stopping))
            if isinstance(stopping, bool | str)
            else str(stopping),
        }
    if "repetition_penalty" in content and beams == 1:
        found["repetition_penalty"] = content["repetition_penalty"]
    whole = {"temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"}
    return {
        key: float(value) if key in whole and type(value) is int else value
        for key, value in found.items()
    }


def given_way(found: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that can stand beside the flags: these choose the way.

    Asked for beams there is no sampling, asked for a temperature there are no beams.
    """
    search = ("beams", "n_best", "length_penalty", "penalty", "early_stop")
    sampling = (*SAMPLING, "repetition_penalty")
    left: tuple[str, ...] = ()
    if flags.get("beams", 1) > 1:
        left = sampling
    elif any(key in flags for key in ("beams", *sampling)):
        left = search
    return {key: value for key, value in found.items() if key not in left}


def max_tokens(
    content: Mapping[str, Any], prompts: Sequence[Sequence[int]], source: bool
) -> int | None:
    """Returns how long answers become by `max_length`, which counts a prompt too.

    Args:
      prompts: their ids, the longest of which decides.
      source: whether an encoder reads them: the answer then has one token before it.
    """
    most = content.get("max_length")
    if type(most) is not int or "max_new_tokens" in content:
        return None
    return max(1, most - (1 if source else max(map(len, prompts), default=0)))


def stops(content: Mapping[str, Any]) -> list[str]:
    """Returns the texts that end an answer."""
    given = content.get("stop_strings", [])
    items = given if isinstance(given, list) else [given]
    return [text for text in items if isinstance(text, str) and text]


def notes(content: Mapping[str, Any], path: Path) -> list[str]:
    """Returns a line for each key that asks for what lm.generate does not do."""
    done = INERT | SAMPLING.keys() | {"repetition_penalty", "early_stopping"}
    neutral: tuple[Any, ...] = (False, 0, 1, [], {})
    asked = sorted(k for k in content.keys() - done if content[k] not in neutral)
    lines = [f"{path}: {k}={str(content[k])[:60]} is not done here" for k in asked]
    if content.get("do_sample") and content.get("num_beams", 1) != 1:
        lines.append(f"{path}: num_beams with do_sample is sampling without beams here")
    return lines
