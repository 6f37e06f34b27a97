"""The mesh of devices, and how arrays are sharded over it.

Modules name the axes of their parameters ("embed", "heads"); the rules of the config
map these names to the axes of the mesh. Nothing else decides how an array is sharded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm import trees
from lm.errors import ConfigError

Tree = Any
Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

AXES = ("data", "fsdp", "tensor", "sequence")
ROWS = ("data", "fsdp")
RULES = (
    ("batch", ("data", "fsdp")),
    ("length", "sequence"),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("layers", None),
)

BOUNDS = {
    "data": "[-1, 1048576]",
    "fsdp": "[1, 1048576]",
    "tensor": "[1, 1048576]",
    "sequence": "[1, 1048576]",
}
CHANGEABLE = ("data", "fsdp", "tensor", "sequence", "rules")


@dataclass(frozen=True)
class MeshConfig:
    """The section `mesh` of a config: how many devices each axis has.

    Attributes:
      data: copies of the model, each with its rows of the batch; -1: the devices that
        the other axes leave.
      fsdp: shards of the parameters, and of the batch too (fully sharded data
        parallelism, Rajbhandari et al., arXiv:1910.02054).
      tensor: shards of every layer (Shoeybi et al., arXiv:1909.08053).
      sequence: shards of the length.
      rules: (logical axis, mesh axis or several or None); the first for a name counts.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    rules: tuple[tuple[str, str | tuple[str, ...] | None], ...] = RULES


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh over all devices of all processes, or over those given.

    Raises:
      ConfigError: the product of the axes is not the number of devices, or a rule
        names an axis that no mesh has.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    product = math.prod(size for axis, size in sizes.items() if axis != "data")
    if config.data == -1 and len(devices) % product == 0:
        sizes["data"] = len(devices) // product
    if math.prod(sizes.values()) != len(devices):
        found = " × ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ConfigError(
            "mesh",
            f"{found} on {len(devices)} devices",
            f"axes whose product is {len(devices)}",
            "data=-1 takes the devices that the other axes leave; these must divide "
            "the number of devices",
        )
    for name, target in config.rules:
        for axis in _targets(target):
            if axis not in AXES:
                raise ConfigError(
                    "mesh.rules", f"({name!r}, {target!r})", f"axes of {AXES}"
                )
    shape, kinds = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
    if jax.process_count() == 1:
        return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
    # jax would order devices by the topology alone; ordered by process, the rows of
    # each process are one block, and tensor parallelism stays within a machine.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=kinds)


def spec(axes: Sequence[str | None], rules: Rules) -> PartitionSpec:
    """Returns the sharding of an array with these logical axes.

    A mesh axis shards one dimension of an array: where rules give it to two, the first
    takes it and the second is not sharded.

    Raises:
      ConfigError: a logical axis that no rule names.
    """
    table = dict(reversed(rules))
    used: set[str] = set()
    parts = []
    for name in axes:
        if name is not None and name not in table:
            raise ConfigError(
                "mesh.rules",
                f"no rule for the logical axis {name!r}",
                "a rule for every axis that the model names",
                f"add ({name!r}, None) to leave it whole",
            )
        targets = _targets(None if name is None else table[name])
        free = tuple(axis for axis in targets if axis not in used)
        used.update(free)
        parts.append(free[0] if len(free) == 1 else free or None)
    return PartitionSpec(*parts)


