"""Prints the fields of `transformers`' config classes with their defaults, as JSON.

python tests/goldens/classes.py MODEL_TYPE ...

The tests call it with a Python that has transformers ($LM_TRANSFORMERS_PYTHON).
"""

import dataclasses
import inspect
import json
import sys

from transformers import CONFIG_MAPPING


def fields(cls: type) -> dict:
    """Name -> default, of version 5's dataclasses and version 4's `__init__` alike."""
    if dataclasses.is_dataclass(cls):
        found = {field.name: field.default for field in dataclasses.fields(cls)}
    else:
        parameters = inspect.signature(cls.__init__).parameters.values()
        found = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
        found.pop("self")
    missing = (dataclasses.MISSING, inspect.Parameter.empty)
    return {name: None if v in missing else v for name, v in found.items()}


def main(kinds: list[str]) -> None:
    classes = {kind: CONFIG_MAPPING[kind] for kind in kinds}
    found = {
        kind: {"fields": fields(cls), "aliases": dict(cls.attribute_map)}
        for kind, cls in classes.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
