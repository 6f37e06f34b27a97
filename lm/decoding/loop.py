"""Decoding: continues prompts greedily, by sampling or by beam search.

    decoder = holding(make_decoder(model, codec), params)
    [[answer]] = answer(decoder, [codec.encode(text)], Settings(max_tokens=20))
    print(codec.decode(answer.ids))

A prompt is the beginning of a decoder's text, or the source of an encoder-decoder.
Prompts are padded to a length bucket; each bucket is compiled once, whatever the
settings that are numbers.
"""

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree, UInt

from lm.decoding import beams
from lm.decoding.reader import NOTHING, Reader, everywhere, one_token, split
from lm.errors import ConfigError, DataError
from lm.models.base import Decodes, check_can
from lm.ops.sampling import choose, penalise

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
BLOCK = 16  # tokens of a dispatch, between which the host looks at what was said
SMALLEST_BUCKET = 16

Prompt = Sequence[int]
# Sees what the rows have said so far, and tells which of them are to stop.
Watch = Callable[[list[list[int]]], Sequence[bool]]


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
        A prompt that is given again is answered anew.
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
    """Ids without the end token, and the score of a search (else None)."""

    ids: list[int]
    score: float | None = None


class Numbers(NamedTuple):
    """The settings that are arrays of the program."""

    temperature: np.float32
    top_k: np.int32
    top_p: np.float32
    min_p: np.float32
    repetition_penalty: np.float32
    seed: np.uint32


class State(NamedTuple):
    """A batch of texts that are being continued.

    Attributes:
      cache: of the model.
      token: said last, not yet in the cache.
      position: its place in its text.
      step: how many tokens were said.
      ended: rows that are complete.
      known: which words stand in each row.
      row: a number for each row, on which its draws depend.
    """

    cache: PyTree
    token: Int[Array, "B"]
    position: Int[Array, "B"]
    step: Int[Array, ""]
    ended: Bool[Array, "B"]
    known: Bool[Array, "B V"]
    row: UInt[Array, "B"]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model ready to speak, once it holds parameters.

    Attributes:
      model: one that can "extend".
      params: its parameters, each layer's apart; see `holding`.
      codec: the tokenizer.
      prefix: whether all tokens of a prompt see each other, as in a prefix LM.
      ends: the ids that end a text; no answer holds one.
      start: (params, prompts, row, numbers, max_tokens) -> State; the first token is
        said.
      advance: (params, state, numbers, stopped, count) -> State and tokens (B, BLOCK);
        the state is donated.
      search: (params, prompts, alpha, beams, ...) -> lm.decoding.beams.search.
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
    assert model.vocab_size is not None  # filled in by the run
    allowed = may_be_said(codec, model.vocab_size)
    allowed[[*ends]] = True
    reader = Reader(model, allowed, tuple(ends))
    return Decoder(
        model=model,
        codec=codec,
        prefix=prefix,
        ends=tuple(ends),
        start=jax.jit(functools.partial(_start, reader), static_argnums=4),
        advance=jax.jit(functools.partial(_advance, reader), donate_argnums=1),
        search=jax.jit(
            functools.partial(beams.search, reader),
            static_argnames=("beams", "max_tokens", "penalty", "early_stop"),
        ),
    )


def holding(decoder: Decoder, params: PyTree) -> Decoder:
    """The decoder with a model's parameters; those of the layers are copied once."""
    return dataclasses.replace(decoder, params=jax.jit(split)(params))


def numbers(settings: Settings) -> Numbers:
    """In the types that the program expects, whatever Python's are."""
    kinds = Numbers.__annotations__
    return Numbers(*(kind(getattr(settings, name)) for name, kind in kinds.items()))


def start_id(codec: Any) -> int | None:
    """What the decoder of an encoder-decoder reads first: bos, else pad as in T5."""
    return codec.pad_id if codec.bos_id is None else codec.bos_id


def may_be_said(codec: Any, size: int) -> Bool[np.ndarray, "V"]:
    """Every word of the tokenizer but padding and beginning; the end in any case.

    Ids by which the vocabulary was rounded up stand for no word.
    """
    allowed = np.arange(size) < codec.vocab_size
    allowed[[id for id in (codec.pad_id, codec.bos_id) if id is not None]] = False
    if codec.eos_id is not None:
        allowed[codec.eos_id] = True
    return allowed


def most_tokens(model: Decodes, prompts: Iterable[Prompt]) -> int | None:
    """Gives the longest answer that has room after each prompt; None: any length."""
    if model.context is None or "beyond" in model.can:
        return None
    longest = 0 if "encode" in model.can else max(map(len, prompts), default=0)
    return max(1, model.context - longest)


