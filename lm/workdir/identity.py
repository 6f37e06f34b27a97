"""Gives each run an identity: kept in `run.json` and in each checkpoint's manifest.

So a checkpoint of another run that was put into `checkpoints/` is recognised, whatever
the folders are called, and a workdir that is renamed, moved, copied or linked stays the
same run. A run that is older than identities gets one; the manifests of its checkpoints
have the name of its folder, and are accepted.
"""

import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.errors import CheckpointError, StorageError
from lm.host import files, storage

FILE = "run.json"


@dataclass(frozen=True)
class Identity:
    """Names a run.

    Attributes:
      run: its name in the manifests of new checkpoints.
      before: names that older manifests may have.
    """

    run: str
    before: tuple[str, ...] = ()

    def check(self, facts: dict[str, Any], place: Path) -> None:
        """Refuses the checkpoint of another run.

        Args:
          facts: of its manifest.
          place: its directory, for the error.

        Raises:
          CheckpointError: names the manifest, and both runs.
        """
        found = facts.get("run")
        if found not in (self.run, *self.before):
            raise CheckpointError(
                str(place / storage.MANIFEST),
                f"a checkpoint of run {found!r}",
                f"one of run {self.run!r}, as {FILE} says",
                "move it out of this workdir",
            )


def read(workdir: Path) -> Identity | None:
    """Reads the identity of a run; None where it has none yet.

    Raises:
      StorageError: run.json is not what was written.
    """
    file = Path(workdir) / FILE
    if files.check_regular(file) is None:
        return None
    content = files.read_json(file, {"run": "", "before": [""]})
    return Identity(content["run"], tuple(content["before"]))


def adopt(workdir: Path) -> Identity:
    """Reads the identity of a run, or makes one. Only process 0 calls it.

    Raises:
      CheckpointError: run.json is gone, and the checkpoints are of several runs.
      StorageError: run.json cannot be read or written.
    """
    found = read(workdir)
    if found is not None:
        return found
    names = sorted(_names(Path(workdir) / "checkpoints"))
    own = [name for name in names if re.fullmatch("[0-9a-f]{32}", name)]
    if own and len(names) > 1:
        raise CheckpointError(
            f"{workdir}/checkpoints",
            f"checkpoints of the runs {', '.join(names)}, and no {FILE}",
            "those of one run",
            "move those of other runs out of it (MANIFEST.json has the run)",
        )
    made = Identity(own[0]) if own else Identity(uuid.uuid4().hex, tuple(names))
    content = {"run": made.run, "before": list(made.before)}
    storage.write_json(Path(workdir) / FILE, content)
    return made


def _names(directory: Path) -> set[str]:
    """Lists the runs that the manifests of a folder name; skips damaged ones."""
    names = set()
    for place in directory.glob("[0-9]*") if directory.is_dir() else ():
        if place.name.isdecimal():
            try:
                names.add(str(storage.read_manifest(place).get("run")))
            except (CheckpointError, StorageError):
                continue  # The restore reports the damage.
    return names
