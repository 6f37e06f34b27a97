"""Config files: found, run, described; the argument after the colon is parsed here.

A config file defines `get_config(arg) -> ml_collections.ConfigDict`. It is named as
`FILE[:ARG]`. How the command line overrides its fields: `lm/config/overrides.py`; how
it may define a sweep: `lm/config/sweeps.py`.
"""

import ast
import inspect
import re
import runpy
import sysconfig
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from lm.config import schema
from lm.config.schema import Field, Text, near, no_such, shown
from lm.errors import ConfigError

T = TypeVar("T")
SHARE = "share/lm"  # below the data folder of the Python that lm is installed in


def read_file(file_arg: str) -> dict[str, Any]:
    """Runs `get_config` of `FILE[:ARG]`; returns plain dicts and lists.

    Raises:
      ConfigError: there is no such file, or it fails; names its line.
    """
    name, _, arg = file_arg.partition(":")

    def read(defined: dict[str, Any]) -> Any:
        get_config = defined.get("get_config")
        if not callable(get_config):
            raise ConfigError(name, "no get_config", "a function get_config(arg)")
        takes_arg = bool(inspect.signature(get_config).parameters)
        if arg and not takes_arg:
            raise ConfigError(f"--config={file_arg}", f":{arg}", "no argument")
        return plain(get_config(arg) if takes_arg else get_config(), name)

    tree = run_file(file_arg, read)
    if not isinstance(tree, dict):
        raise ConfigError(name, shown(tree), "a ConfigDict from get_config")
    return tree


def run_file(file_arg: str, ask: Callable[[dict[str, Any]], T]) -> T:
    """Runs the file of `FILE[:ARG]`, and asks what it has defined.

    Args:
      ask: takes what the file defines, by name, and may call it.

    Returns:
      What `ask` returns.

    Raises:
      ConfigError: there is no such file, or it fails; names its line.
    """
    name = file_arg.partition(":")[0]
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
        return ask(runpy.run_path(str(path)))
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise user_error(error, path, "a config file that runs") from error


def config_folders() -> list[Path]:
    """Lists the folders in which `configs/...` is looked up, the nearest first.

    They are that of the current folder, that of the checkout from which `lm` is
    imported, and that of an installed package; those that do not exist are left out.
    """
    roots = (Path(), Path(__file__).parents[2], Path(sysconfig.get_path("data"), SHARE))
    return [root / "configs" for root in roots if (root / "configs").is_dir()]


def find_file(name: str) -> Path:
    """Finds a config file: at that path, or else in one of `config_folders`.

    Returns:
      The path as it was given where no file is found.
    """
    path = Path(name)
    if not path.exists() and path.parts[:1] == ("configs",):
        found = (folder.joinpath(*path.parts[1:]) for folder in config_folders())
        return next((file for file in found if file.is_file()), path)
    return path


def _first_line(file: Path) -> str:
    """Reads the first line of a file's docstring; "" where it cannot be read."""
    try:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        return ""
    return (text or "").partition("\n")[0]


def describe_files() -> str:
    """Lists all config files, each with the first line of its docstring."""
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


def user_error(error: BaseException, path: Path, expected: str) -> ConfigError:
    """Makes the error for a user's file that fails; names the line of that file."""
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
    """Copies a tree: every mapping becomes a dict, every list or tuple a list.

    Args:
      where: what the tree is, for the error.

    Raises:
      ConfigError: it has more than 32 levels, as one that contains itself.
    """
    if depth > 32:
        raise ConfigError(where, "more than 32 levels", "a config that ends")
    if isinstance(value, list | tuple):
        return [plain(item, where, depth + 1) for item in value]
    if hasattr(value, "items"):  # a ConfigDict is no Mapping
        return {str(k): plain(item, where, depth + 1) for k, item in value.items()}
    return value


def parse_arg(arg: str, **defaults: Any) -> SimpleNamespace:
    """Parses the argument of a config, `--config=FILE:ARG`.

    ARG is a list of words and assignments: "quick", "task=mnli,quick".

    Args:
      defaults: each name with its default. False: the name alone sets it; a number or
        text: it is assigned, in the type of the default; a tuple of texts: one of
        these is assigned, and the first is the default.

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
    """Names the workdir of a config: `runs/<file stem>[-<arg>]`.

    Characters of the argument other than letters, digits, `_` and `.` become "-".
    """
    name, _, arg = file_arg.partition(":")
    arg = re.sub(r"[^\w.]+", "-", arg).strip("-.")
    return Path("runs") / (Path(name).stem + (f"-{arg}" if arg else ""))
