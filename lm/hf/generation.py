"""Reads a checkpoint's defaults of generation, `generation_config.json`.

The file is kept beside a run's tokenizer. `lm.generate` and `lm.open(...).generate`
take the settings from it that the user does not give. Where a checkpoint has no file,
the same keys are read from its config.json, as `transformers` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.config import schema
from lm.errors import CheckpointError, DataError
from lm.hf.formats.files import is_file, read_json

FILE = "generation_config.json"
# Keys without an effect on the text of an answer, or read elsewhere in this project.
_INERT = """
    bos_token_id pad_token_id eos_token_id decoder_start_token_id transformers_version
    _from_model_config use_cache return_dict_in_generate output_scores output_logits
    output_attentions output_hidden_states remove_invalid_values cache_implementation
    max_new_tokens max_length do_sample num_beams num_return_sequences
    stop_strings renormalize_logits low_memory
"""
INERT = frozenset(_INERT.split())
# Keys of sampling, which are fields of lm.decoding.loop.Settings too, and the values
# that the library takes where they are absent.
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}
# `early_stopping` of the library -> `early_stop` of Settings.
STOPPING = {False: "heuristic", True: "full", "never": "exact"}
# Keys of generation that config.json may hold.
_IN_CONFIG = """
    eos_token_id max_new_tokens max_length do_sample num_beams num_return_sequences
    length_penalty early_stopping repetition_penalty stop_strings min_length
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_beam_groups
    diversity_penalty typical_p forced_bos_token_id forced_eos_token_id
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
"""
IN_CONFIG = frozenset(_IN_CONFIG.split()) | SAMPLING.keys()


@dataclass(frozen=True)
class Defaults:
    """What generation uses where the user gives no setting.

    Attributes:
      settings: every field of lm.decoding.loop.Settings by name; those that the user
        gives are among them.
      stop: texts that end an answer.
      max_length: the most tokens of prompt and answer together; None: no such limit.
      notes: lines for the user on what was taken and what cannot be done.
    """

    settings: dict[str, Any]
    stop: tuple[str, ...]
    max_length: int | None
    notes: tuple[str, ...]


def defaults(
    directory: Path, fields: Mapping[str, schema.Field], given: Mapping[str, Any]
) -> Defaults:
    """Completes the settings that a user gives.

    What is not given comes from the file in `directory`, and else from the default of
    `Settings`.

    Args:
      directory: the folder of the run's tokenizer.
      fields: the fields of lm.decoding.loop.Settings.
      given: the settings that the user gives, checked.

    Raises:
      ConfigError: a value of the file is out of bounds.
    """
    content, path = read(directory), path_of(directory)
    found = {
        name: schema.check(fields[name], value, f"{path}: {name}")
        for name, value in compatible(settings(content), given).items()
    }
    lines = notes(content, path)
    if found:
        taken = [f"--{n.replace('_', '-')}={v}" for n, v in found.items()]
        taken = [text for text, name in zip(taken, found) if name not in given]
        lines.append(f"{path}: {', '.join(taken) or 'all settings are given'}")
    usual = {name: field.default for name, field in fields.items()}
    limit = None if "max_tokens" in given else max_length(content)
    return Defaults(
        usual | found | dict(given), tuple(stops(content)), limit, tuple(lines)
    )


def path_of(directory: Path) -> Path:
    """Returns the file of a directory that holds the keys of generation."""
    path, config = directory / FILE, directory / "config.json"
    return config if not is_file(path) and is_file(config) else path


def read(directory: Path) -> dict[str, Any]:
    """Returns the keys of generation in a directory, without those that are null.

    Raises:
      CheckpointError: generation_config.json is damaged.
    """
    path = path_of(directory)
    if path.name != FILE:
        content = _in_config(path)
    else:
        content = read_json(path) if is_file(path) else {}
    return {key: value for key, value in content.items() if value is not None}


def _in_config(path: Path) -> dict[str, Any]:
    """Returns the keys of generation of a config.json; {} where it is no model's."""
    try:
        content = read_json(path)
    except CheckpointError:  # a file of something else beside a vocabulary
        return {}
    if "model_type" not in content:
        return {}
    return {key: value for key, value in content.items() if key in IN_CONFIG}


def ends(directory: Path, vocab_size: int) -> tuple[int, ...] | None:
    """Returns the ids that end an answer; None where no file names any.

    Ids that only config.json names and the tokenizer does not have are left out: there
    they are often those of the class, and the library never meets them.

    Raises:
      DataError: generation_config.json names ids that the tokenizer does not have.
    """
    found = read(directory).get("eos_token_id")
    if found is None:
        return None
    ids = found if isinstance(found, list) else [found]
    known = [id for id in ids if type(id) is int and 0 <= id < vocab_size]
    path = path_of(directory)
    if path.name == FILE and (not ids or known != ids):
        expected = f"ids below {vocab_size}, the size of the tokenizer"
        raise DataError(f"{path}: eos_token_id", str(found)[:80], expected)
    return tuple(known) or None


def settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of lm.decoding.loop.Settings that the keys of a file give."""
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
    floats = {"temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"}
    return {
        key: float(value) if key in floats and type(value) is int else value
        for key, value in found.items()
    }


def compatible(found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a file that agree with the method that a user chooses.

    Beams that are given exclude the settings of sampling in the file, and a temperature
    or another setting of sampling excludes its settings of beam search.
    """
    search = ("beams", "n_best", "length_penalty", "penalty", "early_stop")
    sampling = (*SAMPLING, "repetition_penalty")
    excluded: tuple[str, ...] = ()
    if given.get("beams", 1) > 1:
        excluded = sampling
    elif any(key in given for key in ("beams", *sampling)):
        excluded = search
    return {key: value for key, value in found.items() if key not in excluded}


def max_length(content: Mapping[str, Any]) -> int | None:
    """Returns the most tokens of prompt and answer together, if the file limits them.

    `max_new_tokens`, which counts the answer alone, comes first where both are given.
    """
    most = content.get("max_length")
    return most if type(most) is int and "max_new_tokens" not in content else None


def stops(content: Mapping[str, Any]) -> list[str]:
    """Returns the texts that end an answer."""
    given = content.get("stop_strings", [])
    items = given if isinstance(given, list) else [given]
    return [text for text in items if isinstance(text, str) and text]


def notes(content: Mapping[str, Any], path: Path) -> list[str]:
    """Returns a line for each key that has an effect which this project lacks."""
    done = INERT | SAMPLING.keys() | {"repetition_penalty", "early_stopping"}
    neutral: tuple[Any, ...] = (False, 0, 1, [], {})
    asked = sorted(k for k in content.keys() - done if content[k] not in neutral)
    lines = [f"{path}: {k}={str(content[k])[:60]} is ignored" for k in asked]
    if content.get("do_sample") and content.get("num_beams", 1) != 1:
        lines.append(f"{path}: do_sample with num_beams samples without beams here")
    return lines
