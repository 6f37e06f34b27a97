"""Jobs: modules of lm that do a run, `lm/train.py` and `lm/fit.py`.

A job's module defines JOB, a literal that is read and not imported, and a function of
the module's own name: (config, workdir, strict=, allow_change=, notes=) -> exit code.
JOB = {"loss": ..., "needs": ..., "unused": ...}: whether it computes the objective's
loss, what its model must be able to do (words of lm.models.base.ABILITIES), and the
sections and fields of the config that it does not use, which are then refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.config import names, schema
from lm.errors import ConfigError


def read(name: Any, root: Path) -> dict[str, Any]:
    """Reads JOB of the job of that name.

    Raises:
      ConfigError: there is no such job; those that exist are listed.
    """
    file = names.find_module(_place(name, root), root)
    assert file is not None  # `_place` has found it
    return schema.read_literal(file, "JOB")


def load(name: str, root: Path) -> Callable[..., int]:
    """Imports the function of a job."""
    place = _place(name, root)
    return getattr(names.import_module(place, root), place.rpartition(".")[2])


def _place(name: Any, root: Path) -> str:
    """The module of a job, such as lm.train."""
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
