"""The contracts of a tokenizer, and what all tokenizers share.

`Tokenizer` is the section of a config: it copies or trains vocabulary files, and opens
them as a `Codec`, which is all that the other rooms see. The directory of a tokenizer
can be read without `lm`: standard vocabulary files beside `options.json`.
"""

import abc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from lm.errors import ConfigError, DataError

# The roles of special tokens, and the usual names of each in vocabularies.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "bos": ("<s>", "<bos>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|endoftext|>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}

Span = tuple[int, int]  # start and end, in characters

# Returns the training texts from the first one at every call: some trainers read twice.
Texts = Callable[[], Iterator[str]]


@runtime_checkable
class Codec(Protocol):
    """A loaded tokenizer.

    `encode` adds no special token, and no text can produce one: "[MASK]" or "</s>"
    written in a document is encoded as ordinary letters. Two exceptions: `unk_id`
    represents characters without a token, and `line_ends` of a word vocabulary ends
    each line with `eos_id`.

    Attributes:
      vocab_size: V; ids are 0 to V - 1.
      pad_id, bos_id, eos_id, unk_id, cls_id, sep_id, mask_id: None where absent.
      sentinel_ids: T5's <extra_id_0>, <extra_id_1>, ... in this order (which is
        V - 1, V - 2, ...); () where the tokenizer has none.
      special_ids: all of the above, and other tokens that the files mark as special.
      starts_word: (V,) whether the token begins a word; special tokens do. The first
        token of a text always begins one, whatever its entry.
      fingerprint: sha256 of the files and options that change ids.
      directory: where its files lie, and those beside them such as a chat template;
        None: unknown.
    """

    directory: Path | None
    vocab_size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None
    sentinel_ids: tuple[int, ...]
    special_ids: frozenset[int]
    starts_word: Bool[np.ndarray, "V"]
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of every text, by the library's batch call if it has one."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Returns the ids of `encode`, and the span of characters of each.

        Token k covers `text[start:end]` of the text as given, before the tokenizer
        lower-cases, normalises or cuts it. Spans are in order. Tokens that are bytes of
        one character all have the span of that character; tokens of characters that
        the text does not contain (a space added in front, the end of the last line)
        have an empty span.
        """
        ...

    def encode_marked(self, text: str) -> list[int]:
        """Returns the ids of a text in which names of special tokens are those tokens.

        Meant for rendered chat templates; never pass a user's own text.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; of special tokens only the unknown one is shown.

        Raises:
          IndexError: an id outside 0 to V - 1, as a model can generate whose vocabulary
            was rounded up.
        """
        ...

    def token(self, id: int) -> str:
        """Returns the vocabulary's name of `id`; IndexError outside 0 to V - 1."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """A section `tokenizer` of a config: a frozen dataclass of options."""

    def make(self, texts: Texts, directory: Path) -> None:
        """Copies or trains the tokenizer's files into `directory`, which exists.

        Raises:
          ConfigError: options that contradict each other.
          DataError: given files are missing or damaged, or the training texts are
            empty or too rich for the size of the vocabulary.
        """
        ...

    def load(self, directory: Path) -> Codec:
        """Opens the files that `make` wrote.

        Raises:
          DataError: a file is missing or damaged, or was made with other options.
        """
        ...


class TextCodec(abc.ABC):
    """The part of `Codec` that all tokenizers share; a subclass encodes and decodes.

    Args:
      tokens: the vocabulary's names, by id.
      roles: role -> id, or None where the vocabulary has no such token.
      starts_word: for each token, whether it begins a word.
      fingerprint: see `Codec`.
      sentinels: how many sentinels the vocabulary ends with.
      more_special: special tokens without a role.
    """

    directory: Path | None = None

    def __init__(
        self,
        tokens: Sequence[str],
        roles: Mapping[str, int | None],
        *,
        starts_word: Iterable[bool],
        fingerprint: str,
        sentinels: int = 0,
        more_special: Iterable[int] = (),
    ):
        self._tokens = tuple(tokens)
        self.vocab_size = len(tokens)
        self.pad_id, self.unk_id = roles["pad"], roles["unk"]
        self.bos_id, self.eos_id = roles["bos"], roles["eos"]
        self.cls_id, self.sep_id = roles["cls"], roles["sep"]
        self.mask_id = roles["mask"]
        self.sentinel_ids = tuple(len(tokens) - 1 - k for k in range(sentinels))
        special = {id for id in roles.values() if id is not None}
        self.special_ids = frozenset(special | {*self.sentinel_ids, *more_special})
        self.starts_word = np.fromiter(starts_word, bool, len(tokens))
        self.starts_word[list(self.special_ids)] = True
        self.fingerprint = fingerprint
        self._skipped = self.special_ids - {self.unk_id}  # by `decode`

    def encode(self, text: str) -> list[int]:
        """See `Codec`."""
        return self.encode_batch([text])[0]

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Codec`."""

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """See `Codec`."""

    def encode_marked(self, text: str) -> list[int]:
        """See `Codec`."""
        special = {self.token(id): id for id in sorted(self.special_ids)}
        names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        ids: list[int] = []
        for part in re.split(f"({names})", text) if names else [text]:
            if part in special:
                ids.append(special[part])
            elif part:
                ids += self.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """See `Codec`."""
        ids = [int(id) for id in ids]
        if wrong := [id for id in ids if not 0 <= id < self.vocab_size]:
            raise IndexError(f"id {wrong[0]} is not in 0..{self.vocab_size - 1}")
        return self._decode([id for id in ids if id not in self._skipped])

    def token(self, id: int) -> str:
        """See `Codec`."""
        if not 0 <= id < self.vocab_size:
            raise IndexError(f"id {id} is not in 0..{self.vocab_size - 1}")
        return self._tokens[id]

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Returns the text of valid ids."""


def find_roles(
    ids: Mapping[str, int], special: Mapping[str, str], where: object
) -> dict[str, int | None]:
    """Returns the id of each role in a vocabulary, None where it has no such token.

    Args:
      ids: token -> id.
      special: role -> token, for vocabularies with unusual names; "" states that the
        vocabulary has no such token. Other roles are found by their usual names.
      where: the file of the vocabulary, for errors.

    Raises:
      ConfigError: `special` names an unknown role.
      DataError: `special` names a token that the vocabulary lacks.
    """
    for role, token in special.items():
        if role not in ROLES:
            raise ConfigError(
                "tokenizer.special", repr(role), f"one of {', '.join(ROLES)}"
            )
        if token and token not in ids:
            raise DataError(
                str(where),
                f"no token {token!r}",
                f"the token that tokenizer.special names for {role!r}",
                "name a token that the vocabulary has",
            )
    names = {
        role: tuple(filter(None, [special[role]])) if role in special else ROLES[role]
        for role in ROLES
    }
    return {
        role: next((ids[name] for name in names[role] if name in ids), None)
        for role in ROLES
    }


def refuse_reachable(codec: TextCodec, where: object) -> Codec:
    """Returns the codec, unless a text can produce one of its special tokens.

    Args:
      where: the file of the vocabulary, for errors.

    Raises:
      DataError: names the token.
    """
    special = sorted(codec.special_ids - {codec.unk_id})
    for id, ids in zip(special, codec.encode_batch([codec.token(i) for i in special])):
        if id in ids:
            raise DataError(
                str(where),
                f"the special token {codec.token(id)!r} encoded from ordinary text",
                "special tokens that no document can write",
                "leave it out of tokenizer.special, or use another vocabulary",
            )
    return codec
