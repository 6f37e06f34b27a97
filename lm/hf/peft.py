"""Writes and reads low-rank adapters in the form of the library PEFT.

A folder has adapter_config.json and adapter_model.safetensors. For a linear layer whose
tensor is `STEM.weight` in the family's table, the latter has

    base_model.model.STEM.lora_A.weight   (rank, inputs)
    base_model.model.STEM.lora_B.weight   (outputs, rank)

and what is trained whole, such as a classifier, is there by its own name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import ConfigError
from lm.hf.exporting import Plan
from lm.hf.families.table import Rule, Sizes, Source, nearest, split_axes
from lm.hf.formats import safetensors
from lm.hf.formats.files import read_json, refuse
from lm.host import storage

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# End of a class's name -> PEFT's word for its task; the first that fits counts.
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "LMHeadModel": "CAUSAL_LM",
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "Model": "FEATURE_EXTRACTION",
}
SCALES = {"standard": False, "rank_stabilised": True}
# Keys of adapter_config.json that would change what is computed, and the values that
# leave it as it is.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "alora_invocation_tokens": (None,),
    "trainable_token_indices": (None,),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "exclude_modules": (None,),
}


def task_of(architecture: str) -> str | None:
    """Returns PEFT's word for the task of a class; None where it has none."""
    return next((t for end, t in TASKS.items() if architecture.endswith(end)), None)


@dataclass(frozen=True)
class Factors:
    """The rules of the two matrices beside a kernel.

    Attributes:
      a, b: tensor (rank, inputs) <-> (*inputs, rank), and (outputs, rank) <->
        (rank, *outputs), of a layer.
      turned: whether the tensor of the kernel is (inputs, outputs).
    """

    a: Rule
    b: Rule
    turned: bool


def factors(rule: Rule, inputs: int) -> Factors | None:
    """Returns the rules beside that of a kernel; None: its tensor is no matrix of one.

    Args:
      inputs: how many of the kernel's axes are inputs.
    """
    left, right = split_axes(rule.axes)
    into, out = right[:inputs], right[inputs:]
    ends = [{*group} for group in left]
    if len(rule.paths) > 1 or ends not in ([{*into}, {*out}], [{*out}, {*into}]):
        return None
    turned = ends[0] == {*into}
    ins, outs = (" ".join(group) for group in (left if turned else left[::-1]))
    stem = rule.name.removesuffix(".weight")
    a = f"R ({ins}) -> {' '.join(into)} R"
    b = f"({outs}) R -> R {' '.join(out)}"
    return Factors(
        replace(rule, name=f"{stem}.lora_A.weight", axes=a),
        replace(rule, name=f"{stem}.lora_B.weight", axes=b),
        turned,
    )


def write(
    plan: Plan,
    options: Mapping[str, Any],
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    whole: Mapping[str, np.ndarray],
    base: str | None,
    directory: Path,
) -> None:
    """Writes a folder of PEFT.

    Args:
      plan: of the export of the whole model, which names its tensors.
      options: the fields of lm.adapters.lora.
      pairs: path of a kernel -> its A and B, layers on axis 0.
      whole: path -> parameter that is trained beside them.
      base: the folder or the name of the base's weights, if they have one.
      directory: an existing folder.

    Raises:
      ConfigError: a kernel shares its tensor with others, or PEFT cannot save a part of
        a module.
    """
    sizes = {**plan.sizes, "R": options["rank"]}
    tensors: dict[str, np.ndarray] = {}
    targets, turned = [], set()
    for path, pair in pairs.items():
        source = plan.sources[path]
        inputs = pair[0].ndim - 1 - source.rule.layered
        found = factors(source.rule, inputs)
        if found is None:
            others = ", ".join(source.rule.paths)
            raise ConfigError(
                "adapter.kernels",
                f"{path}, which a {plan.architecture} has in one tensor ({others})",
                "kernels with tensors of their own",
                "--to=hf:DIR writes the merged weights.",
            )
        turned.add(found.turned)
        for rule, leaf in ((found.a, pair[0]), (found.b, pair[1])):
            tensors |= _tensors(rule, source, leaf, sizes)
        targets += [name.removesuffix(".weight") for name in source.names]
    if len(turned) > 1:
        found_kinds = "kernels that are stored both ways round"
        raise ConfigError("adapter.kernels", found_kinds, "of one kind, for PEFT")
    saved: dict[str, np.ndarray] = {}
    for path, leaf in whole.items():
        source = plan.sources[path]
        saved |= _tensors(source.rule, source, leaf, plan.sizes)
    modules = sorted({name.rpartition(".")[0] for name in saved})
    for source in plan.sources.values():
        for name in {*source.names} - saved.keys():
            inside = [module for module in modules if name.startswith(f"{module}.")]
            if inside:
                raise ConfigError(
                    "init.missing",
                    f"{inside[0]}, of which {name} is frozen",
                    "modules that are trained as a whole, since PEFT saves no parts",
                    "--to=hf:DIR writes the merged weights.",
                )
    tensors |= saved
    tensors = {
        f"{PREFIX}{name}": np.ascontiguousarray(x) for name, x in tensors.items()
    }
    config = {
        "peft_type": "LORA",
        "task_type": task_of(plan.architecture),
        "base_model_name_or_path": base,
        "r": options["rank"],
        "lora_alpha": options["alpha"],
        "lora_dropout": options["dropout"],
        "use_rslora": SCALES[options["scale"]],
        "target_modules": targets,
        "modules_to_save": modules or None,
        "fan_in_fan_out": turned == {True},
        "bias": "none",
        "inference_mode": True,
    }
    shapes = {name: (x.dtype, x.shape) for name, x in tensors.items()}
    (file,) = safetensors.write(directory, shapes, tensors.__getitem__)
    (directory / file).rename(directory / WEIGHTS)
    storage.write_text(directory / CONFIG, storage.to_json(config))


