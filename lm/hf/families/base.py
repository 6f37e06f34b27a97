"""Defines a family: how its config.json and its tensors correspond to ours."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm.errors import CheckpointError, ConfigError
from lm.hf.families import tokens
from lm.hf.families.keys import DROPOUTS, INERT, REQUIRED, Translation
from lm.hf.families.table import Rule, Sizes
from lm.hf.families.tokens import TokenizerClass
from lm.hf.formats.files import refuse

# A table has a row for each layer and tensor: a larger number is refused before any.
MAX_LAYERS = {"num_layers": 1000, "encoder_layers": 1000}


@dataclass(frozen=True)
class Field:
    """A key of config.json and the field of config.model that it corresponds to.

    Attributes:
      key: the key of config.json.
      ours: the field of config.model, such as "attention.dropout".
      default: the value of an absent key; None: a whole number that must be given.
      translation: value of the key -> value of the field, where they differ.
    """

    key: str
    ours: str
    default: Any = None
    translation: Translation | None = None

    def problem(self, value: Any) -> str | None:
        """Returns what is wrong with a value of config.json, or None."""
        if self.translation is not None:
            right = isinstance(value, str) and value in self.translation
            expected = f"one of {', '.join(self.translation)}"
        elif isinstance(self.default, bool):
            right, expected = isinstance(value, bool), "true or false"
        elif isinstance(self.default, float):
            right = type(value) in (int, float) and 0 <= value < 1e9
            expected = "a number"
        else:
            least, most = (
                int(self.ours != "token_types"),
                MAX_LAYERS.get(self.ours, 2**31),
            )
            right = type(value) is int and least <= value <= most
            expected = f"a whole number from {least} up to {most}"
        return None if right else f"{self.key}: {shown(value)}, not {expected}"


# The value of a field that neither `fields` nor `fixed` of a family name.
DEFAULTS: dict[str, Any] = {
    "encoder_layers": None,
    "position_offset": 0,
    "token_types": 0,
    "softcap": None,
    "attention.head_dim": None,
    "attention.kv_heads": None,
    "attention.scale": None,
    "attention.query_key_norm": False,
    "attention.softcap": None,
    "attention.window": None,
    "attention.buckets": 32,
    "attention.max_distance": 128,
    "rope.base": 10000.0,
    "rope.scaling": "none",
    "rope.factor": 1.0,
    "rope.low": 1.0,
    "rope.high": 4.0,
    "rope.original_len": 8192,
}
# Field, or prefix of fields -> the field and value without which it has no effect.
CONDITIONS = {
    "rope.": ("position", "rope"),
    "attention.buckets": ("position", "relative"),
    "attention.max_distance": ("position", "relative"),
    "encoder_layers": ("kind", "encoder_decoder"),
}


# Fields that only new weights and training depend on.
TRAINING = frozenset({"init_std", "dropout", "attention.dropout"})


def is_unused(ours: str, model: Mapping[str, Any]) -> bool:
    """Returns whether a field has no effect on what this model computes."""
    needed = (pair for key, pair in CONDITIONS.items() if ours.startswith(key))
    return any(model[field] != value for field, value in needed)


def _same(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], set[str]]:
    return {}, set()


@dataclass(frozen=True)
class Family:
    """A model type of Hugging Face.

    Attributes:
      model_type: its name in config.json.
      prefix: of the names of all tensors but those of heads; a bare model is saved
        without it.
      fields: keys of config.json that correspond to a field of config.model.
      fixed: fields of config.model that all models of the family share.
      rules: config.model -> the table of tensors.
      architectures: class name -> the parts of the table that it has.
      required: key -> the values that this project can compute; the first is written.
      inert: keys without an effect, beside those of all families.
      tied: config.model -> tensors that repeat another one: name -> the other's name.
      adapted: fields of config.model, beside `fields`, that `adapt_in` and `adapt_out`
        convert.
      adapt_in: (config.json, its path) -> more fields of config.model, and the keys of
        config.json that they come from.
      adapt_out: config.model -> more keys of config.json; raises ConfigError where the
        family has none for a value.
      unused: regex of tensors that hold no parameter.
      summary: where its classifier of texts reads a row; see objective classification.
      separators: how many [SEP] separate two texts.
      prefixes: class name -> prefix, of the classes that have another one.
      others: variants with other stacks, as families of the same model_type.
      aliases: other names of keys, which the library reads too: alias -> key.
      dropouts: more keys of rates of dropout, all of which `model.dropout` replaces.
      task: the objective that its models were trained on.
      model: the file of lm/models that computes it.
      tokenizer: the class of its tokenizers, where no file names one.
      usage: keys of config.json that concern the use of a model, not its function.
      limits: part -> the fields of config.model that its head needs, with their values.
    """

    model_type: str
    prefix: str
    fields: tuple[Field, ...]
    fixed: Mapping[str, Any]
    rules: Callable[[Mapping[str, Any]], tuple[Rule, ...]]
    architectures: Mapping[str, tuple[str, ...]]
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    inert: frozenset[str] = frozenset()
    tied: Callable[[Mapping[str, Any]], dict[str, str]] = lambda model: {}
    adapted: frozenset[str] = frozenset()
    adapt_in: Callable[[dict[str, Any], Path], tuple[dict[str, Any], set[str]]] = _same
    adapt_out: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda model: {}
    unused: str = r"$^"
    summary: str = "tanh"
    separators: int = 1
    prefixes: Mapping[str, str] = field(default_factory=dict)
    others: tuple["Family", ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    dropouts: frozenset[str] = frozenset()
    task: str = "mlm"
    model: str = "transformer"
    tokenizer: TokenizerClass = tokens.BERT
    usage: frozenset[str] = frozenset()
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def table(self, model: Mapping[str, Any], architecture: str) -> tuple[Rule, ...]:
        """Returns the rules of a class, with the names that its tensors have."""
        parts = {"", *self.architectures[architecture]}
        new = self.prefixes.get(architecture, self.prefix)
        return tuple(
            replace(rule, name=new + rule.name.removeprefix(self.prefix))
            if rule.part == ""
            else rule
            for rule in self.rules(model)
            if rule.part in parts
        )

    def read(self, config: dict[str, Any], path: Path) -> dict[str, Any]:
        """Converts a config.json to config.model: fields by name, groups as dicts.

        Raises:
          CheckpointError: lists the values that this project cannot compute.
        """
        config = self.canonical(config, path)
        more, _ = self.adapt_in(config, path)
        fields = DEFAULTS | dict(self.fixed)
        problems: list[str] = []
        for item in self.fields:
            value = config.get(item.key, item.default)
            problem = item.problem(value)
            if problem:
                problems.append(problem)
            else:
                whole = isinstance(value, int) and isinstance(item.default, float)
                number = float(value) if whole else value
                fields[item.ours] = (
                    item.translation[value] if item.translation else number
                )
        for key, values in (REQUIRED | dict(self.required)).items():
            if key in config and config[key] not in values:
                problems.append(f"{key}: {shown(config[key])}, not {shown(values[0])}")
        if problems:
            raise CheckpointError(
                str(path),
                "; ".join(problems[:20]),
                f"a {self.model_type} that this project can compute",
                "use another model: these keys change what this one computes.",
            )
        model: dict[str, Any] = {"name": self.model}
        for ours, value in (fields | more).items():
            group, _, name = ours.rpartition(".")
            (model.setdefault(group, {}) if group else model)[name] = value
        if model["d_model"] % model["num_heads"] and not model["attention"]["head_dim"]:
            found = f"{model['d_model']} for {model['num_heads']} heads"
            refuse(path, found, "a width that the heads divide")
        return model

    def check_parts(
        self, model: Mapping[str, Any], parts: Iterable[str], where: str
    ) -> None:
        """Checks that the family's heads work with this model.

        Raises:
          ConfigError: a head needs another value of a field.
        """
        for part in parts:
            for name, value in self.limits.get(part, {}).items():
                if (found := get(model, name)) != value:
                    expected = f"{value!r}, which the {part} head of a "
                    expected += f"{self.model_type} has, whatever its layers have"
                    raise ConfigError(where, f"{name} {found!r}", expected)

    def canonical(self, config: dict[str, Any], path: Path) -> dict[str, Any]:
        """Returns a config.json with the aliases of keys replaced by the keys.

        Raises:
          CheckpointError: a key and its alias have different values.
        """
        found = {k: v for k, v in config.items() if k not in self.aliases}
        for alias, key in self.aliases.items():
            if (
                alias in config
                and found.setdefault(key, config[alias]) != config[alias]
            ):
                both = f"{key} {shown(found[key])} and {alias} {shown(config[alias])}"
                refuse(path, both, "one value: these are two names of one key")
        return found

    def known(self, config: dict[str, Any], path: Path) -> set[str]:
        """Returns the keys that this project applies, refuses, or knows to be inert."""
        _, read = self.adapt_in(self.canonical(config, path), path)
        own = {item.key for item in self.fields} | read | self.inert | self.dropouts
        fixed = REQUIRED.keys() | self.required.keys() | INERT | DROPOUTS
        return own | fixed | self.aliases.keys()

    def notes(
        self, config: dict[str, Any], model: Mapping[str, Any], path: Path
    ) -> tuple[str, ...]:
        """Returns a line for each key that may be expected to matter, but does not."""
        known = self.known(config, path)
        lines = []
        for key in sorted(config.keys() - known):
            near = get_close_matches(key, known - INERT, n=1, cutoff=0.85)
            guess = f" (did you mean {near[0]}?)" if near else ""
            lines.append(
                f"{path}: {shown(key)} is no key of a {self.model_type}{guess}"
            )
        for key in sorted(self.dropouts | DROPOUTS):
            value = config.get(key)
            if isinstance(value, int | float) and value != model["dropout"]:
                rate = f"{key}={value} is model.dropout={model['dropout']} here"
                lines.append(f"{path}: {rate}; it has an effect in training only")
        return tuple(lines)

    def write(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Converts config.model to config.json, without keys of tokenizer and heads.

        Raises:
          ConfigError: lists the fields that no model of this family has.
        """
        problems = []
        own = {item.ours for item in self.fields} | self.adapted
        for ours, value in (DEFAULTS | dict(self.fixed)).items():
            elsewhere = next(
                (v for k, v in CONDITIONS.items() if ours.startswith(k)), None
            )
            if ours in own or (elsewhere and model[elsewhere[0]] != elsewhere[1]):
                continue
            found = get(model, ours)
            if value is None and ours in DERIVED:
                value = DERIVED[ours](model)
                found = value if found is None else found
            if found != value:
                problems.append(f"{ours}={shown(found)}, not {shown(value)}")
        config: dict[str, Any] = {"model_type": self.model_type}
        for item in self.fields:
            value = get(model, item.ours)
            if item.translation is not None:
                theirs = [
                    key for key, word in item.translation.items() if word == value
                ]
                if not theirs:
                    problems.append(f"{item.ours}={shown(value)}")
                value = theirs[0] if theirs else value
            config[item.key] = value
        if problems:
            expected = f"what a {self.model_type} has"
            raise ConfigError("model", "; ".join(problems), expected)
        wanted = {k: v[0] for k, v in self.required.items() if v[0] is not None}
        config |= wanted
        return config | self.adapt_out(model)


