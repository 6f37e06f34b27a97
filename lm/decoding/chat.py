"""Dialogues: turns as one prompt, as many as the context holds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lm.errors import DataError

# Turns, the oldest first, as the tokens after which the model is to answer.
Render = Callable[[Sequence["Turn"]], list[int]]
NAMES = {"user": "User", "assistant": "Assistant"}
STOPS = tuple(f"\n{name}:" for name in NAMES.values())


class Turn(NamedTuple):
    role: str
    content: str


def plain(turns: Sequence[Turn]) -> str:
    """The form for a tokenizer without a chat template; an answer ends at STOPS."""
    lines = [f"{NAMES[turn.role]}: {turn.content}" for turn in turns]
    return "\n".join([*lines, f"{NAMES['assistant']}:"])


def fit(turns: Sequence[Turn], render: Render, room: int) -> tuple[list[int], int]:
    """The prompt of the newest turns that have room, and how many were left out.

    The first turn of what is kept is always the user's.

    Raises:
      DataError: the last one alone is too long.
    """
    for first in range(0, len(turns), 2):
        ids = render(turns[first:])
        if len(ids) <= room:
            return ids, first
    raise DataError(
        "your last turn", f"{len(ids)} tokens", f"at most {room}", "say it in less"
    )
