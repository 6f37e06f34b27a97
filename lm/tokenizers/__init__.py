"""Tokenizers: text to ids and back. `hf`, `spm` and `word` hold one `Tokenizer` each.

`Tokenizer` is the config section: `make(texts, directory)` copies the files it was
given, or trains them, and `load(directory)` gives a `Codec`. The directory explains
itself: standard vocabulary files beside `options.json`.
"""

import abc
import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from lm.errors import ConfigError, DataError, Refusal

# What each special token is for, and the names under which vocabularies hold it.
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

# Gives the training texts from the start at every call: some trainings read twice.
Texts = Callable[[], Iterator[str]]


class Codec(abc.ABC):
    """A loaded tokenizer: everything else in `lm` sees only this.

    `encode` adds no special token, and no text can produce one: "[MASK]" or "</s>"
    written in a document is encoded as ordinary letters. Two exceptions: `unk_id`
    stands for what has no token, and `line_ends` closes the lines of a word vocabulary.

    Attributes:
      vocab_size: V; ids are 0 to V - 1.
      pad_id, bos_id, eos_id, unk_id, cls_id, sep_id, mask_id: None where absent.
      sentinel_ids: T5's <extra_id_0>, <extra_id_1>, ... in this order (which is
        V - 1, V - 2, ...); () where the tokenizer has none.
      special_ids: all of the above and whatever else the files call special.
      starts_word: (V,) whether the token begins a word; special tokens do. The first
        token of a text begins one whatever stands here: only the place shows it.
      fingerprint: sha256 over the files and options that change ids.
    """

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

    def __init__(
        self,
        tokens: Sequence[str],
        roles: dict[str, int | None],
        *,
        starts_word: Iterable[bool],
        fingerprint: str,
        sentinels: int = 0,
        more_special: Iterable[int] = (),
    ):
        self._tokens = tuple(tokens)
        self.vocab_size = len(tokens)
        for role in ROLES:
            setattr(self, f"{role}_id", roles[role])
        self.sentinel_ids = tuple(len(tokens) - 1 - k for k in range(sentinels))
        special = {id for id in roles.values() if id is not None}
        self.special_ids = frozenset(special | {*self.sentinel_ids, *more_special})
        self.starts_word = np.fromiter(starts_word, bool, len(tokens))
        self.starts_word[list(self.special_ids)] = True
        self.fingerprint = fingerprint
        self._unwritten = self.special_ids - {self.unk_id}

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text, by the library's batch call where it has one."""

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """The ids of `encode`, and the characters of the text that each stands for.

        Token k comes of `text[start:end]`, in the text as it was given: before the
        tokenizer lower-cases, normalises or cuts it. Spans are in order; tokens that
        are bytes of one character all have that character, and what the text does not
        hold (a space put before it, the end of its last line) has an empty span.
        """

    def encode_marked(self, text: str) -> list[int]:
        """Returns the ids of a text in which special tokens stand by name.

        A rendered chat template is one; no text of a user goes this way by itself.
        """
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
        """The text of `ids` without its special tokens (unknown ones are shown).

        Raises IndexError at an id that is no token's, as when the ids come from a model
        whose vocabulary was rounded up.
        """
        ids = [int(id) for id in ids]
        if wrong := [id for id in ids if not 0 <= id < self.vocab_size]:
            raise IndexError(f"id {wrong[0]} is not in 0..{self.vocab_size - 1}")
        return self._decode([id for id in ids if id not in self._unwritten])

    def token(self, id: int) -> str:
        """The vocabulary's name of `id`; IndexError outside 0 to V - 1."""
        if not 0 <= id < self.vocab_size:
            raise IndexError(f"id {id} is not in 0..{self.vocab_size - 1}")
        return self._tokens[id]

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """The text of ids without special tokens."""


