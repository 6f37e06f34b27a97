"""Tagging: a label for each word, such as parts of speech, entities or roles.

Each word is read at its first piece, at its last one, or at the mean of its pieces.
The tags are predicted one by one (Devlin et al. 2019, section 5.3), or by a conditional
random field over the sentence (Lafferty et al. 2001; Lample et al. 2016).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lm.data import tags as schemes
from lm.data.index import Index, Layout
from lm.data.sources.base import Record
from lm.data.words import FIRST, LAST, Aligned, Tagged, Words
from lm.errors import ConfigError, Rule
from lm.models.base import Head, Headed, States, Trunk
from lm.models.blocks.heads import Linear
from lm.objectives import base
from lm.objectives.base import Asked, Batch, Lesson, Rows, Terms
from lm.ops import chain, losses
from lm.ops.distillation import Soft
from lm.tokenizers.base import Codec

BOUNDS = {"stride": "[1, 16777216]", "characters": "[0, 1024]"}

# The score of what a scheme forbids: finite, so that a sentence of which the labels
# allow nothing at all still has a best sequence.
NEVER = -1e9
# The pieces looked at for one with a space: byte-level vocabularies have some of these
# among their first merges.
PROBED = 1000


class Transitions(nn.Module):
    """The scores of a chain of tags: `kernel` (C, C) from row to column, and `bias`.

    The bias (2, C) scores the first tag of a sentence and the last. All begin at 0.
    """

    trunk: Trunk
    labels: int

    def setup(self):
        zeros, count = nn.initializers.zeros, self.labels
        self.kernel = self.param("kernel", zeros, (count, count))
        self.bias = self.param("bias", zeros, (2, count))

    def __call__(self, hidden: Float[Array, "*any D"]) -> dict[str, jax.Array]:
        return {"pairs": self.kernel, "start": self.bias[0], "end": self.bias[1]}


@dataclasses.dataclass(frozen=True)
class Objective(base.Objective):
    """Options of `tagging`.

    Attributes:
      words, tags: the columns of a record with the list of words and that of their
        tags. Words may also be a text, see `split`; without tags they are predicted.
      labels: the tags in the order of their ids.
      scheme: how labels mark spans (lm/data/tags.py); "word": each is a span of one
        word, except those in `outside`. None: what the names of the labels show.
      given: the scheme of the data's tags, converted to `scheme`; None: the same.
      repair: whether a sequence of tags that its scheme does not allow is read by the
        rule of conlleval and mended, or refused.
      outside: with scheme="word", the tags that are no span and are not scored as such.
      mark: a column with the number of a word from 0, or with a list of them: the
        predicate whose roles are the tags. Its pieces have token type 1.
      pieces: which of its pieces a word is read at.
      characters: bytes of each word that its pieces get beside their tokens, for models
        that read the spelling of words (model.characters of rnn); 0: none.
      decoder: "independent" predicts each tag by itself, "crf" scores the transitions
        between tags and learns the whole sequence (a linear-chain conditional random
        field).
      constrain: where tags are excluded that the scheme does not allow after each
        other: in decoding, also in the training of a crf (its sum over sequences), or
        nowhere.
      split: what the words of a text are, where it is not given as a list: between
        spaces; or runs of letters and digits, and other characters one by one; or all
        characters.
      wrap: the special tokens around a sentence: [CLS] and [SEP], the token that begins
        a text in front, or none.
      too_long: what to do with a sentence that does not fit a row: refuse it, cut its
        end, skip it, or read it in windows with context (see lm/data/words.py).
      stride: pieces between the starts of windows; None: half of a window.
    """

    words: str = "words"
    tags: str | None = "tags"
    labels: tuple[str, ...] = ()
    scheme: Literal["word", "io", "iob1", "bio", "bioes", "bmes"] | None = None
    given: Literal["word", "io", "iob1", "bio", "bioes", "bmes"] | None = None
    repair: bool = True
    outside: tuple[str, ...] = ("O", "_")
    mark: str | None = None
    pieces: Literal["first", "last", "mean"] = "first"
    characters: int = 0
    decoder: Literal["independent", "crf"] = "independent"
    constrain: Literal["decode", "train", "none"] = "decode"
    split: Literal["spaces", "punctuation", "characters"] = "punctuation"
    wrap: Literal["delimiters", "bos", "none"] = "delimiters"
    too_long: Literal["error", "cut", "window", "skip"] = "window"
    stride: int | None = None

    @property
    def can(self) -> frozenset[str]:  # type: ignore[override]
        alone = {"lesson"} if self.decoder == "independent" else set()
        return frozenset({"tags", "show", "answers"} | alone)

    # ── Requirements on the config and the model ────────────────────────────────────

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden", "head"})

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({"token_types", *["characters"] * bool(self.characters)})

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        names = self.labels
        fix = 'set objective.labels=("O", "B-person", ...), or ("NOUN", "VERB", ...).'
        yield Rule(len(names) > 1, "objective.labels", repr(names), "two or more", fix)
        twice = [name for name in names if names.count(name) > 1]
        found, expected = f"{twice[:1]} twice", "each tag once"
        yield Rule(not twice, "objective.labels", found, expected)
        scheme = self._scheme
        wrong = [name for name in names if not schemes.fits(name, scheme)]
        found = f"{wrong[:1]} with objective.scheme={scheme!r}"
        letters = {*schemes.LETTERS.get(scheme, ())}
        expected = f"O, and names that begin with one of {', '.join(sorted(letters))}"
        yield Rule(not wrong, "objective.labels", found, expected)
        given = self.given or scheme
        mixed = given != scheme and "word" in (given, scheme)
        found = f"{given!r} with objective.scheme={scheme!r}"
        expected = "the same, as tags of words make no spans of several words"
        yield Rule(not mixed, "objective.given", found, expected)
        alone = self.constrain == "train" and self.decoder == "independent"
        found = "'train' with objective.decoder='independent'"
        expected = "decode or none: only a crf has transitions in training"
        yield Rule(not alone, "objective.constrain", found, expected)

    @property
    def along(self) -> frozenset[str]:
        # A row has no more words than tokens.
        names = ("starts", "ends", "segments", "borders")
        words = frozenset(f"word_{name}" for name in names)
        return words | {"labels", "label_weights", "characters"}

    @property
    def _scheme(self) -> schemes.Scheme:
        return self.scheme or schemes.guess_scheme(self.labels)

    def small(self) -> dict[str, Any]:
        return {"stride": None}

    def heads(self) -> tuple[Head, ...]:
        count = len(self.labels)
        tag = Head("tag", functools.partial(Linear, outputs=count))
        crf = Head("crf", functools.partial(Transitions, labels=count))
        return (tag, crf) if self.decoder == "crf" else (tag,)

    # ── On the host ─────────────────────────────────────────────────────────────────

    def columns(self) -> tuple[str, ...]:
        marked = self.tags is None and self.mark is not None
        return (self.words, cast(str, self.mark)) if marked else (self.words,)

    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        overhead = sum(map(len, base.around(codec, self.wrap)))
        return Words(
            reader=self.reader,
            prefix=word_prefix(codec),
            length=seq_len,
            overhead=overhead,
            stride=self.stride or max((seq_len - overhead) // 2, 1),
            pack=pack,
            too_long=self.too_long,
            characters=self.characters,
        )

    @property
    def reader(self) -> Tagged:
        """Returns what reads the words of a record and their tags."""
        return Tagged(
            words=self.words,
            tags=self.tags,
            labels=self.labels,
            given=self.given or self._scheme,
            scheme=self._scheme,
            repair=self.repair,
            mark=self.mark,
            split=self.split,
        )

    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable, ...]:
        return (Aligned(seq_len, *base.around(codec, self.wrap), codec.pad_id or 0),)

    def default(self) -> str:
        """Returns the tag of words that no row reads, such as those without a piece."""
        return next((tag for tag in self.outside if tag in self.labels), self.labels[0])

    def assign(
        self, tags: list[str], row: Mapping[str, Any], predicted: np.ndarray
    ) -> None:
        """Writes the tags that a row predicts into those of its sentence.

        Args:
          tags: of all words of the sentence; a row of one window writes those it reads.
          row: of the index, with `word` and `read`.
          predicted: (K,) the numbers of the predicted tags.
        """
        for word, read, tag in zip(row["word"], row["read"], predicted):
            if read:
                tags[word] = self.labels[tag]

    def spans(self, tags: Sequence[str], rule: schemes.Rule) -> list[schemes.Span]:
        """Returns the spans that the tags of a sentence mark."""
        return schemes.spans(tags, self._scheme, rule, self.outside)

    def unlabelled(self) -> "Objective":
        return dataclasses.replace(self, tags=None)

    @property
    def says(self) -> Mapping[str, tuple[str, ...]]:
        tags: dict[str, tuple[str, ...]] = {
            "tags": ("tokens", "tags"),
            "probabilities": ("tokens", "tags", "probabilities"),
        }
        entities: dict[str, tuple[str, ...]] = {"entities": ("entities",)}
        return tags | entities if self._scheme == "word" else entities | tags

    def answers(
        self, record: Record, rows: Sequence[Asked], codec: Codec
    ) -> dict[str, Any]:
        """Returns the tags of a record's words, and the spans that they mark.

        `tokens` are the words. Each of `entities` has its `type`, its `text`, the
        characters `start` to `end` - 1 of the record's text (a list of words is joined
        by spaces), and as `probability` the least one of its words' tags.
        """
        if not rows:
            names = ("tokens", "tags", "probabilities", "entities", "truncated")
            return dict.fromkeys(names)
        text, places = self.reader.places_of(record)
        tags, chances = [self.default()] * len(places), [0.0] * len(places)
        for asked in rows:
            self.assign(tags, asked.row, asked.predictions["tags"])
            found = asked.predictions["probabilities"]
            for word, read, chance in zip(asked.row["word"], asked.row["read"], found):
                if read:
                    chances[word] = round(float(chance), 6)
        entities = [
            {
                "type": kind,
                "text": text[places[first][0] : places[last - 1][1]],
                "start": places[first][0],
                "end": places[last - 1][1],
                "probability": min(chances[first:last]),
            }
            for kind, first, last in self.spans(tags, "conlleval")
        ]
        return {
            "tokens": [text[start:end] for start, end in places],
            "tags": tags,
            "probabilities": chances,
            "entities": entities,
            "truncated": sum(int(asked.row["cut"]) for asked in rows),
        }

    # ── On the device ───────────────────────────────────────────────────────────────

    def _scores(self, model: States, batch: Batch, train: bool) -> chain.Chain:
        """Computes the scores that `_scores_of` describes."""
        return self._scores_of(model, model(batch, train=train), batch, train)

    def _scores_of(
        self, model: States, hidden: Float[Array, "B T D"], batch: Batch, train: bool
    ) -> chain.Chain:
        """Computes the scores of the tags of each word, and of their transitions.

        The scores of the first tag and of the last are part of the emissions, since a
        window in the middle of a sentence has neither.
        """
        if self.mark is not None and "token_types" not in model.reads:
            raise ConfigError(
                "objective.mark",
                f"{self.mark!r} with a model that reads no token types",
                "a model that does, such as transformer with model.token_types=2",
            )
        hidden = pool(hidden, batch, self.pieces)
        headed = cast(Headed, model)  # `needs` requires "head".
        emissions = headed.head("tag", hidden, train=train)
        count = len(self.labels)
        if self.decoder == "independent":
            return chain.Chain(emissions, jnp.zeros((count, count)))
        crf = headed.head("crf", hidden[:1, :1], train=train)
        emissions += at_borders(batch, crf["start"], crf["end"])
        scores = chain.Chain(emissions, crf["pairs"])
        return self._constrained(scores, batch) if self.constrain == "train" else scores

    def _constrained(self, scores: chain.Chain, batch: Batch) -> chain.Chain:
        """Excludes the sequences of tags that the scheme does not allow."""
        allowed = schemes.allowed_of(self.labels, self._scheme)

        def never(allows: Bool[np.ndarray, "*any"]) -> Float[Array, "*any"]:
            return jnp.where(allows, 0.0, NEVER)

        borders = at_borders(batch, never(allowed.start), never(allowed.end))
        emissions = scores.emissions + borders
        return chain.Chain(emissions, scores.transitions + never(allowed.pairs))

    def loss(self, model: States, batch: Batch, *, train: bool) -> Terms:
        return self.lesson(model, batch, train=train).terms

    def lesson(self, model: States, batch: Batch, *, train: bool) -> Lesson:
        hidden = model(batch, train=train)
        scores = self._scores_of(model, hidden, batch, train)
        soft = {"tag": Soft(scores.emissions, batch["label_weights"])}
        return Lesson({"tag": self._loss(scores, batch)}, hidden, soft)

    def agreement(self, codec: Codec) -> dict[str, Any]:
        around = sum(base.around(codec, self.wrap), ())
        return {
            "objective.labels": self.labels,
            "the special tokens of a row": tuple(map(codec.token, around)),
        }

    def _loss(self, scores: chain.Chain, batch: Batch) -> tuple:
        labels, weights = batch["labels"], batch["label_weights"]
        if self.decoder == "independent":
            return losses.cross_entropy(scores.emissions, labels, weights)
        # Where a sentence has several windows, each word is learnt in one of them.
        read = jnp.where(weights > 0, batch["word_segments"], 0)
        total = chain.log_partition(scores, read) - chain.score(scores, labels, read)
        return losses.weighted(total, weights.max(axis=1))[0], weights.sum()

    def counts(self, batch: Batch) -> dict[str, Any]:
        return {"tag": batch["label_weights"].sum()}

    def measures(self) -> tuple[str, ...]:
        return ("tag_loss", "tag_accuracy")

    def metrics(self, model: States, batch: Batch) -> Terms:
        """Returns the loss, and the share of the words whose decoded tag is right."""
        scores = self._scores(model, batch, False)
        right = self._decode(scores, batch) == batch["labels"]
        accuracy = losses.weighted(right, batch["label_weights"])
        return {"tag_loss": self._loss(scores, batch), "tag_accuracy": accuracy}

    def _decode(self, scores: chain.Chain, batch: Batch) -> Array:
        """Returns the best tags of each window, (B, K); those of padding are 0."""
        if self.constrain != "none":
            scores = self._constrained(scores, batch)
        return chain.best(scores, batch["word_segments"]).labels[:, 0]

    def predict(self, model: States, batch: Batch) -> dict[str, Any]:
        """Returns `tags` (B, K), and `probabilities` (B, K), those of these tags.

        The probability of a tag is its marginal over all sequences of tags that are
        allowed. Those of padding have no meaning.
        """
        scores = self._scores(model, batch, False)
        if self.constrain != "none":
            scores = self._constrained(scores, batch)
        segments = batch["word_segments"]
        tags = chain.best(scores, segments).labels[:, 0]
        chances = chain.marginals(scores, segments)
        found = jnp.take_along_axis(chances, tags[..., None], axis=-1)[..., 0]
        return {"tags": tags, "probabilities": found}

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Shows the words with their tags, and with the predicted ones that differ."""
        ids, found = batch["inputs"][row], []
        columns = ("word_starts", "word_ends", "labels", "label_weights")
        words = zip(*(batch[name][row] for name in columns), predictions["tags"][row])
        for start, end, label, weight, tag in words:
            if end == start or not weight:
                continue
            text = f"{codec.decode(ids[start:end].tolist())}/{self.labels[label]}"
            found.append(text + f"!{self.labels[tag]}" * bool(tag != label))
        return " ".join(found)


