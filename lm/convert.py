"""Command: makes a workdir of a checkpoint or file of other tools, or one of a run.

python -m lm.convert --from=hf:DIR --workdir=DIR
python -m lm.convert --to=hf:DIR --workdir=RUN
python -m lm.convert --from=peft:DIR --workdir=DIR
python -m lm.convert --to=peft:DIR --workdir=RUN
python -m lm.convert --from=arpa:FILE --workdir=DIR
python -m lm.convert --to=arpa:FILE --workdir=RUN
python -m lm.convert --from=grammar:FILE --workdir=DIR

Formats other than hf: and peft: are the files of lm/formats.
"""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.config import names
from lm.config import resolve as configs
from lm.config.flags import CHECKPOINT, Parser, add_weights, which_step
from lm.config.resolve import Config
from lm.errors import CheckpointError, ConfigError
from lm.hf import adopting, checkpoint, exporting, generation, sentences
from lm.host import process, storage
from lm.workdir.making import check_new, made_beside, save_weights

USAGE = """python -m lm.convert --from=hf:DIR --workdir=DIR [--init-missing=REGEX]
           [--config.a.b=VALUE ...]
       python -m lm.convert --to=hf:DIR --workdir=RUN
           [--checkpoint=latest|best|STEP] [--family=NAME]
           [--dtype=float32|bfloat16] [--drop=REGEX]
       python -m lm.convert --from=peft:DIR|--to=peft:DIR --workdir=DIR
       python -m lm.convert --from=arpa:FILE|--to=arpa:FILE --workdir=DIR
       python -m lm.convert --from=grammar:FILE|--to=grammar:FILE --workdir=DIR

The first makes a workdir from a directory with config.json, weights and
tokenizer, or from a model of the hub (hf:org/model or hf:org/model@revision,
fetched once). lm.evaluate evaluates the workdir, and init.source starts a run
from it. The second writes a run as such a directory, its adapter merged. The
third reads or writes an adapter alone, in the form of PEFT, whose base is that
of adapter_config.json or --config.init.source. The fourth reads or writes an
n-gram model as a file (FILE.gz is packed), the fifth a grammar as text."""
PEFT = "peft:"


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = Parser("lm.convert", USAGE)
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FORMAT:PLACE",
        help="what to read: hf:DIR or a model of the hub, peft:DIR, arpa:FILE, "
        "grammar:FILE",
    )
    parser.add_argument(
        "--to",
        dest="target",
        metavar="FORMAT:PLACE",
        help="what to make: hf:DIR, peft:DIR, arpa:FILE, grammar:FILE",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="the workdir that --from makes, or the run that --to exports",
    )
    parser.add_argument(
        "--checkpoint", default="latest", metavar="WHICH", help=f"--to: {CHECKPOINT}"
    )
    add_weights(parser)
    parser.add_argument(
        "--family",
        metavar="NAME",
        help="--to: the family to write, a file of lm/hf/families "
        "(default: the one that fits the model)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="--to: the type of the weights (default: float32)",
    )
    parser.add_argument(
        "--init-missing",
        default=r"$^",
        metavar="REGEX",
        help="--from: parameters that may be absent (default: none)",
    )
    parser.add_argument(
        "--drop",
        default=r"$^",
        metavar="REGEX",
        help="--to: parameters to leave out (default: none)",
    )
    flags, overrides = parser.parse_known_args(argv)
    if (flags.source is None) == (flags.target is None):
        raise ConfigError("flags", "both or none of --from and --to", "one of them")
    name = flags.source or flags.target
    kind, _, place = name.partition(":")
    formats = names.words("formats.*:write", configs.ROOT)
    if kind in formats and place:
        check_no_options(parser, flags, f"{kind}:")
        if flags.source:
            return import_file(flags, kind, Path(place), overrides)
        if not overrides:
            return export_file(flags, kind, Path(place))
    elif not name.startswith((checkpoint.PREFIX, PEFT)):
        expected = ", ".join(
            ["hf:DIR", "peft:DIR", *(f"{known}:FILE" for known in formats)]
        )
        raise ConfigError("--from" if flags.source else "--to", name, expected)
    for option in ("init_missing", "drop"):
        try:
            re.compile(getattr(flags, option))
        except re.error as error:
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(flag, str(error), "a regex") from error
    if flags.source and name.startswith(PEFT):
        return import_adapter(flags, Path(name.removeprefix(PEFT)), overrides)
    if flags.source:
        return import_checkpoint(flags, name, overrides)
    if overrides:
        raise ConfigError("flags", overrides[0], "no config: it is the run's own")
    if name.startswith(PEFT):
        return export_adapter(flags, Path(name.removeprefix(PEFT)))
    return export_run(flags, Path(name.removeprefix(checkpoint.PREFIX)))


