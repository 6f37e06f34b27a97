"""The contract of an objective: how examples are made, and the loss on a batch."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lm.data.buckets import RowLengths
from lm.data.index import Index, Layout
from lm.data.scoring import Scored, Settings, Text
from lm.data.sources.base import Record
from lm.errors import ConfigError, DataError, Rule
from lm.models.base import Head
from lm.ops.distillation import Soft
from lm.tokenizers.base import Codec
from lm.tokenizers.dialogues import Form

Batch = dict[str, Array]
Rows = dict[str, np.ndarray]  # A batch on the host.
# The arrays that an encoder reads.
SOURCE = frozenset({"source_inputs", "source_positions", "source_segment_ids"})
Terms = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]  # {term: (sum, count)}


class Asked(NamedTuple):
    """A row that was made of a record, and what the model predicts for it.

    Attributes:
      row: the `pieces` and the values that the layout gave it.
      example: the arrays that the transforms made of it.
      predictions: its part of what `Objective.predict` returned.
    """

    row: Mapping[str, Any]
    example: Mapping[str, Any]
    predictions: Mapping[str, np.ndarray]


class Lesson(NamedTuple):
    """The loss of a batch, and what a student has to compare with its teacher.

    Attributes:
      terms: as `Objective.loss` returns them.
      hidden: the states of the model's last layer.
      soft: the logits of the targets, by term; not every term has some.
    """

    terms: Terms
    hidden: Float[Array, "B T D"]
    soft: dict[str, Soft]


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """The base of every objective; the fields of a subclass are `config.objective`.

    On the host, `layout` defines the rows (built once and cached), and `transforms`
    turn a row into an example. On the device, with `model` bound to its parameters,
    `loss` returns the sum over the targets of each term and their number; `counts`
    returns the same numbers from the batch alone, so that an update can first total
    them over micro-batches and devices. The loss is the sum over terms of sum / count;
    a term without targets contributes 0.

    The arrays of a batch (B rows, T positions) have these names:

        inputs, positions, segment_ids (B, T)   segments count the texts of a row from
                                                1, 0 is padding; positions count the
                                                tokens of a text from 0
        token_types (B, T)                      sentence A or B
        characters (B, T, M)                    UTF-8 bytes of each token's word, from 1
        lowered, classes (B, T)                 of tokens that are characters, their
                                                numbers in lm.ops.words.Letters
        prefix (B, T) bool                      positions visible to their whole text
        targets, weights (B, T)                 or (B, K) with target_positions (B, K)
        labels (B,), label_weights (B,)         one per row
        text_keys (B, K, 2)                     equal for equal texts, of K in a row
        source_inputs, ... (B, S)               the same arrays for an encoder
        example_ids (B, 3)                      stays on the host

    Padding rows fill an evaluation set up to whole batches: copies of the first example
    in which every array whose name ends in `weights` is zero. A loss, a count or a
    metric must multiply what it sums by such an array. No token id means padding by
    itself; segment 0 does.

    Attributes:
      can: the abilities that the objective offers beside training. Each word promises
        methods and properties of the batches:

        "tokens"      `token_term` names a term whose targets are token ids, in the
                      arrays `targets` and `weights`
        "bytes"       rows have the fields `bytes` and `words`: the numbers of UTF-8
                      bytes and of words (lm.data.windows.Measure) of the tokens that
                      are targets of `token_term`, each token at most once
        "tags"        `predict` returns `tags` (B, K), the numbers of `labels` for the
                      words of a row; `reader` reads words and tags of a record,
                      `assign` puts the tags of rows together, `spans` finds spans
        "labels"      `label_of` and `conclude`; `predict` returns `logits` (B, C) for
                      the array `labels`; rows of one record have one label
        "classes"     `class_names`, and `predict` returns `probabilities` (B, C)
        "numbers"     `predict` returns `scores` (B,)
        "embeddings"  `predict` returns `embeddings` (B, K, D) for the K texts of a row
        "similarities"  `label_of`, and `predict` returns `scores` (B,), the similarity
                      of the two texts of a row, for the numbers `labels`
        "show"        `show`, and `predict` returns the predictions that it needs
        "prompt"      `prompt` and `sees_prompt`
        "dialogue"    `form`: how the turns of a dialogue are written; `prompt` takes a
                      user's turn
        "reference"   `refer`: what a frozen model says of a batch, by which the loss
                      compares it with the model that is trained
        "references"  `references` and `prompt_of`; an unpacked row holds one record
        "score"       `score_fields`, `score_rows`, `score` and `measure`
        "answers"     `unlabelled`, `says` and `answers`: predictions for records that
                      have no label; `layout` makes unpacked rows, and `transforms` use
                      nothing of the index
        "extracts"    `extract`, which puts the answer to a question together of what
                      `predict` returns for its rows, `reader`, and `null_threshold`
                      (see objectives/span_qa.py)
        "lesson"      `lesson`, `agreement`: by which a teacher's logits are learned
        "rows"        `spans`, `touched` and `terms` (lm/objectives/by_rows.py)
        "trees"       `predict` returns the nodes of trees (see objectives/parsing.py),
                      `parse_of` makes trees of them, and `tree` names the column of
                      the true ones

      token_term: the name of the term that "tokens" promises.
    """

    can: ClassVar[frozenset[str]] = frozenset()
    token_term: ClassVar[str | None] = None

    # ── Requirements on the config and the model ────────────────────────────────────

    @property
    def needs(self) -> frozenset[str]:
        """Lists the required abilities of the model (lm/models/base.py)."""
        return frozenset({"hidden", "logits"})

    @property
    def gives(self) -> frozenset[str]:
        """Lists the arrays of its batches that not every objective has.

        These are `token_types`, `characters`, `lowered`, `classes`, `prefix` and
        SOURCE. A model whose `reads` requires another array is refused.
        """
        return frozenset()

    @property
    def along(self) -> frozenset[str]:
        """Lists the arrays of its batches with a value for each position of a row.

        Those of the model's own inputs are known (lm/data/buckets.py).
        """
        return frozenset()

    @property
    def packs(self) -> bool:
        """Tells whether a row may hold several examples (`data.pack`)."""
        return True

    @property
    def streams(self) -> bool:
        """Whether each row begins where the row before it ends.

        An objective without such rows is refused with `data.order="stream"`.
        """
        return False

    @property
    def interacts(self) -> bool:
        """Tells whether the loss of an example depends on the others of its batch.

        In-batch negatives are a case. Such an objective is refused with `grad_accum`
        above 1.
        """
        return False

    def heads(self) -> tuple[Head, ...]:
        """Returns the heads that the model must have, under `heads/<name>`."""
        return ()

    def rules(self, config: Mapping[str, Any]) -> Iterator[Rule]:
        """Yields the conditions between its own fields and the rest of the config.

        The caller checks them before it touches the workdir, and with them what
        follows from `needs`, `packs`, `interacts` and `lengths`.
        """
        yield from ()

    def lengths(self, seq_len: int) -> dict[str, int]:
        """Returns the lengths of a row's sequences, by the config field of each."""
        return {"seq_len": seq_len}

    def small(self) -> dict[str, Any]:
        """Returns the fields to change for rows of at most 128 tokens.

        `lm.verify` shrinks a config with them.
        """
        return {}

    # ── On the host ─────────────────────────────────────────────────────────────────

    def columns(self) -> tuple[str, ...]:
        """Returns the columns that hold text; a tokenizer is trained on them."""
        return ("text",)

    @abc.abstractmethod
    def layout(self, codec: Codec, *, seq_len: int, pack: bool) -> Layout:
        """Returns the rule by which records become rows.

        It is part of the fingerprint of an index: when it changes, rows are built
        again.

        Args:
          codec: the tokenizer.
          seq_len: tokens of a row (`config.seq_len`).
          pack: whether a row may hold several examples.

        Raises:
          ConfigError: the lengths leave no room for an example.
          DataError: the tokenizer lacks a token that the objective needs.
        """

    @abc.abstractmethod
    def transforms(
        self, index: Index, codec: Codec, *, seq_len: int
    ) -> tuple[Callable[..., dict[str, Any]], ...]:
        """Returns functions (example, rng) -> example, applied to a row in order.

        Raises:
          DataError: the rows of the index cannot become examples.
        """

    def row_lengths(self, layout: Any, index: Index) -> RowLengths | None:
        """Returns how many positions each row needs, for batches of short rows.

        With None, as by default, each row is padded to its full length. Otherwise the
        transforms must pad to the `lengths` that the example has then, as those of
        lm/data/transforms.py do. It is not asked where rows are packed.

        Args:
          layout: what made the rows.
        """
        return None

    def by_counts(
        self, counts: Callable[[], np.ndarray], codec: Codec, *, seq_len: int
    ) -> tuple[Callable[..., dict[str, Any]], ...]:
        """Returns further functions, which depend on how frequent tokens are.

        Args:
          counts: returns how often each token occurs in the training rows, (V,).
        """
        return ()

    def tokens(self, batch: Rows) -> int:
        """Counts the tokens of a batch, from which the throughput is computed.

        Tokens are all positions except padding; in a batch without `segment_ids` they
        are the targets.
        """
        if "segment_ids" in batch:
            return int(np.count_nonzero(batch["segment_ids"]))
        names = [name for name in batch if name.endswith("weights")]
        return sum(int(np.count_nonzero(batch[name])) for name in names)

    # ── On the device ───────────────────────────────────────────────────────────────
    # An objective types `model` by the protocol of lm/models/base.py that its `needs`
    # stand for; what they have in common is too little to type it here.

    @abc.abstractmethod
    def loss(self, model: Any, batch: Batch, *, train: bool) -> Terms:
        """Returns (summed loss of the targets in nats, number of targets) per term."""

    @abc.abstractmethod
    def counts(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Returns the number of targets per term, from the batch alone."""

    def metrics(self, model: Any, batch: Batch) -> Terms:
        """Returns {metric: (sum, count)}, which the evaluator `mean` averages.

        By default these are the losses without dropout, named `<term>_loss`. Objectives
        that offer "tokens" add `known_nats`, the loss by `known_weights`, where a batch
        has them: those of the targets that are not the unknown token.
        """
        terms = self.loss(model, batch, train=False)
        return {f"{term}_loss": pair for term, pair in terms.items()}

    def measures(self) -> tuple[str, ...] | None:
        """Returns the names that `metrics` has; None if they are not known before."""
        return None

    def predict(self, model: Any, batch: Batch) -> dict[str, Array]:
        """Returns the predictions for a batch, with rows on axis 0 of each array.

        The abilities in `can` define which arrays these are.
        """
        raise self._lacks("predictions")

    def lesson(self, model: Any, batch: Batch, *, train: bool) -> Lesson:
        """Returns what `loss` does, with the states and logits it is of ("lesson")."""
        raise self._lacks("lesson")

    def teaching(self, student: Any) -> "Objective":
        """Returns this objective for the rows of a student of its class ("lesson")."""
        return self

    def agreement(self, codec: Codec) -> dict[str, Any]:
        """Returns what a teacher and its student must have in common ("lesson").

        That is the special tokens of a row and the meaning of logits, field by field.
        """
        raise self._lacks("lesson")

    # ── Abilities that some objectives declare in `can` ─────────────────────────────

    def show(self, batch: Rows, predictions: Rows, codec: Codec, row: int) -> str:
        """Formats a row of a batch and its predictions as text ("show")."""
        raise self._lacks("show")

    def prompt(self, codec: Codec, text: str) -> list[int]:
        """Encodes a text that the model is to continue or to answer ("prompt")."""
        raise self._lacks("prompt")

    def form(self, codec: Codec) -> Form:
        """Returns how dialogues are written ("dialogue")."""
        raise self._lacks("dialogue")

    def refer(self, model: Any, batch: Batch) -> dict[str, Array]:
        """Returns arrays for a batch, by the frozen base alone ("reference")."""
        raise self._lacks("reference")

    @property
    def sees_prompt(self) -> bool:
        """Tells whether all tokens of a prompt see each other, as in a prefix LM."""
        return False

    def references(self, record: Record) -> tuple[str, ...]:
        """Returns all reference texts of a record, as its source has them."""
        raise self._lacks("references")

    def prompt_of(self, example: Rows) -> list[int]:
        """Returns the token ids of an example's prompt ("references")."""
        raise self._lacks("references")

    @property
    def score_fields(self) -> tuple[tuple[str, ...], ...]:
        """Returns the fields of an input to be scored, for each of its forms ("score").

        The last field of each is the text whose tokens are scored; one before it is
        its context or source.
        """
        raise self._lacks("score")

    def score_rows(
        self, codec: Codec, text: Text, settings: Settings, *, limit: int | None
    ) -> Scored:
        """Makes the rows by which a text is scored ("score").

        Args:
          limit: how many tokens the model can read at a time; None: any number.

        Raises:
          DataError: the tokenizer lacks a token that is needed.
        """
        raise self._lacks("score")

    def measure(self, settings: Settings) -> str:
        """Names what the sum of the scores of a text is ("score")."""
        return "log_likelihood"

    def score(
        self, model: Any, batch: Batch
    ) -> tuple[Float[Array, "*targets"], Bool[Array, "*targets"]]:
        """Returns log p of each target in nats, and whether it is the best ("score").

        Both have the shape of `weights`. Values at positions of weight 0 have no
        meaning.
        """
        raise self._lacks("score")

    def label_of(self, target: np.ndarray | np.generic) -> Any:
        """Returns the label of a row, an element of `labels`, as JSON ("labels")."""
        raise self._lacks("labels")

    def conclude(self, logits: Float[Array, "B C"]) -> dict[str, Array]:
        """Returns the predictions for logits, such as means over windows ("labels")."""
        raise self._lacks("labels")

    def class_names(self) -> tuple[str, ...]:
        """Returns the label of each class in the order of their ids ("classes")."""
        raise self._lacks("classes")

    def unlabelled(self) -> "Objective":
        """Returns this objective for records without labels ("answers").

        Its rows hold all that `predict` needs.
        """
        raise self._lacks("answers")

    @property
    def says(self) -> Mapping[str, tuple[str, ...]]:
        """Returns what can be asked for, and the fields of each answer ("answers").

        The first is given where nothing else is asked for. Of a classifier they are
        {"probabilities": ("label", "probabilities"), "labels": ("label",), ...}.
        """
        raise self._lacks("answers")

    def answers(
        self, record: Record, rows: Sequence[Asked], codec: Codec
    ) -> dict[str, Any]:
        """Returns the answer to a record, with all fields of `says` ("answers").

        The values are those of JSON. A field `truncated` counts the tokens that no row
        has. `rows` are those of the record in their order, at least one; of a record
        without rows, such as one that `too_long` skips, every field is None.
        """
        raise self._lacks("answers")

    # ── The vectors of words, of a model that "embeds" ──────────────────────────────

    def spell(self, words: Sequence[str], codec: Codec) -> np.ndarray:
        """Returns the ids that make the vector of each word, (W, K).

        -1 is none. A word has a vector if it is a token of the vocabulary, alone or
        after a space; `lm.objectives.word2vec` makes vectors of other words too.
        """
        found = [whole_token(word, codec) for word in words]
        return np.asarray(found, np.int32).reshape(-1, 1)

    def embed(self, model: Any, ids: Int[Array, "W K"]) -> Float[Array, "W D"]:
        """Computes the vector of each word, which has at least one id."""
        return model.vectors(ids[:, 0])

    def _lacks(self, ability: str) -> ConfigError:
        """Makes the error for a method that a subclass does not offer."""
        return ConfigError(
            "objective.name",
            f"{type(self).__module__}, which does not offer {ability!r}",
            "an objective that does",
        )


def whole_token(word: str, codec: Codec) -> int:
    """Returns the id of the token that is a whole word; -1 if there is none.

    Tokens without letters that a tokenizer adds do not count: the end of a line, or
    SentencePiece's sign for the space before a text, which words of a script without
    spaces seldom have within their own token.
    """
    for text in (word, f" {word}"):
        ids = codec.encode(text)
        if 1 < len(ids) <= 3:
            ids = [id for id in ids if codec.decode([id]).strip() or id == codec.unk_id]
        if len(ids) == 1 and ids[0] not in codec.special_ids:
            return ids[0]
    return -1


def delimiters(codec: Codec, asker: str, fix: str | None = None) -> tuple[int, int]:
    """Returns the ids of [CLS] and [SEP].

    Args:
      asker: the option that needs them, for the error.

    Raises:
      DataError: the tokenizer lacks one of them.
    """
    if codec.cls_id is None or codec.sep_id is None:
        raise DataError("tokenizer", "no [CLS] or [SEP]", f"both, for {asker}", fix)
    return codec.cls_id, codec.sep_id


def around(codec: Codec, wrap: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids of the special tokens before and after a text.

    Args:
      wrap: "delimiters", [CLS] and [SEP]; "bos", the token that begins a text; "none".

    Raises:
      DataError: the tokenizer lacks one of them.
    """
    if wrap == "none":
        return (), ()
    if wrap == "bos":
        if codec.bos_id is None:
            expected = "one, for objective.wrap=bos"
            raise DataError("tokenizer", "no token that begins a text", expected)
        return (codec.bos_id,), ()
    fix = "without them set objective.wrap=none"
    cls_id, sep_id = delimiters(codec, "objective.wrap=delimiters", fix)
    return (cls_id,), (sep_id,)
