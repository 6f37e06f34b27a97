"""lm.hf.peft: the names and the layout of its tensors, both ways, and what is refused.

Where the library PEFT is (see peer.py), it loads what is written here, and what it
writes is read.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.adapters import lora
from lm.errors import CheckpointError, ConfigError
from lm.hf import checkpoint, exporting, peft
from lm.hf.formats import safetensors
from lm.trees import flatten, nest
from tests.hf import goldens, peer
from tests.hf.test_round_trip import config_of

ADAPTER = lora.Adapter(rank=3, alpha=6.0)
LINEAR = r"(.*/)?layers/(cross_)?(attention|mlp)/\w+/kernel"


class Case:
    """A golden case with random A and B beside its kernels, and its export's plan."""

    def __init__(self, name, kernels=LINEAR):
        self.opened = checkpoint.open_checkpoint(goldens.PLACE / name)
        own = {
            p: np.asarray(x) for p, x in flatten(goldens.params(self.opened)).items()
        }
        shapes = {path: leaf.shape for path, leaf in own.items()}
        self.plan = exporting.plan(config_of(self.opened), shapes)
        self.plan.config.setdefault("pad_token_id", self.opened.config["pad_token_id"])
        rng = np.random.default_rng(0)
        self.params = dict(own)
        for path in own:
            if re.fullmatch(kernels, path):
                into = 2 if path.endswith("attention/output/kernel") else 1
                lead, at = own[path].shape[:1], path.removesuffix("/kernel")
                sides = own[path].shape[1 : 1 + into], own[path].shape[1 + into :]
                for which, shape in (
                    (lora.A, (*lead, *sides[0], 3)),
                    (lora.B, (*lead, 3, *sides[1])),
                ):
                    leaf = rng.normal(0, 0.3, shape).astype(np.float32)
                    self.params[f"{at}/{which}/kernel"] = leaf
        self.pairs = ADAPTER.factors(self.params)
        self.whole = {p: x for p, x in own.items() if p.startswith("heads/")}

    def write(self, place):
        place.mkdir()
        options = vars(ADAPTER)
        peft.write(self.plan, options, self.pairs, self.whole, "base", place)
        return place


@pytest.mark.parametrize("name", ["bert_classify", "llama_classify", "t5_v1_1"])
def test_a_kernel_and_its_pair_are_those_that_peft_adds(name, tmp_path):
    """It computes W + alpha / r B A, (outputs, inputs), by the name of the module."""
    case = Case(name)
    place = case.write(tmp_path / "adapter")
    written = json.loads((place / peft.CONFIG).read_text())
    tensors = safetensors.read(place / peft.WEIGHTS)
    own, merged = tmp_path / "own", tmp_path / "merged"
    for folder, params in ((own, case.params), (merged, ADAPTER.merge(case.params))):
        folder.mkdir()
        exporting.write(case.plan, params, folder)
    before, after = (safetensors.read(f / "model.safetensors") for f in (own, merged))
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {f"{module}.weight" for module in written["target_modules"]}
    for module in written["target_modules"]:
        pair = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        a, b = pair
        expected = before[f"{module}.weight"] + 6.0 / 3 * b @ a
        np.testing.assert_allclose(after[f"{module}.weight"], expected, atol=2e-6)
    rest = {n for n in tensors if ".lora_" not in n}
    assert rest == {
        f"base_model.model.{n}" for n in before if n.startswith(("classi", "score"))
    }
    assert written["r"] == 3 and written["lora_alpha"] == 6.0
    assert not written["fan_in_fan_out"] and not written["use_rslora"]
    sources, sizes = case.plan.sources, case.plan.sizes
    pairs, whole = peft.read(place, sources, sizes, 3)
    assert pairs.keys() == case.pairs.keys() and whole.keys() == case.whole.keys()
    for path, pair in pairs.items():
        for found, leaf in zip(pair, case.pairs[path]):
            np.testing.assert_array_equal(found, leaf)


def test_the_names_are_those_of_the_table_that_was_checked(tmp_path):
    """A table that PEFT 0.21 has loaded without a name missing or too many."""
    tensors = safetensors.read(
        Case("bert_classify").write(tmp_path / "a") / peft.WEIGHTS
    )
    stem = "base_model.model.bert.encoder.layer.1"
    assert tensors[f"{stem}.attention.self.query.lora_A.weight"].shape == (3, 24)
    assert tensors[f"{stem}.output.dense.lora_A.weight"].shape == (3, 40)
    assert tensors[f"{stem}.output.dense.lora_B.weight"].shape == (24, 3)
    assert tensors["base_model.model.classifier.bias"].shape == (3,)
    assert len(tensors) == 2 * 6 * 2 + 2


