"""Whole words, characters or bytes: a vocabulary is a list, one token per line."""

import abc
import dataclasses
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from lm.errors import ConfigError, DataError
from lm.tokenizers.base import ROLES, Codec, Span, TextCodec, Texts, find_roles
from lm.tokenizers.files import (
    alphabet_too_large,
    fingerprint,
    index_tokens,
    no_texts,
    read_lines,
    require_path,
    write_options,
)

BOUNDS = {"vocab_size": "[1, 16777216]", "min_count": "[1, 4294967295]"}

ENCODING = ("kind", "lowercase", "line_ends", "special")
FILE = "vocab.txt"
WORD = re.compile(r"\S+")  # what str.split gives
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    r"""Options of a vocabulary of words, characters or bytes.

    Attributes:
      kind: `word` splits at white space, `char` at every character, `byte` at every
        byte of UTF-8 (which needs no texts and knows every text).
      path: a vocabulary, one token per line (or a folder with `vocab.txt`), where the
        characters line feed and carriage return stand as \n and \r; None counts.
      vocab_size: the most tokens kept, special tokens included; None keeps all. Words
        are kept by frequency, ties in alphabetical order; a set of characters is sorted
        and refused where it is larger.
      min_count: words and characters seen less often are unknown.
      lowercase: lower-case every text.
      line_ends: word only: every line ends with the `eos` token, as in the published
        WikiText and Penn Treebank figures.
      specials: roles of a new vocabulary, whose tokens <pad>, <unk>, ... come first.
      special: role → token for given vocabularies with unusual names.
    """

    kind: Literal["word", "char", "byte"] = "word"
    path: str | None = None
    vocab_size: int | None = None
    min_count: int = 1
    lowercase: bool = False
    line_ends: bool = False
    specials: tuple[str, ...] = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
    special: dict[str, str] = dataclasses.field(default_factory=dict)

    def make(self, texts: Texts, directory: Path) -> None:
        """Writes `vocab.txt` into `directory`, which exists.

        Raises DataError for a file that is missing or holds a token twice and for empty
        texts, ConfigError for options that do not go together.
        """
        self._check()
        if self.path is not None:
            shutil.copyfile(find_vocabulary(require_path(self.path)), directory / FILE)
        else:
            special = [f"<{role}>" for role in self.specials]
            tokens = special + (BYTES if self.kind == "byte" else self._count(texts))
            lines = "".join(escape(token) + "\n" for token in tokens)
            (directory / FILE).write_text(lines, encoding="utf-8", newline="")
        write_options(self, directory)
        self.load(directory)

    def load(self, directory: Path) -> Codec:
        """Reads what `make` wrote; DataError where it is damaged or does not fit."""
        path = directory / FILE
        stamp = fingerprint(self, ENCODING, directory, [FILE])
        tokens = [unescape(line) for line in read_lines(path)]
        ids = index_tokens(tokens, path)
        roles = find_roles(ids, self.special, path)
        special = {id for id in roles.values() if id is not None}
        plain = {token: id for token, id in ids.items() if id not in special}
        needed = {"unk"} if self.kind != "byte" else set()
        for role in needed | ({"eos"} if self.line_ends else set()):
            if roles[role] is None:
                raise DataError(
                    str(path),
                    f"{len(tokens)} tokens, none for {role!r}",
                    f"one of {', '.join(ROLES[role])}",
                    f'name it: tokenizer.special={{"{role}": ...}}',
                )
        wrong = {
            "word": [t for t in plain if t.split() != [t]],
            "char": [t for t in plain if len(t) != 1],
            "byte": sorted(plain.keys() ^ {*BYTES}),
        }[self.kind]
        if wrong:
            raise DataError(
                f"{path}:{ids.get(wrong[0], len(tokens) - 1) + 1}",
                repr(wrong[0]) if wrong[0] in ids else f"no token {wrong[0]!r}",
                {
                    "word": "a word without white space",
                    "char": "a single character",
                    "byte": "the 256 bytes <0x00> to <0xFF> and special tokens",
                }[self.kind],
                "correct the line, or tokenizer.kind",
            )
        if self.kind == "word":
            starts = (True for _ in tokens)
        elif self.kind == "char":
            starts = (token.isspace() for token in tokens)
        else:
            starts = (
                token in BYTES and chr(BYTES.index(token)).isspace() for token in tokens
            )
        codecs: dict[str, Callable[..., ListCodec]] = {
            "word": WordCodec,
            "char": CharCodec,
            "byte": ByteCodec,
        }
        return codecs[self.kind](
            tokens,
            roles,
            starts_word=starts,
            fingerprint=stamp,
            plain=plain,
            options=self,
        )

    def _check(self) -> None:
        unknown = [role for role in self.specials if role not in ROLES]
        if unknown or len({*self.specials}) < len(self.specials):
            raise ConfigError(
                "tokenizer.specials",
                repr(self.specials),
                f"some of {', '.join(ROLES)}, each once",
            )
        if self.kind != "byte" and self.path is None and "unk" not in self.specials:
            raise ConfigError(
                "tokenizer.specials", repr(self.specials), "'unk' among them"
            )
        if self.line_ends and self.kind != "word":
            raise ConfigError(
                "tokenizer.line_ends", f"True with kind={self.kind!r}", 'kind="word"'
            )
        if self.line_ends and self.path is None and "eos" not in self.specials:
            raise ConfigError(
                "tokenizer.specials",
                repr(self.specials),
                "'eos', since line_ends is set",
            )

    def _count(self, texts: Texts) -> list[str]:
        counts: Counter[str] = Counter()
        for text in texts():
            text = text.lower() if self.lowercase else text
            counts.update(text.split() if self.kind == "word" else text)
        # The letters "<pad>" in a text are an unknown word, never the special token.
        for role in ROLES:
            for name in (*ROLES[role], f"<{role}>"):
                counts.pop(name, None)
        kept = [token for token, count in counts.items() if count >= self.min_count]
        if not any(token.strip() for token in kept):
            raise no_texts()
        room = len(kept)
        if self.vocab_size is not None:
            room = self.vocab_size - len(self.specials)
        needed = 1 if self.kind == "word" else len(kept)
        if room < needed:
            raise alphabet_too_large(
                self.kind,
                needed + len(self.specials),
                self.vocab_size,
                "raise it, or tokenizer.min_count",
            )
        if self.kind == "char":
            return sorted(kept)
        return sorted(kept, key=lambda token: (-counts[token], token))[:room]


