"""What the implementations of attention can do; without jax, for the config's check."""

import dataclasses

from lm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a call of attention asks for beside segments, causality and a window.

    Attributes:
      dtype: of queries, keys and values.
      head_dim: None where it is not known yet.
      position: "relative" and "alibi" add a bias to the scores.
      dropout: of the probabilities.
      prefix: whether some places are seen by all of their document.
    """

    dtype: str
    head_dim: int | None = None
    position: str = "none"
    softcap: float | None = None
    dropout: float = 0.0
    prefix: bool = False
    precision: str | None = None


def check_implementation(name: str, wanted: Wanted) -> None:
    """Refuses what the implementation would compute wrongly, or not at all.

    Raises:
      ConfigError: it names compute.attention and the first thing it cannot do.
    """
    if name == "xla":
        return
    biased = wanted.position in ("relative", "alibi")
    limits = [
        (not biased, f"a bias by model.position={wanted.position}", "none"),
        (not wanted.dropout, f"dropout {wanted.dropout}", "model.attention.dropout=0"),
    ]
    if name == "cudnn":
        head_dim = wanted.head_dim or 8
        fits = head_dim % 8 == 0 and head_dim <= 256
        limits += [
            (wanted.dtype == "bfloat16", wanted.dtype, "compute.dtype=bfloat16"),
            (fits, f"head_dim={head_dim}", "a multiple of 8, up to 256"),
            (not wanted.softcap, f"softcap {wanted.softcap}", "none"),
        ]
    else:
        exact = wanted.dtype == "float32" and wanted.precision in ("high", "highest")
        limits += [
            (not wanted.prefix, "places that all of a document see (a prefix)", "none"),
            (not exact, f"precision={wanted.precision}", "compute.precision=default"),
        ]
    for holds, found, expected in limits:
        if not holds:
            raise ConfigError(
                "compute.attention",
                f"{name} with {found}",
                f"{expected}: {name} supports no other",
                "set compute.attention=xla, which supports everything.",
            )
