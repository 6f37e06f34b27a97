"""Command: generates text with the model of a run.

python -m lm.generate --workdir=DIR PROMPT ... | --input=FILE --output=FILE | --chat
"""

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.config import resolve as configs
from lm.config import schema
from lm.config.flags import (
    UNEVALUATED,
    Parser,
    add_run,
    describe_fields,
    flag,
    which_step,
)
from lm.decoding import chat
from lm.errors import ConfigError, DataError
from lm.hf import generation
from lm.host import files, inputs, process
from lm.host.inputs import Line
from lm.tokenizers.base import ROLES, Codec
from lm.workdir import outputs

if TYPE_CHECKING:
    from lm.decoding.loop import Decoder, Settings
    from lm.decoding.text import TextGenerator
    from lm.objectives.base import Objective

USAGE = """python -m lm.generate --workdir=DIR [--checkpoint=latest|best|STEP]
    PROMPT ... | --input=FILE.jsonl | --chat | < a prompt on each line
    [--output=FILE.jsonl] [OPTION ...]

Continues prompts, or answers them with an encoder-decoder. A row of --input has
a text "prompt"; one of --output has it and "answers"."""


EXAMPLE = '{"prompt": "..."}'


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    flags, options = parse(argv)
    workdir, which = Path(flags.workdir), flags.checkpoint
    config = configs.of_run(workdir, UNEVALUATED)
    prompts = [] if flags.chat else read_prompts(flags)
    process.platform_setup()

    from lm import run as runs
    from lm.decoding import loop
    from lm.decoding.text import TextGenerator, with_max_length

    settings = loop.Settings(**options)
    runs.check(config, {"logits", "extend", "prompt"}, "lm.generate")
    opened = runs.open_run(
        workdir, which, config=config, weights=flags.weights, note=note
    )
    corpus, step = opened.corpus, opened.step
    with opened.on_mesh():
        decoder = runs.make_decoder(corpus, opened.program)
        decoder = loop.with_params(decoder, opened.params)
        # Frees the float32 weights if the decoder has copies in another type.
        del opened
        if flags.chat:
            return converse(decoder, settings, flags, workdir, corpus.objective)
        rows = min(flags.batch_size, len(prompts))
        ids = [corpus.objective.prompt(corpus.codec, prompt.text) for prompt in prompts]
        settings = with_max_length(settings, decoder.model, ids, flags.max_length)
        generator = TextGenerator(decoder, settings, tuple(flags.stop), rows)
        ids = [
            generator.fit_prompt(row, prompt.where, truncate=flags.truncate)
            for row, prompt in zip(ids, prompts)
        ]
        if flags.output is None:
            print_answers(generator, ids, flags.stream)
        else:
            made = {
                **dataclasses.asdict(settings),
                "step": step,
                "stop": flags.stop,
            }
            made |= {"batch_size": flags.batch_size, "truncate": flags.truncate}
            made |= {"weights": "trained"} if flags.weights == "trained" else {}
            write(generator, prompts, ids, Path(flags.output), made)
    return 0


