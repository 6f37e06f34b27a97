"""What models, objectives and evaluators need of each other, asked before a run."""

import dataclasses
from typing import ClassVar

import pytest

from lm import run as runs
from lm.config import match
from lm.config import resolve as configs
from lm.errors import ConfigError
from lm.objectives import causal_lm
from lm.ops.attention import limits
from tests import tiny

TRAINS = {
    "mlm": {"encoder"},
    "causal_lm": {"decoder"},
    "prefix_lm": {"decoder"},
    "seq2seq": {"encoder_decoder"},
    "span_corruption": {"encoder_decoder"},
    "denoising": {"encoder_decoder"},
}
KINDS = ("encoder", "decoder", "encoder_decoder")


def check(objective: dict, pack=False, evals=None, model=None, **changes):
    """Checks a config of which all else is in order."""
    config = tiny.config(
        model=tiny.tree()["model"] | {"token_types": 0} | (model or {}),
        objective=objective,
        data__pack=pack,
        evals=evals or {},
        **changes,
    )
    runs.check(config)


def evaluation(**fields):
    source = {"sources": [{"name": "memory", "items": tiny.documents(3)}]}
    return {"x": {"data": source} | fields}


@pytest.mark.parametrize("name", TRAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_needs_its_kind_of_model(name, kind):
    if kind in TRAINS[name]:
        check({"name": name}, model={"kind": kind})
        return
    # prefix_lm prepares its rows for one of two kinds.
    fields = (
        "objective.kind" if (name, kind) == ("prefix_lm", KINDS[2]) else "model.kin"
    )
    with pytest.raises(ConfigError, match=f"^{fields}.*expected .*objective {name} "):
        check({"name": name}, model={"kind": kind})


def test_a_decoder_is_read_at_its_last_token():
    def classify(summary, kind):
        check({"name": "classification", "summary": summary}, model={"kind": kind})

    for good in (("last", "decoder"), ("last", "encoder"), ("relu", "encoder")):
        classify(*good)
    classify("decoder", "encoder_decoder")
    with pytest.raises(ConfigError, match=r"objective\.summary: found 'tanh'.*'last'"):
        classify("tanh", "decoder")
    with pytest.raises(ConfigError, match=r"found 'tanh'.*expected 'decoder', for"):
        classify("tanh", "encoder_decoder")
    with pytest.raises(ConfigError, match="expected 'tanh' or 'relu' or 'last' or"):
        classify("decoder", "encoder")


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        ({"name": "causal_lm"}, "decoder"),
        ({"name": "seq2seq"}, "encoder_decoder"),
        ({"name": "classification", "summary": "decoder"}, "encoder_decoder"),
    ],
)
def test_a_model_has_types_only_where_tokens_have_one(objective, kind):
    with pytest.raises(ConfigError, match=r"model\.token_types: found 2, .*expected 0"):
        check(objective, model={"kind": kind, "token_types": 2})
    check({"name": "mlm"}, model={"token_types": 2})
    last = {"name": "classification", "summary": "last"}
    check(last, model={"kind": "decoder", "token_types": 2})


def test_learned_positions_bound_every_side():
    objective = {"name": "seq2seq", "source_len": 25}
    model = {"kind": "encoder_decoder", "max_len": 24}
    check(objective, model=model | {"position": "sinusoidal"})
    check(objective | {"source_len": 24}, model=model)
    check(objective | {"source_len": None}, model=model)
    with pytest.raises(ConfigError, match=r"objective\.source_len: found 25, .* 24"):
        check(objective, model=model)
    check({"name": "span_corruption", "target_len": 24}, model=model)
    with pytest.raises(ConfigError, match=r"objective\.target_len: found 25, .* 24"):
        check({"name": "span_corruption", "target_len": 25}, model=model)
    with pytest.raises(ConfigError, match="seq_len: found 25, expected at most 24"):
        check({"name": "mlm"}, seq_len=25)
    check({"name": "mlm"}, seq_len=25, model={"position": "rope"})


def test_one_example_a_row_where_the_objective_says_so():
    for objective in (
        {"name": "classification"},
        {"name": "mlm", "next": "nsp"},
    ):
        found = r"data\.pack: found true, expected false: objective"
        with pytest.raises(ConfigError, match=f"^{found}"):
            check(objective, pack=True)
        packed = evaluation(evaluator="mean")
        packed["x"]["data"]["pack"] = True
        with pytest.raises(ConfigError, match=rf"^evals\.x\.{found}"):
            check(objective, evals=packed)
    check({"name": "mlm"}, pack=True)


def test_the_rules_of_a_model_are_its_own():
    for model, line in (
        ({"num_heads": 3}, r"model\.d_model: found 16, expected a multiple of"),
        ({"attention": {"kv_heads": 3}}, "kv_heads: found 3, expected a divisor of"),
        (
            {"position": "rope", "attention": {"head_dim": 5}},
            "model.position: found rope with heads of 5, expected heads of an even",
        ),
    ):
        with pytest.raises(ConfigError, match=line):
            check({"name": "mlm"}, model=model)
    check({"name": "mlm"}, model={"num_heads": 3, "attention": {"head_dim": 50}})
    with pytest.raises(ConfigError, match=r"compute\.attention: found cudnn"):
        check({"name": "mlm"}, compute={"attention": "cudnn"})


