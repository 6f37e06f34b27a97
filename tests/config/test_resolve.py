"""The whole way from a config file to a resolved config, on the classes of `lm`."""

import copy
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import overrides, schema
from lm.config import resolve as configs
from lm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
import ml_collections
from lm.config import parse_arg

def get_config(arg=""):
    arg = parse_arg(arg, quick=False, next="none")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 1
    c.batch_size = 32
    c.seq_len = 128
    c.steps = 20 if arg.quick else 1000
    c.model = dict(name="transformer", preset="bert_tiny", vocab_size=None, dropout=0.2)
    c.objective = dict(name="mlm", next=arg.next)
    c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=4096)
    c.optim = dict(name="adamw", lr=1, warmup="10%", options=dict(b2=0.98))
    source = dict(name="text", files=("a.txt", "b.txt"), part="train")
    c.data = dict(sources=[source], on_bad="skip")
    held = dict(sources=[dict(source, part="heldout")])
    c.evals = dict(heldout=dict(evaluator="mean", data=held, every="20%"))
    c.checkpoint = dict(every="3 epochs", best="heldout/loss")
    return c
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(scope="module")
def tree(file):
    return configs.read_file(file)


def load(file, *overrides):
    return configs.load(file, [f"--config.{item}" for item in overrides])


def test_every_default_is_filled(file):
    c = load(file)
    assert list(c) == [
        *("job", "seed", "batch_size", "seq_len", "grad_accum", "steps"),
        *(
            "model",
            "adapter",
            "objective",
            "teacher",
            "tokenizer",
            "optim",
            "update",
            "data",
            "compute",
            "mesh",
        ),
        *("checkpoint", "evals", "stop", "init", "log"),
    ]
    for kind, section in [
        *(("optim", c.optim), ("compute", c.compute), ("mesh", c.mesh)),
        *(("checkpoint", c.checkpoint), ("init", c.init), ("stop", c.stop)),
        ("log", c.log),
    ]:
        module, name = configs.FIXED[kind]
        path = ROOT / "lm" / f"{module.replace('.', '/')}.py"
        assert list(section) == list(schema.read_class(path, name, ROOT / "lm"))
    assert c.grad_accum == 1 and c.objective.rate == 0.15
    assert c.data.sources[0].files == ("a.txt", "b.txt")
    assert c.data.sources[0].weight == 1.0  # of the class that text's Source extends


def test_preset_is_expanded_under_the_given_fields(file):
    c = load(file)
    assert (c.model.num_layers, c.model.d_model) == (2, 128)
    assert (c.model.dropout, c.model.vocab_size) == (0.2, None)
    assert "preset" not in c.model
    c = load(file, "model.preset=bert_base", "model.num_layers=3")
    assert (c.model.num_layers, c.model.d_model, c.model.dropout) == (3, 768, 0.2)


def test_types_are_those_of_the_fields(file):
    c = load(file, "data.sources.0.files=7", "optim.options.nesterov=true")
    assert type(c.optim.lr) is float and c.optim.lr == 1.0
    assert c.data.sources[0].files == "7"
    assert c.optim.options == {"b2": 0.98, "nesterov": True}


def test_evaluations_prepare_data_as_the_training_does(file):
    c = load(file, "data.pack=true")
    assert c.evals.heldout.data.pack is True
    assert c.evals.heldout.data.on_bad == "skip"
    assert c.evals.heldout.data.sources[0].part == "heldout"
    c = load(file, "data.pack=true", "evals.heldout.data.pack=false")
    assert c.evals.heldout.data.pack is False


