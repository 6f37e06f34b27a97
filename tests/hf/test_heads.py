"""Tests heads of checkpoints: those that a config can continue, and those loaded."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import resolve as configs
from lm.errors import CheckpointError, ConfigError
from lm.hf import adopting, checkpoint, exporting, source
from lm.hf.formats import safetensors
from lm.objectives import tagging
from tests import tiny
from tests.hf import folders, goldens


def fine_tune(place, **objective):
    """Builds the config of a classifier that starts from a directory."""
    items = [{"text": "good dog.", "label": 1}, {"text": "bad cat.", "label": 0}] * 8
    return configs.resolve(
        tiny.tree(
            model=dict(folders.model_of(place)) | {"vocab_size": None},
            objective={"name": "classification", "classes": 3, **objective},
            data={"sources": [{"name": "memory", "items": items}]},
            tokenizer=None,
            init={"source": f"hf:{place}"},
            evals={},
        )
    )


@pytest.mark.parametrize(
    ("case", "theirs", "other"),
    [("distilbert_classify", "relu", "tanh"), ("bert_classify", "tanh", "relu")],
)
def test_a_classifier_is_continued_with_its_own_function(tmp_path, case, theirs, other):
    """The shapes of a pooler do not show which function follows it."""
    place = folders.bert(tmp_path / "hf", case)
    source.check(fine_tune(place, summary=theirs), tmp_path / "run")
    with pytest.raises(CheckpointError, match=f"set objective.summary={theirs}"):
        source.check(fine_tune(place, summary=other), tmp_path / "run")


def test_a_classifier_of_pairs_is_continued_with_its_own_separators(tmp_path):
    place = folders.bert(tmp_path / "hf", "roberta_classify")
    source.check(fine_tune(place), tmp_path / "run")
    source.check(fine_tune(place, pair="pair", separators=2), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"separators 2.*set objective\.separ"):
        source.check(fine_tune(place, pair="pair"), tmp_path / "run")
    found, _ = adopting.tree(checkpoint.open_checkpoint(place), f"hf:{place}")
    assert found["objective"]["separators"] == 2


def test_a_reader_is_continued_with_its_own_separators(tmp_path):
    place = folders.bert(tmp_path / "hf", "roberta_span")

    def start(separators):
        own = {"name": "span_qa", "separators": separators}
        config = fine_tune(place)
        objective = configs.resolve(tiny.tree(objective=own)).objective
        source.check(
            configs.Config(config | {"objective": objective}), tmp_path / "run"
        )

    start(2)
    with pytest.raises(CheckpointError, match=r"head of answers with separators 2"):
        start(1)


def test_an_encoder_without_a_classifier_gets_any_summary(tmp_path):
    place = folders.bert(tmp_path / "hf", "distilbert_mlm")
    for summary in ("tanh", "relu", "last"):
        source.check(fine_tune(place, summary=summary), tmp_path / "run")


MULTI = {"problem_type": "multi_label_classification"}
NEW_HEAD = {"map": [["heads/classify/(.*)", "unused/\\1"]]}
NEW_HEAD |= {"missing": ["heads/classify/.*"]}


def one_output(place):
    """Shortens the classifier's tensors to one output, as rerankers have."""
    file = place / "model.safetensors"
    held = {name: np.array(value) for name, value in safetensors.read(file).items()}
    held |= {n: held[n][:1] for n in ("classifier.weight", "classifier.bias")}
    file.unlink()
    shapes = {name: (value.dtype, value.shape) for name, value in held.items()}
    safetensors.write(place, shapes, held.__getitem__)


@pytest.mark.parametrize(
    ("case", "change", "found"),
    [
        ("bert", MULTI, "kind='sigmoid' with 3 outputs"),
        ("roberta", MULTI, "kind='sigmoid' with 3 outputs"),
        ("bert", {"problem_type": "regression"}, "'regression' with 3 outputs"),
        ("bert", {"id2label": {"0": "score"}}, "kind='regression' with 1 outputs"),
    ],
)
def test_a_run_does_not_continue_a_head_of_another_kind(tmp_path, case, change, found):
    """Its shapes may fit, and training it with softmax would be silently wrong."""
    place = folders.bert(tmp_path / "hf", f"{case}_classify")
    source.check(fine_tune(place), tmp_path / "run")
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if "id2label" in change:
        one_output(place)
    with pytest.raises(CheckpointError, match=found) as caught:
        source.check(fine_tune(place), tmp_path / "run")
    assert "init.map=" in caught.value.line() and "\n" not in caught.value.line()
    for kind in ("sigmoid", "regression"):
        if f"'{kind}'" in found and "kind" in found:
            source.check(fine_tune(place, kind=kind), tmp_path / "run")
    # The fix that the line names works.
    changed = fine_tune(place)
    init = configs.Config(changed.init | NEW_HEAD)
    source.check(configs.Config(changed | {"init": init}), tmp_path / "run")


