"""Prompts and answers as text: what fits, stop strings, streaming."""

import dataclasses
from collections.abc import Callable, Sequence

from lm.decoding import loop
from lm.decoding.loop import Decoder, Settings
from lm.errors import DataError
from lm.models.base import Decodes

LOST = "\ufffd"  # what a tokenizer shows for bytes that are no whole character


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A decoder that answers in text.

    Attributes:
      stop: an answer ends before the first of these texts.
      rows: prompts of a batch.
    """

    decoder: Decoder
    settings: Settings
    stop: tuple[str, ...] = ()
    rows: int = 8

    def fit(self, ids: list[int], where: str, *, truncate: bool) -> list[int]:
        """Gives the tokens of a prompt, cut to the room there is where that is allowed.

        The end of a text is kept, and its first token if that is bos; of a source the
        beginning is kept, and the end token.

        Raises:
          DataError: an empty prompt, or one that is too long.
        """
        codec, model = self.decoder.codec, self.decoder.model
        room = loop.room(model, self.settings.max_tokens)
        if all(id in (codec.bos_id, codec.eos_id) for id in ids):
            raise DataError(where, "an empty prompt", "at least one token of text")
        if room is None or len(ids) <= room:
            return ids
        if not truncate:
            raise DataError(
                where,
                f"a prompt of {len(ids)} tokens",
                f"at most {room} (the model has {model.context} positions, "
                f"max_tokens={self.settings.max_tokens})",
                "shorten it, lower --max-tokens, or cut it by --truncate",
            )
        if "encode" in model.can:
            return [*ids[: room - 1], ids[-1]]
        first = [id for id in ids[:1] if id == codec.bos_id]
        return first + ids[len(ids) - room + len(first) :]

    def text(self, prompt: Sequence[int], said: Sequence[int]) -> str:
        """Decodes an answer, with the space that it begins with after the prompt."""
        decode = self.decoder.codec.decode
        if "encode" not in self.decoder.model.can:
            whole, before = decode([*prompt, *said]), decode(prompt)
            if whole.startswith(before):
                return whole[len(before) :]
        return decode(said)

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        places = [text.find(stop) for stop in self.stop if stop in text]
        return text[: min(places)] if places else text

    def answers(
        self, prompts: Sequence[Sequence[int]], draws: Sequence[int]
    ) -> list[list[tuple[str, float | None]]]:
        """Texts and scores of one batch, at most `rows` prompts."""

        def stopped(said: list[list[int]]) -> list[bool]:
            texts = [self.text(*pair) for pair in zip(prompts, said)]
            return [any(stop in text for stop in self.stop) for text in texts]

        found = loop.answer(
            self.decoder,
            prompts,
            self.settings,
            rows=self.rows,
            draws=draws,
            watch=stopped if self.stop else None,
        )
        return [
            [(self.cut(self.text(prompt, ids)), score) for ids, score in answers]
            for prompt, answers in zip(prompts, found)
        ]

    def stream(
        self, prompt: Sequence[int], draw: int, write: Callable[[str], None]
    ) -> str:
        """One answer, written as it is said; the whole of it."""
        shown = text = ""

        def show(whole: str) -> None:
            nonlocal shown
            if whole.startswith(shown):  # Else a later token changed what was said.
                write(whole[len(shown) :])
                shown = whole

        def watch(said: list[list[int]]) -> list[bool]:
            nonlocal text
            whole = self.text(prompt, said[0])
            text = self.cut(whole)
            show(text if text != whole else sure(text, self.stop))
            return [text != whole]

        loop.answer(
            self.decoder,
            [prompt],
            self.settings,
            draws=[draw],
            watch=watch,
            block=1,
        )
        show(text)
        if shown != text:
            write(f"\n{text}")
        return text


def with_max_length(
    settings: Settings,
    model: Decodes,
    prompts: Sequence[loop.Prompt],
    max_length: int | None,
) -> Settings:
    """Sets `max_tokens` so that prompt and answer have at most `max_length` tokens.

    The longest prompt of a decoder decides. An encoder-decoder's answer has one token
    before it, the start. No context of the model is exceeded, and at least one token is
    left.

    Args:
      max_length: None keeps the settings.
    """
    if max_length is None:
        return settings
    before = 1 if "encode" in model.can else max(map(len, prompts), default=0)
    most = max(1, max_length - before)
    most = min(most, loop.most_tokens(model, prompts) or most)
    return dataclasses.replace(settings, max_tokens=most)


def sure(text: str, stops: Sequence[str] = ()) -> str:
    """What no later token takes back: whole characters, no start of a stop string."""
    text = text.rstrip(LOST)
    held = 0
    for stop in stops:
        sizes = range(1, min(len(stop), len(text)) + 1)
        held = max([held, *(n for n in sizes if text.endswith(stop[:n]))])
    return text[: len(text) - held]
