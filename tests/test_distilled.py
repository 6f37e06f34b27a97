"""A student beside its teacher: what it learns, saves, continues from and refuses."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import distilled, evaluate
from lm import run as runs
from lm.config import resolve as configs
from lm.errors import CheckpointError, ConfigError, DataError, Refusal
from lm.hf import checkpoint as hf
from lm.training import teaching
from lm.training.step import State
from lm.trees import flatten
from lm.updates.base import Rows
from lm.workdir import checkpoint
from tests import tiny
from tests.hf import folders

ITEMS = [{"text": "the good dog.", "label": 1}, {"text": "a bad old cat.", "label": 0}]
DATA = {"sources": [{"name": "memory", "items": ITEMS * 8}]}
CLASSES = {"name": "classification", "classes": 2, "summary": "mean"}


def settings(**changes):
    """A classifier of the mean of its states."""
    given = {
        "objective": CLASSES,
        "data": DATA | {"pack": False},
        "evals": {"dev": {"evaluator": "mean", "data": DATA, "every": 2}},
        "checkpoint": {"every": 2, "keep_last": 9},
        "steps": 4,
    }
    return configs.resolve(tiny.tree(**given | changes))


def of(teacher, **options):
    return {"source": str(teacher)} | options


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    assert tiny.run(settings(), workdir) == 0
    return workdir


NARROW = {
    "tokenizer": None,
    "model__d_model": 8,
    "model__num_layers": 1,
    "optim__ema": 0.5,
}
BOTH = {"of": ("logits", "hidden"), "layers": ((0, 0), (1, 2)), "alpha": 0.7}


def narrow(teacher, **changes):
    """A student of half the width and one layer, with projections of its states."""
    return settings(teacher=of(teacher, **BOTH), **NARROW | changes)


def saved(workdir):
    return {*checkpoint.read_leaves(checkpoint.find(workdir))}


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher, tmp_path):
    same = {"init": {"source": str(teacher)}, "model__dropout": 0.0}
    same["model__attention__dropout"] = 0.0
    options = of(teacher, of=("logits", "hidden"), alpha=0.25, hidden=3.0)
    assert tiny.run(settings(teacher=options, steps=2, **same), tmp_path) == 0
    first, second = tiny.rows(tmp_path)
    assert abs(first["train/classify_soft_loss"]) < 1e-6
    assert first["train/hidden_loss"] < 1e-9
    assert first["train/loss"] == pytest.approx(0.75 * first["train/classify_loss"])
    expected = 0.75 * second["train/classify_loss"]
    expected += 0.25 * second["train/classify_soft_loss"]
    expected += 3.0 * second["train/hidden_loss"]
    assert second["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert second["train/classify_soft_loss"] > 1e-7
    assert first["train/classify_soft_count"] == 8
    assert not any("distil" in path or "teacher" in path for path in saved(tmp_path))


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """The workdir of a student with projections, whose teacher is a copy."""
    place = tmp_path_factory.mktemp("student")
    own = shutil.copytree(teacher, place / "teacher")
    assert tiny.run(narrow(own), place / "run") == 0
    return place / "run"


@pytest.mark.slow
def test_it_continues_to_the_same_bits_and_only_with_its_teacher(student, tmp_path):
    own, twice = student.parent / "teacher", tmp_path / "twice"
    shutil.copytree(student, twice)
    shutil.rmtree(twice / "checkpoints" / "4")
    options = of(own, **BOTH)
    refused = {
        "as in the checkpoint": options | {"checkpoint": 2},
        "alpha": options | {"alpha": 0.1},
        "teacher|distil": options | {"source": None},
    }
    for words, section in refused.items():
        theirs = configs.of_run(own).tokenizer
        changed = NARROW | {"teacher": section, "tokenizer": theirs}
        with pytest.raises(CheckpointError, match=words):
            tiny.run(settings(**changed), twice)
    assert tiny.run(narrow(own), twice) == 0
    assert "continuing from step 2" in (twice / "run.log").read_text()
    assert tiny.raw_rows(twice) == tiny.raw_rows(student)
    assert tiny.state_bits(twice) == tiny.state_bits(student)


@pytest.mark.slow
def test_a_checkpoint_holds_the_projections_and_the_hash_of_the_teacher(student):
    kernels, paths = {f"distil/{pair}/kernel" for pair in (0, 1)}, saved(student)
    for part in ("params", "averaged"):
        mine = {p.removeprefix(f"{part}/") for p in paths if p.startswith(f"{part}/")}
        assert kernels < mine and "heads/classify/kernel" in mine
    assert not any(path.startswith("teacher") for path in paths)
    named = tiny.host(student)["teacher"]
    assert named["source"] == str(student.parent / "teacher")
    assert len(named["sha256"]) == 64
    assert ", teacher 0.0 MiB" in (student / "run.log").read_text()

    from orbax.checkpoint import v1 as ocp

    one, other = (
        ocp.load_checkpointables(student / "checkpoints" / step)["state"]["params"]
        for step in ("2", "4")
    )
    for pair in ("0", "1"):
        first, last = (np.asarray(x["distil"][pair]["kernel"]) for x in (one, other))
        assert first.shape == (8, 16) and np.abs(first - last).max() > 1e-4


@pytest.mark.slow
def test_all_but_training_works_without_the_teacher(student, tmp_path, capsys):
    own, gone = student.parent / "teacher", student.parent / "gone"
    own.rename(gone)
    try:
        capsys.readouterr()
        with tiny.some_devices(narrow(own)):
            assert evaluate.main([f"--workdir={student}"]) == 0
            opened = runs.open_run(student, note=lambda line: None)
        found = capsys.readouterr().out
        assert f'"dev/loss": {tiny.rows(student)[-1]["dev/loss"]}' in found
        assert not any("distil" in path for path in flatten(opened.params))
        assert tiny.run(narrow(own), student) == 0  # It is finished.
        for workdir in (student, tmp_path / "new"):
            with pytest.raises(ConfigError) as refused:
                tiny.run(narrow(own, steps=6), workdir)
            line = str(refused.value)
            assert str(own) in line and "no such folder" in line
        twice = shutil.copytree(student, tmp_path / "twice")
        assert tiny.run(narrow(gone, steps=5), twice) == 0
    finally:
        gone.rename(own)


REFUSED = {
    "vocabulary": (
        {"tokenizer": {"name": "word", "kind": "char", "special": {}}},
        (CheckpointError, DataError),
        "okenizer|vocabulary",
    ),
    "labels": (
        {"objective": CLASSES | {"labels": ("1", "0")}},
        CheckpointError,
        "objective.labels",
    ),
    "classes": (
        {"objective": CLASSES | {"classes": 3}},
        CheckpointError,
        "objective.labels",
    ),
    "special tokens": (
        {"objective": CLASSES | {"summary": "tanh"}},
        CheckpointError,
        "special tokens",
    ),
    "task": (
        {"objective": {"name": "mlm"}, "data": {"sources": DATA["sources"]}},
        CheckpointError,
        "one of lm.objectives.mlm",
    ),
    "layers": (
        {"teacher__of": ("hidden",), "teacher__layers": ((1, 3),)},
        ConfigError,
        "teacher.layers",
    ),
    "length": ({"seq_len": 32, "model__max_len": 32}, ConfigError, "seq_len"),
    "of": ({"teacher__of": ("logit",)}, ConfigError, "teacher.of"),
    "nothing": ({"teacher__of": ()}, ConfigError, "teacher.of"),
    "no layers": ({"teacher__layers": ((1, 1),)}, ConfigError, "teacher.layers"),
    "temperature": ({"teacher__temperature": 0.0}, ConfigError, "teacher.temperature"),
    "objective": (
        {
            "objective": {
                "name": "contrastive",
                "texts": ("text", "text"),
                "wrap": "none",
            }
        },
        ConfigError,
        "objective.name",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_teacher_that_does_not_fit(what, teacher, tmp_path):
    changes, error, words = REFUSED[what]
    changes = {"tokenizer": None, "evals": {}} | changes
    with pytest.raises(Refusal) as refused:
        tiny.run(settings(teacher=of(teacher), **changes), tmp_path / "run")
    assert isinstance(refused.value, error), refused.value
    assert re.search(words, str(refused.value)), refused.value


TAGGED = [{"words": ["a", "dog", "runs"], "tags": ["x", "y", "x"]}] * 8
OBJECTIVES = {
    "mlm": {"objective": {"name": "mlm"}},
    "pairs": {"objective": {"name": "mlm", "next": "sop"}, "data__pack": False},
    "causal_lm": {
        "objective": {"name": "causal_lm"},
        "model__kind": "decoder",
        "model__token_types": 0,
    },
    "tagging": {
        "objective": {"name": "tagging", "labels": ("x", "y")},
        "data": {
            "sources": [{"name": "memory", "items": TAGGED, "lists": True}],
            "pack": True,
        },
    },
}


@pytest.mark.parametrize("name", tiny.few(OBJECTIVES, {"causal_lm"}))
def test_a_teacher_is_its_own_student(name, tmp_path):
    """For each objective with logits its loss is 0 then, and not of another model."""
    changes = {"evals": {}, "model__dropout": 0.0, "model__attention__dropout": 0.0}
    corpus, program = tiny.program(tiny.config(**changes | OBJECTIVES[name]), tmp_path)
    assert "lesson" in corpus.objective.can
    batch = tiny.batch(corpus, rows=8)
    reader = teaching.Reader(program.model, corpus.objective, ())
    own = tiny.new(program.model)
    widths, sizes = teaching.look(reader, own, batch, True)
    taught = teaching.Teaching(
        teaching.Teacher(alpha=1.0, hidden=0.5),
        reader,
        reader,
        own,
        tuple(sizes),
        tuple(zip(widths, widths)),
    )
    assert taught.start(jax.random.key(0)) == {} and len(sizes) == 1 + (name == "pairs")
    other = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape),
        own,
    )
    keys = {key: jax.random.key(0) for key in ("dropout", "sample")}

    @jax.jit
    def ask(teacher):
        terms, _ = taught.terms(own, teacher, Rows(batch, {}), keys)
        means = {name: total / count for name, (total, count) in terms.items()}
        return means, {name: count for name, (_, count) in terms.items()}

    compared = [f"{term}_soft" for term in sizes] + ["hidden"]
    (same, counts), (new, _) = ask(own), ask(other)
    for key in compared:
        assert abs(same[key]) < 2e-6 and new[key] > 1e-5, key
    expected = taught.counts(batch)
    assert counts == expected and counts["hidden"] == (batch["segment_ids"] > 0).sum()
    # The objective's own terms do not count where the teacher has the whole share.
    total = sum(new[key] for key in compared[:-1]) + 0.5 * new["hidden"]
    assert taught.total(new) == pytest.approx(float(total), rel=1e-5)


@pytest.mark.slow
def test_a_teacher_is_sharded_as_its_student_is(teacher, tmp_path):
    found = []
    for sizes in ((1, 1), (2, 2)):
        mesh = {"mesh__data": sizes[0], "mesh__fsdp": sizes[1], "model__dropout": 0.0}
        mesh["model__attention__dropout"] = 0.0
        config = settings(teacher=of(teacher), tokenizer=None, evals={}, **mesh)
        config = runs.with_tokenizer(config, tmp_path)
        corpus, program = tiny.program(config, tmp_path)
        opened = distilled.open_teacher(config, corpus, program)
        steps = runs.durations(config, corpus)
        training = runs.open_training(config, corpus, program, steps, opened.teaching)
        with jax.set_mesh(program.mesh):
            taught = distilled.load(opened, lambda line: None)
            kernel = taught["layers"]["mlp"]["up"]["kernel"]
            assert kernel.sharding.shard_shape(kernel.shape)[1] == 16 // sizes[1]
            state = training.start(program.init(jax.random.key(0)))
            state = state._replace(teacher=taught)
            batch, _ = next(runs.open_batches(corpus, program, 0, 1))
            _, measurements = training.update(state, batch)
            found.append(jax.device_get(measurements))
    for name, value in found[0].items():
        assert value == pytest.approx(found[1][name], rel=1e-4), name


@pytest.mark.slow
def test_a_directory_of_hugging_face_teaches(tmp_path):
    """Its classifier is its own student; its states are those of any encoder."""
    place = folders.bert(tmp_path / "bert", "bert_classify")
    named = [item | {"label": ("no", "yes")[item["label"]]} for item in ITEMS]
    model = dict(folders.model_of(place)) | {"vocab_size": None, "dropout": 0.0}
    model["attention"] = dict(model["attention"]) | {"dropout": 0.0}
    labels = hf.open_checkpoint(place).labels
    changes = {
        "model": model,
        "objective": {
            "name": "classification",
            "classes": len(labels),
            "labels": labels,
        },
        "data": {"sources": [{"name": "memory", "items": named * 8}], "pack": False},
        "tokenizer": None,
        "evals": {},
        "steps": 2,
        "init": {"source": f"hf:{place}"},
    }
    options = of(f"hf:{place}", of=("logits", "hidden"), layers=((1, 1),))
    assert tiny.run(settings(teacher=options, **changes), tmp_path / "run") == 0
    first, second = tiny.rows(tmp_path / "run")
    for name in ("train/classify_soft_loss", "train/hidden_loss"):
        assert abs(first[name]) < 1e-6 and second[name] > 1e-7
    assert tiny.host(tmp_path / "run")["teacher"]["source"] == f"hf:{place}"

    plain = folders.bert(tmp_path / "plain", "bert_pretraining")
    changes |= {"init": {}, "objective": CLASSES, "data": DATA | {"pack": False}}
    changes["model"] = {**tiny.tree()["model"], "d_model": 8, "max_len": 64}
    states = of(f"hf:{plain}", of=("hidden",), match="cosine")
    assert tiny.run(settings(teacher=states, **changes), tmp_path / "two") == 0
    first, second = tiny.rows(tmp_path / "two")
    assert 0.1 < second["train/hidden_loss"] < first["train/hidden_loss"] < 2
    expected = first["train/classify_loss"] + first["train/hidden_loss"]
    assert first["train/loss"] == pytest.approx(expected, rel=1e-5)
    # A teacher of masked tokens and of pairs teaches the tokens alone.
    masked = {"objective": {"name": "mlm"}, "teacher": of(f"hf:{plain}")}
    config = runs.with_tokenizer(settings(**changes | masked), tmp_path)
    corpus, program = tiny.program(config, tmp_path / "masked")
    assert distilled.open_teacher(config, corpus, program).teaching.soft == ("mlm",)
    with pytest.raises(CheckpointError, match=r"one of lm\.objectives"):
        tiny.run(
            settings(**changes | {"teacher": of(f"hf:{plain}")}), tmp_path / "three"
        )


def test_the_states_of_all_layers(tmp_path):
    """The embeddings first, and last, of a post-norm model, the hidden states."""
    corpus, program = tiny.program(tiny.config(evals={}), tmp_path)
    model, batch = program.model, tiny.batch(corpus)
    params = tiny.new(model)
    hidden, left = model.apply(
        {"params": params}, batch, train=False, mutable=["intermediates"]
    )
    states = model.layer_states(left)
    assert "layers" in model.can and len(states) == 3
    np.testing.assert_array_equal(states[2], hidden)

    def embedded(model, batch):
        names = ("inputs", "positions", "token_types")
        return model.embed(*(batch[name] for name in names), train=False)

    found = model.apply({"params": params}, batch, method=embedded)
    np.testing.assert_allclose(states[0], found, atol=1e-6)


def test_the_weights_of_a_student_are_without_projections():
    params = {"a": jnp.ones(2), "distil": {"0": {"kernel": jnp.ones((1, 2))}}}
    state = State(jnp.int32(0), params, averaged=params, teacher={"b": jnp.ones(3)})
    for which in ("averaged", "trained"):
        assert state.weights(which).keys() == {"a"}
    assert {*state.saved()} == {"step", "params", "averaged"}


def test_vocabularies_that_differ_are_told_apart(tmp_path):
    def codec(name, **options):
        settings = {"name": "word", "kind": "word", "special": {}} | options
        config = tiny.config(evals={}, tokenizer=settings)
        (tmp_path / name).mkdir()
        return runs.open_corpus(config, tmp_path / name, lambda line: None).codec

    options = teaching.Teacher(source="runs/x")
    one, fewer = codec("one"), codec("fewer", vocab_size=12)
    distilled._check_vocabulary(options, one, one)
    for other, words in (
        (fewer, rf"{fewer.vocab_size} tokens, expected .*, of {one.vocab_size}"),
        (codec("lower", lowercase=True), "in another way"),
    ):
        with pytest.raises(CheckpointError, match=words):
            distilled._check_vocabulary(options, other, one)