class ListCodec(TextCodec):
    """Looks tokens up in `plain`, the part of a vocabulary that texts can produce."""

    def __init__(
        self, *args: Any, plain: dict[str, int], options: Tokenizer, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self._plain, self._options = plain, options

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._options.lowercase:
            texts = [text.lower() for text in texts]
        return [self._encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        spans = self._spans(text)
        if self._options.lowercase:
            text = text.lower()
        return self._encode(text), spans

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Returns the ids of a text that is lower-cased, if at all, already."""

    @abc.abstractmethod
    def _spans(self, text: str) -> list[Span]:
        """Returns the span of each token of a text that is not lower-cased yet."""

    def _look_up(self, tokens: Iterable[str]) -> list[int]:
        """Returns the ids of tokens; that of the unknown token for unknown ones."""
        find, unk = self._plain.get, self.unk_id
        assert unk is not None  # `load` refuses a vocabulary without it.
        return [find(token, unk) for token in tokens]


class WordCodec(ListCodec):
    def _encode(self, text: str) -> list[int]:
        if not self._options.line_ends:
            return self._look_up(text.split())
        end = [] if self.eos_id is None else [self.eos_id]
        ids: list[int] = []
        for line in text.removesuffix("\n").split("\n"):
            ids += self._look_up(line.split()) + end
        return ids

    def _spans(self, text: str) -> list[Span]:
        if not self._options.line_ends:
            return [word.span() for word in WORD.finditer(text)]
        spans, start = [], 0
        for line in text.removesuffix("\n").split("\n"):
            end = start + len(line)
            spans += [word.span() for word in WORD.finditer(text, start, end)]
            spans.append((end, min(end + 1, len(text))))
            start = end + 1
        return spans

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(id) for id in ids]
        if not self._options.line_ends:
            return super().decode(ids)
        lines: list[list[int]] = [[]]
        for id in ids:
            if id == self.eos_id:
                lines.append([])
            else:
                lines[-1].append(id)
        return "\n".join(super(WordCodec, self).decode(line) for line in lines)

    def _decode(self, ids: list[int]) -> str:
        return " ".join(self._tokens[id] for id in ids)


class CharCodec(ListCodec):
    def _encode(self, text: str) -> list[int]:
        return self._look_up(text)

    def _spans(self, text: str) -> list[Span]:
        lower = self._options.lowercase
        # A few characters are two in lower case.
        sizes = (len(c.lower()) if lower else 1 for c in text)
        return [(at, at + 1) for at, size in enumerate(sizes) for _ in range(size)]

    def _decode(self, ids: list[int]) -> str:
        return "".join(self._tokens[id] for id in ids)


class ByteCodec(ListCodec):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._ids = [self._plain[name] for name in BYTES]
        self._bytes = {id: byte for byte, id in enumerate(self._ids)}

    def _encode(self, text: str) -> list[int]:
        return [self._ids[byte] for byte in text.encode()]

    def _spans(self, text: str) -> list[Span]:
        lower = self._options.lowercase
        sizes = (len((c.lower() if lower else c).encode()) for c in text)
        return [(at, at + 1) for at, size in enumerate(sizes) for _ in range(size)]

    def _decode(self, ids: list[int]) -> str:
        known = bytes(self._bytes[id] for id in ids if id in self._bytes)
        return known.decode(errors="replace")


def escape(token: str) -> str:
    return {"\n": "\\n", "\r": "\\r"}.get(token, token)


def unescape(line: str) -> str:
    return {"\\n": "\n", "\\r": "\r"}.get(line, line)


def find_vocabulary(path: Path) -> Path:
    """Returns the vocabulary that `path` is or holds."""
    found = path / FILE if path.is_dir() else path
    if not found.exists() or found.suffix in (".model", ".json"):
        raise DataError(
            f"tokenizer.path ({path})",
            "no vocab.txt" if path.is_dir() else found.name,
            "a vocabulary with one token per line",
            '.json files are read by tokenizer.name="hf", .model files by "spm"',
        )
    return found