def note(line: str) -> None:
    """Writes a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> tuple[Namespace, dict[str, Any]]:
    """Parses the flags; returns them, and apart from them the settings of decoding.

    The settings are the fields of lm.decoding.loop.Settings, which is read and not
    imported: a wrong flag is answered before jax is loaded.

    Raises:
      ConfigError: a flag is unknown, out of bounds or excludes another one.
    """
    file = Path(__file__).parent / "decoding" / "loop.py"
    fields = schema.read_class(file, "Settings", file.parents[1])
    parser = Parser("lm.generate", USAGE)
    add_run(parser)
    parser.add_argument(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="the beginning of a text, or what an encoder-decoder reads "
        "(default: the lines of standard input)",
    )
    parser.add_argument(
        "--input", metavar="FILE", help="a JSONL file of prompts (default: none)"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="a JSONL file for the answers, which the same command again continues "
        "(default: the terminal)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text that ends an answer; may be given several times (default: none)",
    )
    parser.add_argument(
        "--batch-size",
        default="8",
        metavar="SIZE",
        help="prompts answered at a time (a whole number from 1; default: 8)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="hold a conversation: a turn on each line of standard input",
    )
    parser.add_argument(
        "--stream", action="store_true", help="write an answer while it is generated"
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="cut a prompt that is longer than the context: a decoder keeps its end, "
        "an encoder-decoder its beginning (default: refuse it)",
    )
    parser.add_fields(fields, describe_fields(file, "Settings"))
    flags = parser.parse_intermixed_args(argv)
    options = {
        name: schema.check(field, schema.Text(given), flag(name))
        for name, field in fields.items()
        if (given := getattr(flags, name)) is not None
    }
    found = generation.defaults(Path(flags.workdir) / "tokenizer", fields, options)
    for line in found.notes:
        note(line)
    options, flags.stop = found.settings, flags.stop or [*found.stop]
    flags.max_length = found.max_length
    rows = schema.literal(flags.batch_size)
    if type(rows) is not int or rows < 1:
        raise ConfigError("--batch-size", flags.batch_size, "a whole number from 1")
    flags.batch_size = rows
    flags.checkpoint = which_step(flags.checkpoint)
    if "" in flags.stop:
        raise ConfigError("--stop", "an empty text", "a text that ends an answer")
    given = [name for name in ("prompts", "input", "chat") if getattr(flags, name)]
    if len(given) > 1:
        raise ConfigError("flags", " and ".join(given), "one of them")
    if options["beams"] > 1 and (flags.stream or flags.chat):
        expected = "beams=1, for a search has no answer before its end"
        raise ConfigError("--beams", f"{options['beams']} with a stream", expected)
    if flags.output and (flags.stream or flags.chat):
        raise ConfigError("--output", "it with --stream or --chat", "one of them")
    return flags, options


def read_prompts(flags: Namespace) -> list[Line]:
    """Reads the prompts: of the command line, a file, or lines of standard input.

    Raises:
      DataError: no prompt, one that is empty or no text, or bytes that are not UTF-8.
    """
    if flags.prompts:
        prompts = [Line(f"prompt {n}", t) for n, t in enumerate(flags.prompts, 1)]
    elif flags.input:
        lines = inputs.read_lines(Path(flags.input), note)
        prompts = [Line(line.where, prompt_of(line)) for line in lines]
    else:
        prompts = inputs.read_lines(None, note, "a prompt")
    if not prompts:
        raise DataError(flags.input or "prompts", "none", "at least one prompt")
    for prompt in prompts:
        if not prompt.text.strip():
            found = f"an empty prompt ({len(prompt.text)} characters of white space)"
            raise DataError(prompt.where, found, "a text to continue")
        data = prompt.text.encode(errors="surrogateescape")
        files.decode(data, prompt.where, DataError)
    return prompts


def prompt_of(line: Line) -> str:
    """Returns the field `prompt` of a line of JSON; DataError for any other line."""
    row = inputs.parse_object(line, EXAMPLE)
    return inputs.text_field(row, "prompt", line.where, EXAMPLE)


def print_answers(
    generator: "TextGenerator", ids: list[list[int]], stream: bool
) -> None:
    """Prints the answers to prompts, each after its score if it has one.

    Args:
      ids: the token ids of each prompt.
      stream: whether to print an answer while it is generated.
    """
    from lm.decoding.loop import draws_of

    draws = draws_of(ids)
    if stream:
        for prompt, draw in zip(ids, draws):
            generator.stream(prompt, draw, print_now)
            print_now("\n")
        return
    for first in range(0, len(ids), generator.rows):
        batch = slice(first, first + generator.rows)
        for answers in generator.answers(ids[batch], draws[batch]):
            for text, score in answers:
                print_now(f"{text}\n" if score is None else f"{score:.4f}\t{text}\n")


def print_now(text: str) -> None:
    """Writes a part of an answer to standard output without delay."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write(
    generator: "TextGenerator",
    prompts: Sequence[Line],
    ids: list[list[int]],
    output: Path,
    made: dict[str, Any],
) -> None:
    """Writes a row for each prompt to a file, after the rows that it already has.

    A second file beside it holds the settings. A batch of which some rows are missing
    is generated again as a whole, so that all rows are equal to those of a command that
    was never stopped.

    Args:
      made: the settings that determine the answers.

    Raises:
      DataError: the file was made with other settings or prompts.
    """
    from lm.decoding.loop import draws_of

    check = belongs(output, prompts)
    file = outputs.Output(
        output, made, len(prompts), check=check, note=note, what="prompts"
    )
    draws, rows = draws_of(ids), generator.rows
    for first in range(file.kept - file.kept % rows, len(prompts), rows):
        batch = slice(first, first + rows)
        found = generator.answers(ids[batch], draws[batch])
        for n, answers in enumerate(found, first):
            texts = [
                {"text": text} | ({} if score is None else {"score": score})
                for text, score in answers
            ]
            if n >= file.kept:
                file.write({"prompt": prompts[n].text, "answers": texts})
        file.sync()
    file.close()


