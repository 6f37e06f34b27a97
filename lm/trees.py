"""Part: names for the leaves of a tree, and what is done by name.

A leaf is named by its path, "layers/attention/query/kernel": dictionary keys, fields
of dataclasses and NamedTuples, and positions in sequences, joined by "/".

One name has a meaning: what lies under a key `LAYERS` ("layers"), such as
"layers/mlp/up/kernel" or "decoder/layers/mlp/up/kernel", is a stack of layers, and
axis 0 of each leaf has an entry for each of them. A model that scans over its layers
names them so. The optimiser then treats each layer's part as a parameter of its own,
errors name the layer, and decoding keeps each layer's part as an array of its own.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import ConfigError

Tree = Any
T = TypeVar("T")
_REQUIRED = object()
LAYERS = "layers"
_STACKED = re.compile(rf"((?:.*?/)?{LAYERS})/(.+)")


def path_name(path: Sequence[Any]) -> str:
    """Names a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def flatten(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns the leaves of a tree by path, in the tree's order."""
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    flat = {path_name(path): leaf for path, leaf in pairs}
    if len(flat) != len(pairs):
        raise ValueError("two leaves of the tree have the same path")
    return flat


def unflatten(like: Tree, flat: Mapping[str, Any]) -> Tree:
    """Builds a tree of the structure of `like` from the leaves of `flat`."""
    paths = flatten(like)
    if paths.keys() != flat.keys():
        missing, extra = sorted(paths.keys() - flat), sorted(flat.keys() - paths)
        raise ValueError(f"leaves missing: {missing}, leaves too many: {extra}")
    return jax.tree.unflatten(jax.tree.structure(like), [flat[p] for p in paths])


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Builds nested dictionaries whose leaves have the paths of `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def select(tree: Tree, keep: Callable[[str], bool]) -> Tree:
    """Returns the nested dictionaries with the leaves alone whose paths are kept."""
    flat = flatten(tree)
    kept = {path: leaf for path, leaf in flat.items() if keep(path)}
    return tree if len(kept) == len(flat) else nest(kept)


def merge(tree: Tree, other: Tree) -> Tree:
    """Returns nested dictionaries with the leaves of both; {} adds nothing."""
    return nest(flatten(tree) | flatten(other)) if tree and other else tree or other


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Applies `fn(path, leaf, *other_leaves)` to every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest
    )


def layer_stack(path: str) -> str | None:
    """Returns the stack of layers that a leaf belongs to; None if it is in no stack.

    It is "layers" for "layers/mlp/up/kernel", and "decoder/layers" for the leaves under
    that.
    """
    found = _STACKED.fullmatch(path)
    return found[1] if found else None


def split_layers(tree: Tree) -> Tree:
    """Replaces each stack of layers by a tuple of trees, one for each layer."""
    if not isinstance(tree, dict):
        return tree
    parts = {k: v if k == LAYERS else split_layers(v) for k, v in tree.items()}
    if LAYERS in parts:
        count = len(jax.tree.leaves(parts[LAYERS])[0])
        parts[LAYERS] = tuple(
            jax.tree.map(lambda leaf, i=i: leaf[i], parts[LAYERS]) for i in range(count)
        )
    return parts


def join_layers(tree: Tree) -> Tree:
    """Undoes `split_layers`."""
    if not isinstance(tree, dict):
        return tree
    parts = {k: v if k == LAYERS else join_layers(v) for k, v in tree.items()}
    if LAYERS in parts:
        parts[LAYERS] = jax.tree.map(lambda *each: jnp.stack(each), *parts[LAYERS])
    return parts


def layer_names(path: str, leaf: Any) -> list[str]:
    """Returns a name for each layer of a stacked leaf ("layers/3/mlp/up/kernel").

    The name of a leaf in no stack is its path.
    """
    stack = layer_stack(path)
    if stack is None:
        return [path]
    tail = path[len(stack) :]
    return [f"{stack}/{layer}{tail}" for layer in range(leaf.shape[0])]


def match(
    patterns: Sequence[tuple[str, T]],
    paths: Iterable[str],
    *,
    where: str,
    default: Any = _REQUIRED,
    all_used: bool = False,
) -> dict[str, T]:
    """Finds for each path the value of the first pattern that matches it in full.

    Args:
      patterns: (regular expression, value) in order of precedence.
      paths: the names of the leaves.
      where: the config field that the patterns come from, for errors.
      default: the value of a path that no pattern matches; without it, that is an
        error.
      all_used: whether a pattern that matches no path is an error.

    Raises:
      ConfigError: an invalid pattern, a path not covered, a pattern without a path.
    """
    paths = list(paths)
    compiled = [(_compile(pattern, where), value) for pattern, value in patterns]
    for pattern, _ in compiled:
        if all_used and not any(pattern.fullmatch(path) for path in paths):
            near = difflib.get_close_matches(pattern.pattern, paths, n=3, cutoff=0.3)
            raise ConfigError(
                where,
                f"the pattern {pattern.pattern!r}, which matches no parameter",
                "a regular expression that matches the whole of a parameter's name",
                f"names near it are {', '.join(near or paths[:3])}",
            )
    values = {}
    for path in paths:
        hits = (value for pattern, value in compiled if pattern.fullmatch(path))
        values[path] = next(hits, default)
        if values[path] is _REQUIRED:
            raise ConfigError(
                where,
                f"the parameter {path!r}, which no pattern matches",
                "every parameter to be matched by a pattern",
                f"add ({path!r}, value), or a wider pattern, to {where}",
            )
    return values


def _compile(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            where, f"the pattern {pattern!r} ({error})", "a regular expression"
        ) from None


def diff(a: Tree, b: Tree, *, names: tuple[str, str] = ("a", "b")) -> str:
    """Describes what differs between two trees, a line per leaf; "" if nothing does.

    Leaves that one tree lacks, other shapes, other dtypes, other values with the
    largest absolute difference. Values are compared bit for bit, and so NaN equals
    NaN; the first leaf that differs is named at the end.
    """
    left, right = flatten(a), flatten(b)
    lines, first = [], None
    for path in [*left, *(path for path in right if path not in left)]:
        if path not in left or path not in right:
            line = f"only in {names[0] if path in left else names[1]}"
        else:
            line = _difference(np.asarray(left[path]), np.asarray(right[path]))
        if line:
            first = first or path
            lines.append(f"{path}: {line}")
    if lines:
        total = len(left.keys() | right.keys())
        lines.append(f"{len(lines)} of {total} leaves differ, first: {first}")
    return "\n".join(lines)


def _difference(x: np.ndarray, y: np.ndarray) -> str:
    if x.shape != y.shape:
        return f"shape {x.shape} and {y.shape}"
    if x.dtype != y.dtype:
        return f"dtype {x.dtype} and {y.dtype}"
    if x.tobytes() == y.tobytes():
        return ""
    wide = [np.asarray(v, np.float64) for v in (x, y)]
    with np.errstate(invalid="ignore"):
        gap = np.abs(wide[0] - wide[1])
    count = int(np.sum((wide[0] != wide[1]) & ~(np.isnan(wide[0]) & np.isnan(wide[1]))))
    return f"max abs difference {np.nanmax(gap):.3g} in {count} of {x.size} values"