def test_a_tokenizer_may_be_that_of_another_run(file):
    assert load(file, "tokenizer=none", "init.source=runs/x").tokenizer is None
    with pytest.raises(ConfigError, match=r"tokenizer: found nothing.*init\.source"):
        load(file, "tokenizer=none")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.lr=-1.0", "optim.lr: found -1.0, expected a positive number"),
        ("optim.lrr=1", r"optim.lrr: found an unknown .*did you mean optim\.lr\?"),
        ("lr=1", r"lr: found an unknown field.* did you mean optim\.lr\?"),
        ("optm.lr=1", r"optm: found an unknown field.* did you mean optim\?"),
        ("optim.lr=fast", "optim.lr: found 'fast', expected a positive number"),
        ("optim.lr=nan", "optim.lr: found 'nan'"),
        ("optim.lr=1e999", "optim.lr: found inf"),
        ("batch_size=true", "batch_size: found True, expected a whole number"),
        ("batch_size=8.0", "batch_size: found 8.0"),
        ("seed=-1", "seed: found -1"),
        ("steps=0", "steps: found 0, expected a positive duration"),
        ("steps=99999999999", "steps: .*expected 1 to 2147483647 steps"),
        ("steps=5%", "steps: found '5%', expected a duration in steps, epochs"),
        ("steps=5 parsecs", "steps: found '5 parsecs', expected a positive duration"),
        ("job=trian", "job: found 'trian', expected one of fit, train"),
        ("model.name=transfomer", r"model.name: .*did you mean transformer\?"),
        ("model.name=presets", "model.name: found 'presets', expected one of"),
        ("model.name=..x", "model.name: found '..x', expected one of"),
        ("model.name=os.path", "model.name: found 'os.path', expected one of"),
        ("model.preset=bert_tny", r"model.preset: .*did you mean bert_tiny\?"),
        ("model.compute=x", "model.compute: found an unknown field"),
        ("objective.next=nps", r"objective.next: .*did you mean nsp\?"),
        ("data.sources=[]", "data.sources: found .*, expected a list of one source"),
        ("data.sources.0.name=txt", r"data.sources.0.name: .*did you mean text\?"),
        ("data.sources.0.file=x", r"did you mean data\.sources\.0\.files\?"),
        ("evals.heldout.evaluator=men", r"evals.heldout.evaluator: .* mean\?"),
        ("evals.heldout.data=none", "evals.heldout.data.sources: found None"),
        ("evals.train.evaluator=mean", "evals: found 'train', expected names"),
        ("evals.heldout.data.packs=1", "evals.heldout.data.packs: found an unknown"),
        ("model=3", "model: found 3, expected a section"),
    ],
)
def test_mistakes_name_the_field_and_the_way_out(file, override, line):
    with pytest.raises(ConfigError, match=line) as error:
        load(file, override)
    assert error.value.exit_code == 2
    assert "\n" not in error.value.line()


def test_a_required_field(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG.replace("c.batch_size = 32", ""))
    with pytest.raises(
        ConfigError, match="batch_size: found nothing, expected a whole"
    ):
        load(str(tmp_path / "tiny.py"))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["optim.warmup=1001"], "optim.warmup: found 1001 steps, expected at most"),
        (["optim.warmup=40000 examples"], "optim.warmup: found 1250 steps"),
        (
            ["optim.schedule=wsd", "optim.warmup=60%", "optim.decay=401"],
            "found 600 steps and 401 of optim.decay",
        ),
        (["grad_accum=3"], "batch_size: found 32, expected a multiple of grad_accum=3"),
        (["model.attention.windw=5"], "did you mean model.attention.window?"),
        (["model.attention.window=0"], "model.attention.window: found 0, expected"),
        (["evals.hedlout.every=5"], r"evaluator: .*did you mean evals\.heldout\?"),
        (["checkpoint.best=heldot/loss"], "'heldot/loss', .*did you mean heldout/loss"),
        (["checkpoint.best=heldout"], "checkpoint.best: found 'heldout'"),
        (["stop.metric=loss"], "stop.metric: found 'loss'"),
        (["data.sources.0.part=all"], "data.sources.0: .*evals.heldout.data.sources.0"),
        (["data.sources.0.holdout=0.1"], "data.sources.0: .*'holdout': 0.05"),
        (["checkpoint.every=0"], "checkpoint.every: found 0"),
        (["evals.heldout.every=0%"], "evals.heldout.every: found '0%'"),
    ],
)
def test_rules_between_fields(file, overrides, line):
    with pytest.raises(ConfigError, match=line):
        load(file, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.warmup=1000"],
        ["optim.warmup=0"],
        ["optim.warmup=60%", "optim.decay=401"],  # the schedule has no such part
        ["steps=3 epochs", "optim.warmup=5000"],  # not known before the data are
        ["data.sources.0.files=c.txt", "data.sources.0.part=all"],
        ["evals={}", "checkpoint.best=none", "data.sources.0.part=all"],
    ],
)
def test_rules_that_hold(file, overrides):
    load(file, *overrides)