def find_roles(
    ids: dict[str, int], special: dict[str, str], where: object
) -> dict[str, int | None]:
    """The id of each role in a vocabulary `ids`: as `special` says, else as is usual.

    Args:
      special: role → token, for vocabularies with names of their own; "" where the
        vocabulary has no such token, whatever its names are.
      where: the file of the vocabulary, for the errors.
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


def index_tokens(tokens: Sequence[str], path: object) -> dict[str, int]:
    """token → id; DataError where a token stands twice or there is none."""
    ids: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if token in ids:
            raise DataError(
                f"{path}:{number + 1}",
                f"{token!r} again (first on line {ids[token] + 1})",
                "every token once",
                "remove or rename one of the two lines",
            )
        ids[token] = number
    if not ids:
        raise DataError(str(path), "no token", "one token per line")
    return ids


def read_bytes(path: Path) -> bytes:
    """A file of a tokenizer's directory; DataError where it is absent."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            str(path), "no such file", "a file of the tokenizer", "make it again"
        ) from None


def read_text(path: Path) -> str:
    """A UTF-8 file, its line ends as they are; DataError otherwise."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            str(path),
            f"a byte that is not UTF-8 at offset {error.start}",
            "UTF-8 text",
            "convert the file to UTF-8, or fetch it again",
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of a vocabulary: a token may hold any separator but a line feed."""
    text = read_text(path).replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def require_path(path: str) -> Path:
    """The file or folder that `tokenizer.path` names; DataError where there is none."""
    if not Path(path).exists():
        raise DataError(
            "tokenizer.path",
            f"no file or folder {path!r}",
            "vocabulary files",
            "correct the path, or leave it out to train on the config's own texts",
        )
    return Path(path)


BESIDE = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)


def keep_beside(path: Path, directory: Path) -> None:
    """Copies the files of a checkpoint that a run reads later and no id depends on.

    They are its chat template, its defaults of generation (config.json holds them where
    there is no generation_config.json), and the settings that an export writes again.
    """
    folder = path if path.is_dir() else path.parent
    for name in BESIDE:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, directory / name)


def no_texts() -> DataError:
    return DataError(
        "tokenizer",
        "training texts without a single word to keep",
        "texts to train the vocabulary on",
        "check data.sources and tokenizer.min_count, or give tokenizer.path",
    )


def alphabet_too_large(
    kind: str, needed: int, vocab_size: int | None, fix: str
) -> DataError:
    return DataError(
        "tokenizer.vocab_size",
        str(vocab_size),
        f"at least {needed} for the alphabet and special tokens of these {kind} texts",
        fix,
    )


def write_options(options: Any, directory: Path) -> None:
    """Writes the fields of a `Tokenizer` beside its files."""
    text = json.dumps(dataclasses.asdict(options), indent=2, sort_keys=True)
    (directory / "options.json").write_text(text + "\n", encoding="utf-8")


def fingerprint(
    options: Any, encoding: Sequence[str], directory: Path, files: Sequence[str]
) -> str:
    """sha256 over the options named in `encoding` and the bytes of `files`.

    Raises DataError if the directory was made with other values of those options: the
    same files would then give other ids.
    """
    made = directory / "options.json"
    try:
        stored = json.loads(read_text(made))
    except ValueError as error:
        raise DataError(
            str(made), f"broken JSON ({error})", "the tokenizer's options"
        ) from None
    digest = hashlib.sha256(type(options).__module__.encode())
    for name in encoding:
        value = json.loads(json.dumps(getattr(options, name)))
        if name not in stored or stored[name] != value:
            raise DataError(
                f"tokenizer.{name}",
                repr(value),
                f"{stored.get(name)!r}, with which {directory} was made",
                "set it back, or use a new workdir",
            )
        digest.update(f"\0{name}={json.dumps(value, sort_keys=True)}".encode())
    for name in files:
        content = read_bytes(directory / name)
        digest.update(f"\0{name}:{len(content)}\0".encode() + content)
    return digest.hexdigest()


@contextlib.contextmanager
def guarded(where: object, expected: str) -> Iterator[None]:
    """Turns what a native library raises into a DataError that names the file.

    A panic of Rust code is no Exception, only a BaseException.
    """
    try:
        yield
    except (Refusal, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            str(where),
            f"a broken tokenizer ({found:.200})",
            expected,
            "fetch the file again, or use another tokenizer",
        ) from None


def refuse_reachable(codec: Codec, where: object) -> Codec:
    """The codec; DataError if its own text can produce one of its special tokens."""
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
