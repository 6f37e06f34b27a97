"""Decoding: continues prompts greedily, by sampling or by beam search.

    decoder = with_params(make_decoder(model, codec), params)
    [[answer]] = answer(decoder, [codec.encode(text)], Settings(max_tokens=20))
    print(codec.decode(answer.ids))

A prompt is the beginning of a decoder's text, or the source of an encoder-decoder.
Prompts are padded to a few lengths (buckets). The program is compiled once for each
bucket: settings that are numbers are arguments of it, not constants.
"""

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Int, PyTree

from lm import trees
from lm.decoding import beams, sampling
from lm.decoding.cached import NO_TOKEN, CachedModel
from lm.decoding.sampling import BLOCK, ArraySettings
from lm.errors import ConfigError, DataError
from lm.models.base import Decodes, check_can

BOUNDS = {
    "max_tokens": "[1, 1048576]",
    "temperature": "[0, inf)",
    "top_k": "[0, 2147483647]",
    "top_p": "(0, 1]",
    "min_p": "[0, 1]",
    "repetition_penalty": "(0, inf)",
    "seed": "[0, 4294967295]",
    "beams": "[1, 1024]",
    "n_best": "[1, 1024]",
    "length_penalty": "(-inf, inf)",
}
SMALLEST_BUCKET = 16

T = TypeVar("T")

