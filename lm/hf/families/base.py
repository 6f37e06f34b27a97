"""A family of models: its config.json and its tensors beside ours."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm.errors import CheckpointError, ConfigError
from lm.hf.families import tokens
from lm.hf.families.keys import INERT, TRAINED, WANTED, Words
from lm.hf.families.table import Rule, Sizes
from lm.hf.families.tokens import TokenizerClass
from lm.hf.formats.files import refuse

# Tables are as long as there are layers: none is made for a number out of the air.
MOST = {"num_layers": 1000, "encoder_layers": 1000}


@dataclass(frozen=True)
class Field:
    """A key of config.json and the field of config.model that it is.

    Attributes:
      key: in config.json.
      ours: in config.model, such as "attention.dropout".
      default: what an absent key means; None: a whole number that must be there.
      words: the values, theirs -> ours, where they differ.
    """

    key: str
    ours: str
    default: Any = None
    words: Words | None = None

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value of config.json, if anything."""
        if self.words is not None:
            right = isinstance(value, str) and value in self.words
            expected = f"one of {', '.join(self.words)}"
        elif isinstance(self.default, bool):
            right, expected = isinstance(value, bool), "true or false"
        elif isinstance(self.default, float):
            right = type(value) in (int, float) and 0 <= value < 1e9
            expected = "a number"
        else:
            least, most = int(self.ours != "token_types"), MOST.get(self.ours, 2**31)
            right = type(value) is int and least <= value <= most
            expected = f"a whole number from {least} up to {most}"
        return None if right else f"{self.key}: {shown(value)}, not {expected}"


