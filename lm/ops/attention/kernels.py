"""Attention by a kernel, which is named by its file in this folder.

A kernel's file has `attend(query, key, value, layouts, request)`; `LIMITS`, what it
supports (`limits.py` reads it); and `PLATFORM`, where it runs, None for everywhere. The
compiler cannot divide a kernel of one platform over a mesh, so that it runs in
`shard_map`, on each device's part. Scores, and the sums of their softmax, are float32.
"""

import functools
import importlib
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lm.errors import ConfigError
from lm.ops.attention.dense import Request
from lm.ops.attention.limits import Requirements, check_implementation


def attend_by(
    name: str,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    request: Request,
) -> Float[Array, "B T N H"]:
    """Computes what `lm.ops.attention.dense.attend` does, by a kernel.

    The fused kernels measure distances by index in the row, not by position. The two
    agree where the tokens of a document stand side by side in order, as in all packed
    rows; with a cache, whose texts begin at different indices, only "xla" is right.

    Args:
      name: of the kernel's file.

    Raises:
      ConfigError: the kernel lacks a feature, or does not run on these devices.
    """
    kernel = importlib.import_module(f"lm.ops.attention.{name}")
    wanted = Requirements(
        dtype=query.dtype.name,
        head_dim=query.shape[-1],
        bias=None if request.bias is None else "relative",
        softcap=request.softcap,
        dropout=0.0 if request.dropout_key is None else request.dropout_rate,
        prefix=request.causal and request.layouts[1].prefix is not None,
        precision=request.precision,
    )
    check_implementation(name, wanted)
    if kernel.PLATFORM is None:
        return kernel.attend(query, key, value, request.layouts, request)
    if not request.interpret:
        _check_platform(name, kernel.PLATFORM)
    elsewhere: Any = None  # the layouts are an argument of their own
    rest = request._replace(layouts=elsewhere)
    attend = functools.partial(kernel.attend, request=rest)
    if request.spec is not None:
        row = PartitionSpec(request.spec[0])
        attend = jax.shard_map(
            attend,
            in_specs=(request.spec, request.spec, request.spec, (row, row)),
            out_specs=request.spec,
            check_vma=False,
        )
    return attend(query, key, value, request.layouts)


def _check_platform(name: str, platform: str) -> None:
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = jax.default_backend() if device is None else device.platform
    if found != platform:
        raise ConfigError(
            "compute.attention",
            f"{name} on a {found}",
            f"a {platform} for it",
            "set compute.attention=xla.",
        )