def check_no_options(parser: Parser, flags: Any, kind: str) -> None:
    """Refuses options of "hf:" with another format.

    Raises:
      ConfigError: names the option.
    """
    for name in ("family", "dtype", "init_missing", "drop"):
        if getattr(flags, name) != parser.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(flag, f"it with {kind}", "it with hf:", "leave it out.")


def import_file(flags: Any, kind: str, path: Path, overrides: list[str]) -> int:
    """Makes a workdir of a file of lm/formats, completely or not at all.

    Raises:
      ConfigError: an override does not hold, or the workdir is not new.
      CheckpointError: the file is broken.
    """
    workdir = Path(flags.workdir)
    check_new(workdir)
    form = importlib.import_module(f"lm.formats.{kind}")
    found, tokens, params = form.workdir(form.read(path))
    config = configs.load(found, overrides)
    storage.check_directory(workdir)
    process.platform_setup()

    import jax

    from lm.data import pipeline

    with made_beside(workdir) as partial:
        vocabulary = partial / "vocab.txt"
        storage.write_text(vocabulary, "".join(f"{token}\n" for token in tokens))
        codec = pipeline.open_tokenizer(
            config.tokenizer | {"path": str(vocabulary)},
            partial / "tokenizer",
            no_texts,
            pipeline.Shares(),
            print,
        )
        vocabulary.unlink()
        for number, token in enumerate(tokens):
            if codec.token(number) != token:
                raise CheckpointError(str(path), f"the word {token!r}", "another name")
        save_weights(partial, config, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{path}: {count:,} parameters into {workdir}")
    return 0


def open_export(flags: Any, target: Path, expected: str) -> tuple[Config, Path]:
    """Opens the run to export, after a check that the target is new.

    Returns:
      The run's config, and the verified folder of the checkpoint.

    Raises:
      ConfigError: the target exists; `expected` says what should be there.
      CheckpointError: no such checkpoint.
    """
    workdir, which = Path(flags.workdir), which_step(flags.checkpoint)
    config = configs.of_run(workdir)
    if target.exists():
        fix = "choose another name, or remove it."
        raise ConfigError("--to", f"{target}, which exists", expected, fix)
    storage.check_directory(target)
    process.platform_setup()

    from lm.workdir.checkpoint import find

    return config, find(workdir, which)


def export_file(flags: Any, kind: str, path: Path) -> int:
    """Writes a run as a file of lm/formats, completely or not at all.

    Raises:
      ConfigError: the file exists, or cannot hold the run.
      CheckpointError: no such checkpoint.
    """
    workdir = Path(flags.workdir)
    config, step = open_export(flags, path, "a new file")

    import jax

    from lm.data import pipeline
    from lm.transfer import saved_shapes
    from lm.trees import nest
    from lm.workdir.checkpoint import read_state

    form = importlib.import_module(f"lm.formats.{kind}")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = merged(flags, config, step)
    if params is not None:
        params = nest(params)
    else:
        shapes = {"params": saved_shapes(step, here)["params"]}
        params = jax.device_get(read_state(step, shapes, partial=True)["params"])
    codec = pipeline.open_tokenizer(
        config.tokenizer, workdir / "tokenizer", no_texts, pipeline.Shares(), print
    )
    said = form.write(path, config, codec, params)
    print(f"step {step.name} into {path}: {said}")
    return 0


def import_checkpoint(flags: Any, name: str, overrides: list[str]) -> int:
    """Makes a workdir, complete or not at all: config.json, tokenizer/, checkpoints/0.

    Args:
      flags: those of the command.
      name: the checkpoint, "hf:DIR" or "hf:org/model".
      overrides: `--config.a.b=VALUE` of the command line.

    Returns:
      The exit code.

    Raises:
      ConfigError: an override does not hold, or the workdir is not new.
      CheckpointError, DataError: the checkpoint or its tokenizer cannot be read.
    """
    workdir, directory = Path(flags.workdir), checkpoint.directory_of(name)
    opened = checkpoint.open_checkpoint(directory, [flags.init_missing])
    found, notes = adopting.tree(opened, name)
    config = configs.load(found, overrides)
    check_new(workdir)
    storage.check_directory(workdir)
    process.platform_setup()

    from lm.data import pipeline
    from lm.hf import importing
    from lm.trees import nest

    for note in notes:
        print(note)
    with made_beside(workdir) as partial:
        pipeline.open_tokenizer(
            config.tokenizer, partial / "tokenizer", no_texts, pipeline.Shares(), print
        )
        params = importing.load(opened, importing.shapes(opened))
        count = sum(leaf.size for leaf in params.values())
        save_weights(partial, config, nest(params))
    print(f"{opened.file} ({opened.dtypes}): {count:,} parameters into {workdir}")
    return 0


def import_adapter(flags: Any, directory: Path, overrides: list[str]) -> int:
    """Makes a workdir of a folder of PEFT, complete or not at all.

    Raises:
      ConfigError: an override does not hold, or the workdir is not new.
      CheckpointError: the folder or its base cannot be read, or do not fit.
    """
    workdir = Path(flags.workdir)
    check_new(workdir)
    storage.check_directory(workdir)
    process.platform_setup()

    from lm import peft

    config, notes, params = peft.read(directory, overrides)
    for note in notes:
        print(note)
    with made_beside(workdir) as partial:
        tree, base = peft.checked(config, partial, params)
        save_weights(partial, config, tree, {"base": base})
    count = sum(leaf.size for leaf in params.values())
    print(f"{directory}: {count:,} parameters over {config.init.source} into {workdir}")
    return 0


def no_texts() -> Iterator[str]:
    """Returns no texts: the tokenizer exists already."""
    return iter(())


def export_run(flags: Any, target: Path) -> int:
    """Writes a run into the directory `target`, completely or not at all.

    Raises:
      ConfigError: the target exists, or no family has this model.
      CheckpointError: no such checkpoint, or parameters that the family does not have.
    """
    workdir = Path(flags.workdir)
    config, step = open_export(flags, target, "a new folder")

    from lm.transfer import weights_of
    from lm.workdir.checkpoint import read_leaves

    drop, whole = re.compile(flags.drop), merged(flags, config, step)
    part, leaves = weights_of(read_leaves(step), flags.weights)
    sides = {path: tuple(shape) for path, (_, shape) in leaves.items()}
    if whole is not None:
        sides = {path: leaf.shape for path, leaf in whole.items()}
    shapes = {path: shape for path, shape in sides.items() if not drop.fullmatch(path)}
    plan = exporting.plan(config, shapes, flags.family)
    with made_beside(target) as partial:
        write(config, workdir, step, whole or part, plan, partial, flags.dtype)
    names = ", ".join(sorted(path.name for path in target.iterdir()))
    print(f"{plan.architecture} of step {step.name} into {target}: {names}")
    return 0


def merged(flags: Any, config: Config, step: Path) -> dict[str, Any] | None:
    """Returns the merged parameters of a run with an adapter; None without one.

    Raises:
      CheckpointError: its base is missing, or has changed.
    """
    from lm.config import match

    if not match.open_adapter(config).freezes:
        return None

    from lm import adapted

    return adapted.merged(config, open_step(flags, step).params)


def open_step(flags: Any, step: Path) -> Any:
    """Opens the run to export with the weights of a checkpoint."""
    from lm import run as runs

    which, workdir = int(step.name), Path(flags.workdir)
    return runs.open_run(workdir, which, weights=flags.weights, note=lambda line: None)


def export_adapter(flags: Any, target: Path) -> int:
    """Writes the adapter of a run as a folder of PEFT, completely or not at all.

    Raises:
      ConfigError: the target exists, or PEFT has no such adapter.
      CheckpointError: no such checkpoint, or its base is missing or has changed.
    """
    _, step = open_export(flags, target, "a new folder")

    from lm import peft

    opened, drop = open_step(flags, step), re.compile(flags.drop)
    with made_beside(target) as partial:
        name = peft.export(opened, flags.family, drop, partial)
    names = ", ".join(sorted(path.name for path in target.iterdir()))
    print(f"adapter of step {step.name}, for a {name}, into {target}: {names}")
    return 0


def write(
    config: Config,
    workdir: Path,
    step: Path,
    weights: str | dict[str, Any],
    plan: exporting.Plan,
    directory: Path,
    dtype: str,
) -> None:
    """Writes the files of an export.

    Args:
      config: the run's config.
      workdir: the run's folder.
      step: the verified folder of the checkpoint.
      weights: the parameters by path; or the part of the state that has them, "params"
        or "averaged".
      plan: what `exporting.plan` returns.
      directory: an existing folder, in which the files are written.
      dtype: of the weights, "float32" or "bfloat16".

    Raises:
      ConfigError: the padding token is not the one that the family's positions need.
      DataError: `transformers` has no such tokenizer.
    """
    import jax
    import numpy as np

    from lm.data import pipeline
    from lm.hf import card, tokenizer_out
    from lm.trees import flatten, nest
    from lm.workdir.checkpoint import read_state
    from lm.workdir.writer import read_rows

    codec = pipeline.open_tokenizer(
        config.tokenizer, workdir / "tokenizer", no_texts, pipeline.Shares(), print
    )
    family, ids = plan.family, tokenizer_out.token_ids(config, codec)
    tokenizer_out.write(codec, config, workdir / "tokenizer", family, directory)
    if "decoder_start_token_id" in family.usage:
        start = codec.pad_id if codec.bos_id is None else codec.bos_id
        ids["decoder_start_token_id"] = start
    padding = plan.config.get("pad_token_id", ids.get("pad_token_id"))
    if padding != ids.get("pad_token_id"):
        found = f"pad token {ids.get('pad_token_id')}"
        expected = f"{padding}, since positions begin after it"
        raise ConfigError("tokenizer", found, expected, "--family chooses another one.")
    missing = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    plan.config.update(missing | ids)
    if family.task != "mlm":
        kept = generation.read(workdir / "tokenizer")
        ends = generation.ends(workdir / "tokenizer", codec.vocab_size)
        named = {}
        if ends is not None:
            several = isinstance(kept["eos_token_id"], list)
            named = {"eos_token_id": [*ends] if several else ends[0]}
        kept.pop("eos_token_id", None)
        text = storage.to_json(kept | ids | named)
        storage.write_text(directory / "generation_config.json", text)
    if isinstance(weights, str):
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {
            path: jax.ShapeDtypeStruct(source.shape, np.float32, sharding=here)
            for path, source in plan.sources.items()
        }
        state = read_state(step, {weights: nest(abstract)}, partial=True)
        weights = flatten(state[weights])
    exporting.write(plan, weights, directory, dtype=dtype)
    if "pooling" in config.objective:
        width, length = plan.model["d_model"], config.seq_len
        sentences.write(directory, config.objective, width=width, length=length)
    file = workdir / "metrics.jsonl"
    rows = read_rows(file) if file.exists() else []
    at: dict[str, Any] = next((r for r in rows if r.get("step") == int(step.name)), {})
    text = card.card(
        config,
        name=workdir.name,
        kind=family.model_type,
        architecture=plan.architecture,
        count=sum(int(np.prod(source.shape)) for source in plan.sources.values()),
        step=int(step.name),
        metrics={k: v for k, v in at.items() if k.split("/")[0] in config.evals},
    )
    storage.write_text(directory / "README.md", text)


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
