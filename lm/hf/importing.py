"""Loads the tensors of a checkpoint as parameters, laid out over the devices."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from lm.errors import NumericalError
from lm.hf.checkpoint import Checkpoint


def shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of the parameters that a checkpoint holds."""
    return {path: source.shape for path, source in checkpoint.sources.items()}


def load(checkpoint: Checkpoint, targets: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Loads parameters in float32, one after another and shard by shard.

    Beside the result, memory holds at most one shard of one parameter.

    Args:
      targets: path of a parameter of the checkpoint -> its sharding, as attribute
        `sharding` (None: the default device).

    Returns:
      path -> array.

    Raises:
      NumericalError: a tensor has a number that is not finite.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return {
            path: _make(checkpoint, path, target, threads)
            for path, target in targets.items()
        }


def _make(
    checkpoint: Checkpoint, path: str, target: Any, threads: ThreadPoolExecutor
) -> jax.Array:
    source = checkpoint.sources[path]
    views = source.views(checkpoint.tensors, checkpoint.sizes)

    def copy(out: np.ndarray, view: np.ndarray, name: str) -> None:
        np.copyto(out, view)
        if not np.isfinite(out).all():
            raise NumericalError(
                f"{checkpoint.file}: {name}",
                "numbers that are not finite (NaN or infinity)",
                "finite weights, without which a model computes nothing",
                "fetch the file again, or take another checkpoint.",
            )

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(source.shape)
        names = source.names
        if source.rule.layered:
            mine = [view[index[1:]] for view in views[index[0]]]
            names = names[index[0]]
        else:
            mine = [views[0][index]]
        out = _empty((len(mine), *mine[0].shape))
        list(threads.map(copy, out, mine, names))
        return out if source.rule.layered else out[0]

    sharding = getattr(target, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(source.shape, sharding, shard)


def _empty(shape: Sequence[int]) -> np.ndarray:
    """Returns a new float32 array, aligned so that jax on a CPU does not copy it."""
    size = int(np.prod(shape)) * 4
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)