def belongs(output: Path, prompts: Sequence[Line]) -> Callable[[int, bytes], None]:
    """Returns a check that row n of an output answers prompt n, counted from 1."""

    def check(number: int, raw: bytes) -> None:
        where, prompt = f"{output}:{number}", prompts[number - 1]
        there = prompt_of(Line(where, files.decode(raw, where, DataError)))
        if there != prompt.text:
            expected = f"{prompt.text[:40]!r}, as in {prompt.where}"
            raise DataError(where, f"prompt {there[:40]!r}", expected, outputs.FIX)

    return check


def converse(
    decoder: "Decoder",
    settings: "Settings",
    flags: Namespace,
    workdir: Path,
    objective: "Objective",
) -> int:
    """Holds a dialogue: answers each line of standard input.

    Raises:
      ConfigError: the model does not continue texts, or has no room for a dialogue.
    """
    from lm.decoding.loop import draws_of
    from lm.decoding.text import TextGenerator

    if "encode" in decoder.model.can:
        found = "a model that encodes a source"
        raise ConfigError("--chat", found, "one that continues a text")
    encode, stops = dialogue_format(decoder.codec, workdir, objective)
    generator = TextGenerator(decoder, settings, (*flags.stop, *stops), 1)
    context = decoder.model.context
    room = sys.maxsize if context is None else context - settings.max_tokens
    if room < 1:
        found = f"{settings.max_tokens} of a context of {context}"
        raise ConfigError("--max-tokens", found, "less, with room for the dialogue")
    turns: list[chat.Turn] = []
    while (line := read_turn()) is not None:
        if not line.strip():
            continue
        turns.append(chat.Turn("user", line))
        try:
            ids, dropped = chat.fit(turns, encode, room)
        except DataError as error:
            note(error.line())
            turns.pop()
            continue
        if dropped:
            note(
                f"({dropped} of {len(turns)} turns left out: with them and the answer "
                f"more than the context of {context} tokens)"
            )
        del turns[:dropped]
        answer = generator.stream(ids, draws_of([ids])[0], print_now)
        print_now("\n")
        turns.append(chat.Turn("assistant", answer.strip()))
    return 0


def read_turn() -> str | None:
    """Reads the next line of the user; returns None at the end of the input."""
    if sys.stdin.isatty():
        print_now("> ")
    raw = sys.stdin.buffer.readline()
    if not raw:
        return None
    return files.decode(raw, inputs.STDIN, DataError).rstrip("\n")


def dialogue_format(
    codec: Codec, workdir: Path, objective: "Objective"
) -> tuple[Callable[[Sequence[chat.Turn]], list[int]], tuple[str, ...]]:
    """Chooses the format of a dialogue.

    It is the one that the run was trained with, if it was trained on dialogues; else
    the chat template of its tokenizer if there is one; otherwise each turn is a line
    after the name of its speaker.

    Returns:
      A function that encodes turns as a prompt, and the texts that end an answer.
    """
    from lm.hf.chat import read_template, render

    if "dialogue" in objective.can:
        return objective.form(codec).prompt, ()
    template = read_template(workdir / "tokenizer")
    if template is None:
        return lambda turns: objective.prompt(codec, chat.plain(turns)), chat.STOPS
    roles = {role: getattr(codec, f"{role}_id") for role in ROLES}
    names = {f"{n}_token": codec.token(id) for n, id in roles.items() if id is not None}

    def encode(turns: Sequence[chat.Turn]) -> list[int]:
        messages = [turn._asdict() for turn in turns]
        return codec.encode_marked(render(template, messages, tokens=names))

    return encode, ()


main = process.command(run)


if __name__ == "__main__":
    sys.exit(main())