def room(model: Decodes, max_tokens: int) -> int | None:
    """Gives the most tokens that a prompt may have; None: any number.

    Raises:
      ConfigError: the answer alone is longer than the positions that the model has.
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
    watch: Watch | None = None,
    block: int = BLOCK,
) -> list[list[Answer]]:
    """Answers of one batch of prompts, `n_best` for each, the best first.

    Args:
      rows: the size of the batch; it is filled up, so that a smaller last one is not
        compiled anew.
      draws: a number for each prompt, on which its draws depend: `draws_of(prompts)`.
      watch: called after the first token and after every block; not with a search.
      block: tokens of a dispatch, at most BLOCK.

    Raises:
      ConfigError: a table of positions is too short for prompt and answer.
    """
    model, longest = decoder.model, max(map(len, prompts))
    most = room(model, settings.max_tokens)
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
    given = numbers(settings)
    state = decoder.start(decoder.params, batch, row, given, settings.max_tokens)
    stopped = np.zeros(len(row), bool)
    said: list[list[int]] = [[] for _ in prompts]
    tokens, count = np.asarray(state.token)[:, None], 1
    while True:
        ended = np.asarray(state.ended)
        for ids, new in zip(said, tokens.tolist()):
            ids += [id for id in new if id not in (NOTHING, *decoder.ends)]
        if watch is not None:
            stopped[: len(said)] = watch(said)
        left = settings.max_tokens - count
        if not left or (ended | stopped).all():
            return [[Answer(ids)] for ids in said]
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
    not_said = (NOTHING, *decoder.ends)
    return [
        [
            Answer([id for id in ids if id not in not_said], score)
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
    going: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[list[Answer]]:
    """Answers of any number of prompts, in their order; batches are of like length.

    Args:
      going: is given the batches' numbers and gives them back, one after the other.
    """
    by_length = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    draws = draws_of(prompts)
    found: dict[int, list[Answer]] = {}
    for number in going(range(-(-len(prompts) // batch_size))):
        chosen = by_length[number * batch_size : (number + 1) * batch_size]
        answers = answer(
            decoder,
            [prompts[n] for n in chosen],
            settings,
            rows=batch_size,
            draws=[draws[n] for n in chosen],
        )
        found |= dict(zip(chosen, answers))
    return [found[n] for n in range(len(prompts))]


def draws_of(prompts: Sequence[Prompt]) -> list[int]:
    """A number for each prompt: of its tokens, and of how often it came before."""
    seen: Counter[bytes] = Counter()
    numbers = []
    for prompt in prompts:
        content = np.asarray(prompt, np.int32).tobytes()
        numbers.append(zlib.crc32(content, seen[content]))
        seen[content] += 1
    return numbers


def bucket(length: int, context: int | None) -> int:
    """Gives the length that a prompt is padded to: a power of two, or the context."""
    size = SMALLEST_BUCKET
    while size < length:
        size *= 2
    return size if context is None else max(length, min(size, context))


def make_batch(
    decoder: Decoder, prompts: Sequence[Prompt], rows: int
) -> dict[str, Int[np.ndarray, "B P"]]:
    """Pads prompts on the left, or the sources of a model that encodes on the right.

    Rows without a prompt are padding as a whole, and end before they begin.
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


def _start(
    reader: Reader,
    params: PyTree,
    prompts: dict[str, Array],
    row: UInt[Array, "B"],
    numbers: Numbers,
    max_tokens: int,
) -> State:
    # The last token of an answer is never read.
    logits, cache = reader.read(params, prompts, max_tokens - 1)
    lines = jnp.arange(len(logits))[:, None]
    real = prompts["segment_ids"] > 0
    known = jnp.zeros(logits.shape, bool).at[lines, prompts["inputs"]].max(real)
    state = State(
        cache=cache,
        token=prompts["inputs"][:, -1],
        position=prompts["positions"][:, -1],
        step=jnp.zeros((), jnp.int32),
        ended=~real.any(axis=1),
        known=known,
        row=row,
    )
    return everywhere(_say(reader, state, logits, numbers))


def _advance(
    reader: Reader,
    params: PyTree,
    state: State,
    numbers: Numbers,
    stopped: Bool[Array, "B"],
    count: Int[Array, ""],
) -> tuple[State, Int[Array, "B T"]]:
    """Up to `count` tokens more, fewer if all rows end."""

    def going(carry: tuple) -> Array:
        i, state, _ = carry
        return (i < count) & ~state.ended.all()

    def token(carry: tuple) -> tuple:
        i, state, said = carry
        batch = one_token(state.token, state.position)
        logits, cache = reader.extend(params, batch, state.cache)
        state = _say(reader, state._replace(cache=cache), logits, numbers)
        return i + 1, state, said.at[:, i].set(state.token)

    said = jnp.full((len(state.token), BLOCK), NOTHING, jnp.int32)
    state = state._replace(ended=state.ended | stopped)
    _, state, said = jax.lax.while_loop(going, token, (0, state, said))
    return everywhere((state, said))


def _say(reader: Reader, state: State, logits: Array, numbers: Numbers) -> State:
    """Chooses the next token of each row; in one that has ended it is NOTHING."""
    key = jax.random.key(numbers.seed)
    keys = jax.vmap(
        lambda row: jax.random.fold_in(jax.random.fold_in(key, row), state.step)
    )(state.row)
    given: Any = numbers  # within the program they are arrays
    logits = penalise(logits, state.known, given.repetition_penalty)
    token = choose(
        jnp.where(reader.allowed, logits, -jnp.inf),
        keys,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        min_p=given.min_p,
    )
    token = jnp.where(state.ended, NOTHING, token)
    # NOTHING is out of bounds, not the last word.
    place = jnp.where(state.ended, logits.shape[1], token)
    return state._replace(
        token=token,
        position=state.position + 1,
        step=state.step + 1,
        ended=state.ended | reader.ended(token),
        known=state.known.at[jnp.arange(len(token)), place].set(True, mode="drop"),
    )