DERIVED: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "attention.head_dim": lambda model: model["d_model"] // model["num_heads"],
    "attention.kv_heads": lambda model: model["num_heads"],
    "encoder_layers": lambda model: model["num_layers"],
}


def sizes(model: Mapping[str, Any], labels: int) -> Sizes:
    """Returns axis -> size, for the tables; E equals D, T is 2, C counts the labels."""
    heads, attention = model["num_heads"], model["attention"]
    return {
        "V": model["vocab_size"],
        "P": model["max_len"] + model["position_offset"],
        "Y": model["token_types"],
        "D": model["d_model"],
        "E": model["d_model"],
        "N": heads,
        "K": attention["kv_heads"] or heads,
        "H": attention["head_dim"] or model["d_model"] // heads,
        "F": model["d_ff"],
        "B": attention["buckets"],
        "C": labels,
        "T": 2,
    }


def layers(model: Mapping[str, Any]) -> dict[str, int]:
    """Returns path of a stack -> its number of layers."""
    count = model["num_layers"]
    if model["kind"] != "encoder_decoder":
        return {"layers": count}
    encoder = model["encoder_layers"] or count
    return {"encoder/layers": encoder, "decoder/layers": count}


def flag(config: Mapping[str, Any], key: str, default: bool, path: Path) -> bool:
    """Returns the value of a key that is true or false.

    Raises:
      CheckpointError: the value is something else.
    """
    value = config.get(key, default)
    if type(value) is not bool:
        refuse(path, f"{key} {shown(value)}", "true or false")
    return value


def get(model: Mapping[str, Any], field: str) -> Any:
    """Returns a field of config.model by its dotted path."""
    group, _, name = field.rpartition(".")
    return model[group][name] if group else model[name]


def shown(value: Any) -> str:
    """Returns a value as an error shows it: on one line of at most 80 characters."""
    return re.sub(r"\s+", " ", repr(value))[:80]