def test_the_rules_of_an_objective_are_its_own():
    with pytest.raises(ConfigError, match=r"model\.token_types: found 1, expected 2"):
        check({"name": "mlm", "next": "nsp"}, model={"token_types": 1})
    check({"name": "mlm", "next": "nsp"}, model={"token_types": 2})
    three = {"name": "classification", "labels": ("neg", "pos", "neu")}
    found = r"objective\.classes: found 2 with 3 objective\.labels.*classes=3"
    with pytest.raises(ConfigError, match=found):
        check(three)
    check(three | {"classes": 3})
    with pytest.raises(ConfigError, match=r"objective\.labels: found \['a'\] twice"):
        check({"name": "classification", "labels": ("a", "a")})


@pytest.mark.parametrize(
    ("objective", "fields", "needed", "offered"),
    [
        ({"name": "mlm"}, {"evaluator": "predictions"}, "labels", "mean, samples"),
        ({"name": "mlm"}, {"evaluator": "generation"}, "extend", "mean, samples"),
        (
            {"name": "classification"},
            {"evaluator": "mean", "baseline": "unigram"},
            "tokens",
            "mean, predictions, samples",
        ),
    ],
)
def test_an_evaluator_that_does_not_fit_is_refused(objective, fields, needed, offered):
    line = rf"evals\.x\.evaluator: .* needs {needed}, .*choose one of .*{offered}"
    with pytest.raises(ConfigError, match=line):
        check(objective, evals=evaluation(**fields))


def test_a_decoder_without_right_answers_is_not_scored():
    decoder = {"kind": "decoder"}
    scored = evaluation(evaluator="generation", metrics=("bleu",))
    with pytest.raises(ConfigError, match="generation', which needs references"):
        check({"name": "causal_lm"}, evals=scored, model=decoder)
    shown = evaluation(evaluator="generation", prompts=("the",))
    check({"name": "causal_lm"}, evals=shown, model=decoder)


def test_packed_rows_and_missing_packages_are_refused():
    both = {"kind": "encoder_decoder"}
    scored = evaluation(evaluator="generation", metrics=("bleu",))
    check({"name": "seq2seq"}, evals=scored, model=both)
    with pytest.raises(ConfigError, match=r"evals\.x\.tokenize: found ja-mecab"):
        wanted = {"x": scored["x"] | {"tokenize": "ja-mecab"}}
        check({"name": "seq2seq"}, evals=wanted, model=both)
    scored["x"]["data"]["pack"] = True
    with pytest.raises(ConfigError, match=r"evals\.x\.data\.pack: found true"):
        check({"name": "seq2seq"}, evals=scored, model=both)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"evals\.x\.metrics.*did you mean accuracy"):
        wanted = evaluation(evaluator="predictions", metrics=("acuracy",))
        check({"name": "classification"}, evals=wanted)


@pytest.mark.parametrize("field", ["checkpoint__best", "stop__metric"])
@pytest.mark.parametrize(
    ("metric", "guess"),
    [
        ("x/mlm_los", "x/mlm_loss"),
        ("x/perplexit", "x/perplexity"),
        ("xx/mlm_loss", "x/mlm_loss"),
    ],
)
def test_a_metric_that_no_evaluation_yields_is_refused(field, metric, guess):
    known = evaluation(evaluator="mean")
    check({"name": "mlm"}, evals=known, **{field: guess})
    path = field.replace("__", r"\.")
    with pytest.raises(ConfigError, match=f"{path}: .*did you mean {guess}"):
        check({"name": "mlm"}, evals=known, **{field: metric})


@pytest.mark.parametrize(
    ("objective", "kind", "pairs"),
    [
        ({"name": "mlm", "next": "sop"}, "encoder", ()),
        ({"name": "causal_lm"}, "decoder", ("end_nats",)),
    ],
)
def test_the_names_of_the_metrics_are_those_that_are_computed(
    objective, kind, pairs, tmp_path
):
    special = {} if kind == "decoder" else {"cls": "<bos>", "sep": "<eos>"}
    config = tiny.config(
        model=tiny.tree()["model"]
        | {"kind": kind, "token_types": 2 if kind == "encoder" else 0},
        objective=objective,
        data__pack=False,
        evals={},
        tokenizer={"name": "word", "kind": "word", "special": special},
    )
    corpus, program = tiny.program(config, tmp_path)
    found = program.metrics(program.init(tiny.jax.random.key(0)), tiny.batch(corpus))
    assert sorted(found) == sorted(corpus.objective.measures())
    assert set(pairs) <= set(found)