def test_the_kind_of_a_head_is_exported():
    opened = checkpoint.open_checkpoint(goldens.PLACE / "bert_classify")
    shapes = {path: found.shape for path, found in opened.sources.items()}

    def plan(**objective):
        task = {"name": "classification", **objective}
        config = tiny.config(evals={}, objective=task, data__pack=False)
        return exporting.plan(
            configs.Config(config | {"model": configs.Config(nested(opened))}), shapes
        )

    assert "problem_type" not in plan(classes=3).config
    found = plan(classes=3, kind="sigmoid").config["problem_type"]
    assert found == "multi_label_classification"
    assert plan(kind="regression").config["problem_type"] == "regression"
    with pytest.raises(ConfigError, match=r"objective\.scale: found 5"):
        plan(kind="regression", scale=5.0)


def renamed(case, place, **config):
    """Makes a golden case with other keys in config.json."""
    shutil.copytree(goldens.PLACE / case, place)
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return place


def test_an_untied_output_belongs_to_the_class_with_logits(tmp_path):
    """A bare model keeps it too, if it has one."""
    bare = renamed("llama", tmp_path / "bare", architectures=["LlamaModel"])
    opened = checkpoint.open_checkpoint(bare)
    assert opened.parts == ("lm",) and "output/embedding" in opened.sources
    other = {"architectures": ["LlamaForCausalLM"]}
    place = renamed("llama_classify", tmp_path / "causal", **other)
    with pytest.raises(CheckpointError, match=r"lm_head.weight: missing.*score"):
        checkpoint.open_checkpoint(place)


def test_one_name_for_two_heads_is_told_apart_by_the_class(tmp_path):
    """Llama calls both heads `score`; the one of single tokens has a bias."""
    other = {"architectures": ["LlamaForSequenceClassification"]}
    place = renamed("llama_tag", tmp_path / "wrong", **other)
    with pytest.raises(CheckpointError, match=r"score\.bias: extra"):
        checkpoint.open_checkpoint(place)
    for case, head in (("llama_tag", "tag"), ("llama_classify", "classify")):
        opened = checkpoint.open_checkpoint(goldens.PLACE / case)
        shapes = {path: found.shape for path, found in opened.sources.items()}
        assert {path for path in shapes if path.startswith("heads/")} == (
            {f"heads/{head}/kernel"} | ({"heads/tag/bias"} if head == "tag" else set())
        )
        config = tiny.config(evals={})
        config = configs.Config(config | {"model": configs.Config(nested(opened))})
        plan = exporting.plan(config, shapes)
        assert plan.architecture == opened.config["architectures"][0]


def nested(opened):
    """Returns config.model with its groups as configs."""
    return {
        key: configs.Config(value) if isinstance(value, dict) else value
        for key, value in opened.model.items()
    }


TAGS = ("no", "maybe", "yes")


def tagger(place, labels, **init):
    """Builds the config of a tagger that starts from a directory."""
    items = [{"words": ["a", "b"], "tags": ["no", "yes"]}]
    data = {"sources": [{"name": "memory", "items": items, "lists": True}]}
    return configs.resolve(
        tiny.tree(
            model=dict(folders.model_of(place)) | {"vocab_size": None},
            objective={"name": "tagging", "labels": labels},
            data=data,
            tokenizer=None,
            init={"source": f"hf:{place}", **init},
            evals={},
        )
    )


def test_a_tagger_is_adopted_with_its_labels_and_exported_with_them(tmp_path):
    place = folders.bert(tmp_path / "hf", "bert_tag")
    opened = checkpoint.open_checkpoint(place)
    found, notes = adopting.tree(opened, f"hf:{place}")
    assert found["objective"] == {"name": "tagging", "labels": TAGS}
    assert not found["evals"] and "its tagged sentences are not known" in notes[-1]
    shapes = {path: source.shape for path, source in opened.sources.items()}
    plan = exporting.plan(tagger(place, TAGS), shapes)
    assert plan.architecture == "BertForTokenClassification"
    assert plan.config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert plan.config["label2id"] == {"no": 0, "maybe": 1, "yes": 2}


def test_a_tagger_is_continued_with_its_labels_in_their_order(tmp_path):
    place = folders.bert(tmp_path / "hf", "bert_tag")
    source.check(tagger(place, TAGS), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no, maybe, yes.*found|yes, maybe, no"):
        source.check(tagger(place, TAGS[::-1]), tmp_path / "run")
    new = {"map": [["heads/tag/(.*)", "unused/\\1"]], "missing": ["heads/tag/.*"]}
    source.check(tagger(place, TAGS[::-1], **new), tmp_path / "run")


def test_the_tags_of_a_checkpoint_are_those_of_its_logits(tmp_path):
    """A row of the stored inputs, as words of one piece each."""
    place = folders.bert(tmp_path / "hf", "bert_tag")
    opened, stored = checkpoint.open_checkpoint(place), goldens.outputs("bert_tag")
    batch = goldens.batch(stored)
    real = np.asarray(stored["attention_mask"])
    places = np.broadcast_to(np.arange(real.shape[1]), real.shape)
    batch |= {"word_starts": places * real, "word_ends": (places + 1) * real}
    batch |= {"word_segments": real, "word_borders": 0 * real}
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    task = tagging.Objective(labels=TAGS)
    model = goldens.model(opened)

    def ask(model):
        return task.predict(model, batch)

    params = goldens.params(opened)
    found = jax.jit(lambda params: model.apply({"params": params}, method=ask))(params)
    wanted = stored["logits"].argmax(-1)
    assert np.array_equal(np.where(real, found["tags"], 0), np.where(real, wanted, 0))
