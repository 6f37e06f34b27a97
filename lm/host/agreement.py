"""Checks that all processes of a run were started with the same config."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from lm.errors import ConfigError, PeerError
from lm.host import watch


def check_config(text: str, limit: float = 300) -> None:
    """Compares the config of this process with those of the others.

    Every process must call it, at the same place.

    Args:
      text: the resolved config as JSON.
      limit: seconds to wait for the other processes.

    Raises:
      ConfigError: they differ; names the first field, and the process.
      PeerError: a process did not come within the limit.
    """
    import jax
    from jax._src import distributed  # jax has no public way to its client.

    if jax.process_count() == 1:
        return
    client: Any = distributed.global_state.client
    digest = hashlib.sha256(text.encode()).hexdigest()
    client.key_value_set(f"lm/config/hash/{jax.process_index():08d}", digest)
    client.key_value_set(f"lm/config/text/{jax.process_index():08d}", text)
    watch.barrier("comparison of configs", limit)
    hashes = sorted(client.key_value_dir_get("lm/config/hash/"))
    others = [key for key, found in hashes if found != hashes[0][1]]
    texts = {}
    for key in (hashes[0][0], *others[:1]):
        number = key.rpartition("/")[2]
        texts[int(number)] = client.blocking_key_value_get(
            f"lm/config/text/{number}", int(limit * 1000)
        )
    # The service runs in process 0, which must not end before the others have read.
    with suppress(PeerError):
        watch.barrier("end of the comparison", limit)
    if others:
        (_, first), (process, other) = sorted(texts.items())
        raise differing(first, other, process)


def differing(first: str, other: str, process: int) -> ConfigError:
    """Makes the error for a process whose config differs; names the first field."""
    ours, theirs = (dict(_leaves(json.loads(text))) for text in (first, other))
    path = next(
        path
        for path in {**ours, **theirs}
        if path not in ours or path not in theirs or ours[path] != theirs[path]
    )
    return ConfigError(
        path or "config",
        f"{theirs.get(path)!r} in process {process}",
        f"{ours.get(path)!r}, as in process 0",
        "start every process with the same command and files",
    )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of every leaf of a config."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        here = f"{path}.{key}".strip(".")
        if isinstance(inner, dict | list) and inner:
            yield from _leaves(inner, here)
        else:
            yield here, inner
