"""Writes the model card of an export: the model, its data and its measurements."""

import json
from collections.abc import Mapping
from typing import Any

TEMPLATE = """---
library_name: transformers
tags:
- {kind}
---

# {name}

A `{architecture}` of {count:,} parameters, after {step:,} steps of training{start}.

## Training

- objective: `{objective}`
- batch: {batch_size} examples of {seq_len} tokens at most, seed {seed}
- data: {sources}
- optimiser: `{optim}`

## Measured

{metrics}

## Config

The run's whole config; the same file trains the same model again.

```json
{config}
```
"""


def card(
    config: Mapping[str, Any],
    *,
    name: str,
    kind: str,
    architecture: str,
    count: int,
    step: int,
    metrics: Mapping[str, float],
) -> str:
    """Returns the text of README.md.

    Args:
      config: the run's config.
      name: the run's name.
      kind, architecture: model type and class of the model in `transformers`.
      count: the number of parameters.
      step: the number of updates made.
      metrics: those of the run's evaluations at this step; {} where there are none.
    """
    rows = [f"| {metric} | {value:.6g} |" for metric, value in sorted(metrics.items())]
    table = "\n".join(["| metric | value |", "| --- | --- |", *rows])
    source = config["init"]["source"]
    return TEMPLATE.format(
        kind=kind,
        name=name,
        architecture=architecture,
        count=count,
        step=step,
        start=f", started from `{source}`" if source else "",
        objective=_plain(config["objective"]),
        batch_size=config["batch_size"],
        seq_len=config["seq_len"],
        seed=config["seed"],
        sources="; ".join(f"`{_short(item)}`" for item in config["data"]["sources"]),
        optim=_plain(config["optim"]),
        metrics=table if rows else "Nothing was measured at this step.",
        config=json.dumps(_without_texts(config), indent=1),
    )


def _plain(section: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in section.items())


def _short(source: Mapping[str, Any]) -> str:
    return _plain({k: v for k, v in _without_texts(source).items() if v is not None})


def _without_texts(value: Any) -> Any:
    """Returns the value with a count in place of a memory source's records.

    They may be private.
    """
    if isinstance(value, Mapping):
        return {
            key: f"{len(item)} records" if key == "items" else _without_texts(item)
            for key, item in value.items()
        }
    return (
        [_without_texts(x) for x in value] if isinstance(value, list | tuple) else value
    )
