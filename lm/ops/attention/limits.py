"""What the kernels of attention support; read without jax, for the config's check."""

import ast
import dataclasses
import functools
from pathlib import Path

from lm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Requirements:
    """The features that a call of attention needs, which not every kernel has.

    All kernels have segments, causal masks and a window.

    Attributes:
      dtype: of queries, keys and values.
      head_dim: None where it is not known yet.
      bias: the `model.position` that adds a bias to the scores; None: no bias.
      dropout: of the probabilities.
      prefix: whether all tokens of a document see some of its tokens (a prefix).
    """

    dtype: str
    head_dim: int | None = None
    bias: str | None = None
    softcap: float | None = None
    dropout: float = 0.0
    prefix: bool = False
    precision: str | None = None


# The keys of LIMITS, and how an error shows the value that a kernel lacks.
SHOWN = {
    "bias": "a bias by model.position={}",
    "dropout": "dropout {}",
    "dtype": "{}",
    "head_dim": "head_dim={}",
    "softcap": "softcap {}",
    "prefix": "positions that all of a document see (a prefix)",
    "precision": "precision={}",
}


@functools.cache
def limits(name: str) -> dict[str, tuple]:
    """Reads the literal LIMITS of a kernel's file, without importing it.

    Returns:
      For each key of SHOWN that the kernel limits, the values that it supports (a
      tuple, or a dict of "from", "to", "step" for numbers), and these in words.
    """
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            given = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(target) for target in given] == ["LIMITS"]:
                return ast.literal_eval(node.value)
    raise ValueError(f"lm/ops/attention/{name}.py has no LIMITS")


def check_implementation(name: str, wanted: Requirements) -> None:
    """Refuses what the kernel would compute wrongly, or not at all.

    Raises:
      ConfigError: names compute.attention and the first feature that is missing.
    """
    values = {
        "bias": wanted.bias or "none",
        "dropout": wanted.dropout,
        "dtype": wanted.dtype,
        "head_dim": wanted.head_dim,
        "softcap": wanted.softcap,
        "prefix": wanted.prefix,
        # Products of other dtypes have one precision only.
        "precision": wanted.precision if wanted.dtype == "float32" else None,
    }
    for what, (supported, words) in limits(name).items():
        value = values[what]
        if isinstance(supported, dict):
            steps = range(supported["from"], supported["to"] + 1, supported["step"])
            holds = value is None or value in steps
        else:
            holds = value in supported
        if not holds:
            raise ConfigError(
                "compute.attention",
                f"{name} with {SHOWN[what].format(value)}",
                f"{words}: {name} supports no other",
                "set compute.attention=xla, which supports everything.",
            )