def test_rules_again_with_the_data(file):
    c = load(file, "steps=3 epochs", "optim.warmup=100")
    configs.check_rules(c, examples_per_epoch=1067)  # 101 steps
    with pytest.raises(ConfigError, match="found 100 steps, expected at most steps=94"):
        configs.check_rules(c, examples_per_epoch=1000)


def test_json_round_trip_is_exact(file):
    c = load(file, "optim.lr=0.1", "optim.multipliers=(('a', 1e-17),)")
    text = configs.to_json(c)
    again = configs.from_json(text)
    assert again == c and again.optim.multipliers == (("a", 1e-17),)
    assert configs.to_json(again) == text
    assert configs.resolve(configs.plain(again, "")) == c
    for bad in ("", "{", "[1]"):
        with pytest.raises(ConfigError, match=r"x\.json: found .*the JSON of a config"):
            configs.from_json(bad, "x.json")


def test_a_resolved_config_is_read_by_attribute_and_not_written(file):
    c = load(file)
    with pytest.raises(AttributeError, match="no field 'lrr'"):
        _ = c.optim.lrr
    with pytest.raises(AttributeError, match="not changed"):
        c.optim.lr = 3


def test_changes_and_which_may_change(file):
    old = configs.from_json(configs.to_json(load(file)))
    assert configs.changes(old, load(file)) == []
    new = load(
        file,
        *("steps=2000", "model.dropout=0.3", "log.every=3", "optim.options.b1=0.8"),
        *("data.sources.0.files=c.txt", "data.threads=5", "evals.heldout.seed=2"),
    )
    assert sorted(configs.changes(old, new), key=lambda change: change[0]) == [
        ("data.sources.0.files", ("a.txt", "b.txt"), "c.txt", False),
        ("data.threads", 2, 5, True),
        ("evals.heldout.data.threads", 2, 5, True),
        ("evals.heldout.seed", 0, 2, False),
        ("log.every", 10, 3, True),
        ("model.dropout", 0.2, 0.3, False),
        ("optim.options.b1", None, 0.8, False),
        ("steps", 1000, 2000, True),
    ]
    gone = load(file, "evals={}", "checkpoint.best=none")
    assert all(changeable for *_, changeable in configs.changes(old, gone))
    assert len(configs.changes(old, gone)) > 5


def test_build_makes_the_class_of_a_section(file):
    c = load(file)
    cls = configs.load_class("data.sources", c.data.sources[0].name)
    source = configs.build(cls, c.data.sources[0])
    assert source.files == ("a.txt", "b.txt") and source.part == "train"
    optim = configs.build(configs.load_class("optim"), c.optim)
    assert optim.name == "adamw" and optim.options == {"b2": 0.98}

    @dataclasses.dataclass(frozen=True)
    class Evaluator:
        data: dict
        every: str
        wire: object

    section = {"evaluator": "mean", "data": {"sources": ()}, "every": "1%"}
    built = configs.build(Evaluator, section, wire=3, every="2%")
    assert built == Evaluator({"sources": ()}, "2%", 3)


def test_load_class_lists_what_exists():
    with pytest.raises(ConfigError, match=r"one of .*mlm.*did you mean mlm\?"):
        configs.load_class("objective", "mlmm")


def test_a_dotted_name_reaches_experiments(file, tmp_path, monkeypatch):
    (tmp_path / "experiments" / "sketch").mkdir(parents=True)
    module = tmp_path / "experiments" / "sketch" / "model.py"
    module.write_text("class Model:\n    size: int = 3\n")
    monkeypatch.chdir(tmp_path)
    given = "model={'name': 'experiments.sketch.model', 'size': 4}"
    assert load(file, given).model == {"name": "experiments.sketch.model", "size": 4}
    with pytest.raises(ConfigError, match=r"did you mean model\.size\?"):
        load(file, given, "model.siz=3")


