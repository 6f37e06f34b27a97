"""Dialogues: the newest turns that fit into the context, as one prompt."""

from collections.abc import Callable, Sequence

from lm.errors import DataError
from lm.tokenizers.dialogues import NAMES, Turn

# Turns, the oldest first -> the tokens after which the model is to answer.
Render = Callable[[Sequence[Turn]], list[int]]
STOPS = tuple(f"\n{NAMES[role]}:" for role in ("user", "assistant"))


def plain(turns: Sequence[Turn]) -> str:
    """Writes turns as text, for a model that was not trained on dialogues.

    Generation must stop at STOPS, where the next turn would begin.
    """
    lines = [f"{NAMES[turn.role]}: {turn.content}" for turn in turns]
    return "\n".join([*lines, f"{NAMES['assistant']}:"])


def fit(turns: Sequence[Turn], render: Render, limit: int) -> tuple[list[int], int]:
    """Makes a prompt of the newest turns that fit; also returns how many do not.

    The first turn that is kept is always the user's.

    Args:
      turns: the oldest first, the user's and the assistant's in alternation.
      limit: the most tokens of the prompt.

    Raises:
      DataError: the last turn alone is too long.
    """
    for first in range(0, len(turns), 2):
        ids = render(turns[first:])
        if len(ids) <= limit:
            return ids, first
    raise DataError(
        "your last turn", f"{len(ids)} tokens", f"at most {limit}", "say it in less"
    )
