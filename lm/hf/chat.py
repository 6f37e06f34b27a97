"""Renders the chat templates of checkpoints in an isolated process.

A template is a Jinja program of a stranger. It runs in jinja2's immutable sandbox, in a
process that has two seconds of processor time (an eighth of one more for each further
conversation), 256 MB of additional memory and no file to open: all it can do is return
texts.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.errors import DataError
from lm.hf.formats.files import is_file, read_bytes, read_json
from lm.tokenizers.dialogues import UNLIKE, Rendered

RENDERER = Path(__file__).with_name("chat_box.py")
MAX_TEMPLATE, MAX_OUTPUT, SECONDS = 2**20, 2**22, 20
TOGETHER = 64  # conversations that one process renders


def read_template(directory: Path, name: str = "default") -> str | None:
    """Returns the chat template of a directory; None where it has none.

    Args:
      name: of the template, where tokenizer_config.json has several.

    Raises:
      DataError: none of the templates has this name, or it is no text.
      CheckpointError: the file is damaged or too large.
    """
    path = directory / "chat_template.jinja"
    if is_file(path):
        return read_bytes(path, MAX_TEMPLATE).decode(errors="replace")
    path = directory / "tokenizer_config.json"
    given = read_json(path).get("chat_template") if is_file(path) else None
    if isinstance(given, list):
        items = [item for item in given if isinstance(item, dict)]
        named = {str(item.get("name")): item.get("template") for item in items}
        if name not in named:
            found = ", ".join(named) or "none"
            raise DataError(f"{path}: chat_template", found, f"one named {name!r}")
        given = named[name]
    if given is not None and not isinstance(given, str):
        raise DataError(f"{path}: chat_template", type(given).__name__, "a text")
    return given


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tokens: Mapping[str, str],
    add_generation_prompt: bool = True,
    where: str = "chat_template",
) -> str:
    """Returns the text of a conversation.

    Args:
      messages: {"role": ..., "content": ...}, the oldest first.
      tokens: variables of the template, such as {"bos_token": "<s>"}.
      add_generation_prompt: whether the text ends with the beginning of the assistant's
        answer.
      where: the template's file, for errors.

    Raises:
      DataError: the template refuses the conversation, fails, or exceeds its limits.
    """
    values: dict[str, Any] = {**tokens, "messages": list(messages)}
    values["add_generation_prompt"] = add_generation_prompt
    answer = _ask({"template": template, "values": values}, where)
    if "error" in answer:
        expected = "a template that renders these messages"
        raise DataError(where, str(answer["error"])[:300], expected)
    if len(answer["text"]) > MAX_OUTPUT:
        raise DataError(
            where, f"{len(answer['text']):,} characters", f"at most {MAX_OUTPUT:,}"
        )
    return answer["text"]


def render_all(
    template: str,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    tokens: Mapping[str, str],
    *,
    last: bool = False,
) -> list[Rendered | str]:
    """Returns the text of each conversation with the places of its answers.

    After a user's turn the text ends with the beginning of an answer. What cannot be
    rendered has its reason instead, in words that follow "the template writes".

    Args:
      conversations, tokens: as `messages` and `tokens` of `render`.
      last: whether to find the answer alone that is the last turn, if there is one.
    """
    if not conversations:
        return []
    if len(conversations) > TOGETHER:
        parts = range(0, len(conversations), TOGETHER)
        several = [conversations[n : n + TOGETHER] for n in parts]
        return [
            one
            for part in several
            for one in render_all(template, part, tokens, last=last)
        ]
    asked = {"template": template, "values": dict(tokens), "last": last}
    given = [list(each) for each in conversations]
    answer = _ask(asked | {"conversations": given}, "chat_template")
    if "error" in answer and len(conversations) > 1:  # Which of them is it?
        return [
            one
            for each in conversations
            for one in render_all(template, [each], tokens, last=last)
        ]
    if "error" in answer:
        return [f"nothing ({answer['error']})"]
    return [_rendered(one) for one in answer["rendered"]]


def _rendered(one: Mapping[str, Any]) -> Rendered | str:
    """Returns what the process says of a conversation."""
    if "error" in one:
        return f"nothing ({str(one['error'])[:300]})"
    if "unlike" in one:
        return f"{UNLIKE} (the first {one['unlike']})"
    return Rendered(one["text"], [(start, stop) for start, stop in one["answers"]])


def _ask(asked: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Runs the isolated process; returns its answer, an `error` where it has none."""
    command = [sys.executable, "-I", str(RENDERER)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=SECONDS,
            env={},
        )
        if b"No module named 'jinja2'" in done.stderr:
            raise DataError(
                where, "a chat template, and no jinja2", "jinja2", "pip install jinja2"
            )
        return json.loads(done.stdout[: 2 * MAX_OUTPUT])
    except (subprocess.TimeoutExpired, ValueError):
        return {"error": "a template that exceeds its limits of time or memory"}