def param_shardings(axes: Tree, shapes: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """Returns a sharding for every parameter.

    A dimension that its mesh axes do not divide is whole on every device, which is
    correct and costs memory; `left_whole` lists such dimensions.

    Args:
      axes: tuples of logical axis names, in the structure of `shapes`.
      shapes: arrays or `ShapeDtypeStruct`s.
    """
    specs = _param_specs(axes, shapes, mesh, rules)
    return trees.unflatten(
        shapes, {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
    )


def left_whole(axes: Tree, shapes: Tree, mesh: Mesh, rules: Rules) -> list[str]:
    """Returns a line for every dimension that its mesh axes do not divide."""
    lines = []
    flat = trees.flatten(shapes)
    divided = _param_specs(axes, shapes, mesh, rules)
    for path, names in _flatten_axes(axes).items():
        wanted = spec(names, rules)
        for i, size in enumerate(flat[path].shape):
            if wanted[i] != divided[path][i]:
                parts = _shards(wanted[i], mesh)
                lines.append(f"{path}: {names[i]}={size} is not a multiple of {parts}")
    return lines


def describe_whole(program: Any, rules: Rules) -> list[str]:
    """Returns the lines of `left_whole` for the log of a run."""
    lines = left_whole(program.axes, program.params, program.mesh, rules)
    return [f"not sharded: {line}" for line in lines]


def state_shardings(state: Tree, axes: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """Returns a sharding for every leaf of a `State`.

    A leaf belongs to the parameter whose path is the longest suffix of its own. A leaf
    of the parameter's shape is sharded like the parameter; one that lacks a single
    dimension (Adafactor's factored moments), like the dimensions it has. The carried
    state is sharded like the rows of a batch. All other leaves are whole.

    Args:
      state: shapes of a tree that has the parameters under `params` or `frozen`.
      axes: tuples of logical axis names, in the structure of the parameters.
    """
    flat = trees.flatten(state)
    shapes = {
        path: flat[name]
        for path in _flatten_axes(axes)
        for name in (f"params/{path}", f"frozen/{path}")
        if name in flat
    }
    specs = _param_specs(axes, shapes, mesh, rules)

    def sharding(path: str, leaf: Any) -> NamedSharding:
        if path.startswith("carried/"):
            return batch_sharding(mesh)
        owner = _owner(path, specs)
        if owner is None:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(
            mesh, _surviving(specs[owner], shapes[owner].shape, leaf.shape)
        )

    return trees.map_with_path(sharding, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shards the rows over the axes data and fsdp, and nothing else."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, each process giving its contiguous share of the rows."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def row_shards(mesh: Mesh) -> int:
    """Returns into how many parts the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def check_batch(batch_size: int, grad_accum: int, mesh: Mesh) -> None:
    """Checks that the batch divides over micro-batches, devices and processes.

    Raises:
      ConfigError: it does not, or the devices of process p of P hold other rows than
        the p-th of P shares.
    """
    shards = row_shards(mesh)
    parts = shards * grad_accum
    if batch_size % parts:
        near = max(round(batch_size / parts), 1) * parts
        raise ConfigError(
            "batch_size",
            str(batch_size),
            f"a multiple of {parts}: data × fsdp is {shards}, grad_accum {grad_accum}",
            f"use {near}, or change the mesh or grad_accum",
        )
    processes, process = jax.process_count(), jax.process_index()
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    spans = [index[0].indices(batch_size) for index in indices.values() if index]
    held = {row for start, stop, _ in spans for row in range(start, stop)}
    share = range(
        process * batch_size // processes, (process + 1) * batch_size // processes
    )
    if held != set(share):
        raise ConfigError(
            "mesh",
            f"{dict(mesh.shape)} on {processes} processes, where rows "
            f"{min(held)} to {max(held)} lie on the devices of process {process}",
            f"its share, rows {share.start} to {share.stop - 1}",
            "keep tensor × sequence within the devices of one process",
        )


def placed(shapes: Any, shardings: Any) -> Any:
    """Adds shardings to shapes."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        shapes,
        shardings,
    )


def bytes_per_device(shapes: Tree, shardings: Tree) -> int:
    """Returns the bytes that one device holds of arrays with these shardings."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(
            jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True
        )
    )


def describe_memory(state: Any) -> str:
    """Returns a line on the bytes that parameters and optimiser need on each device.

    Args:
      state: shapes with shardings, of a `State`.
    """

    def number(tree: Tree) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    def size(tree: Tree) -> str:
        places = jax.tree.map(lambda leaf: leaf.sharding, tree)
        return f"{bytes_per_device(tree, places) / 2**20:,.1f} MiB"

    trained, frozen = number(state.params), number(state.frozen)
    optimiser = f"optimiser {size(state.opt_state)}"
    if state.teacher:
        optimiser += f", teacher {size(state.teacher)}"
    if not frozen:
        head = f"{trained:,} parameters; per device: parameters {size(state.params)}"
        return f"{head}, {optimiser}"
    return (
        f"{trained + frozen:,} parameters, of which {trained:,} "
        f"({trained / (trained + frozen):.2%}) are trained; per device: trained "
        f"{size(state.params)}, frozen {size(state.frozen)}, {optimiser}"
    )


def _targets(target: str | Sequence[str] | None) -> tuple[str, ...]:
    if target is None:
        return ()
    return (target,) if isinstance(target, str) else tuple(target)


def _shards(target: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in _targets(target))


def _flatten_axes(axes: Tree) -> dict[str, tuple[str | None, ...]]:
    return trees.flatten(axes, is_leaf=lambda node: isinstance(node, tuple))


def _param_specs(
    axes: Tree, shapes: Tree, mesh: Mesh, rules: Rules
) -> dict[str, PartitionSpec]:
    flat, names = trees.flatten(shapes), _flatten_axes(axes)
    specs = {}
    for path, leaf in flat.items():
        if len(names[path]) != len(leaf.shape):
            raise ValueError(f"{path}: axes {names[path]} for the shape {leaf.shape}")
        wanted = spec(names[path], rules)
        specs[path] = PartitionSpec(
            *(
                part if size % _shards(part, mesh) == 0 else None
                for size, part in zip(leaf.shape, wanted, strict=True)
            )
        )
    return specs


def _owner(path: str, params: Mapping[str, Any]) -> str | None:
    """Finds the parameter whose path is the longest suffix of this one."""
    keys = path.split("/")
    ends = ("/".join(keys[i:]) for i in range(len(keys)))
    return next((end for end in ends if end in params), None)


def _surviving(
    whole: PartitionSpec, shape: tuple[int, ...], part: tuple[int, ...]
) -> PartitionSpec:
    """Returns the spec of a leaf with its parameter's dimensions, or all but one."""
    if part == shape:
        return whole
    options = [
        whole[:i] + whole[i + 1 :]
        for i in range(len(shape))
        if shape[:i] + shape[i + 1 :] == part
    ]
    if not options:
        return PartitionSpec()
    # Which dimension of a square parameter is missing cannot be known, so only the axes
    # on which all possibilities agree are kept.
    return PartitionSpec(
        *(set(x).pop() if len(set(x)) == 1 else None for x in zip(*options))
    )
