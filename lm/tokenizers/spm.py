"""SentencePiece: unigram and BPE pieces over raw text, spaces included.

Kudo and Richardson, "SentencePiece" (2018); Kudo, "Subword Regularization" (2018) for
the unigram model; Raffel et al., "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer" (2020), section 3.1.4, for the sentinels.
"""

import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
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
    alphabet_too_large,
    fingerprint,
    guarded,
    keep_beside,
    no_texts,
    require_path,
    write_options,
)

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "character_coverage": "(0, 1]",
    "extra_ids": "[0, 65536]",
}

ENCODING = ("extra_ids", "special")
FILE = "spm.model"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Options of a SentencePiece tokenizer.

    Attributes:
      kind: what is trained; a given model brings its own.
      path: a `.model` file or a folder with one; None trains.
      vocab_size: the size to train, special tokens included, sentinels not; an upper
        bound where the texts do not hold that many pieces.
      character_coverage: share of the texts' characters that the alphabet covers.
      normalization: SentencePiece's rule, stored in the model that is trained.
      byte_fallback: train 256 byte pieces, so that no text is unknown.
      extra_ids: sentinels <extra_id_0>, ... appended after the pieces, the first one
        last, for span corruption (T5: 100 after 32,000).
      special: role → control token, for models with unusual names.
    """

    kind: Literal["unigram", "bpe"] = "unigram"
    path: str | None = None
    vocab_size: int = 32000
    character_coverage: float = 0.9995
    normalization: Literal["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"] = (
        "nmt_nfkc"
    )
    byte_fallback: bool = False
    extra_ids: int = 0
    special: dict[str, str] = dataclasses.field(default_factory=dict)

    def make(self, texts: Texts, directory: Path) -> None:
        """Writes `spm.model` into `directory`, which exists.

        Raises DataError for a file that is missing or no SentencePiece model, and for
        texts that are empty or too rich for `vocab_size`.
        """
        if self.path is not None:
            model = find_model(require_path(self.path)).read_bytes()
            keep_beside(Path(self.path), directory)
        else:
            model = train(texts, self)
        (directory / FILE).write_bytes(model)
        write_options(self, directory)
        self.load(directory)

    def load(self, directory: Path) -> Codec:
        """Reads what `make` wrote; DataError where it is damaged or does not fit."""
        import sentencepiece

        path = directory / FILE
        stamp = fingerprint(self, ENCODING, directory, [FILE])
        try:
            model = path.read_bytes()
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise DataError(
                str(path),
                f"no readable model ({error})",
                "a SentencePiece model",
                "fetch it again; a vocab.txt or a tokenizer.json is read by "
                'tokenizer.name="hf"',
            ) from None
        size = processor.get_piece_size()
        pieces = [processor.id_to_piece(id) for id in range(size)]
        control = [id for id in range(size) if processor.is_control(id)]
        unknown = processor.unk_id()
        named = {pieces[id]: id for id in [*control, unknown]}
        roles = find_roles(named, self.special, path)
        # The model states these roles itself, also that it has no such token.
        for role in {"pad", "bos", "eos", "unk"} - self.special.keys():
            id = getattr(processor, f"{role}_id")()
            roles[role] = None if id < 0 else id
        sentinels = [f"<extra_id_{k}>" for k in reversed(range(self.extra_ids))]
        if {*pieces} & {*sentinels}:
            raise DataError(
                "tokenizer.extra_ids",
                f"{self.extra_ids} with a model that holds {sentinels[-1]!r} already",
                "0, or a model without sentinels",
            )
        codec = SentencePieceCodec(
            pieces + sentinels,
            roles,
            starts_word=(piece.startswith("▁") for piece in pieces + sentinels),
            fingerprint=stamp,
            sentinels=self.extra_ids,
            more_special=[*control, unknown],
            processor=processor,
            where=path,
        )
        return refuse_reachable(codec, path)


class SentencePieceCodec(TextCodec):
    """`Codec` over a `sentencepiece.SentencePieceProcessor`."""

    def __init__(self, *args: Any, processor: Any, where: Path, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._processor, self._where = processor, where

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with guarded(self._where, "one that can encode any text"):
            return self._processor.encode(list(texts))

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        with guarded(self._where, "one that can encode any text"):
            found = self._processor.encode(text, return_type="offset_mapping")
        spans = found["offsets"]
        # The library gives the span of a character in several pieces to the last one.
        before_text = int(bool(spans) and spans[0][0] == spans[0][1])
        for at in reversed(range(before_text, len(spans) - 1)):
            if spans[at][0] == spans[at][1]:
                spans[at] = spans[at + 1]
        return found["ids"], spans

    def _decode(self, ids: list[int]) -> str:
        with guarded(self._where, "one that can decode its ids"):
            return self._processor.decode(ids)


def find_model(path: Path) -> Path:
    """Returns the `.model` file that `path` is or holds."""
    if path.is_dir():
        models = sorted(path.glob("*.model"))
        if len(models) == 1:
            return models[0]
        there = sorted(p.name for p in path.iterdir())[:8]
        raise DataError(
            f"tokenizer.path ({path})",
            f"{len(models)} .model files among {', '.join(there) or 'no files'}",
            "one SentencePiece model",
            "name the file itself"
            if models
            else 'a vocab.txt or a tokenizer.json is read by tokenizer.name="hf"',
        )
    return path


def train(texts: Texts, options: Tokenizer) -> bytes:
    """Trains a model on the lines of the texts, the same one in every process."""
    import sentencepiece

    failed: list[BaseException] = []
    seen = False

    def lines() -> Iterator[str]:
        nonlocal seen
        try:
            for text in texts():
                for line in text.split("\n"):
                    if line.strip():
                        seen = True
                        yield line
        except BaseException as error:
            failed.append(error)
            raise

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            model_type=options.kind,
            vocab_size=options.vocab_size,
            hard_vocab_limit=False,
            character_coverage=options.character_coverage,
            normalization_rule_name=options.normalization,
            byte_fallback=options.byte_fallback,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            control_symbols=["<cls>", "<sep>", "<mask>"],
            # Sums of floats depend on how many threads share the sentences.
            num_threads=4,
            # By default lines of more bytes are left out silently.
            max_sentence_length=2**30,
            minloglevel=2,
        )
    except RuntimeError as error:
        # The library wraps errors of our own iterator: raise the original.
        if failed:
            raise failed[0] from None
        if not seen:
            raise no_texts() from None
        if sizes := re.search(r"smaller than required_chars. \d+ vs (\d+)", str(error)):
            raise alphabet_too_large(
                "SentencePiece",
                int(sizes[1]),
                options.vocab_size,
                "raise it, or lower tokenizer.character_coverage",
            ) from None
        raise DataError(
            "tokenizer",
            f"a failed SentencePiece training ({error})",
            "texts and options that SentencePiece can train on",
        ) from None
    return model.getvalue()
