"""Finds the module of a run's job: `lm/train.py`, `lm/fit.py` or the user's own.

It defines a function of the module's own name, (config, workdir, strict=,
allow_change=, notes=) -> exit code, and a literal that is read without an import:

    JOB = {"loss": ..., "needs": ..., "unused": ...}

    loss: whether the job computes the objective's loss.
    needs: what its model must be able to do, words of lm.models.base.ABILITIES.
    unused: sections and fields of the config that it does not use; it refuses them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.config import names, schema
from lm.errors import ConfigError


def read(name: Any, root: Path) -> dict[str, Any]:
    """Reads the JOB of a job by its name.

    Raises:
      ConfigError: there is no such job; those that exist are listed.
    """
    file = names.find_module(_module(name, root), root)
    assert file is not None  # `_module` has found it.
    return schema.read_literal(file, "JOB")


def load(name: str, root: Path) -> Callable[..., int]:
    """Imports the function of a job."""
    module = _module(name, root)
    return getattr(names.import_module(module, root), module.rpartition(".")[2])


def _module(name: Any, root: Path) -> str:
    """Returns the module of a job, such as lm.train.

    Raises:
      ConfigError: there is no such job; those that exist are listed.
    """
    known = names.modules(root, "JOB")
    if names.is_dotted(name):
        if names.find_module(name, root):
            return str(name)
        raise names.no_module("job", name, known, root)
    if name not in known:
        raise schema.no_such("job", name, known)
    return f"{root.name}.{name}"


def check_unused(where: str, value: Any, default: Any, job: str) -> None:
    """Refuses an option that the job does not use, unless it has its default.

    Raises:
      ConfigError: names the option and the job.
    """
    if value != default:
        expected = f"nothing: job {job} does not use {where}"
        raise ConfigError(where, schema.shown(value), expected, "remove it")
