"""Expands a sweep to its settings: fields of a config, by dotted path, with values.

A config file may define a function beside `get_config`, and calls `add` in it once for
each setting, with fields by dotted path, or by keyword where there is no dot:

    def sweep(add):
        for lr in (1e-4, 3e-4):
            for seed in range(5):
                add({"optim.lr": lr}, seed=seed)

It may take the argument of the config as well, `sweep(add, arg)`, and draw values from
a generator with a seed, such as `random.Random(0)`. Flags multiply its settings, or the
config as it is, by a product of axes: seeds, folds, and any field.
"""

import ast
import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from lm.config import overrides, schema
from lm.config.files import plain, run_file
from lm.config.rules import MOST_FOLDS
from lm.config.schema import Text, shown
from lm.errors import ConfigError

Setting = dict[str, Any]  # path of a field -> value, or Text of the command line
Axis = tuple[str, Sequence[Any]]  # path of a field, and its values

SEED, FOLD = "seed", "data.fold"
REPEATS = (FOLD, SEED)  # fields in which the runs of one result differ
MOST = 10_000  # settings
MOST_NAME = 100  # characters of the name of a folder
PATH = re.compile(r"[^.\[\]\s=]+(\.[^.\[\]\s=]+)*")


def read(file_arg: str) -> list[Setting]:
    """Runs `sweep` of `FILE[:ARG]`; returns its settings, [] where it has none.

    Raises:
      ConfigError: it fails, adds nothing, adds something that is no setting, or draws
        other settings each time.
    """
    name, _, arg = file_arg.partition(":")
    where = f"sweep of {name}"

    def ask(defined: dict[str, Any]) -> list[Setting]:
        sweep = defined.get("sweep")
        if sweep is None:
            return []
        if not callable(sweep):
            raise ConfigError(where, shown(sweep), "a function sweep(add)")
        found: list[Setting] = []

        def add(values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
            if len(found) == MOST:
                raise too_many(where)
            found.append(_checked({} if values is None else values, more, where))

        takes_arg = len(inspect.signature(sweep).parameters) > 1
        if inspect.isgenerator(sweep(add, arg) if takes_arg else sweep(add)):
            expected = "a function that calls add(...) for each setting"
            raise ConfigError(where, "a function that yields", expected)
        if not found:
            raise ConfigError(where, "no setting", "at least one call of add(...)")
        _refuse_twins(found, where)
        return found

    found = run_file(file_arg, ask)
    if found != run_file(file_arg, ask):
        expected = "the same each time, as drawn from random.Random(0)"
        raise ConfigError(where, "other settings at the second call", expected)
    return found


def _checked(values: Any, more: Mapping[str, Any], where: str) -> Setting:
    """Checks what `add` was given, and returns it as a setting."""
    if not isinstance(values, Mapping):
        expected = 'fields by path, as in add({"optim.lr": 1e-4}, seed=0)'
        raise ConfigError(where, f"add({shown(values)})", expected)
    if twice := sorted({*values} & {*more}):
        raise ConfigError(where, f"{twice[0]} twice in one add(...)", "one value")
    setting = {}
    for path, value in {**values, **more}.items():
        if not isinstance(path, str) or not PATH.fullmatch(path):
            expected = "names joined by dots, such as optim.lr"
            raise ConfigError(where, f"the field {shown(path)}", expected)
        setting[path] = _literal(value, f"{where}: {path}")
    return setting


def _literal(value: Any, where: str) -> Any:
    """Copies a value as Python's own types; numbers of numpy too.

    Raises:
      ConfigError: it cannot be written on a command line.
    """
    value = plain(value, where)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    try:
        same = ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        same = False
    if not same:
        expected = "a finite number, a text, true or false, none, or lists of these"
        raise ConfigError(where, shown(value), expected)
    return value


def _refuse_twins(settings: Iterable[Setting], where: str) -> None:
    """Refuses two settings that have one name.

    Raises:
      ConfigError: names them.
    """
    seen: dict[str, Setting] = {}
    for setting in settings:
        folder = folder_of(setting)
        if folder in seen:
            pair = (describe(seen[folder]), describe(setting))
            found = f"{pair[0]} twice"
            if pair[0] != pair[1]:
                found = f"{pair[0]} and {pair[1]}, both named {folder}"
            raise ConfigError(where, found, "settings that differ")
        seen[folder] = setting


def too_many(where: str) -> ConfigError:
    return ConfigError(where, f"more than {MOST:,} settings", f"at most {MOST:,}")


# ── Flags ───────────────────────────────────────────────────────────────────────────


def seeds(text: str) -> Axis:
    """Parses --seeds: how many, from 0 on, or a list.

    Raises:
      ConfigError: it is neither.
    """
    if re.fullmatch("[0-9]{1,5}", text) and 1 <= int(text) <= MOST:
        return SEED, range(int(text))
    if not re.fullmatch("[0-9]{1,10}(,[0-9]{1,10})*,?", text) or "," not in text:
        expected = f"how many, from 1 to {MOST:,}, or a list such as 1,2,3"
        raise ConfigError("--seeds", repr(text), expected)
    return SEED, _unlike([int(each) for each in text.split(",") if each], "--seeds")


def folds(text: str) -> Axis:
    """Parses --folds, the number of folds.

    Raises:
      ConfigError: it is none from 2 to MOST_FOLDS.
    """
    if not re.fullmatch("[0-9]{1,4}", text) or not 2 <= int(text) <= MOST_FOLDS:
        expected = f"how many, from 2 to {MOST_FOLDS:,}"
        raise ConfigError("--folds", repr(text), expected)
    return FOLD, [f"{number}/{text}" for number in range(1, int(text) + 1)]


def grid(text: str) -> Axis:
    """Parses --grid, such as "optim.lr=1e-4,3e-4".

    A comma within brackets or quotes does not end a value.

    Raises:
      ConfigError: there is no field, no value, or one value twice.
    """
    path, equals, rest = text.partition("=")
    if not equals or not PATH.fullmatch(path):
        raise ConfigError("--grid", repr(text), "FIELD=VALUE[,VALUE]")
    values = _split(rest)
    if "" in values:
        found = f"{text!r}, an empty value" if rest else f"{text!r}, no value"
        raise ConfigError("--grid", found, "FIELD=VALUE[,VALUE]")
    return path, _unlike([Text(value) for value in values], f"--grid={path}")


def _split(text: str) -> list[str]:
    """Splits at commas that are outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        else:
            depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]


def _unlike(values: list[Any], where: str) -> list[Any]:
    """Returns the values.

    Raises:
      ConfigError: two of them are equal.
    """
    texts = [short(value) for value in values]
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise ConfigError(where, f"{twice[0]} twice", "values that differ")
    return values


def expand(settings: Sequence[Setting], axes: Sequence[Axis]) -> list[Setting]:
    """Multiplies settings by a product of axes, of which the last changes fastest.

    A field of an axis replaces that of a setting, and settings that become equal are
    one. Fold and seed are the last fields of each.

    Args:
      settings: those of the config; [] is the config as it is.

    Raises:
      ConfigError: nothing varies, a field has two axes, or there are too many settings
        or two of one name.
    """
    if not settings and not axes:
        expected = "a function sweep(add) in it, or --seeds, --folds or --grid"
        raise ConfigError("--config", "nothing that varies", expected)
    paths = [path for path, _ in axes]
    for one, two in itertools.permutations(paths, 2):
        if two == one or two.startswith(f"{one}."):
            found = f"{one} and {two}" if one != two else f"{one} twice"
            raise ConfigError("flags", found, "each field in one axis")
    size = max(1, len(settings))
    for _, values in axes:
        size *= len(values)
    if size > MOST:
        found = f"{size:,} settings"
        raise ConfigError("flags", found, f"at most {MOST:,}")
    found_: dict[str, Setting] = {}
    for setting in settings or [{}]:
        kept = {
            path: value
            for path, value in setting.items()
            if not any(path.startswith(f"{one}.") for one in paths)
        }
        for values in itertools.product(*(values for _, values in axes)):
            made = kept | dict(zip(paths, values))
            last = {path: made[path] for path in REPEATS if path in made}
            made = group_of(made) | last
            found_.setdefault(describe(made), made)
    _refuse_twins(found_.values(), "sweep")
    return [*found_.values()]


def check_overrides(settings: Iterable[Setting], given: list[str]) -> None:
    """Refuses a field that the command line sets and the sweep sets as well.

    Args:
      given: `--config.<field>=<value>`.

    Raises:
      ConfigError: names the field.
    """
    varied = {path for setting in settings for path in setting}
    for path, text in overrides.pairs(given):
        if any(path == one or path.startswith(f"{one}.") for one in varied):
            raise ConfigError(
                f"--config.{path}",
                f"{text!r}, while the sweep sets it too",
                "a field that does not vary",
                f"--grid={path}={text} replaces the values of the sweep",
            )


def check_folds(name: str, config: Mapping[str, Any]) -> list[str]:
    """Checks that a fold is held out for an evaluation; returns notes for the user.

    Args:
      name: of the setting.
      config: complete, with a fold.

    Raises:
      ConfigError: no evaluation has the sources that are trained on.
    """
    sources, evals = config["data"]["sources"], config["evals"]
    if not any(each["data"]["sources"] == sources for each in evals.values()):
        raise ConfigError(
            f"setting {name}: evals",
            "none of the records that data.sources has",
            "an evaluation with these sources, which gets the fold held out",
            "set evals.<name>.data.sources to the value of data.sources.",
        )
    return [
        f"note: evals.{key} reads the fold alone of its own sources; "
        f"--config.evals.{key}.data.fold= for all of them"
        for key, each in evals.items()
        if each["data"]["fold"] and each["data"]["sources"] != sources
    ]


# ── Names ───────────────────────────────────────────────────────────────────────────


def describe(setting: Setting) -> str:
    """Describes a setting for a reader: "optim.lr=3e-4,seed=0"."""
    parts = (f"{path}={short(value)}" for path, value in setting.items())
    return ",".join(parts) or "as configured"


def folder_of(setting: Setting) -> str:
    """Names the folder of a setting's run: its description, safe in a path.

    A long name is cut, and ends with a hash.
    """
    safe = re.compile(r"[^\w.+-]+")
    parts = (
        f"{safe.sub('-', path)}={safe.sub('-', short(value))}"
        for path, value in setting.items()
    )
    name = ",".join(parts) or "as-configured"
    if len(name) <= MOST_NAME:
        return name
    digest = hashlib.sha256(describe(setting).encode()).hexdigest()[:8]
    return f"{name[: MOST_NAME - 9]}-{digest}"


def short(value: Any) -> str:
    """Formats a value, exactly: 3e-4 rather than 0.0003."""
    if isinstance(value, Text):
        value = schema.literal(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and "n" not in repr(value):  # neither nan nor inf
        sign, digits, exponent = Decimal(repr(value)).as_tuple()
        text = "".join(map(str, digits)).rstrip("0") or "0"
        power = int(exponent) + len(digits) - 1
        point = f".{text[1:]}" if text[1:] else ""
        small = f"{'-' * sign}{text[0]}{point}e{power}"
        return min(repr(value), small, key=len) if value else repr(value)
    return value if isinstance(value, str) else repr(value)


def group_of(setting: Setting) -> Setting:
    """Returns a setting without what differs between the runs of one result."""
    return {path: value for path, value in setting.items() if path not in REPEATS}


def flags_of(setting: Setting) -> list[str]:
    """Returns the flags of `lm.main` that set the fields of a setting."""

    def text(value: Any) -> str:
        # A text such as "none" or "1" would be read as something else.
        bare = isinstance(value, str) and schema.literal(value) == value
        return value if bare or isinstance(value, Text) else repr(value)

    return [f"--config.{path}={text(value)}" for path, value in setting.items()]


def values_of(setting: Setting) -> Setting:
    """Returns a setting with values that JSON has, for a file."""
    made: Setting = {}
    for path, value in setting.items():
        known = schema.literal(value) if isinstance(value, Text) else value
        # A tuple becomes a list; what JSON lacks, such as a set, stays a text.
        try:
            made[path] = json.loads(json.dumps(known, allow_nan=False))
        except (ValueError, TypeError):
            made[path] = str(value)
    return made
