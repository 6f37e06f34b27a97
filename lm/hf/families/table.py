"""What a table of tensors is, and how it is used in both directions.

A rule names a tensor, the parameter that it is, and how their axes go together:

    Rule("encoder.layer.{i}.attention.self.query.weight",
         "layers/attention/query/kernel", "(N H) D -> D N H")

`{i}` is the layer, in the name only: parameters of layers are stacked. Axes are written
as in einops; capitals have the model's sizes (`Family.sizes`). Going in, a tensor is
reshaped and transposed, which is a view; going out, the reverse.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from lm.errors import CheckpointError

Shape = tuple[int, ...]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
      name: of the tensor.
      path: of the parameter; several, where the tensor holds them along the axis `p`.
      axes: of the tensor -> of the parameter, without the layers.
      part: "" for what each model of the family has; else the head, or other part, all
        of which is there or none.
    """

    name: str
    path: str | tuple[str, ...]
    axes: str
    part: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def layered(self) -> bool:
        return "{i}" in self.name

    def name_of(self, layer: int) -> str:
        return self.name.replace("{i}", str(layer))

    def tensor_shape(self, sizes: Sizes) -> Shape:
        left, _ = _axes(self.axes)
        known = {**sizes, "p": len(self.paths)}
        return tuple(math.prod(known[axis] for axis in group) for group in left)

    def leaf_shape(self, sizes: Sizes) -> Shape:
        """Of one layer's share of the parameter."""
        return tuple(sizes[axis] for axis in _axes(self.axes)[1] if axis != "p")

    def into(self, tensor: np.ndarray, sizes: Sizes) -> list[np.ndarray]:
        """The parameters in a tensor, as views of it, in the order of `paths`."""
        left, right = _axes(self.axes)
        known = {**sizes, "p": len(self.paths)}
        flat = [axis for group in left for axis in group]
        split = tensor.reshape([known[axis] for axis in flat])
        view = split.transpose([flat.index(axis) for axis in right])
        return list(view) if right[0] == "p" else [view]

    def out_of(self, leaves: list[np.ndarray], sizes: Sizes) -> np.ndarray:
        """The tensor of the parameters, of one layer where there are layers."""
        left, right = _axes(self.axes)
        whole = np.stack(leaves) if right[0] == "p" else leaves[0]
        flat = [axis for group in left for axis in group]
        split = whole.transpose([right.index(axis) for axis in flat])
        return split.reshape(self.tensor_shape(sizes))


def _axes(pattern: str) -> tuple[list[list[str]], list[str]]:
    """ "(N H) D -> D N H" as [[N, H], [D]] and [D, N, H]."""
    left, right = pattern.split("->")
    groups = [
        (inner or single).split()
        for inner, single in re.findall(r"\((.*?)\)|(\S+)", left)
    ]
    return groups, right.split()


def linear(
    name: str, path: str, axes: str, part: str = "", *, bias: bool = True
) -> tuple[Rule, ...]:
    """Weight and bias of a PyTorch linear layer: its outputs come first in `axes`."""
    outputs = re.findall(r"\(.*?\)|\S+", axes)[0]
    rules: tuple[Rule, ...] = (Rule(f"{name}.weight", f"{path}/kernel", axes, part),)
    if bias:
        axes = f"{outputs} -> {outputs.strip('()')}"
        rules += (Rule(f"{name}.bias", f"{path}/bias", axes, part),)
    return rules


def norm(
    name: str, path: str, part: str = "", *, bias: bool = True
) -> tuple[Rule, ...]:
    """Weight and bias of a normalisation."""
    rules: tuple[Rule, ...] = (Rule(f"{name}.weight", f"{path}/scale", "D -> D", part),)
    if bias:
        rules += (Rule(f"{name}.bias", f"{path}/bias", "D -> D", part),)
    return rules


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: a tensor for each layer, or one.

    Attributes:
      path: of the parameter.
      rule: whose tensors it is in.
      index: its place among the rule's paths.
      shape: of the parameter, layers included.
      names: of the tensors, as they are called in the file.
    """

    path: str
    rule: Rule
    index: int
    shape: Shape
    names: tuple[str, ...]

    def views(
        self, tensors: Mapping[str, np.ndarray], sizes: Sizes
    ) -> list[np.ndarray]:
        """One for each layer, or a single one."""
        return [self.rule.into(tensors[n], sizes)[self.index] for n in self.names]


def sources(rules: Iterable[Rule], sizes: Sizes, layers: Mapping[str, int]):
    """The parameters of a table by path.

    Args:
      sizes: of the axes.
      layers: how many a stack has, by its path: "layers", "decoder/layers".
    """
    found: dict[str, Source] = {}
    for rule in rules:
        for index, path in enumerate(rule.paths):
            shape = rule.leaf_shape(sizes)
            names: tuple[str, ...] = (rule.name,)
            if rule.layered:
                count = layers[path[: path.index("layers") + len("layers")]]
                shape = (count, *shape)
                names = tuple(rule.name_of(i) for i in range(count))
            found[path] = Source(path, rule, index, shape, names)
    return found


def check(
    tensors: Mapping[str, np.ndarray],
    wanted: Mapping[str, Shape],
    known: Iterable[str],
    where: Path,
) -> None:
    """Compares what a file holds with what its config.json says, all at once.

    Args:
      tensors: of the file, by name.
      wanted: name -> shape of all that must be there.
      known: names that may be there.

    Raises:
      CheckpointError: lists missing, extra and mis-shaped tensors, and those whose
        numbers would lose digits as float32; with the nearest names.
    """
    problems = list(_problems(tensors, wanted, set(known)))
    if problems:
        more = f"; and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise CheckpointError(
            str(where),
            "; ".join(problems[:40]) + more,
            "the tensors that its config.json describes",
            "check that weights and config.json belong together.",
        )


def _problems(tensors: Mapping, wanted: Mapping, known: set[str]) -> Iterator[str]:
    extra = sorted(tensors.keys() - wanted.keys() - known)
    for name, shape in wanted.items():
        if name not in tensors:
            yield f"{name}: missing (nearest: {nearest(name, extra or tensors)})"
        elif tensors[name].shape != shape:
            yield f"{name}: shape {tensors[name].shape}, not {shape}"
        elif tensors[name].dtype.name not in ("float32", "float16", "bfloat16"):
            yield f"{name}: dtype {tensors[name].dtype.name}, not float32 or 16 bits"
    missing = [name for name in wanted if name not in tensors]
    for name in extra:
        yield f"{name}: extra (nearest: {nearest(name, missing or wanted)})"


def nearest(name: str, names: Iterable[str]) -> str:
    return ", ".join(get_close_matches(name, list(names)[:2000], n=2)) or "none"
