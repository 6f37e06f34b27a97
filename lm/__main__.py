"""Command: runs a command by its name: lm NAME [flags], or lm --config=FILE to train.

`lm evaluate ...` is `python -m lm.evaluate ...`; without a name it is `lm.main`.
"""

import ast
import importlib
import sys
from pathlib import Path

from lm.config.schema import no_such
from lm.host import process

USAGE = """usage: lm NAME [flags]         the same as python -m lm.NAME [flags]
       lm --config=FILE[:ARG]  the same as lm main --config=FILE[:ARG]

lm NAME --help shows the flags of a command.
"""


def names() -> dict[str, str]:
    """The commands and what each does: the files here whose docstring says so."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        first = text.partition("\n")[0]
        if first.startswith("Command: "):
            found[file.stem] = first.removeprefix("Command: ")
    return found


def run(argv: list[str]) -> int:
    commands = names()
    if not argv or argv[0] in ("--help", "-h"):
        lines = [f"  {name:<10} {text}" for name, text in commands.items()]
        print("\n".join([USAGE, "commands:", *lines]))
        return 0
    name, flags = ("main", argv) if argv[0].startswith("-") else (argv[0], argv[1:])
    if name not in commands:
        raise no_such("command", name, commands)
    return importlib.import_module(f"lm.{name}").main(flags)


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