def test_what_peft_has_in_one_tensor_is_refused(tmp_path):
    mlp = Case("gpt2_classify", r"layers/mlp/\w+/kernel").write(tmp_path / "mlp")
    assert json.loads((mlp / peft.CONFIG).read_text())["fan_in_fan_out"] is True
    with pytest.raises(ConfigError, match=r"adapter\.kernels.*one tensor"):
        Case("gpt2_classify").write(tmp_path / "all")
    case = Case("bert_classify")
    del case.whole["heads/classify/bias"]
    with pytest.raises(ConfigError, match=r"classifier\.bias is frozen"):
        case.write(tmp_path / "part")


@pytest.mark.parametrize(
    "key, value",
    [
        *(("use_dora", True), ("peft_type", "IA3"), ("rank_pattern", {"query": 9})),
        *(("bias", "all"), ("r", 0), ("lora_alpha", "many")),
    ],
)
def test_another_adapter_is_refused(tmp_path, key, value):
    place = Case("bert_classify").write(tmp_path / "adapter")
    file = place / peft.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=key):
        peft.read_options(place)


def test_other_shapes_and_names_are_refused(tmp_path):
    case = Case("bert_classify")
    place, known = (
        case.write(tmp_path / "adapter"),
        (case.plan.sources, case.plan.sizes),
    )
    with pytest.raises(CheckpointError, match=r"lora_A.weight: shape \(3, 24\)"):
        peft.read(place, *known, 4)
    tensors = safetensors.read(place / peft.WEIGHTS)
    for change in ("lost", "strange"):
        changed = {name: np.array(x) for name, x in tensors.items()}
        lost = "base_model.model.bert.encoder.layer.1.output.dense.lora_B.weight"
        moved = changed.pop(lost)
        if change == "strange":
            changed |= {lost: moved, lost.replace("layer.1", "layer.7"): moved}
        shapes = {name: (x.dtype, x.shape) for name, x in changed.items()}
        safetensors.write(tmp_path, shapes, changed.__getitem__)
        (tmp_path / "model.safetensors").replace(place / peft.WEIGHTS)
        expected = "layer.1.output.dense.lora_B.weight: nothing"
        with pytest.raises(
            CheckpointError, match=expected if change == "lost" else "layer.7"
        ):
            peft.read(place, *known, 3)


def logits(case, params):
    model = goldens.model(case.opened)
    batch = goldens.batch(goldens.outputs(case.opened.directory.name))
    variables = {"params": nest(jax.tree.map(jnp.asarray, params))}

    def classify(bound, batch):
        hidden = bound(batch, train=False)
        return bound.head("classify", hidden, batch["segment_ids"], train=False)

    return model.apply(variables, batch, method=classify)


@peer.needed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_classify", "llama_classify"])
def test_peft_itself_computes_the_same_both_ways(name, tmp_path):
    case = Case(name)
    place = case.write(tmp_path / "adapter")
    base, inputs = goldens.PLACE / name, goldens.PLACE / name / "outputs.npz"
    found = peer.ask("peft.py", "load", base, place, inputs, tmp_path / "out.npz")
    assert found == {"missing": [], "unexpected": []}
    expected = logits(case, ADAPTER.merge(case.params))
    theirs = np.load(tmp_path / "out.npz")["logits"]
    np.testing.assert_allclose(theirs, expected, atol=2e-5)
    made = tmp_path / "made"
    peer.ask("peft.py", "make", base, made, inputs, tmp_path / "made.npz")
    options, _ = peft.read_options(made)
    pairs, whole = peft.read(made, case.plan.sources, case.plan.sizes, options["rank"])
    params = {p: x for p, x in case.params.items() if not ADAPTER.adds(p)} | whole
    for path, (a, b) in pairs.items():
        at = path.removesuffix("kernel")
        params |= {f"{at}{lora.A}/kernel": a, f"{at}{lora.B}/kernel": b}
    merged = lora.Adapter(**options).merge(params)
    theirs = np.load(tmp_path / "made.npz")["logits"]
    np.testing.assert_allclose(theirs, logits(case, merged), atol=2e-5)
    assert np.abs(theirs - logits(case, case.params | {})).max() > 1e-2
