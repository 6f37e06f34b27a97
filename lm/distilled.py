"""Part: the teacher of a run: what it must share with its student, and its weights.

A teacher is a finished run, or a directory of Hugging Face (`config.teacher`). Its
weights are a part of the state that no update changes and no checkpoint holds but by
their hash. Only training needs it: every other command opens a student by itself.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import adapted, transfer
from lm import run as runs
from lm.config import resolve as configs
from lm.config.flags import UNEVALUATED
from lm.config.resolve import Config
from lm.data.corpus import Corpus
from lm.errors import CheckpointError, ConfigError, Rule, require
from lm.hf import adopting, source
from lm.hf.checkpoint import directory_of, open_checkpoint
from lm.training import teaching
from lm.training.step import Program, compile_program
from lm.training.teaching import OF, Reader, Teacher, Teaching
from lm.workdir.adopt import begun
from lm.workdir.checkpoint import Init, reading


class Opened(NamedTuple):
    """A teacher whose weights are not read yet.

    Attributes:
      teaching: its part in the update.
      config: its own.
      program: its model, on the student's mesh.
      options: the student's section `teacher`.
    """

    teaching: Teaching
    config: Config
    program: Program
    options: Teacher


def look(config: Config, workdir: Path) -> None:
    """Checks what can be checked of a teacher before the data are indexed.

    A run that has saved looks at its teacher only if there are steps left.

    Raises:
      ConfigError, CheckpointError: there is no such run or directory, or the options
        do not fit.
    """
    options = configs.build(Teacher, config.teacher)
    if options.source is None:
        return
    require(_rules(config, options))
    if not begun(workdir):
        _config_of(options)


def _rules(config: Config, options: Teacher) -> Iterator[Rule]:
    """Yields the conditions between a teacher and the config of its student."""
    of, where = options.of, "teacher.of"
    holds = bool(of) and {*of} <= {*OF} and len({*of}) == len(of)
    yield Rule(holds, where, of, f"some of {', '.join(OF)}, each once")
    objective = runs.open_objective(config)
    expected = "an objective whose logits a teacher has too"
    fix = "those with lm.objectives.base.Objective.lesson, such as classification"
    holds = "lesson" in objective.can
    yield Rule(holds, "objective.name", repr(config.objective.name), expected, fix)
    expected = f"none, without 'hidden' in {where}"
    holds = "hidden" in of or not options.layers
    yield Rule(holds, "teacher.layers", options.layers, expected)
    update = runs.match.build_class("update", config["update"], "update")
    expected = "one with an optimiser, for a run with a teacher"
    yield Rule(not update.in_place, "update.name", config["update"]["name"], expected)


def _config_of(options: Teacher) -> Config:
    """Returns the config of the teacher: a run's, or one of a directory's model."""
    place = str(options.source)
    if not source.is_hf(place):
        if not (Path(place) / "config.json").is_file():
            gone = "no such folder" if not Path(place).is_dir() else "no config.json"
            fix = "say where it is now: training needs it, other commands do not."
            where = f"teacher.source {place}"
            raise ConfigError(where, gone, "the workdir of a run, or hf:DIR", fix)
        return configs.of_run(Path(place), UNEVALUATED)
    opened = open_checkpoint(directory_of(place))
    tree, _ = adopting.tree(opened, place, vectors="logits" not in options.of)
    return configs.load(tree, [])


def open_teacher(config: Config, corpus: Corpus, program: Program) -> Opened | None:
    """Opens the teacher of a run on the run's mesh; None if it has none.

    Args:
      corpus, program: the student's.

    Raises:
      ConfigError: there is no such run, its model cannot read the student's rows, or it
        has no such layers.
      CheckpointError: its vocabulary, its special tokens or the meaning of its logits
        are not the student's.
    """
    options = configs.build(Teacher, config.teacher)
    if options.source is None:
        return None
    theirs = _config_of(options)
    objective, asked = runs.open_objective(theirs), None
    codec = runs.tokenizer_of(options.source, corpus.shares, corpus.note)
    _check_vocabulary(options, codec, corpus.codec)
    if "logits" in options.of:
        asked = _for_student(options, objective, corpus.objective, codec)
    computed = Config(theirs | {"compute": config.compute, "mesh": config.mesh})
    size = runs.vocab_size(theirs, codec.vocab_size)
    model = runs.open_model(computed, objective, size)
    require(_model_rules(config, options, corpus, program, model))
    made = adapted.make(theirs, model, objective)
    made = compile_program(made, program.mesh, config.mesh.rules)
    reader = Reader(made.model, asked, tuple(layer for _, layer in options.layers))
    taught = _teaching(config, options, corpus, program, reader, made.params)
    return Opened(taught, theirs, made, options)


def _check_vocabulary(options: Teacher, theirs: Any, own: Any) -> None:
    if theirs.fingerprint == own.fingerprint:
        return
    found = f"a vocabulary of {theirs.vocab_size} tokens"
    expected = f"the student's, of {own.vocab_size}"
    if theirs.vocab_size == own.vocab_size:
        tokens = (
            (theirs.token(i), own.token(i))
            for i in range(own.vocab_size)
            if theirs.token(i) != own.token(i)
        )
        pair = next(tokens, None)
        found, expected = (
            ("a tokenizer that cuts texts in another way", "the student's")
            if pair is None
            else (f"a vocabulary with {pair[0]!r}", f"the student's, with {pair[1]!r}")
        )
    raise CheckpointError(
        f"teacher.source {options.source}",
        found,
        expected,
        "set tokenizer to None, and the student takes its teacher's.",
    )


def _for_student(options: Teacher, theirs: Any, own: Any, codec: Any) -> Any:
    """Returns the teacher's objective for the rows of its student.

    Raises:
      CheckpointError: its logits mean something else.
    """
    where = f"teacher.source {options.source}"
    if type(theirs) is not type(own):
        found, expected = (type(each).__module__ for each in (theirs, own))
        fix = "teacher.of=('hidden',) compares the states alone."
        raise CheckpointError(where, f"a run of {found}", f"one of {expected}", fix)
    theirs = theirs.teaching(own)
    given, wanted = theirs.agreement(codec), own.agreement(codec)
    for field, value in wanted.items():
        if given[field] != value:
            found, expected = f"{field} {given[field]}", f"{value}, as in the student"
            raise CheckpointError(where, found, expected)
    return theirs


def _model_rules(
    config: Config, options: Teacher, corpus: Corpus, program: Program, model: Any
) -> Iterator[Rule]:
    """Yields what the teacher's model must be able to do."""
    where, name = (
        f"teacher.source {options.source}",
        f"a model {type(model).__module__}",
    )
    reads = ", ".join(sorted(model.reads - corpus.objective.gives))
    expected = "one that reads the student's rows"
    yield Rule(not reads, where, f"{name}, which reads {reads}", expected)
    lacks = ", ".join(sorted(corpus.objective.needs - {"carry"} - model.can))
    lacks = lacks if "logits" in options.of else ""
    yield Rule(not lacks, where, f"{name} without {lacks}", "one with it")
    hidden = "hidden" in model.can
    yield Rule(hidden, where, f"{name} without hidden states", "one with them")
    for which, each in (("student", program.model), ("teacher", model)):
        found = f"{options.layers} with a {which} that gives no layers' states"
        expected = "(), the last states, or transformers of one stack"
        holds = not options.layers or "layers" in each.can
        yield Rule(holds, "teacher.layers", found, expected)
    expected = "shuffled: the teacher carries its state from row to row"
    holds = not runs.carries(config.data, model)
    yield Rule(holds, "data.order", repr(config.data.order), expected)
    if model.context is not None and "beyond" not in model.can:
        for field, length in corpus.objective.lengths(config.seq_len).items():
            expected = f"at most {model.context}, the positions of the teacher"
            yield Rule(length <= model.context, field, length, expected)


