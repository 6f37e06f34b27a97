"""Reads the options of a class from its source, and checks values against them.

No class is imported: a config is checked against `lm/models/transformer.py` before jax
is loaded. Beside its classes a module may define, as literals:

    BOUNDS = {"lr": "(0, inf)"}    the interval of a number
    CHANGEABLE = ("every",)        fields that may change when a run is continued
    WORDS = {"schedule": "training.schedules:*", "attention": "ops.attention.*:LIMITS"}

WORDS has the fields whose text is a function of a module, or a file of a folder (see
`names.words`): a new function or file needs no other list.
"""

import ast
import difflib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lm.config import durations, names
from lm.config.names import find_module as find_module
from lm.config.names import modules as modules
from lm.errors import ConfigError

REQUIRED = object()  # the default of a field that has none
MISFIT = object()  # what `fit` gives for a value that is not of the type
MOST_INT = 2**31 - 1  # of a whole number whose field has no upper bound
MOST_FLOAT = 3.4e38  # of any number: what float32 can hold
_SCALARS = ("int", "float", "str", "bool", "Duration")


class Text(str):
    """A value from the command line; its type is that of its field."""


@dataclass(frozen=True)
class Field:
    """One option of a section.

    Attributes:
      type: the annotation, as a syntax tree.
      default: the value, or REQUIRED.
      bounds: an interval such as "(0, inf)" for each number in the value, or None.
      changeable: whether a run may be continued with another value.
      group: the options of the field's own dataclass, if that is its type.
      words: the texts that are allowed, or None for any text.
    """

    name: str
    type: ast.expr
    default: Any
    bounds: str | None = None
    changeable: bool = False
    group: "dict[str, Field] | None" = None
    words: tuple[str, ...] | None = None