# What a field is where a family says nothing of it.
USUAL: dict[str, Any] = {
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
# Fields that say nothing about what a model of another kind computes.
ELSEWHERE = {
    "rope.": ("position", "rope"),
    "attention.buckets": ("position", "relative"),
    "attention.max_distance": ("position", "relative"),
    "encoder_layers": ("kind", "encoder_decoder"),
}


# Fields that matter to new weights and to training only.
TRAINING = frozenset({"init_std", "dropout", "attention.dropout"})


def elsewhere(ours: str, model: Mapping[str, Any]) -> bool:
    """Whether a field says nothing about what this model computes."""
    places = (place for key, place in ELSEWHERE.items() if ours.startswith(key))
    return any(model[field] != word for field, word in places)


def _same(config: dict[str, Any], path: Path) -> tuple[dict, set]:
    return {}, set()


@dataclass(frozen=True)
class Family:
    """What Hugging Face calls a model type.

    Attributes:
      model_type: of config.json.
      prefix: of the names of all tensors but those of heads; absent where a bare model
        was saved.
      fields: keys that are a field of ours.
      fixed: fields of config.model that all models of the family share.
      rules: config.model -> the table.
      architectures: class name -> parts (of rules) that it has.
      wanted: keys, and the values that we can do; the first is written.
      inert: keys that change nothing, beside those of all families.
      tied: config.model -> tensors that repeat another one: name -> the other's name.
      own: fields of ours, beside `fields`, that `adapt_in` and `adapt_out` deal with.
      adapt_in: (config.json, its path) -> more fields of ours, and the keys it read.
      adapt_out: config.model -> more keys of theirs; ConfigError where there are none.
      unused: regex of tensors that hold no parameter.
      summary: where its classifier of texts reads a row; see objective classification.
      separators: how many [SEP] stand between two texts.
      prefixes: of the classes that have another prefix.
      others: classes with other stacks, as families of the same model_type.
      aliases: other names of keys, which the library reads too: alias -> key.
      trained: rates of dropout that `config.model.dropout` stands for as well.
      task: the objective that its models were trained on.
      model: the file of lm/models that computes it.
      tokenizer: the class of its tokenizers, where no file names another.
      reads: keys of config.json that say how its models are used, not what they are.
      limits: part -> fields of config.model that its head fixes, with their values.
    """

    model_type: str
    prefix: str
    fields: tuple[Field, ...]
    fixed: Mapping[str, Any]
    rules: Callable[[Mapping[str, Any]], tuple[Rule, ...]]
    architectures: Mapping[str, tuple[str, ...]]
    wanted: Mapping[str, tuple] = field(default_factory=dict)
    inert: frozenset[str] = frozenset()
    tied: Callable[[Mapping[str, Any]], dict[str, str]] = lambda model: {}
    own: frozenset[str] = frozenset()
    adapt_in: Callable[[dict, Path], tuple[dict, set]] = _same
    adapt_out: Callable[[Mapping[str, Any]], dict] = lambda model: {}
    unused: str = r"$^"
    summary: str = "tanh"
    separators: int = 1
    prefixes: Mapping[str, str] = field(default_factory=dict)
    others: tuple["Family", ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    trained: frozenset[str] = frozenset()
    task: str = "mlm"
    model: str = "transformer"
    tokenizer: TokenizerClass = tokens.BERT
    reads: frozenset[str] = frozenset()
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def table(self, model: Mapping[str, Any], architecture: str) -> tuple[Rule, ...]:
        """The rules of a class, by the names that its tensors have."""
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
        """Returns config.model of a config.json: fields by name, groups as dicts.

        Raises:
          CheckpointError: lists the values that no field of ours can be.
        """
        config = self.plain(config, path)
        more, _ = self.adapt_in(config, path)
        fields = USUAL | dict(self.fixed)
        problems: list[str] = []
        for item in self.fields:
            value = config.get(item.key, item.default)
            problem = item.problem(value)
            if problem:
                problems.append(problem)
            else:
                whole = isinstance(value, int) and isinstance(item.default, float)
                number = float(value) if whole else value
                fields[item.ours] = item.words[value] if item.words else number
        for key, values in (WANTED | dict(self.wanted)).items():
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
        """Raises ConfigError where a head of the family fixes a field otherwise."""
        for part in parts:
            for name, value in self.limits.get(part, {}).items():
                if (found := get(model, name)) != value:
                    expected = f"{value!r}, which the {part} head of a "
                    expected += f"{self.model_type} has, whatever its layers have"
                    raise ConfigError(where, f"{name} {found!r}", expected)

    def plain(self, config: dict[str, Any], path: Path) -> dict[str, Any]:
        """Returns a config.json with every key under the family's own name.

        Raises:
          CheckpointError: a key and its alias differ.
        """
        found = {k: v for k, v in config.items() if k not in self.aliases}
        for alias, key in self.aliases.items():
            if (
                alias in config
                and found.setdefault(key, config[alias]) != config[alias]
            ):
                both = f"{key} {shown(found[key])} and {alias} {shown(config[alias])}"
                refuse(path, both, "one number: these are two names of one key")
        return found

    def known(self, config: dict[str, Any], path: Path) -> set[str]:
        """Returns the keys that this project honours, refuses, or knows to be inert."""
        _, read = self.adapt_in(self.plain(config, path), path)
        own = {item.key for item in self.fields} | read | self.inert | self.trained
        fixed = WANTED.keys() | self.wanted.keys() | INERT | TRAINED
        return own | fixed | self.aliases.keys()

    def notes(
        self, config: dict[str, Any], model: Mapping[str, Any], path: Path
    ) -> tuple[str, ...]:
        """Returns a line for each key that one may expect to matter, and does not."""
        known = self.known(config, path)
        lines = []
        for key in sorted(config.keys() - known):
            near = get_close_matches(key, known - INERT, n=1, cutoff=0.85)
            guess = f" (did you mean {near[0]}?)" if near else ""
            lines.append(
                f"{path}: {shown(key)} is no key of a {self.model_type}{guess}"
            )
        for key in sorted(self.trained | TRAINED):
            value = config.get(key)
            if isinstance(value, int | float) and value != model["dropout"]:
                rate = f"{key}={value} is model.dropout={model['dropout']} here"
                lines.append(f"{path}: {rate}, which matters in training alone")
        return tuple(lines)

    def write(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The config.json of a config.model, less what the tokenizer and heads say.

        Raises:
          ConfigError: lists the fields that keep the model out of this family.
        """
        problems = []
        own = {item.ours for item in self.fields} | self.own
        for ours, value in (USUAL | dict(self.fixed)).items():
            elsewhere = next(
                (v for k, v in ELSEWHERE.items() if ours.startswith(k)), None
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
            if item.words is not None:
                theirs = [key for key, word in item.words.items() if word == value]
                if not theirs:
                    problems.append(f"{item.ours}={shown(value)}")
                value = theirs[0] if theirs else value
            config[item.key] = value
        if problems:
            expected = f"what a {self.model_type} has"
            raise ConfigError("model", "; ".join(problems), expected)
        wanted = {k: v[0] for k, v in self.wanted.items() if v[0] is not None}
        config |= wanted
        return config | self.adapt_out(model)


DERIVED: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "attention.head_dim": lambda model: model["d_model"] // model["num_heads"],
    "attention.kv_heads": lambda model: model["num_heads"],
    "encoder_layers": lambda model: model["num_layers"],
}


def sizes(model: Mapping[str, Any], labels: int) -> Sizes:
    """The capitals of the tables' axes: E is D again, T two, C the labels of a head."""
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
    """How many layers each stack has, by its path."""
    count = model["num_layers"]
    if model["kind"] != "encoder_decoder":
        return {"layers": count}
    encoder = model["encoder_layers"] or count
    return {"encoder/layers": encoder, "decoder/layers": count}


def flag(config: Mapping[str, Any], key: str, default: bool, path: Path) -> bool:
    """Returns a key of config.json that is true or false."""
    value = config.get(key, default)
    if type(value) is not bool:
        refuse(path, f"{key} {shown(value)}", "true or false")
    return value


def get(model: Mapping[str, Any], field: str) -> Any:
    group, _, name = field.rpartition(".")
    return model[group][name] if group else model[name]


def shown(value: Any) -> str:
    return re.sub(r"\s+", " ", repr(value))[:80]