def word_prefix(codec: Codec) -> str:
    """Returns the space that belongs to a word, for vocabularies with spaces in pieces.

    In byte-level vocabularies a piece such as " the" begins a word, and "the" only goes
    on with one; others mark what goes on, or have the space as a piece of its own.
    """
    texts = (codec.decode([id]) for id in range(min(codec.vocab_size, PROBED)))
    return " " if any(text[:1] == " " and text.strip() for text in texts) else ""


def pool(hidden: Float[Array, "B T D"], batch: Batch, pieces: str) -> jax.Array:
    """Returns the state of each word, (B, K, D); that of padding has no meaning."""
    starts, ends = batch["word_starts"], batch["word_ends"]
    if pieces != "mean":
        at = starts if pieces == "first" else jnp.maximum(ends - 1, 0)
        return jnp.take_along_axis(hidden, at[..., None], axis=1)
    places = jnp.arange(hidden.shape[1])
    within = (places >= starts[..., None]) & (places < ends[..., None])
    share = within / jnp.maximum(ends - starts, 1)[..., None]
    return jnp.einsum("bkt,btd->bkd", share.astype(hidden.dtype), hidden)


def at_borders(
    batch: Batch, start: Float[Array, "C"], end: Float[Array, "C"]
) -> Float[Array, "B K C"]:
    """Returns the scores of the first and of the last word of each sentence."""
    borders = batch["word_borders"][..., None]
    first = jnp.where(borders & FIRST, start, 0.0)
    return first + jnp.where(borders & LAST, end, 0.0)
