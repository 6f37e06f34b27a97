"""Attention by the kernel of a name, a file of this folder.

A kernel's file has `attend(query, key, value, places, request)`; `LIMITS`, what it
supports (`limits.py` reads it); and `PLATFORM`, the one that it runs on, None for all.
A kernel of one platform is opaque to the compiler, which cannot divide it: it runs on
each device's part. Scores, and the sums of their softmax, are float32.
"""

import functools
import importlib
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lm.errors import ConfigError
from lm.ops.attention.dense import Request
from lm.ops.attention.limits import Wanted, check_implementation


def attend_by(
    name: str,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    request: Request,
) -> Float[Array, "B T N H"]:
    """Computes what `attend` of `lm.ops.attention.dense` does, by a kernel.

    The fused kernels count distances in slots of the row, not in positions. These agree
    where the tokens of a document stand side by side in their order, as in all packed
    rows; with a cache, whose texts begin at different slots, only "xla" is right.

    Args:
      name: of the kernel's file.

    Raises:
      ConfigError: the kernel cannot do what is asked for, or not on these devices.
    """
    kernel = importlib.import_module(f"lm.ops.attention.{name}")
    wanted = Wanted(
        dtype=query.dtype.name,
        head_dim=query.shape[-1],
        position="none" if request.bias is None else "relative",
        softcap=request.softcap,
        dropout=0.0 if request.dropout_key is None else request.dropout_rate,
        prefix=request.causal and request.places[1].prefix is not None,
        precision=request.precision,
    )
    check_implementation(name, wanted)
    if kernel.PLATFORM is None:
        return kernel.attend(query, key, value, request.places, request)
    if not request.interpret:
        _check_platform(name, kernel.PLATFORM)
    elsewhere: Any = None  # the places are an argument of their own
    rest = request._replace(places=elsewhere)
    attend = functools.partial(kernel.attend, request=rest)
    if request.spec is not None:
        row = PartitionSpec(request.spec[0])
        attend = jax.shard_map(
            attend,
            in_specs=(request.spec, request.spec, request.spec, (row, row)),
            out_specs=request.spec,
            check_vma=False,
        )
    return attend(query, key, value, request.places)


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
