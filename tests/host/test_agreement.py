"""Several processes whose configs differ: the field and the process are named."""

import json

import pytest

from lm.config import resolve as configs
from lm.host import agreement
from tests import tiny


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"optim__lr": 0.5}, r"optim\.lr: found 0\.5 in process 3, expected 0\.01"),
        ({"evals": {}}, r"evals.*in process 3"),
        ({"steps": "1 epochs"}, "steps: found '1 epochs' in process 3, expected 8"),
    ],
)
def test_the_first_field_that_differs_is_named(change, found):
    texts = [configs.to_json(tiny.config(**c)) for c in ({}, change)]
    error = agreement.differing(*texts, process=3)
    assert error.exit_code == 2
    with pytest.raises(type(error), match=found):
        raise error


def test_a_field_that_one_lacks_is_named():
    texts = [json.dumps(tree) for tree in ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}})]
    assert str(agreement.differing(*texts, process=1)).startswith("a.c: found 2 in")
