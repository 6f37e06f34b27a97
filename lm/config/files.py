"""What a run is asked for: a config file, its argument and the overrides.

A config file holds `get_config(arg) -> ml_collections.ConfigDict`. Its fields are set
on the command line as `--config.optim.lr=1e-4` or `--config.optim.lr 1e-4`, those of
the items of a list by number: `--config.data.sources.0.files=my.txt`.
"""

import ast
import inspect
import re
import runpy
import sysconfig
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lm.config import schema
from lm.config.schema import Field, Text, near, no_such, shown
from lm.errors import ConfigError

SHARE = "share/lm"  # below the data folder of the Python that lm is installed in


def read_file(file_arg: str) -> dict[str, Any]:
    """What `get_config` of `FILE[:ARG]` returns, as plain dicts and lists."""
    name, _, arg = file_arg.partition(":")
    path = find_file(name)
    if not path.is_file() or path.suffix != ".py":
        stems = {
            file.stem: f"configs/{file.name}"
            for folder in config_folders()
            for file in folder.glob("*.py")
        }
        stems |= {file.stem: str(file) for file in path.parent.glob("*.py")}
        guess = stems.get(near(path.stem, stems) or "")
        raise ConfigError(
            f"--config={file_arg}",
            "no Python file" if path.exists() else "no such file",
            f"a config file, one of {', '.join(sorted(stems.values()))}"
            if stems
            else "a config file",
            f"did you mean {guess}?" if guess else None,
        )
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if not callable(get_config):
            raise ConfigError(name, "no get_config", "a function get_config(arg)")
        takes_arg = bool(inspect.signature(get_config).parameters)
        if arg and not takes_arg:
            raise ConfigError(f"--config={file_arg}", f":{arg}", "no argument")
        tree = plain(get_config(arg) if takes_arg else get_config(), name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise own_line(error, path, "a config file that runs") from error
    if not isinstance(tree, dict):
        raise ConfigError(name, shown(tree), "a ConfigDict from get_config")
    return tree


def config_folders() -> list[Path]:
    """The folders that a name `configs/...` is looked for in, the nearest first.

    That of the current folder, of the checkout that `lm` is imported from, and the one
    that an installed package brings.
    """
    roots = (Path(), Path(__file__).parents[2], Path(sysconfig.get_path("data"), SHARE))
    return [root / "configs" for root in roots if (root / "configs").is_dir()]


def find_file(name: str) -> Path:
    """The config file of a name: that path, or else one of `config_folders`."""
    path = Path(name)
    if not path.exists() and path.parts[:1] == ("configs",):
        found = (folder.joinpath(*path.parts[1:]) for folder in config_folders())
        return next((file for file in found if file.is_file()), path)
    return path


def _first_line(file: Path) -> str:
    """The first line of a file's docstring; nothing where it cannot be read."""
    try:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        return ""
    return (text or "").partition("\n")[0]


def describe_files() -> str:
    """Names each config file there is, with the first line of its docstring."""
    files: dict[str, Path] = {}
    for folder in config_folders():
        for file in sorted(folder.glob("*.py")):
            files.setdefault(file.name, file)
    lines = [(name, _first_line(file)) for name, file in files.items()]
    width = max((len(name) for name, _ in lines), default=0)
    texts = [
        textwrap.fill(
            text or "?",
            width=80,
            break_on_hyphens=False,
            initial_indent=f"  configs/{name:<{width}}  ",
            subsequent_indent=" " * (width + 12),
        )
        for name, text in lines
    ]
    return "\n".join(["configs:", *texts])


def own_line(error: BaseException, path: Path, expected: str) -> ConfigError:
    """Makes the error for a file of the user's that fails, at its line in that file."""
    lines = [
        (frame.lineno, frame.line)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [(error.lineno, (error.text or "").strip())]
    number, line = lines[-1] if lines else ("?", "")
    return ConfigError(
        f"{path}:{number}",
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        + (f" in `{line}`" if line else ""),
        expected,
    )


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Any mapping as a dict, and any list or tuple as a list, all the way down."""
    if depth > 32:
        raise ConfigError(where, "more than 32 levels", "a config that ends")
    if isinstance(value, list | tuple):
        return [plain(item, where, depth + 1) for item in value]
    if hasattr(value, "items"):  # a ConfigDict is no Mapping
        return {str(k): plain(item, where, depth + 1) for k, item in value.items()}
    return value


def override(tree: dict[str, Any], given: list[str] | Mapping[str, Any]) -> None:
    """Sets fields in the tree; later ones win.

    Args:
      given: flags, `--config.<field>=<value>`, or values by dotted path.

    Raises:
      ConfigError: a flag that is no `--config.<field>=<value>`, or has no place.
    """
    if isinstance(given, Mapping):
        for path, value in given.items():
            _set(tree, path, plain(value, path))
    else:
        for path, text in _pairs(given):
            _set(tree, path, Text(text))


def _pairs(overrides: list[str]) -> Iterator[tuple[str, str]]:
    """The (path, text) of each `--config.path=text` or `--config.path text`."""
    rest = iter(overrides)
    for flag in rest:
        if not flag.startswith("--config."):
            raise ConfigError(
                flag,
                "an unknown flag",
                "--config.<field>=<value> or a flag of the command",
            )
        path, equals, value = flag.removeprefix("--config.").partition("=")
        text = value if equals else next(rest, None)
        if text is None or (not equals and text.startswith("--")):
            raise ConfigError(flag, "no value", f"--config.{path}=<value>")
        if not re.fullmatch(r"[^.\[\]\s]+(\.[^.\[\]\s]+)*", path):
            raise ConfigError(
                flag, shown(path), "names joined by dots, such as data.sources.0.files"
            )
        yield path, text


def _set(tree: Any, path: str, value: Any) -> None:
    keys = path.split(".")
    key: str | int
    for i, key in enumerate(keys):
        where = ".".join(keys[:i])
        if isinstance(tree, list):
            if not re.fullmatch("[0-9]{1,6}", key) or int(key) >= len(tree):
                span = f"an item from 0 to {len(tree) - 1}"
                raise ConfigError(where, f"item {key}", span)
            key = int(key)
        elif not isinstance(tree, dict):
            raise ConfigError(path, f"a field within {where}", f"a value for {where}")
        if i == len(keys) - 1:
            tree[key] = value
            return
        if isinstance(tree, dict) and tree.get(key) is None:
            tree[key] = {}
        if isinstance(tree[key], Text):
            tree[key] = plain(schema.literal(tree[key]), path)
        tree = tree[key]


def parse_arg(arg: str, **defaults: Any) -> SimpleNamespace:
    """The argument of a config, `--config=FILE:ARG`, in the types of the defaults.

    ARG is a list of words and assignments: "quick", "task=mnli,quick". A default of
    False is a word that may be given; a number or text is assigned; a tuple of text
    lists the choices, the first being the default.

    Raises:
      ConfigError: an unknown name (the known ones are listed), or a wrong value.
    """
    out = {k: v[0] if isinstance(v, tuple) else v for k, v in defaults.items()}
    known = {k if v is False else f"{k}=<value>": k for k, v in defaults.items()}
    for item in filter(None, arg.split(",")):
        name, equals, text = item.partition("=")
        where = f"config argument {item}"
        if name not in defaults:
            guess = near(name, defaults)
            raise ConfigError(
                where,
                "an unknown name",
                f"one of {', '.join(known)}" if known else "no argument",
                f"did you mean {guess}?" if guess else None,
            )
        default = defaults[name]
        if default is False and not equals:
            text = "true"
        elif not equals:
            raise ConfigError(where, "no value", f"{name}=<value>")
        if isinstance(default, tuple):
            if text not in default:
                raise no_such(where, text, default)
            out[name] = text
        else:
            kind = ast.Name(type(default).__name__)
            out[name] = schema.check(Field(name, kind, default), Text(text), where)
    return SimpleNamespace(**out)


def default_workdir(file_arg: str) -> Path:
    """`runs/<file stem>[-<arg>]`, with all but letters, digits, `_` and `.` as "-"."""
    name, _, arg = file_arg.partition(":")
    arg = re.sub(r"[^\w.]+", "-", arg).strip("-.")
    return Path("runs") / (Path(name).stem + (f"-{arg}" if arg else ""))
