"""Defines tables of tensors, and applies them in both directions.

A rule names a tensor, its parameter, and how their axes correspond:

    Rule("encoder.layer.{i}.attention.self.query.weight",
         "layers/attention/query/kernel", "(N H) D -> D N H")

`{i}` is the number of the layer, in the name only: parameters of layers are stacked.
Axes are written as in einops; capitals are sizes of the model (`base.sizes`). An import
reshapes and transposes a tensor, without a copy; an export does the reverse.
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
    """A line of a table.

    Attributes:
      name: of the tensor.
      path: of the parameter, or of several that the tensor holds along the axis `p`.
      axes: axes of the tensor -> axes of the parameter, without the layers.
      part: "" for tensors of every model of the family; else the head or other part,
        whose tensors a checkpoint has all or none of.
    """

    name: str
    path: str | tuple[str, ...]
    axes: str
    part: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Lists the parameters that the tensor holds."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def layered(self) -> bool:
        """Tells whether each layer has a tensor."""
        return "{i}" in self.name

    def name_of(self, layer: int) -> str:
        """Returns the tensor's name in a layer."""
        return self.name.replace("{i}", str(layer))

    def has_axis(self, axis: str) -> bool:
        """Tells whether the parameter has an axis, such as "C", the labels."""
        return axis in split_axes(self.axes)[1]

    def tensor_shape(self, sizes: Sizes) -> Shape:
        """Returns the shape of the tensor."""
        left, _ = split_axes(self.axes)
        known = {**sizes, "p": len(self.paths)}
        return tuple(math.prod(known[axis] for axis in group) for group in left)

    def leaf_shape(self, sizes: Sizes) -> Shape:
        """Returns the shape of the parameter, of one layer where it has layers."""
        return tuple(sizes[axis] for axis in split_axes(self.axes)[1] if axis != "p")

    def into(self, tensor: np.ndarray, sizes: Sizes) -> list[np.ndarray]:
        """Returns the parameters in a tensor, as views, in the order of `paths`."""
        left, right = split_axes(self.axes)
        known = {**sizes, "p": len(self.paths)}
        flat = [axis for group in left for axis in group]
        split = tensor.reshape([known[axis] for axis in flat])
        view = split.transpose([flat.index(axis) for axis in right])
        return list(view) if right[0] == "p" else [view]

    def out_of(self, leaves: list[np.ndarray], sizes: Sizes) -> np.ndarray:
        """Returns the tensor that holds the parameters, of one layer where layered."""
        left, right = split_axes(self.axes)
        whole = np.stack(leaves) if right[0] == "p" else leaves[0]
        flat = [axis for group in left for axis in group]
        split = whole.transpose([right.index(axis) for axis in flat])
        return split.reshape(self.tensor_shape(sizes))


def split_axes(pattern: str) -> tuple[list[list[str]], list[str]]:
    """Parses "(N H) D -> D N H" as [[N, H], [D]] and [D, N, H]."""
    left, right = pattern.split("->")
    groups = [
        (inner or single).split()
        for inner, single in re.findall(r"\((.*?)\)|(\S+)", left)
    ]
    return groups, right.split()


def linear(
    name: str, path: str, axes: str, part: str = "", *, bias: bool = True
) -> tuple[Rule, ...]:
    """Returns the rules of a PyTorch linear layer; `axes` begin with the outputs."""
    outputs = re.findall(r"\(.*?\)|\S+", axes)[0]
    rules: tuple[Rule, ...] = (Rule(f"{name}.weight", f"{path}/kernel", axes, part),)
    if bias:
        axes = f"{outputs} -> {outputs.strip('()')}"
        rules += (Rule(f"{name}.bias", f"{path}/bias", axes, part),)
    return rules


def norm(
    name: str, path: str, part: str = "", *, bias: bool = True
) -> tuple[Rule, ...]:
    """Returns the rules of the weight and bias of a normalisation."""
    rules: tuple[Rule, ...] = (Rule(f"{name}.weight", f"{path}/scale", "D -> D", part),)
    if bias:
        rules += (Rule(f"{name}.bias", f"{path}/bias", "D -> D", part),)
    return rules


@dataclass(frozen=True)
class Source:
    """The tensors that make up a parameter: one for each layer, or a single one.

    Attributes:
      path: of the parameter.
      rule: the rule of these tensors.
      index: of the path among the rule's paths.
      shape: of the parameter, layers included.
      names: of the tensors.
    """

    path: str
    rule: Rule
    index: int
    shape: Shape
    names: tuple[str, ...]

    def views(
        self, tensors: Mapping[str, np.ndarray], sizes: Sizes
    ) -> list[np.ndarray]:
        """Returns views of the tensors as parameters: one for each layer, or one."""
        return [self.rule.into(tensors[n], sizes)[self.index] for n in self.names]


def sources(
    rules: Iterable[Rule], sizes: Sizes, layers: Mapping[str, int]
) -> dict[str, Source]:
    """Returns path of a parameter -> its tensors, for all rules of a table.

    Args:
      sizes: axis -> size.
      layers: path of a stack, such as "decoder/layers" -> its number of layers.
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
    required: Mapping[str, Shape],
    known: Iterable[str],
    where: Path,
) -> None:
    """Compares the tensors of a file with those that config.json describes.

    Args:
      tensors: of the file, by name.
      required: name -> shape of the tensors that must be there.
      known: names of tensors that may be there.

    Raises:
      CheckpointError: lists tensors that are missing, extra or of another shape, with
        the nearest names, and those that float32 cannot hold exactly.
    """
    problems = list(_problems(tensors, required, set(known)))
    if problems:
        more = f"; and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise CheckpointError(
            str(where),
            "; ".join(problems[:40]) + more,
            "the tensors that its config.json describes",
            "check that weights and config.json belong together.",
        )


def _problems(
    tensors: Mapping[str, np.ndarray], required: Mapping[str, Shape], known: set[str]
) -> Iterator[str]:
    extra = sorted(tensors.keys() - required.keys() - known)
    for name, shape in required.items():
        if name not in tensors:
            yield f"{name}: missing (nearest: {nearest(name, extra or tensors)})"
        elif tensors[name].shape != shape:
            yield f"{name}: shape {tensors[name].shape}, not {shape}"
        elif tensors[name].dtype.name not in ("float32", "float16", "bfloat16"):
            yield f"{name}: dtype {tensors[name].dtype.name}, not float32 or 16 bits"
    missing = [name for name in required if name not in tensors]
    for name in extra:
        yield f"{name}: extra (nearest: {nearest(name, missing or required)})"


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the two names most like a name, for an error."""
    return ", ".join(get_close_matches(name, list(names)[:2000], n=2)) or "none"
