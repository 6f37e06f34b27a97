"""Files of a tokenizer: reading, writing, fingerprints, and the errors about them."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.errors import DataError, Refusal

# Files of a Hugging Face directory that are kept, although no id depends on them: the
# chat template, the defaults of generation (in config.json where there is no
# generation_config.json), and settings that an export writes back.
BESIDE = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)


def index_tokens(tokens: Sequence[str], path: object) -> dict[str, int]:
    """Returns token -> id for the lines of a vocabulary.

    Raises:
      DataError: there is no token, or one stands on two lines.
    """
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
    """Reads a file of a tokenizer's directory; DataError where it is absent."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            str(path), "no such file", "a file of the tokenizer", "make it again"
        ) from None


def read_text(path: Path) -> str:
    """Reads a UTF-8 file and keeps its line ends; DataError for other encodings."""
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
    """Reads the lines of a vocabulary, split at line feeds alone.

    A token may contain any other separator, so `str.splitlines` would not do.
    """
    text = read_text(path).replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def require_path(path: str) -> Path:
    """Returns `tokenizer.path` as a path.

    Raises:
      DataError: there is nothing, or a pipe or device, which may never end.
    """
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise DataError("tokenizer.path", f"a pipe or device {path!r}", "a file")
    if not Path(path).exists():
        raise DataError(
            "tokenizer.path",
            f"no file or folder {path!r}",
            "vocabulary files",
            "correct the path, or leave it out to train on the config's own texts",
        )
    return Path(path)


def keep_beside(path: Path, directory: Path) -> None:
    """Copies the files of BESIDE from the folder of `path`, where it has them."""
    folder = path if path.is_dir() else path.parent
    for name in BESIDE:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, directory / name)


def no_texts() -> DataError:
    """Makes the error for training texts without a single token."""
    return DataError(
        "tokenizer",
        "training texts without a single word to keep",
        "texts to train the vocabulary on",
        "check data.sources and tokenizer.min_count, or give tokenizer.path",
    )


def alphabet_too_large(
    kind: str, needed: int, vocab_size: int | None, fix: str
) -> DataError:
    """Makes the error for a vocabulary too small for the characters of its texts."""
    return DataError(
        "tokenizer.vocab_size",
        str(vocab_size),
        f"at least {needed} for the alphabet and special tokens of these {kind} texts",
        fix,
    )


def write_options(options: Any, directory: Path) -> None:
    """Writes the fields of a `Tokenizer` to `options.json`."""
    text = json.dumps(dataclasses.asdict(options), indent=2, sort_keys=True)
    (directory / "options.json").write_text(text + "\n", encoding="utf-8")


def fingerprint(
    options: Any, encoding: Sequence[str], directory: Path, files: Sequence[str]
) -> str:
    """Returns a sha256 of the options named in `encoding` and the bytes of `files`.

    Raises:
      DataError: the directory was made with other values of those options, with which
        the same files would give other ids.
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
    """Turns exceptions of a native library into a DataError that names the file.

    Catches BaseException, since a panic of Rust code is no Exception.
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
