"""lm.trees: names of leaves, patterns, the table of parameters, the diff of trees."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
import pytest

from lm import trees
from lm.errors import ConfigError


class Moments(NamedTuple):
    mu: dict
    nu: dict


@jax.tree_util.register_dataclass
@dataclass
class Held:
    inner: tuple


def test_paths_go_through_every_kind_of_node():
    tree = {"opt": (Moments({"a": {"b": 1}}, {}), Held(inner=([2, None, 3],)))}
    assert trees.flatten(tree) == {
        "opt/0/mu/a/b": 1,
        "opt/1/inner/0/0": 2,
        "opt/1/inner/0/2": 3,
    }


def test_paths_that_collide_are_an_error():
    with pytest.raises(ValueError, match="same path"):
        trees.flatten({"a/b": 1, "a": {"b": 2}})


def test_unflatten_restores_the_structure_and_refuses_another():
    tree = {"x": Moments({"a": 1}, {"b": 2})}
    assert trees.unflatten(tree, {"x/nu/b": 20, "x/mu/a": 10}) == {
        "x": Moments({"a": 10}, {"b": 20})
    }
    with pytest.raises(ValueError, match=r"missing: \['x/mu/a'\].*many: \['x/mu/z'\]"):
        trees.unflatten(tree, {"x/nu/b": 20, "x/mu/z": 10})


def test_nest_is_the_inverse_of_flatten():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert trees.nest(trees.flatten(tree)) == tree


def test_map_with_path_gives_the_leaves_of_all_trees():
    def join(path, x, y):
        return f"{path}={x + y}"

    mapped = trees.map_with_path(join, {"a": [1, 2]}, {"a": [10, 20]})
    assert mapped == {"a": ["a/0=11", "a/1=22"]}


def test_layers_are_named_one_by_one():
    leaf = np.zeros((2, 5))
    assert trees.layer_names("layers/mlp/up/kernel", leaf) == [
        "layers/0/mlp/up/kernel",
        "layers/1/mlp/up/kernel",
    ]
    assert trees.layer_names("decoder/layers/norm/scale", leaf)[1] == (
        "decoder/layers/1/norm/scale"
    )
    for path in ("embed/token", "layers", "players/a", "layers_a/b"):
        assert trees.layer_names(path, leaf) == [path]


def test_match_is_full_and_the_first_pattern_decides():
    patterns = [(".*bias", 0), ("a/.*", 1), (".*", 2)]
    paths = ["a/bias", "a/kernel", "b/bias_table", "b/a/x"]
    found = trees.match(patterns, paths, where="x")
    assert found == {"a/bias": 0, "a/kernel": 1, "b/bias_table": 2, "b/a/x": 2}


def test_match_names_what_is_not_covered_and_what_is_unused():
    with pytest.raises(ConfigError, match=r"optim.decay_mask.*'a/scale'.*no pattern"):
        trees.match([(".*bias", 0)], ["a/bias", "a/scale"], where="optim.decay_mask")
    none = trees.match([("x", 0)], ["a"], where="f", default=None)
    assert none == {"a": None}
    with pytest.raises(ConfigError, match=r"optim.freeze.*'embd/token'.*embed/token"):
        trees.match(
            [("embd/token", 0)],
            ["head/bias", "embed/token"],
            where="optim.freeze",
            default=1,
            all_used=True,
        )
    with pytest.raises(ConfigError, match="regular expression"):
        trees.match([("(", 0)], ["a"], where="f")


def test_diff_is_empty_for_equal_trees_with_nan():
    tree = {"a": np.array([np.nan, 1.0]), "b": [np.int32(3)]}
    assert trees.diff(tree, {"a": tree["a"].copy(), "b": [np.int32(3)]}) == ""


def test_diff_says_how_each_leaf_differs():
    a = {
        "gone": np.zeros(1),
        "shape": np.zeros((2, 3)),
        "type": np.zeros(2, np.float32),
        "value": np.array([1.0, 2.0, 3.0]),
        "zero": np.array([0.0]),
    }
    b = {
        "new": np.zeros(1),
        "shape": np.zeros((3, 2)),
        "type": np.zeros(2, np.float16),
        "value": np.array([1.0, 2.5, 3.25]),
        "zero": np.array([-0.0]),
    }
    lines = trees.diff(a, b, names=("run", "checkpoint")).splitlines()
    assert lines == [
        "gone: only in run",
        "shape: shape (2, 3) and (3, 2)",
        "type: dtype float32 and float16",
        "value: max abs difference 0.5 in 2 of 3 values",
        "zero: max abs difference 0 in 0 of 1 values",
        "new: only in checkpoint",
        "6 of 6 leaves differ, first: gone",
    ]
