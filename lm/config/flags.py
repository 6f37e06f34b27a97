"""Parses the flags of every command: errors in one line, and a complete `--help`."""

import argparse
import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NoReturn

from lm.config import schema
from lm.config.names import allow_code
from lm.config.schema import Field
from lm.errors import ConfigError

WIDTH = 80
CHECKPOINT = "the checkpoint: latest, best, or the number of a step (default: latest)"

# Overrides for a command that runs no evaluation. So one that cannot run here, for
# example because a package is missing, is no reason to refuse.
UNEVALUATED = [
    "--config.evals={}",
    "--config.checkpoint.best=none",
    "--config.stop.metric=none",
]


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Formats `--help` in 80 columns, whatever the width of the terminal."""

    def __init__(self, prog: str):
        super().__init__(prog, width=WIDTH, max_help_position=26)


class Parser(argparse.ArgumentParser):
    """Parses flags; a wrong one is a ConfigError, and none may be abbreviated.

    Args:
      prog: the command, such as "lm.main".
      text: the usage; after an empty line, what the command does.
      more: makes the end of the help; called only when the help is shown.
    """

    def __init__(self, prog: str, text: str, more: Callable[[], str] | None = None):
        usage, _, description = text.partition("\n\n")
        super().__init__(
            prog,
            usage=usage,
            description=description,
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        self._called = usage.splitlines()[0]
        self._more = more
        self.add_argument(
            "--debug", action="store_true", help="show the traceback of a refusal"
        )
        self.add_argument(
            "--allow-code",
            default="",
            metavar="NAME[,NAME]",
            help="modules that may run though only the config.json of a run names "
            "them (default: none)",
        )

    def parse_known_args(self, args=None, namespace=None):
        """Parses the flags; sets what --allow-code allows; refuses unknown flags."""
        flags, rest = super().parse_known_args(args, namespace)
        allow_code(flags.allow_code)
        texts = {n: v for n, v in vars(flags).items() if n != "prompts"}
        for name, value in (*texts.items(), *(("flags", text) for text in rest)):
            if isinstance(value, str) and not _is_text(value):
                where = "flags" if name == "flags" else flag(name)
                raise ConfigError(where, repr(value), "UTF-8 text without NUL")
        for text in rest:
            name = text.partition("=")[0]
            if name.startswith("--") and not name.startswith("--config."):
                known = [*self._option_string_actions]
                raise schema.no_such(name, name, known)
        return flags, rest

    def format_help(self) -> str:
        if self._more is not None:
            self.epilog = self._more()
        return super().format_help()

    def add_fields(self, fields: Mapping[str, Field], about: Mapping[str, str]) -> None:
        """Adds a flag for each option of a dataclass, its value left as text.

        Args:
          fields: from `schema.read_class`; the help has their default and bounds.
          about: from `describe_fields`.
        """
        for name, field in fields.items():
            allowed = schema.describe(field.type, field.bounds, field.words)
            text = f"{about[name]} ({allowed}; default: {field.default})"
            metavar = name.rpartition("_")[2].upper()
            # argparse reads % as the start of a format.
            self.add_argument(flag(name), metavar=metavar, help=text.replace("%", "%%"))

    def error(self, message: str) -> NoReturn:
        raise ConfigError("flags", message, self._called)


def _is_text(text: str) -> bool:
    """Returns whether a flag was UTF-8; Python has other bytes as lone surrogates."""
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False


def flag(field: str) -> str:
    """Makes the flag of a field: --top-k of top_k."""
    return "--" + field.replace("_", "-")


def describe_fields(path: Path, class_name: str) -> dict[str, str]:
    """Reads the description of each field under "Attributes:" in a docstring.

    Names that share a line, as in `a, b: text`, share the text.

    Args:
      path: the file; it is read and not imported.
      class_name: a class at the top level of that file.
    """
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = [n for n in body if isinstance(n, ast.ClassDef) and n.name == class_name]
    lines = (ast.get_docstring(found[0]) or "").partition("Attributes:\n")[2]
    about: dict[str, str] = {}
    for block in re.split(r"\n(?=  \S)", lines.rstrip()):
        names, _, text = block.partition(":")
        for name in names.split(","):
            about[name.strip()] = " ".join(text.split()).rstrip(".")
    return about


def which_step(text: str) -> int | Literal["latest", "best"]:
    """Parses the value of --checkpoint: "latest", "best" or a step.

    Raises:
      ConfigError: it is none of them.
    """
    if text == "latest":
        return "latest"
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise ConfigError("--checkpoint", repr(text), "latest, best or a step")
    return int(text)


def add_run(parser: Parser) -> None:
    """Adds the flags of a command that asks a run: its folder and which weights."""
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run")
    parser.add_argument(
        "--checkpoint", default="latest", metavar="WHICH", help=CHECKPOINT
    )
    add_weights(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds --weights, which chooses the averaged or the trained weights."""
    parser.add_argument(
        "--weights",
        choices=("averaged", "trained"),
        default="averaged",
        help="the weights: averaged, where the run keeps an average (optim.ema), or "
        "trained (default: averaged)",
    )