def _teaching(
    config: Config,
    options: Teacher,
    corpus: Corpus,
    program: Program,
    other: Reader,
    params: Any,
) -> Teaching:
    """Makes the teacher's part in the update, from the shapes of both.

    Args:
      other, params: how the teacher is asked, and its parameters.

    Raises:
      ConfigError: layers that one of them lacks.
      CheckpointError: other numbers of logits.
    """
    layers = tuple(layer for layer, _ in options.layers)
    own = Reader(program.model, corpus.objective, layers)
    example = {
        name: jax.ShapeDtypeStruct((config.batch_size, *np.shape(array)), _kind(array))
        for name, array in corpus.stream.example(0).items()
        if name != "example_ids"
    }
    with jax.set_mesh(program.mesh):
        narrow, mine = teaching.look(own, program.params, example, True)
        wide, soft = teaching.look(other, params, example, False)
    for term in soft:
        if soft[term] != mine[term]:
            raise CheckpointError(
                f"teacher.source {options.source}",
                f"{soft[term]} logits of {term}",
                f"{mine[term]}, as in the student",
                "set model.vocab_size to its model's" if soft[term] > 1 else None,
            )
    widths = tuple(zip(narrow, wide)) if "hidden" in options.of else ()
    return Teaching(options, own, other, params, tuple(soft), widths)


def _kind(array: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(np.asarray(array).dtype)


def load(opened: Opened | None, note: Callable[[str], None]) -> Any:
    """Reads the weights of a teacher; {} without one. It is called in the run's mesh.

    Raises:
      CheckpointError: they are absent, damaged or of another model.
    """
    if opened is None:
        return {}
    place, program = str(opened.options.source), opened.program
    if source.is_hf(place):
        params, report = transfer.load_params(Init(place), program.params)
        note(f"teacher: {report.place}")
        return params
    with reading(Path(place), opened.options.checkpoint) as directory:
        init = Init(place, checkpoint=int(directory.name), weights="averaged")
        params = adapted.load(init, directory, opened.config, program)
    note(f"teacher: {directory}")
    return params


def identify(config: Config, params: Any) -> adapted.Identity | None:
    """Names a teacher by where it comes from and the SHA-256 of its values.

    None stands for no teacher. Where several processes share the arrays, all call this.
    """
    if not params:
        return None
    return {"source": config.teacher.source, "sha256": adapted.digest(params)}


def check(host: Mapping[str, Any], now: adapted.Identity | None) -> None:
    """Refuses to continue with another teacher than that of a checkpoint.

    Args:
      host: the JSON of the checkpoint, with the `identify` of its teacher, if any.
      now: the teacher at hand.

    Raises:
      CheckpointError: its values differ, or there is one now and was none, or the
        reverse.
    """
    then = host.get("teacher")
    if (then and then["sha256"]) == (now and now["sha256"]):
        return
    shown = ["no teacher" if each is None else json.dumps(each) for each in (now, then)]
    raise CheckpointError(
        "teacher",
        shown[0],
        f"{shown[1]}, as in the checkpoint",
        "restore the weights of the teacher that the run began with.",
    )