@pytest.mark.parametrize("place", ["current folder", "PYTHONPATH"])
def test_a_dotted_name_is_found_as_python_finds_it(file, tmp_path, monkeypatch, place):
    """In the current folder or on the path; a package without __init__.py too."""
    package = tmp_path / "there" / f"mine_{place[0]}" / "deep"
    package.mkdir(parents=True)
    (package / "model.py").write_text("class Model:\n    size: int = 3\n")
    name = f"{package.parent.name}.deep.model"
    with pytest.raises(ConfigError, match="looked in") as caught:
        load(file, f"model={{'name': {name!r}}}")
    assert str(Path.cwd()) in str(caught.value) and "site-packages" in str(caught.value)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if place == "PYTHONPATH":
        sys.path.append(str(tmp_path / "there"))
    else:
        monkeypatch.chdir(tmp_path / "there")
    assert load(file, f"model={{'name': {name!r}}}").model.size == 3
    assert configs.load_class("model", name).size == 3
    with pytest.raises(ConfigError, match=rf"{package.parent.name}\.deep is there"):
        load(file, f"model={{'name': '{name}l'}}")


def test_a_module_of_ones_own_that_fails_is_named_by_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.py").write_text("import nothing_here\nclass Model: 0")
    with pytest.raises(ConfigError, match=r"model\.py:1: found ModuleNotFoundError"):
        configs.load_class("model", "broken.model")


def classes_of_lm():
    for module, name in configs.FIXED.values():
        yield ROOT / "lm" / f"{module.replace('.', '/')}.py", name
    for folder, name in configs.NAMED.values():
        place = ROOT / "lm" / folder.replace(".", "/")
        yield from (
            (place / f"{stem}.py", name) for stem in schema.modules(place, name)
        )


@pytest.mark.parametrize(("path", "name"), [*classes_of_lm()], ids=str)
def test_tables_and_defaults_of_every_class(path, name):
    """Each option's default is of its type and within its bounds."""
    fields = schema.read_class(path, name, ROOT / "lm")
    for field in fields.values():
        if field.default is not schema.REQUIRED:
            schema.check(field, field.default, f"{path.name}: {field.name}")


def test_checked_in_a_second_without_jax(file):
    code = (
        "import sys\nfrom lm.config import resolve as config\n"
        f"config.load({file!r}, [])\n"
        "heavy = {'jax', 'flax', 'numpy', 'grain'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert time.monotonic() - start < 3


PATHS = [
    *("steps", "batch_size", "optim", "optim.lr", "optim.options", "optim.multipliers"),
    *("model", "model.preset", "model.name", "model.vocab_size", "data.sources.0.part"),
    *("data", "data.sources", "data.sources.0", "data.sources.0.files", "evals.x"),
    *("evals", "evals.heldout.data", "checkpoint.best", "mesh.rules", "tokenizer"),
    *("log.every", "objective", "objective.next", "init", "init.map", "stop.metric"),
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.sampled_from(["10%", "3 epochs", "text", "heldout/loss", 10**30, -1, 1e300]),
    st.binary(max_size=3),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "x", "sources"]) | LEAVES, inner)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, database=None)
@given(path=st.sampled_from(PATHS), value=VALUES, as_text=st.booleans())
def test_any_value_in_any_field_is_taken_or_refused(tree, path, value, as_text):
    tree = copy.deepcopy(tree)
    try:
        if as_text:
            text = value if isinstance(value, str) else repr(value)
            overrides.override(tree, [f"--config.{path}={text}"])
        else:
            *parents, last = path.split(".")
            node = tree
            for key in parents:
                node = node[0] if key == "0" else node.setdefault(key, {})
            node[0 if last == "0" else last] = value
            tree = configs.plain(tree, "tree")
        resolved = configs.resolve(tree)
    except ConfigError as error:
        assert "\n" not in error.line()
    else:
        assert configs.from_json(configs.to_json(resolved)) == resolved
