"""A mixture of denoisers, which remove short spans, long or many spans, or the end.

Tay et al. 2022 (UL2), section 3.1: R-, X- and S-denoisers, each with a mode token
before the source.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.data import spans
from lm.errors import ConfigError
from lm.objectives.span_corruption import Corruption
from lm.tokenizers.base import Codec

FIELDS: dict[str, Any] = {
    "kind": "spans",
    "rate": 0.15,
    "span": 3.0,
    "weight": 1.0,
    "mode": None,
}

# Table 1 of the paper. All denoisers have the same weight.
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
    """Options of `denoising`; for the lengths see `Corruption`.

    One denoiser is drawn for each piece of text. All pieces have the same raw length:
    the largest at which source and target fit their rows for every denoiser.

    Attributes:
      denoisers: dicts of `kind` ("spans"; "prefix" removes the end of the text), `rate`
        (share of the tokens that is removed), `span` (mean length of a span, for
        "spans"), `weight` (how often it is drawn, relative to the others) and `mode`
        (a text before the source, or None).
    """

    denoisers: tuple[dict[str, Any], ...] = UL2

    def __post_init__(self):
        if not self.denoisers:
            raise ConfigError("objective.denoisers", "none", "at least one")
        for number, denoiser in enumerate(self.denoisers):
            self._check(f"objective.denoisers.{number}", FIELDS | denoiser)

    @staticmethod
    def _check(where: str, d: Mapping[str, Any]) -> None:
        """Checks the fields of a denoiser.

        Args:
          where: its path in the config.

        Raises:
          ConfigError: the first field that is unknown or out of bounds.
        """

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