def _tensors(
    rule: Rule, source: Source, leaf: np.ndarray, sizes: Sizes
) -> dict[str, np.ndarray]:
    """Returns the tensors of a parameter: one for each layer, or one."""
    if not rule.layered:
        return {rule.name: rule.out_of([leaf], sizes)}
    count = range(len(source.names))
    return {rule.name_of(i): rule.out_of([leaf[i]], sizes) for i in count}


def read_options(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads adapter_config.json.

    Returns:
      The fields of lm.adapters.lora but `kernels`, and the content of the file.

    Raises:
      CheckpointError: the file is absent or damaged, or describes another adapter.
    """
    path = directory / CONFIG
    config = read_json(path)
    for key, values in PLAIN.items():
        found = config.get(key, values[0])
        if found not in values:
            fix = "merge it into its base where it was trained, and import that."
            refuse(path, f"{key} {found!r}"[:200], f"{values[0]!r}", fix)
    options: dict[str, Any] = {"rank": config.get("r")}
    if type(options["rank"]) is not int or options["rank"] < 1:
        refuse(path, f"r {options['rank']!r}"[:200], "a positive whole number")
    for key, field in (("lora_alpha", "alpha"), ("lora_dropout", "dropout")):
        value: Any = config.get(key, 0.0 if field == "dropout" else None)
        if type(value) not in (int, float):
            refuse(path, f"{key} {value!r}"[:200], "a number")
        options[field] = float(value)
    scale = "rank_stabilised" if config.get("use_rslora") is True else "standard"
    return options | {"scale": scale}, config


def classes(directory: Path, rules: Iterable[Rule]) -> int | None:
    """Returns how many classes a head has; None where there is no such head.

    Args:
      rules: the family's table.

    Raises:
      CheckpointError: adapter_model.safetensors is absent or damaged.
    """
    tensors = _tensors_of(directory)
    heads = (tensors.get(rule.name) for rule in rules if rule.has_axis("C"))
    return next(
        (head.shape[0] for head in heads if head is not None and head.ndim), None
    )


def _tensors_of(directory: Path) -> dict[str, np.ndarray]:
    """Reads the tensors by the names of the model's modules."""
    found = safetensors.read(directory / WEIGHTS)
    return {
        name.removeprefix(PREFIX).replace(".modules_to_save.default", ""): tensor
        for name, tensor in found.items()
    }


def read(
    directory: Path, sources: Mapping[str, Source], sizes: Sizes, rank: int
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """Reads adapter_model.safetensors.

    Args:
      sources: path of a parameter -> the tensors of the base and its head.
      sizes: axis of the tables -> size.

    Returns:
      Path of a kernel -> its A and B, and path -> parameter that was trained whole, all
      with layers on axis 0.

    Raises:
      CheckpointError: the file is damaged; a tensor belongs to nothing, lacks its layer
        or has another shape.
    """
    path, sizes = directory / WEIGHTS, {**sizes, "R": rank}
    tensors = _tensors_of(directory)
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    whole: dict[str, np.ndarray] = {}
    used: set[str] = set()
    stems = {_stem(name) for name in tensors if ".lora_" in name}
    for source in sources.values():
        asked = {name.removesuffix(".weight") for name in source.names}
        if asked & stems:
            _, right = split_axes(source.rule.axes)
            beside = (factors(source.rule, n) for n in range(1, len(right)))
            both = next(filter(None, beside), None)
            if both is None:
                found = f"an adapter of {source.names[0]}"
                expected = "of tensors that hold one kernel each"
                refuse(path, found, expected, "import its base with it merged.")
            a, b = (
                _stack(rule, source, tensors, sizes, path, used)
                for rule in (both.a, both.b)
            )
            pairs[source.path] = a, b
        elif any(name in tensors for name in source.names):
            rule = source.rule
            whole[source.path] = _stack(rule, source, tensors, sizes, path, used)
    for name in tensors.keys() - used:
        known = [name for source in sources.values() for name in source.names]
        expected = f"tensors of its base (nearest: {nearest(name, known)})"
        refuse(path, f"{name}", expected, "give its base by --config.init.source.")
    return pairs, whole


def _stem(name: str) -> str:
    return re.sub(r"\.lora_[AB]\.weight$", "", name)


def _stack(
    rule: Rule,
    source: Source,
    tensors: Mapping[str, np.ndarray],
    sizes: Sizes,
    path: Path,
    used: set[str],
) -> np.ndarray:
    """Returns a parameter, from one tensor of each layer or from one."""
    layers: Iterable[int] = range(len(source.names))
    names = [rule.name_of(i) for i in layers] if rule.layered else [rule.name]
    leaves, shape = [], rule.tensor_shape(sizes)
    for name in names:
        tensor = tensors.get(name)
        found = "nothing" if tensor is None else f"shape {tensor.shape}"
        if tensor is None or tensor.shape != shape:
            fix = "give its own base by --config.init.source."
            refuse(path, f"{name}: {found}", f"shape {shape}", fix)
        used.add(name)
        leaves.append(rule.into(np.asarray(tensor, np.float32), sizes)[source.index])
    return np.stack(leaves) if rule.layered else leaves[0]
