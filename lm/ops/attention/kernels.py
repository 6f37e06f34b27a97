"""Attention by fused kernels, which never hold the scores of a whole row.

Dao et al. 2022, "FlashAttention", as cuDNN has it for NVIDIA GPUs, and as splash
attention in Pallas for TPUs. Scores, and the sums of their softmax, are float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lm.errors import ConfigError
from lm.ops.attention.dense import Places, attend, visible
from lm.ops.attention.limits import Wanted, check_implementation

# Rows of a splash kernel's tiles, the largest that divides a length is taken.
BLOCKS = (512, 256, 128)


def attend_by(
    implementation: str,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    places: tuple[Places, Places],
    causal: bool = False,
    window: int | None = None,
    bias: Float[Array, "#B N T S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    precision: str | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`attend` of `lm.ops.attention.dense`, by the implementation of that name.

    The kernels count distances in slots of the row, not in positions. These agree where
    the tokens of a document stand side by side in their order, as in all packed rows;
    with a cache, whose texts begin at different slots, only "xla" is right.

    Args:
      implementation: "xla", "cudnn" or "splash".
      places: of queries and of keys.
      causal, window: as for `visible`.
      spec: how the mesh lays out key and value; the kernels, which the compiler cannot
        divide, run on each device's part. None where there is no mesh.
      interpret: runs splash without a TPU, slowly, for tests.

    Raises:
      ConfigError: the implementation cannot do what is asked for, or not here.
    """
    seen = {"causal": causal, "window": window}
    if implementation == "xla":
        return attend(
            query,
            key,
            value,
            mask=visible(*places, **seen),
            bias=bias,
            scale=scale,
            softcap=softcap,
            dropout_rate=dropout_rate,
            dropout_key=dropout_key,
            precision=precision,
        )
    wanted = Wanted(
        dtype=query.dtype.name,
        head_dim=query.shape[-1],
        position="none" if bias is None else "relative",
        softcap=softcap,
        dropout=0.0 if dropout_key is None else dropout_rate,
        prefix=causal and places[1].prefix is not None,
        precision=precision,
    )
    check_implementation(implementation, wanted)
    if not interpret:
        _check_platform(implementation)
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    if implementation == "cudnn":
        kernel = functools.partial(_cudnn, **seen)
    else:
        kernel = functools.partial(
            _splash, **seen, softcap=softcap, interpret=interpret
        )
    if spec is not None:
        row = PartitionSpec(spec[0])
        kernel = jax.shard_map(
            kernel,
            in_specs=(spec, spec, spec, (row, row)),
            out_specs=spec,
            check_vma=False,
        )
    return kernel(query, key, value, places)


def _check_platform(implementation: str) -> None:
    platform = {"cudnn": "gpu", "splash": "tpu"}[implementation]
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = jax.default_backend() if device is None else device.platform
    if found != platform:
        raise ConfigError(
            "compute.attention",
            f"{implementation} on a {found}",
            f"a {platform} for it",
            "set compute.attention=xla.",
        )


def _cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: tuple[Places, Places],
    *,
    causal: bool,
    window: int | None,
) -> jax.Array:
    length = query.shape[1]
    # With a mask cuDNN's backward pass wants even lengths.
    query, key, value, places = _pad(query, key, value, places, 2)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=visible(*places, causal=causal, window=window),
        # Says nothing that the mask does not, but half of the work can be left out.
        is_causal=causal and places[1].prefix is None,
        scale=1.0,
        implementation="cudnn",
    )[:, :length]


def _splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: tuple[Places, Places],
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length = query.shape[1]
    query, key, value, places = _pad(query, key, value, places, BLOCKS[-1])
    size = query.shape[1], key.shape[1]
    rows, columns = (next(b for b in BLOCKS if n % b == 0) for n in size)
    reach = None if window is None else window - 1
    mask = splash.LocalMask(size, (reach, 0 if causal else reach), offset=0)
    if reach is None and not causal:
        mask = splash.FullMask(size)
    attention = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * query.shape[2]),
        block_sizes=splash.BlockSizes(
            block_q=rows,
            block_kv=columns,
            block_q_dkv=rows,
            block_kv_dkv=columns,
            block_q_dq=rows,
            block_kv_dq=columns,
        ),
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    # Padding, segment 0, sees padding: neither a result nor a gradient that is used.
    segments = splash.SegmentIds(*(side.segments for side in places))
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    out = jax.vmap(attention)(query, key, value, segments)
    return jnp.swapaxes(out, 1, 2)[:, :length]


def _pad(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: tuple[Places, Places],
    multiple: int,
) -> tuple[jax.Array, jax.Array, jax.Array, tuple[Places, Places]]:
    """All of them with padding behind, up to a multiple of places."""

    def pad(x: jax.Array) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[1] = (0, -x.shape[1] % multiple)
        return jnp.pad(x, widths)

    return jax.tree.map(pad, (query, key, value, places))