@cache
def read_class(path: Path, class_name: str, root: Path) -> dict[str, Field]:
    """Reads the options of a dataclass, those of its bases first.

    An option is annotated with int, float, str, bool, None, Duration, Literal and
    tuple, list or dict of these, written out; or with a dataclass whose name ends in
    "Options", a group of options. Fields of any other type, also of an alias of these
    types, are no options: other parts of the program set them.

    Args:
      path: the file that defines the class.
      class_name: a class at the top level of that file.
      root: the folder of the package `lm`, to find the files of base classes.

    Raises:
      ConfigError: the class is absent, or a default is not a literal.
    """
    body = _read_body(path)
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    if class_name not in classes:
        raise ConfigError(str(path), "no such class", f"a class {class_name}")
    values = {
        ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target): (
            node.value
        )
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
    }
    fields: dict[str, Field] = {}
    for base in reversed(classes[class_name].bases):
        above = _find_base(base, body, classes, path, root)
        fields |= read_class(*above, root) if above else {}
    for node in classes[class_name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kind, name = node.annotation, node.target.id
            fields.pop(name, None)
            if _is_option(kind):
                place = f"{path}:{node.lineno}"
                fields[name] = Field(name, kind, _default(node.value, values, place))
            elif ast.unparse(kind).endswith("Options"):
                where = _find_base(kind, body, classes, path, root)
                group = read_class(*where, root) if where else {}
                fields[name] = Field(name, kind, {}, group=group)
    tables = {
        name: ast.literal_eval(values[name])
        for name in ("BOUNDS", "CHANGEABLE", "WORDS")
        if name in values
    }
    bounds, words = tables.get("BOUNDS", {}), tables.get("WORDS", {})
    for name, field in fields.items():
        fields[name] = replace(
            field,
            bounds=bounds.get(name, field.bounds),
            changeable=field.changeable or name in tables.get("CHANGEABLE", ()),
            words=names.words(words[name], root) if name in words else field.words,
        )
    return fields


def _read_body(path: Path) -> list[ast.stmt]:
    """Parses a module.

    Raises:
      ConfigError: it is no Python; only a module of the user's own can be that.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path)).body
    except (SyntaxError, ValueError, RecursionError, OSError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        found = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}{line}", found, "a Python module") from error


def read_literal(path: Path, name: str) -> Any:
    """Reads the literal that a file assigns to a name at its top level.

    Raises:
      ConfigError: there is none.
    """
    for node in _read_body(path):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise ConfigError(str(path), f"no {name}", f"{name} = a literal")


def _find_base(base, body, classes, path, root) -> tuple[Path, str] | None:
    """Finds the (file, class) of a base class; None outside of what can be read."""
    dotted = ast.unparse(base)
    if dotted in classes:
        return path, dotted
    for node in body:
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            head, _, rest = dotted.partition(".")
            if (alias.asname or alias.name) == head and node.module:
                full = ".".join(filter(None, (node.module, alias.name, rest)))
                module, _, name = full.rpartition(".")
                file = find_module(module, root)
                return (file, name) if file else None
    return None


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _is_option(kind: ast.expr) -> bool:
    match kind:
        case ast.Name(name):
            return name in (*_SCALARS, "tuple", "list", "dict", "None")
        case ast.Constant(value):
            return value is None
        case ast.BinOp(left, ast.BitOr(), right):
            return _is_option(left) and _is_option(right)
        case ast.Subscript(ast.Name("Literal"), _):
            return True
        case ast.Subscript(ast.Name("tuple" | "list" | "dict"), items):
            loose = ("Any", "...")
            return all(ast.unparse(i) in loose or _is_option(i) for i in _items(items))
    return False


def _default(node: ast.expr | None, names: Mapping[str, ast.expr], place: str) -> Any:
    """Evaluates a default: a literal, a name of one, or a `field(...)` of either."""
    match node:
        case None:
            return REQUIRED
        case ast.Name(name) if name in names:
            return _default(names[name], names, place)
        case ast.Name("dict" | "tuple" | "list" as factory):
            return {} if factory == "dict" else ()
        case ast.Lambda(body=body):
            return _default(body, names, place)
        case ast.Call(ast.Name("field") | ast.Attribute(attr="field"), _, keywords):
            given = [
                k.value for k in keywords if k.arg in ("default", "default_factory")
            ]
            return _default(given[0] if given else None, names, place)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ConfigError(
            place, f"the default {ast.unparse(node)}", "a literal, or a name of one"
        ) from None


def literal(text: str) -> Any:
    """Parses a text of the command line as a Python literal, or returns the text.

    Literals are numbers, truth values, None, quoted texts and containers of these;
    `true`, `false` and `none` are read in upper or lower case. No code runs.
    """
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return str(text)


def fit(value: Any, kind: ast.expr, bounds: str | None = None) -> Any:
    """Converts a value to the type of an annotation, or returns MISFIT.

    A whole number is accepted as a float and a list as a tuple, but no text and no
    truth value as a number. Numbers must be finite, and whole ones at most MOST_INT
    unless their bounds have an upper end.
    """
    if isinstance(value, Text):
        read = fit(literal(value), kind, bounds)
        return fit(str(value), kind, bounds) if read is MISFIT else read
    match kind:
        case ast.BinOp(left, ast.BitOr(), right):
            first = fit(value, left, bounds)
            return fit(value, right, bounds) if first is MISFIT else first
        case ast.Constant(None) | ast.Name("None"):
            return None if value is None else MISFIT
        case ast.Name("bool"):
            return value if isinstance(value, bool) else MISFIT
        case ast.Name("str"):
            return str(value) if isinstance(value, str) else MISFIT
        case ast.Name("int"):
            fits = _is_int(value) and within(value, bounds)
            return value if fits and _is_bounded(value, bounds) else MISFIT
        case ast.Name("float"):
            if not _is_int(value) and not isinstance(value, float):
                return MISFIT
            ok = abs(value) <= MOST_FLOAT and within(value, bounds)
            return float(value) if ok else MISFIT
        case ast.Name("Duration"):
            parsed = durations.parse(value)
            if parsed is None or not within(parsed[0], bounds or "[0, inf)"):
                return MISFIT
            return int(value) if isinstance(value, float) else value
        case ast.Name("Any"):
            return _fit_any(value)
        case ast.Subscript(ast.Name("Literal"), words):
            options = [ast.literal_eval(word) for word in _items(words)]
            same = [o for o in options if type(o) is type(value) and o == value]
            return same[0] if same else MISFIT
        case ast.Subscript(ast.Name("dict"), ast.Tuple([_, inner])):
            return _fit_dict(value, inner, bounds)
        case ast.Name("dict"):
            return _fit_dict(value, ast.Name("Any"), bounds)
        case ast.Subscript(ast.Name("tuple"), items) if not _repeats(items):
            return _fit_items(value, _items(items), bounds)
        case ast.Subscript(ast.Name("tuple" | "list"), items):
            return _fit_items(value, _items(items)[0], bounds)
        case ast.Name("tuple" | "list"):
            return _fit_items(value, ast.Name("Any"), bounds)
    raise TypeError(f"no option has the type {ast.unparse(kind)}")


def _is_int(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and abs(value) < 2**63


def _is_bounded(value: int, bounds: str | None) -> bool:
    """Returns whether a number is at most MOST_INT, or its field bounds it."""
    return abs(value) <= MOST_INT or (bounds is not None and "inf" not in bounds)


def _repeats(items: ast.expr) -> bool:
    return ast.unparse(_items(items)[-1]) == "..."


def _fit_any(value: Any) -> Any:
    if isinstance(value, dict):
        return _fit_dict(value, ast.Name("Any"), None)
    if isinstance(value, list | tuple):
        return _fit_items(value, ast.Name("Any"), None)
    if _is_int(value):
        return value
    kinds = (ast.Name(name) for name in ("bool", "float", "str", "None"))
    return next((value for kind in kinds if fit(value, kind) is not MISFIT), MISFIT)


def _fit_dict(value: Any, inner: ast.expr, bounds: str | None) -> Any:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return MISFIT
    fitted = {key: fit(item, inner, bounds) for key, item in value.items()}
    return MISFIT if any(v is MISFIT for v in fitted.values()) else fitted


def _fit_items(value: Any, kinds: ast.expr | list, bounds: str | None) -> Any:
    """Fits the items of a list: to one type, or each to its own in a list of types."""
    if not isinstance(value, list | tuple):
        return MISFIT
    kinds = kinds if isinstance(kinds, list) else [kinds] * len(value)
    if len(kinds) != len(value):
        return MISFIT
    fitted = tuple(fit(item, kind, bounds) for item, kind in zip(value, kinds))
    return MISFIT if any(item is MISFIT for item in fitted) else fitted


def within(number: Any, bounds: str | None) -> bool:
    """Returns whether a number lies in an interval such as "[0, 1)"; None: any does."""
    if bounds is None:
        return True
    low, high = (float(end) for end in bounds.strip("[]() ").split(","))
    above = number >= low if bounds[0] == "[" else number > low
    return above and (number <= high if bounds[-1] == "]" else number < high)


def describe(
    kind: ast.expr,
    bounds: str | None = None,
    words: tuple[str, ...] | None = None,
) -> str:
    """Describes the type of an annotation: "a positive number or none".

    Args:
      bounds, words: of the field, `Field.bounds` and `Field.words`.
    """

    def number(noun: str) -> str:
        if bounds == "(0, inf)":
            return f"a positive {noun}"
        low = bounds and re.fullmatch(r"\[(\S+), inf\)", bounds)
        if low:
            return f"a {noun} of {low[1]} or more"
        return f"a {noun} in {bounds}" if bounds else f"a {noun}"

    match kind:
        case ast.BinOp(left, ast.BitOr(), right):
            pair = (describe(side, bounds, words) for side in (left, right))
            return " or ".join(pair)
        case ast.Name("str") if words is not None:
            return f"one of {', '.join(words)}"
        case ast.Name("int"):
            return number("whole number")
        case ast.Name("float"):
            return number("number" if bounds else "finite number")
        case ast.Name("Duration"):
            positive = "positive " if bounds == "(0, inf)" else ""
            return f"a {positive}duration ({durations.FORMS})"
        case ast.Subscript(ast.Name("Literal"), items):
            known = (str(ast.literal_eval(item)) for item in _items(items))
            return f"one of {', '.join(known)}"
        case ast.Subscript(ast.Name(name), items) if name in ("tuple", "list"):
            each = [describe(item, bounds, words) for item in _items(items)]
            if name == "list" or _repeats(items):
                return f"a list, each item {each[0]}"
            return "a list of " + ", ".join(each)
        case ast.Name("dict") | ast.Subscript(ast.Name("dict"), _):
            return "a dict with text for keys"
    plain = {"bool": "true or false", "str": "text", "None": "none", "Any": "a value"}
    return plain.get(ast.unparse(kind), "a list")


def check(field: Field, value: Any, where: str) -> Any:
    """Converts a value to the type of its field.

    Args:
      where: the path of the field, for the error.

    Raises:
      ConfigError: it does not fit; names what was found and what is allowed.
    """
    if field.group is not None:
        return _check_group(field.group, value, where)
    fitted = fit(value, field.type, field.bounds)
    if fitted is not MISFIT:
        _check_words(field, fitted, where)
        return fitted
    expected = describe(field.type, field.bounds, field.words)
    if isinstance(value, int) and abs(value) > MOST_INT:
        expected += " below 2**31"
    words = re.findall(r"'(\w+)'", ast.unparse(field.type))
    guess = near(value, words) if isinstance(value, str) else None
    fix = f"did you mean {guess}?" if guess else None
    if fix is None and field.default is not REQUIRED:
        fix = f"leave it out for the default, {shown(field.default)}."
    raise ConfigError(where, shown(value), expected, fix)


def _check_words(field: Field, value: Any, where: str) -> None:
    """Refuses a text that is none of the field's words, also within a list or dict."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for item in value:
            _check_words(field, item, where)
    elif isinstance(value, str) and field.words and value not in field.words:
        raise no_such(where, value, field.words)


def _check_group(group: Mapping[str, Field], value: Any, where: str) -> dict[str, Any]:
    value = literal(value) if isinstance(value, Text) else value
    if not isinstance(value, dict):
        raise ConfigError(where, shown(value), "a section: a dict of fields")
    for key in value.keys() - group.keys():
        guess = near(str(key), group)
        raise ConfigError(
            f"{where}.{key}",
            "an unknown field",
            f"one of {', '.join(group)}",
            f"did you mean {where}.{guess}?" if guess else None,
        )
    return {
        name: check(field, value.get(name, field.default), f"{where}.{name}")
        for name, field in group.items()
    }


def near(word: str, words: Iterable[str]) -> str | None:
    """Finds the word that is most similar to a mistyped one; None if none is."""
    lower = {w.lower(): w for w in words}
    found = difflib.get_close_matches(word.lower(), lower, n=1)
    return lower[found[0]] if found else None


def no_such(where: str, name: Any, known: Iterable[str]) -> ConfigError:
    """Makes the error for a name that is none of the known ones."""
    guess = near(name, known) if isinstance(name, str) else None
    return ConfigError(
        where,
        "nothing" if name is None else shown(name),
        f"one of {', '.join(known)}",
        f"did you mean {guess}?" if guess else None,
    )


def shown(value: Any) -> str:
    """Formats a value for an error: on one line, at most 80 characters."""
    try:
        text = repr(literal(value) if isinstance(value, Text) else value)
    except Exception:  # a `__repr__` that fails, or a number of too many digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
