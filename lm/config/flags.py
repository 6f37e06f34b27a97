"""The flags of the commands."""

import argparse
from typing import NoReturn

from lm.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Answers a wrong flag with one line and exit code 2, and abbreviates none."""

    def __init__(self, prog: str, usage: str):
        super().__init__(prog, usage=usage, allow_abbrev=False)
        self.add_argument(
            "--debug", action="store_true", help="show the traceback of a refusal"
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError("flags", message, f"{self.usage.splitlines()[0]}")


def which_step(text: str) -> int | str:
    """The value of --checkpoint: "latest", "best" or a step.

    Raises:
      ConfigError: it is none of them.
    """
    if text not in ("latest", "best") and not text.isdecimal():
        raise ConfigError("--checkpoint", repr(text), "latest, best or a step")
    return int(text) if text.isdecimal() else text
