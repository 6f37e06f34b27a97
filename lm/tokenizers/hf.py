"""WordPiece and byte-level BPE, by Hugging Face's `tokenizers` library.

WordPiece: Schuster and Nakajima, "Japanese and Korean Voice Search" (2012), as in BERT
(Devlin et al., 2019). Byte-level BPE: Radford et al., "Language Models are Unsupervised
Multitask Learners" (2019), section 2.2.
"""

import bisect
import dataclasses
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lm.errors import DataError
from lm.tokenizers.base import (
    Codec,
    Span,
    TextCodec,
    Texts,
    find_roles,
    refuse_reachable,
)
from lm.tokenizers.files import (
    fingerprint,
    guarded,
    index_tokens,
    keep_beside,
    read_lines,
    read_text,
    require_path,
    write_options,
)
from lm.tokenizers.hf_training import bert_normalizer, train_bpe, train_wordpiece

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "min_frequency": "[1, 4294967295]",
    "character_coverage": "(0, 1]",
}

# The options that change ids; the others matter only while the files are made.
ENCODING = ("kind", "lowercase", "add_prefix_space", "special")

# The files of each kind, as {name in the tokenizer's directory: name of the source}.
LAYOUTS = {
    "wordpiece": ({"tokenizer.json": "tokenizer.json"}, {"vocab.txt": "vocab.txt"}),
    "bpe": (
        {"tokenizer.json": "tokenizer.json"},
        {"vocab.json": "vocab.json", "merges.txt": "merges.txt"},
        {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"},
    ),
    "unigram": ({"tokenizer.json": "tokenizer.json"},),
}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Options of a WordPiece or byte-level BPE tokenizer, or of a given unigram one.

    Attributes:
      kind: what the files hold, or what is trained (a unigram model: by name="spm").
      path: a folder or file of `vocab.txt`, `vocab.json` and `merges.txt` (also
        `encoder.json` and `vocab.bpe`), or `tokenizer.json`; None trains.
      vocab_size: the size to train, special tokens included; reached only if the texts
        hold enough. Pieces seen fewer than `min_frequency` times are not made.
      character_coverage: share of the texts' characters that a trained WordPiece
        alphabet covers; words with rarer ones are unknown.
      lowercase: lower-case and, for WordPiece, strip accents. None asks the vocabulary:
        WordPiece without an upper-case piece does, everything else does not.
      add_prefix_space: BPE reads the first word of a text as if a space preceded it.
      special: role → token for vocabularies with unusual names, for example
        {"bos": "<|begin_of_text|>"}; `lm.tokenizers.base.ROLES` lists the usual ones.
    """

    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    path: str | None = None
    vocab_size: int = 30522
    min_frequency: int = 2
    character_coverage: float = 0.9999
    lowercase: bool | None = None
    add_prefix_space: bool = False
    special: dict[str, str] = dataclasses.field(default_factory=dict)

    def make(self, texts: Texts, directory: Path) -> None:
        """Writes the tokenizer's files into `directory`, which exists.

        Raises DataError for files that are missing, of another kind or inconsistent,
        and for texts that are empty or too rich for `vocab_size`.
        """
        if self.path is not None:
            for name, source in find_files(require_path(self.path), self.kind).items():
                shutil.copyfile(source, directory / name)
            keep_beside(Path(self.path), directory)
        elif self.kind == "unigram":
            raise DataError(
                "tokenizer.kind",
                "'unigram' without tokenizer.path",
                "its tokenizer.json",
                'tokenizer.name="spm" trains one',
            )
        elif self.kind == "wordpiece":
            tokens = train_wordpiece(
                texts,
                self.vocab_size,
                min_frequency=self.min_frequency,
                character_coverage=self.character_coverage,
                lowercase=self.lowercase is not False,
            )
            (directory / "vocab.txt").write_text(
                "".join(token + "\n" for token in tokens), encoding="utf-8", newline=""
            )
        else:
            train_bpe(
                texts,
                self.vocab_size,
                directory,
                min_frequency=self.min_frequency,
                lowercase=bool(self.lowercase),
                add_prefix_space=self.add_prefix_space,
            )
        write_options(self, directory)
        self.load(directory)

    def load(self, directory: Path) -> Codec:
        """Reads what `make` wrote; DataError where it is damaged or does not fit."""
        layouts = LAYOUTS[self.kind]
        made = [f for f in layouts if all((directory / name).exists() for name in f)]
        files = tuple((made or layouts[1:] or layouts)[0])
        stamp = fingerprint(self, ENCODING, directory, files)
        if files == ("tokenizer.json",):
            tokenizer = read_tokenizer_json(directory, self)
        elif self.kind == "wordpiece":
            tokenizer = read_wordpiece(directory, self)
        else:
            tokenizer = read_bpe(directory, self)
        path = directory / files[0]
        ids = tokenizer.get_vocab(with_added_tokens=True)
        tokens = sorted(ids, key=ids.__getitem__)
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise DataError(
                str(path),
                f"{len(tokens)} tokens with ids up to {ids[tokens[-1]]}",
                "each id from 0 once",
                "fetch the file again",
            )
        special = self.special
        if self.kind == "wordpiece":
            special = special | {"unk": tokenizer.model.unk_token}
        added = tokenizer.get_added_tokens_decoder()
        codec = HFCodec(
            tokens,
            find_roles(ids, special, path),
            starts_word=(starts_word(token, self.kind) for token in tokens),
            fingerprint=stamp,
            sentinels=count_sentinels(ids),
            more_special=[id for id, token in added.items() if token.special],
            tokenizer=tokenizer,
            where=path,
            breaks=self.kind == "unigram",
        )
        return refuse_reachable(codec, path)


class HFCodec(TextCodec):
    """`Codec` over a `tokenizers.Tokenizer`.

    Args:
      where: its file, for the errors.
      breaks: put a space into special tokens that a text writes out. A unigram model
        of the library has them among its pieces, and would find them there.
    """

    def __init__(
        self,
        *args: Any,
        tokenizer: Any,
        where: Path,
        breaks: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._tokenizer, self._where = tokenizer, where
        names = [self.token(id) for id in sorted(self._skipped)] if breaks else []
        special = "|".join(re.escape(name[1:]) for name in names if len(name) > 1)
        firsts = "".join({re.escape(name[0]) for name in names})
        self._written = (
            re.compile(f"(?<=[{firsts}])(?=(?:{special}))") if special else None
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # Threads are the library's default, and it gives them up after a fork unless
        # TOKENIZERS_PARALLELISM insists: so that variable is left to the user.
        if self._written is not None:
            texts = [self._written.sub(" ", text) for text in texts]
        with guarded(self._where, "one that can encode any text"):
            found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        added: list[int] = []  # where spaces are inserted into the given text
        if self._written is not None:
            added = [match.start() for match in self._written.finditer(text)]
            text = self._written.sub(" ", text)
        with guarded(self._where, "one that can encode any text"):
            found = self._tokenizer.encode(text, add_special_tokens=False)
        places = [place + number for number, place in enumerate(added)]
        spans = [
            tuple(at - bisect.bisect_left(places, at) for at in span)
            for span in found.offsets
        ]
        return found.ids, spans

    def encode_marked(self, text: str) -> list[int]:
        # Spaces beside a special token follow the library's rules.
        self._tokenizer.encode_special_tokens = False
        try:
            with guarded(self._where, "one that can encode any text"):
                return self._tokenizer.encode(text, add_special_tokens=False).ids
        finally:
            self._tokenizer.encode_special_tokens = True

    def _decode(self, ids: list[int]) -> str:
        with guarded(self._where, "one that can decode its ids"):
            return self._tokenizer.decode(ids, skip_special_tokens=False)


def count_sentinels(ids: dict[str, int]) -> int:
    """Counts T5's <extra_id_0>, <extra_id_1>, ... at the end of the vocabulary."""
    count = 0
    while ids.get(f"<extra_id_{count}>") == len(ids) - 1 - count:
        count += 1
    return count


def starts_word(token: str, kind: str) -> bool:
    """Returns whether a token begins a word.

    Ġ and Ċ are space and line feed in byte-level BPE, ▁ is the space elsewhere.
    """
    if kind == "wordpiece":
        return not token.startswith("##")
    return token.startswith(("Ġ", "Ċ", "▁"))


def find_files(path: Path, kind: str) -> dict[str, Path]:
    """Finds {name in the tokenizer's directory: source} in a folder, or by one file."""
    folder = path if path.is_dir() else path.parent
    for files in LAYOUTS[kind]:
        found = {name: folder / source for name, source in files.items()}
        named = path.is_dir() or path.name in files.values()
        if named and all(source.exists() for source in found.values()):
            return found
    taken = {source for files in LAYOUTS["bpe"] for source in files.values()}
    if path.is_file() and path.name not in taken:
        # A single file under a name of its own.
        if path.suffix == ".json":
            return {"tokenizer.json": path}
        if path.suffix == ".txt" and kind == "wordpiece":
            return {"vocab.txt": path}
    there = [path.name] if path.is_file() else sorted(p.name for p in path.iterdir())
    other = "bpe" if kind == "wordpiece" else "wordpiece"
    if any(name.endswith(".model") for name in there):
        fix = 'a .model file is SentencePiece: set tokenizer.name="spm"'
    elif {name for files in LAYOUTS[other] for name in files.values()} & {*there}:
        fix = f'these are files of the other kind: set tokenizer.kind="{other}"'
    else:
        fix = "point tokenizer.path at the vocabulary's folder"
    raise DataError(
        f"tokenizer.path ({path})",
        ", ".join(there[:8]) or "an empty folder",
        " or ".join("+".join(files.values()) for files in LAYOUTS[kind]),
        fix,
    )


def read_wordpiece(directory: Path, options: Tokenizer) -> Any:
    """Reads BERT's tokenizer from `vocab.txt`."""
    import tokenizers

    path = directory / "vocab.txt"
    tokens = read_lines(path)
    ids = index_tokens(tokens, path)
    unk = options.special.get("unk", "[UNK]")
    if unk not in ids:
        raise DataError(
            str(path),
            f"{len(ids)} tokens without {unk!r}",
            "the token for unknown words",
            'name it: tokenizer.special={"unk": ...}; or is this no WordPiece file?',
        )
    upper = [t for t in tokens if t[0:1] not in "[<" and t != t.lower() and t.isascii()]
    if upper and options.lowercase:
        raise DataError(
            "tokenizer.lowercase",
            f"True with the upper-case piece {upper[0]!r} in {path}",
            "False or None for a cased vocabulary",
        )
    lowercase = not upper if options.lowercase is None else options.lowercase
    # 100 characters to a word, as in Hugging Face's BERT; longer words are unknown.
    model = tokenizers.models.WordPiece(
        ids, unk_token=unk, max_input_chars_per_word=100
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = bert_normalizer(lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def read_bpe(directory: Path, options: Tokenizer) -> Any:
    """Reads GPT-2's tokenizer from `vocab.json` and `merges.txt`."""
    import tokenizers

    path = directory / "vocab.json"
    ids = read_json(path)
    if not all(isinstance(id, int) for id in ids.values()) or not ids:
        raise DataError(str(path), "values that are not ids", "token → id")
    absent = sorted({*tokenizers.pre_tokenizers.ByteLevel.alphabet()} - {*ids})
    if absent:
        # The library would drop these bytes silently.
        raise DataError(
            str(path),
            f"no token for {len(absent)} of the 256 bytes ({absent[0]!r})",
            "a byte-level vocabulary",
            "give its tokenizer.json if the vocabulary is not byte-level",
        )
    path = directory / "merges.txt"
    merges = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys():
            raise DataError(
                f"{path}:{number}",
                repr(line),
                "two tokens of vocab.json whose union is a token too",
                "take vocab.json and merges.txt from the same model",
            )
        merges.append(pair)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges))
    if options.lowercase:
        tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=options.add_prefix_space
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def read_tokenizer_json(directory: Path, options: Tokenizer) -> Any:
    """Reads the library's own format, which states normalisation and word splitting."""
    import tokenizers

    path = directory / "tokenizer.json"
    model = read_json(path).get("model")
    if not isinstance(model, dict):
        raise DataError(str(path), f"model {model!r:.40}", "the model of a tokenizer")
    types = {"wordpiece": "WordPiece", "bpe": "BPE", "unigram": "Unigram"}
    expected = types[options.kind]
    if model.get("type") != expected:
        raise DataError(
            str(path),
            f"a model of type {model.get('type')!r}",
            repr(expected),
            "set tokenizer.kind to match; a Unigram .model file is read by "
            'tokenizer.name="spm"',
        )
    if options.lowercase is not None or options.add_prefix_space:
        raise DataError(
            str(path),
            "a file that states its own normalisation",
            "no lowercase and no add_prefix_space beside it",
            "leave these options out",
        )
    with guarded(path, "a tokenizer.json"):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    lossless = model.get("byte_fallback") or "ByteLevel" in str(tokenizer.pre_tokenizer)
    known = model.get("unk_token") or model.get("unk_id") is not None
    if not known and not lossless:
        raise DataError(
            str(path),
            "neither an unknown token nor bytes to fall back on",
            "one of them: unknown characters would vanish",
        )
    # Truncation and padding of the file would change ids that a caller asks for.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; DataError for repeated keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise DataError(str(path), f"{twice!r} twice", "every token once")
        return found

    try:
        value = json.loads(read_text(path), object_pairs_hook=unique)
    except ValueError as error:
        raise DataError(
            str(path), f"broken JSON ({error})", "a JSON object", "fetch the file again"
        ) from None
    if not isinstance(value, dict):
        raise DataError(str(path), type(value).__name__, "a JSON object")
    return value
