"""Generation of text from tokens: prompts that fit, stop strings, streaming."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from lm.decoding import loop
from lm.decoding.loop import Decoder, Settings
from lm.errors import DataError
from lm.models.base import Decodes

INCOMPLETE = "\ufffd"  # stands for bytes that are no whole character


@dataclasses.dataclass(frozen=True)
class TextGenerator:
    """A decoder whose answers are texts.

    Attributes:
      stop: an answer ends before the first of these strings.
      rows: how many prompts a batch has.
    """

    decoder: Decoder
    settings: Settings
    stop: tuple[str, ...] = ()
    rows: int = 8

    def fit_prompt(self, ids: list[int], where: str, *, truncate: bool) -> list[int]:
        """Returns the tokens of a prompt, with `truncate` cut to what fits.

        Of a text to continue, the end is kept, and the first token if that is bos; of
        the source of an encoder-decoder, the beginning and the last token.

        Args:
          where: the prompt's name in an error.

        Raises:
          DataError: the prompt is empty, or too long and `truncate` is False.
        """
        codec, model = self.decoder.codec, self.decoder.model
        limit = loop.max_prompt_tokens(model, self.settings.max_tokens)
        if all(id in (codec.bos_id, codec.eos_id) for id in ids):
            raise DataError(where, "an empty prompt", "at least one token of text")
        if limit is None or len(ids) <= limit:
            return ids
        if not truncate:
            raise DataError(
                where,
                f"a prompt of {len(ids)} tokens",
                f"at most {limit} (the model has {model.context} positions, "
                f"max_tokens={self.settings.max_tokens})",
                "shorten it, lower --max-tokens, or cut it by --truncate",
            )
        if "encode" in model.can:
            return [*ids[: limit - 1], ids[-1]]
        first = [id for id in ids[:1] if id == codec.bos_id]
        return first + ids[len(ids) - limit + len(first) :]

    def decode(self, prompt: Sequence[int], answer: Sequence[int]) -> str:
        """Decodes an answer, with the space between the prompt and it, if any."""
        decode = self.decoder.codec.decode
        if "encode" not in self.decoder.model.can:
            whole, before = decode([*prompt, *answer]), decode(prompt)
            if whole.startswith(before):
                return whole[len(before) :]
        return decode(answer)

    def cut_at_stop(self, text: str) -> str:
        """Returns the text before the first stop string."""
        places = [text.find(stop) for stop in self.stop if stop in text]
        return text[: min(places)] if places else text

    def answers(
        self, prompts: Sequence[Sequence[int]], draws: Sequence[int]
    ) -> list[list[tuple[str, float | None]]]:
        """Answers at most `rows` prompts; returns the texts and scores for each.

        Args:
          draws: a number for each prompt, of `loop.draws_of`.
        """

        def stopped(generated: list[list[int]]) -> list[bool]:
            texts = [self.decode(*pair) for pair in zip(prompts, generated)]
            return [any(stop in text for stop in self.stop) for text in texts]

        found = loop.answer(
            self.decoder,
            prompts,
            self.settings,
            rows=self.rows,
            draws=draws,
            should_stop=stopped if self.stop else None,
        )
        return [
            [
                (self.cut_at_stop(self.decode(prompt, ids)), score)
                for ids, score in answers
            ]
            for prompt, answers in zip(prompts, found)
        ]

    def answer_all(
        self,
        prompts: Sequence[Sequence[int]],
        progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> list[str]:
        """Returns the best answer to each of any number of prompts, in their order.

        Args:
          progress: as in `loop.in_batches`.
        """
        found = loop.in_batches(prompts, self.answers, self.rows, progress)
        return [best for (best, _), *_ in found]

    def stream(
        self, prompt: Sequence[int], draw: int, write: Callable[[str], None]
    ) -> str:
        """Generates one answer and writes it as it grows; returns the whole answer."""
        shown = text = ""

        def show(whole: str) -> None:
            nonlocal shown
            if whole.startswith(shown):  # Else a later token changed the text before.
                write(whole[len(shown) :])
                shown = whole

        def stopped(generated: list[list[int]]) -> list[bool]:
            nonlocal text
            whole = self.decode(prompt, generated[0])
            text = self.cut_at_stop(whole)
            show(text if text != whole else settled(text, self.stop))
            return [text != whole]

        loop.answer(
            self.decoder,
            [prompt],
            self.settings,
            draws=[draw],
            should_stop=stopped,
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
    most = min(most, loop.max_answer_tokens(model, prompts) or most)
    return dataclasses.replace(settings, max_tokens=most)


def settled(text: str, stops: Sequence[str] = ()) -> str:
    """Returns the part of a text that later tokens do not change.

    It has whole characters only, and ends before what may be the start of a stop
    string.
    """
    text = text.rstrip(INCOMPLETE)
    held = 0
    for stop in stops:
        sizes = range(1, min(len(stop), len(text)) + 1)
        held = max([held, *(n for n in sizes if text.endswith(stop[:n]))])
    return text[: len(text) - held]
