"""A mixture of denoisers: short spans, long or many spans, and the end of a text.

Tay et al. 2022 (UL2), section 3.1: R-, X- and S-denoisers, each with a mode token
before the source.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.data import spans
from lm.errors import ConfigError
from lm.objectives.span_corruption import Corruption
from lm.tokenizers import Codec

FIELDS: dict[str, Any] = {
    "kind": "spans",
    "rate": 0.15,
    "span": 3.0,
    "weight": 1.0,
    "mode": None,
}

# Table 1 of the paper: all with the same weight, the S-denoiser as often as one other.
UL2 = (
    {"kind": "spans", "rate": 0.15, "span": 3.0, "mode": "[R]"},
    {"kind": "spans", "rate": 0.15, "span": 8.0, "mode": "[R]"},
    {"kind": "prefix", "rate": 0.25, "mode": "[S]"},
    {"kind": "spans", "rate": 0.5, "span": 3.0, "mode": "[X]"},
    {"kind": "spans", "rate": 0.5, "span": 8.0, "mode": "[X]"},
    {"kind": "spans", "rate": 0.15, "span": 64.0, "mode": "[X]"},
    {"kind": "spans", "rate": 0.5, "span": 64.0, "mode": "[X]"},
)


@dataclasses.dataclass(frozen=True)
class Objective(Corruption):
    """config.objective of `denoising`; lengths as `Corruption` says.

    Each piece draws one of the denoisers. All take pieces of the same raw length: the
    most of which none is too long for either side.

    Attributes:
      denoisers: dicts of `kind` ("spans", or "prefix": the end of the text is left
        out), `rate`, `span` (spans only), `weight` (how often it is drawn, relative to
        the others) and `mode` (a text put before the source, or None).
    """

    denoisers: tuple[dict[str, Any], ...] = UL2

    def __post_init__(self):
        if not self.denoisers:
            raise ConfigError("objective.denoisers", "none", "at least one")
        for number, denoiser in enumerate(self.denoisers):
            self._check(f"objective.denoisers.{number}", FIELDS | denoiser)

    @staticmethod
    def _check(where: str, d: Mapping[str, Any]) -> None:
        def number(name: str, low: float, high: float) -> bool:
            value = d[name]
            return type(value) in (int, float) and low < value < high

        expected = {
            "kind": (d["kind"] in ("spans", "prefix"), "spans or prefix"),
            "rate": (number("rate", 0.0, 1.0), "a number in (0, 1)"),
            "span": (number("span", 1 - 1e-9, 1e9), "a number of 1 or more"),
            "weight": (number("weight", 0.0, 1e9), "a positive number"),
            "mode": (isinstance(d["mode"], str | None), "a text or none"),
        }
        for name, value in d.items():
            holds, wanted = expected.get(name, (False, f"one of {', '.join(FIELDS)}"))
            if not holds:
                found = repr(value) if name in FIELDS else "an unknown field"
                raise ConfigError(f"{where}.{name}", found, wanted)

    def forms(self, codec: Codec) -> tuple[spans.Form, ...]:
        forms: list[spans.Form] = []
        for denoiser in self.denoisers:
            d = FIELDS | denoiser
            mode = tuple(codec.encode(d["mode"])) if d["mode"] else ()
            if d["kind"] == "prefix":
                forms.append(spans.Suffix(d["rate"], True, mode))
            else:
                forms.append(spans.Spans(d["rate"], d["span"], mode))
        return tuple(forms)

    def weights(self) -> tuple[float, ...]:
        return tuple(float((FIELDS | d)["weight"]) for d in self.denoisers)
