"""Makes a workdir of imported weights, or another folder: completely or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.config import resolve as configs
from lm.config.resolve import Config
from lm.errors import ConfigError
from lm.host import storage


def save_weights(
    workdir: Path, config: Config, params: Any, host: dict[str, Any] | None = None
) -> None:
    """Writes imported parameters as the checkpoint of step 0, then config.json."""
    import jax

    from lm.workdir.checkpoint import Checkpoint, Checkpointer

    saver = Checkpointer(workdir, Checkpoint(), config=config)
    saver.save(0, {"step": jax.numpy.int32(0), "params": params}, host or {})
    saver.close()
    storage.write_text(workdir / "config.json", configs.to_json(config))


def check_new(workdir: Path) -> None:
    """Checks that a workdir is absent or empty.

    Raises:
      ConfigError: it holds files.
    """
    if not workdir.is_dir():
        return
    names = sorted(path.name for path in workdir.iterdir())
    if "config.json" in names:
        fix = "choose another --workdir."
        raise ConfigError("--workdir", f"{workdir}, a run", "a new folder", fix)
    if names:
        found = f"{workdir}, which holds {', '.join(names[:4])}"
        fix = "remove them, if an earlier command left them, or choose another name."
        raise ConfigError("--workdir", found, "a new folder", fix)


@contextlib.contextmanager
def made_beside(target: Path) -> Iterator[Path]:
    """Yields a new folder "<target>.partial", renamed to `target` at the end.

    A failure removes it. What a killed command has left is removed first, so the same
    command can be given again.
    """
    partial = target.with_name(f"{target.name}.partial")
    storage.remove_tree(partial)
    try:
        with storage.refusing(partial):
            partial.mkdir(parents=True)
            yield partial
            if target.is_dir():
                target.rmdir()  # It is empty.
            storage.rename(partial, target)
    except BaseException:
        storage.remove_tree(partial)
        raise