def test_fields_of_the_objective_that_an_evaluation_changes_are_checked():
    decoder = {"kind": "decoder"}
    for changes, line in (
        ({"stride": "abc"}, r"evals\.x\.objective\.stride: found 'abc'"),
        ({"stride": 0}, r"evals\.x\.objective\.stride: found 0"),
        ({"strid": 4}, r"evals\.x\.objective\.strid: .*did you mean stride"),
    ):
        with pytest.raises(ConfigError, match=line):
            wanted = evaluation(evaluator="mean", objective=changes)
            check({"name": "causal_lm"}, evals=wanted, model=decoder)
    wanted = evaluation(evaluator="mean", objective={"stride": 4})
    check({"name": "causal_lm"}, evals=wanted, model=decoder)


@dataclasses.dataclass(frozen=True)
class InBatch(causal_lm.Objective):
    """An objective of nowhere, whose examples interact."""

    interacts: ClassVar[bool] = True


def test_examples_that_interact_are_not_accumulated():
    model = tiny.tree()["model"] | {"kind": "decoder", "token_types": 0}
    for parts in (1, 2):
        config = tiny.config(
            model=model, objective={"name": "causal_lm"}, grad_accum=parts
        )

        def build(config):
            return runs.open_model(config, InBatch()), InBatch()

        if parts == 1:
            match.check(config, build)
            continue
        with pytest.raises(ConfigError, match="grad_accum: found 2, expected 1"):
            match.check(config, build)


def test_examples_that_interact_are_not_divided_by_an_update(tmp_path, monkeypatch):
    lines = [
        "import dataclasses",
        "from lm.updates import plain",
        "@dataclasses.dataclass(frozen=True)",
        "class Update(plain.Update):",
        "    divides = True",
    ]
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "rows.py").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = tiny.tree()["model"] | {"kind": "decoder", "token_types": 0}
    objective, update = {"name": "causal_lm"}, {"name": "apart.rows"}
    config = tiny.config(model=model, objective=objective, update=update)
    runs.check(config)

    def build(config):
        return runs.open_model(config, InBatch()), InBatch()

    with pytest.raises(
        ConfigError, match=r"^update\.name: found 'apart.rows', expected"
    ):
        match.check(config, build)
    match.check(tiny.config(model=model, objective=objective), build)


def test_an_update_without_its_method_is_refused_by_name(tmp_path, monkeypatch):
    lines = [
        "import dataclasses",
        "from lm.updates import base",
        "@dataclasses.dataclass(frozen=True)",
        "class Update(base.Update):",
        "    noise: float = 1.0",
    ]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "update.py").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^update\.name: .* without __call__"):
        check(
            {"name": "causal_lm"},
            model={"kind": "decoder"},
            update={"name": "empty.update"},
        )


@pytest.mark.parametrize(("name", "holds"), [("question", True), ("tokens", False)])
def test_a_field_that_hides_a_method_is_refused(name, holds, tmp_path, monkeypatch):
    lines = [
        "import dataclasses",
        "from lm.objectives import causal_lm",
        "@dataclasses.dataclass(frozen=True)",
        "class Objective(causal_lm.Objective):",
        f"    {name}: str = 'text'",
    ]
    (tmp_path / f"hides_{name}").mkdir()
    (tmp_path / f"hides_{name}" / "it.py").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    objective, model = {"name": f"hides_{name}.it"}, {"kind": "decoder"}
    if holds:
        check(objective, model=model)
        return
    with pytest.raises(ConfigError, match="a field 'tokens', expected another name"):
        check(objective, model=model)


def test_a_class_without_a_method_is_refused_by_name(tmp_path, monkeypatch):
    lines = [
        "import dataclasses",
        "from lm.objectives import base",
        "@dataclasses.dataclass(frozen=True)",
        "class Objective(base.Objective):",
        "    def counts(self, batch):",
        "        return {}",
    ]
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "objective.py").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = "half.objective without layout, loss, transforms"
    with pytest.raises(ConfigError, match=found):
        check({"name": "half.objective"})
    known = configs.known("evaluator")
    assert {"generation", "mean", "samples"} <= {*known}
    assert not {"base", "evaluation", "likelihood", "streams"} & {
        *known
    }  # These are no evaluators.


def test_a_kernel_without_a_prefix_trains_no_prefix_lm():
    """What the LIMITS of a kernel exclude is refused before anything is compiled."""
    decoder = {"kind": "decoder", "attention": {"head_dim": 8, "dropout": 0.0}}
    compute = {"attention": "splash", "dtype": "bfloat16"}
    check({"name": "causal_lm"}, model=decoder, compute=compute)
    line = r"compute\.attention: found splash with positions that all .*\(a prefix\)"
    with pytest.raises(ConfigError, match=line):
        check({"name": "prefix_lm"}, model=decoder, compute=compute)
    # An encoder-decoder has its prefix in the encoder, where all is visible anyway.
    both = {"kind": "encoder_decoder", "attention": {"head_dim": 8, "dropout": 0.0}}
    objective = {"name": "prefix_lm", "kind": "encoder_decoder"}
    check(objective, model=both, compute=compute)
    # The mask of cuDNN and of XLA holds a prefix.
    for kernel in ("cudnn", "xla"):
        assert "prefix" not in limits.limits(kernel)
        changed = compute | {"attention": kernel}
        check({"name": "prefix_lm"}, model=decoder, compute=changed)
