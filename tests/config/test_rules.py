"""The rules between objective and model; the others are tested with whole configs."""

import pytest

from lm.config.rules import _KINDS, check_rules
from lm.errors import ConfigError


def check(objective: dict, **model):
    """Checks a config of which all else is in order."""
    check_rules(
        {
            "batch_size": 4,
            "seq_len": 16,
            "grad_accum": 1,
            "steps": 10,
            "model": model,
            "objective": objective,
            "optim": {"name": "adamw"},
            "data": {"sources": (), "pack": objective["name"] != "classification"},
            "checkpoint": {},
            "log": {},
            "evals": {},
            "stop": {},
        }
    )


@pytest.mark.parametrize(
    "name", sorted(_KINDS.keys() - {"classification", "prefix_lm"})
)
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
def test_an_objective_needs_its_kind_of_model(name, kind):
    if kind in _KINDS[name]:
        check({"name": name}, kind=kind)
        return
    found = rf"model\.kind: found '{kind}', expected {_KINDS[name][0]}, for .* {name}"
    with pytest.raises(ConfigError, match=found):
        check({"name": name}, kind=kind)


def test_what_each_kind_of_model_can_be_trained_on():
    assert {name for name, kinds in _KINDS.items() if "encoder" in kinds} == {
        *("mlm", "classification")
    }
    assert {name for name, kinds in _KINDS.items() if "decoder" in kinds} == {
        *("causal_lm", "prefix_lm", "classification")
    }


def test_a_decoder_is_read_at_its_last_token():
    check({"name": "classification", "summary": "last"}, kind="decoder")
    check({"name": "classification", "summary": "last"}, kind="encoder")
    with pytest.raises(
        ConfigError, match=r"objective\.summary: found 'tanh', .*'last'"
    ):
        check({"name": "classification", "summary": "tanh"}, kind="decoder")
    check({"name": "classification", "summary": "decoder"}, kind="encoder_decoder")
    with pytest.raises(ConfigError, match=r"found 'tanh', expected 'decoder', with"):
        check({"name": "classification", "summary": "tanh"}, kind="encoder_decoder")
    with pytest.raises(ConfigError, match="'tanh' or 'relu' or 'last', with model"):
        check({"name": "classification", "summary": "decoder"}, kind="encoder")
    check({"name": "classification", "summary": "decoder"})


@pytest.mark.parametrize(
    ("name", "kind", "summary"),
    [
        ("causal_lm", "decoder", None),
        ("seq2seq", "encoder_decoder", None),
        ("classification", "encoder_decoder", "decoder"),
    ],
)
def test_a_model_has_types_only_where_tokens_have_one(name, kind, summary):
    check({"name": name, "summary": summary}, kind=kind, token_types=0)
    with pytest.raises(ConfigError, match=r"model\.token_types: found 2, expected 0:"):
        check({"name": name, "summary": summary}, kind=kind, token_types=2)
    check({"name": "mlm"}, kind="encoder", token_types=2)
    check({"name": "classification", "summary": "last"}, kind="decoder", token_types=2)


def test_a_model_or_an_objective_of_another_package_is_let_be():
    check({"name": "seq2seq"})
    check({"name": "experiments.mine.objective"}, kind="encoder")


def test_prefix_lm_prepares_rows_for_the_model_at_hand():
    check({"name": "prefix_lm", "kind": "decoder"}, kind="decoder")
    with pytest.raises(ConfigError, match=r"objective\.kind: found 'decoder'"):
        check({"name": "prefix_lm", "kind": "decoder"}, kind="encoder_decoder")


@pytest.mark.parametrize("field", ["source_len", "target_len"])
def test_learned_positions_bound_both_sides(field):
    objective = {"name": "seq2seq", field: 33}
    model = {"kind": "encoder_decoder", "max_len": 32}
    check(objective, position="sinusoidal", **model)
    check(objective | {field: 32}, position="learned", **model)
    check(objective | {field: None}, position="learned", **model)
    with pytest.raises(ConfigError, match=rf"objective\.{field}: found 33, .*=32"):
        check(objective, position="learned", **model)