Prompt = Sequence[int]
# The tokens generated so far in each row -> which rows are to stop.
StopCheck = Callable[[list[list[int]]], Sequence[bool]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to continue a prompt.

    Attributes:
      max_tokens: the most tokens of an answer, the end token included.
      temperature: divides the logits before sampling; 0 takes the most probable token
        each time.
      top_k: sample among this many most probable tokens; 0 is all.
      top_p: sample among the most probable tokens that hold this share of the
        probability; 1 is all.
      min_p: sample among the tokens whose probability is at least this share of the
        largest; 0 is all.
      repetition_penalty: lowers the logits of tokens that the text already holds; 1 is
        none.
      seed: of the samples, which depend on it and on the prompt, not on other prompts.
        The same prompt given twice gets two independent answers.
      beams: live hypotheses of beam search; 1 is no search.
      n_best: how many answers are wanted, at most as many as beams.
      length_penalty: alpha; the score of a hypothesis is its log-probability divided by
        the penalty of its length.
      penalty: "gnmt" is ((5 + length) / 6) ** alpha (Wu et al. 2016, section 7),
        "length" is length ** alpha; the length is in tokens, the end included.
      early_stop: "exact" searches until no live hypothesis, however long it becomes,
        can be among the best answers; "heuristic" until none could at its present
        length; "full" until as many hypotheses have ended as there are beams.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    beams: int = 1
    n_best: int = 1
    length_penalty: float = 0.6
    penalty: Literal["gnmt", "length"] = "gnmt"
    early_stop: Literal["exact", "heuristic", "full"] = "exact"

    def __post_init__(self):
        if self.n_best > self.beams:
            found = f"{self.n_best} with beams={self.beams}"
            raise ConfigError("n_best", found, "at most as many as beams")
        if self.beams > 1 and (self.temperature > 0 or self.repetition_penalty != 1):
            raise ConfigError(
                "beams",
                f"{self.beams} with temperature={self.temperature} and "
                f"repetition_penalty={self.repetition_penalty}",
                "beam search without them",
                "set temperature=0 and repetition_penalty=1, or beams=1",
            )


class Answer(NamedTuple):
    """The ids without the end token, and the score of beam search (else None)."""

    ids: list[int]
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The compiled functions that generate with a model.

    Attributes:
      model: has "extend" in `can`.
      params: of the model, each layer's apart, from `with_params`; None before.
      codec: the tokenizer.
      prefix: whether all tokens of a prompt see each other, as in a prefix LM.
      ends: the ids that end a text; no answer contains one.
      start: (params, prompts, row, settings, max_tokens) -> State, which contains the
        first token.
      advance: (params, state, settings, stopped, count) -> State and tokens (B, BLOCK);
        the state is donated.
      search: (params, prompts, alpha, beams=, ...): `lm.decoding.beams.search`.
    """

    model: Decodes
    codec: Any
    prefix: bool
    ends: tuple[int, ...]
    start: Any
    advance: Any
    search: Any
    params: PyTree = None


def make_decoder(
    model: Decodes,
    codec: Any,
    *,
    prefix: bool = False,
    ends: Sequence[int] | None = None,
) -> Decoder:
    """Builds a decoder without parameters; compiles nothing yet.

    Args:
      prefix: whether all tokens of a prompt see each other, as in a prefix LM.
      ends: the ids that end a text; None: the tokenizer's eos, if it has one.

    Raises:
      ConfigError: the model cannot continue a text.
      DataError: the tokenizer has no token for a decoder to start with.
    """
    check_can(model, {"logits", "extend"}, "generation")
    if "encode" in model.can and start_id(codec) is None:
        raise DataError("tokenizer", "no bos and no pad token", "one to start with")
    compute = dataclasses.replace(model.compute, unroll=0, remat="none")
    model = model.clone(compute=compute)
    if ends is None:
        ends = [id for id in (codec.eos_id,) if id is not None]
    assert model.vocab_size is not None  # The run fills it in.
    allowed = allowed_tokens(codec, model.vocab_size)
    allowed[[*ends]] = True
    cached = CachedModel(model, allowed, tuple(ends))
    return Decoder(
        model=model,
        codec=codec,
        prefix=prefix,
        ends=tuple(ends),
        start=jax.jit(functools.partial(sampling.start, cached), static_argnums=4),
        advance=jax.jit(functools.partial(sampling.advance, cached), donate_argnums=1),
        search=jax.jit(
            functools.partial(beams.search, cached),
            static_argnames=("beams", "max_tokens", "penalty", "early_stop"),
        ),
    )


def with_params(decoder: Decoder, params: PyTree) -> Decoder:
    """Returns the decoder with a model's parameters, of which the layers are copied."""
    split = jax.jit(trees.split_layers)
    return dataclasses.replace(decoder, params=split(params))


def as_arrays(settings: Settings) -> ArraySettings:
    """Converts the settings to the types that the compiled program expects."""
    types = {"top_k": np.int32, "seed": np.uint32}
    arrays: dict[str, Any] = {
        name: types.get(name, np.float32)(getattr(settings, name))
        for name in ArraySettings._fields
    }
    return ArraySettings(**arrays)


def start_id(codec: Any) -> int | None:
    """Returns the first token of a decoder that has an encoder: bos, else pad."""
    return codec.pad_id if codec.bos_id is None else codec.bos_id


def allowed_tokens(codec: Any, size: int) -> Bool[np.ndarray, "V"]:
    """Marks the tokens that may be generated: all but padding and bos.

    The eos token is always allowed, also where it is the padding token. Ids by which
    the vocabulary was rounded up belong to no token.
    """
    allowed = np.arange(size) < codec.vocab_size
    allowed[[id for id in (codec.pad_id, codec.bos_id) if id is not None]] = False
    if codec.eos_id is not None:
        allowed[codec.eos_id] = True
    return allowed


def max_answer_tokens(model: Decodes, prompts: Iterable[Prompt]) -> int | None:
    """Returns the longest answer that fits after each prompt; None: any length."""
    if model.context is None or "beyond" in model.can:
        return None
    longest = 0 if "encode" in model.can else max(map(len, prompts), default=0)
    return max(1, model.context - longest)


def max_prompt_tokens(model: Decodes, max_tokens: int) -> int | None:
    """Returns the most tokens that a prompt may have; None: any number.

    Raises:
      ConfigError: an answer of `max_tokens` leaves no position for a prompt.
    """
    if model.context is None or "beyond" in model.can:
        return model.context
    left = model.context - max_tokens
    if left < 1:
        raise ConfigError(
            "max_tokens",
            f"{max_tokens} with a model of {model.context} positions",
            f"at most {model.context - 1}",
        )
    return model.context if "encode" in model.can else left


def answer(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    rows: int | None = None,
    draws: Sequence[int] | None = None,
    should_stop: StopCheck | None = None,
    block: int = BLOCK,
) -> list[list[Answer]]:
    """Answers one batch of prompts, with `n_best` answers for each, the best first.

    Args:
      rows: the size of the batch; rows without a prompt are padding, so that a smaller
        last batch needs no compilation of its own.
      draws: a number for each prompt, on which its samples depend; None:
        `draws_of(prompts)`.
      should_stop: called after the first token and after every block; beam search does
        not call it.
      block: how many tokens to generate between its calls, at most BLOCK.

    Raises:
      ConfigError: a table of positions is too short for prompt and answer.
    """
    model, longest = decoder.model, max(map(len, prompts))
    most = max_prompt_tokens(model, settings.max_tokens)
    if most is not None and longest > most and "beyond" not in model.can:
        raise ConfigError(
            "max_tokens",
            f"{settings.max_tokens} with a prompt of {longest} tokens",
            f"prompts of at most {most} (the model has {model.context} positions)",
        )
    batch = make_batch(decoder, prompts, rows or len(prompts))
    if settings.beams > 1:
        return _search(decoder, batch, len(prompts), settings)
    row = np.zeros(len(batch["inputs"]), np.uint32)
    row[: len(prompts)] = draws_of(prompts) if draws is None else draws
    given = as_arrays(settings)
    state = decoder.start(decoder.params, batch, row, given, settings.max_tokens)
    stopped = np.zeros(len(row), bool)
    generated: list[list[int]] = [[] for _ in prompts]
    tokens, count = np.asarray(state.token)[:, None], 1
    while True:
        ended = np.asarray(state.ended)
        for ids, new in zip(generated, tokens.tolist()):
            ids += [id for id in new if id not in (NO_TOKEN, *decoder.ends)]
        if should_stop is not None:
            stopped[: len(generated)] = should_stop(generated)
        left = settings.max_tokens - count
        if not left or (ended | stopped).all():
            return [[Answer(ids)] for ids in generated]
        new = np.int32(min(left, block))
        state, tokens = decoder.advance(decoder.params, state, given, stopped, new)
        tokens, count = np.asarray(tokens), count + int(new)


def _search(
    decoder: Decoder, batch: dict, count: int, settings: Settings
) -> list[list[Answer]]:
    names = ("beams", "max_tokens", "penalty", "early_stop")
    options = {name: getattr(settings, name) for name in names}
    alpha = np.float32(settings.length_penalty)
    found = decoder.search(decoder.params, batch, alpha, **options)
    texts, scores = (np.asarray(array)[:count].tolist() for array in found)
    left_out = (NO_TOKEN, *decoder.ends)
    return [
        [
            Answer([id for id in ids if id not in left_out], score)
            for ids, score in zip(each[: settings.n_best], best)
            if score > -np.inf
        ]
        for each, best in zip(texts, scores)
    ]


def answer_all(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    batch_size: int,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[list[Answer]]:
    """Answers any number of prompts; returns the answers in their order.

    Args:
      batch_size, progress: as in `in_batches`.
    """

    def ask(some: list[Prompt], draws: list[int]) -> list[list[Answer]]:
        return answer(decoder, some, settings, rows=batch_size, draws=draws)

    return in_batches(prompts, ask, batch_size, progress)


def in_batches(
    prompts: Sequence[Prompt],
    ask: Callable[[list[Prompt], list[int]], Sequence[T]],
    batch_size: int,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[T]:
    """Asks for any number of prompts; returns what is answered, in their order.

    Prompts of similar length share a batch.

    Args:
      ask: (at most `batch_size` prompts, their `draws_of`) -> an answer for each.
      progress: iterates over the numbers of the batches and may report on the way.
    """
    by_length = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    draws, found = draws_of(prompts), dict[int, T]()
    for number in progress(range(-(-len(prompts) // batch_size))):
        chosen = by_length[number * batch_size : (number + 1) * batch_size]
        answers = ask([prompts[n] for n in chosen], [draws[n] for n in chosen])
        found |= dict(zip(chosen, answers))
    return [found[n] for n in range(len(prompts))]


def draws_of(prompts: Sequence[Prompt]) -> list[int]:
    """Returns a number for each prompt, from its tokens and its earlier occurrences."""
    seen: Counter[bytes] = Counter()
    draws = []
    for prompt in prompts:
        content = np.asarray(prompt, np.int32).tobytes()
        draws.append(zlib.crc32(content, seen[content]))
        seen[content] += 1
    return draws


def bucket(length: int, context: int | None) -> int:
    """Returns the length that prompts are padded to: a power of two, or the context."""
    size = SMALLEST_BUCKET
    while size < length:
        size *= 2
    return size if context is None else max(length, min(size, context))


def make_batch(
    decoder: Decoder, prompts: Sequence[Prompt], rows: int
) -> dict[str, Int[np.ndarray, "B P"]]:
    """Pads prompts on the left, or on the right as the sources of an encoder-decoder.

    Rows without a prompt are all padding and count as ended from the start.
    """
    encodes = "encode" in decoder.model.can
    length = bucket(max(map(len, prompts)), decoder.model.context)
    shape = (rows, length)
    inputs, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    for row, prompt in enumerate(prompts):
        own = slice(len(prompt)) if encodes else slice(length - len(prompt), None)
        inputs[row, own] = prompt
        positions[row, own] = np.arange(len(prompt))
        segments[row, own] = 1
    batch = {"inputs": inputs, "positions": positions, "segment_ids": segments}
    if not encodes:
        return batch | ({"prefix": segments > 0} if decoder.prefix else {})
    first = {
        "inputs": np.full((rows, 1), start_id(decoder.codec), np.int32),
        "positions": np.zeros((rows, 1), np.int32),
        "segment_ids": segments.max(axis=1, keepdims=True),
    }
    return first | {f"source_{name}": array for name, array in batch.items()}
