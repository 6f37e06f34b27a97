"""Converts a SentencePiece model to the tokenizer of Hugging Face's library.

The model is a protocol buffer (google/sentencepiece, src/sentencepiece_model.proto):
pieces with their scores, the type of the model, and the normalisation as one table.
"""

import struct
from typing import Any

from lm.hf.formats.tf1 import fields

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, BYTE = 1, 2, 6


def to_tokenizer(model: bytes, codec: Any, where: Any) -> Any:
    """Returns a `tokenizers.Tokenizer` that gives the ids of the model.

    Args:
      model: the bytes of a `.model` file.
      codec: the same model, loaded, with its sentinels.
      where: the file, for errors.
    """
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    spec = fields(model, where)
    trainer = dict(fields(next(v for k, v in spec if k == 2), where))
    rules = dict(fields(next((v for k, v in spec if k == 3), b""), where))
    kinds = [dict(fields(v, where)).get(3, NORMAL) for k, v in spec if k == 1]
    scores = [_score(dict(fields(v, where)).get(2, 0)) for k, v in spec if k == 1]
    pieces = [codec.token(id) for id in range(len(scores))]
    steps: list[Any] = []
    if rules.get(2):
        steps.append(normalizers.Precompiled(rules[2]))
    if rules.get(4, 1):
        steps.append(normalizers.Strip(left=True, right=True))
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    has_bytes = BYTE in kinds
    if trainer.get(3, UNIGRAM) == UNIGRAM:
        inner: Any
        scored = list(zip(pieces, scores))
        unknown = kinds.index(UNKNOWN)
        inner = tokenizers.models.Unigram(scored, unknown, byte_fallback=has_bytes)
    else:
        ids = {piece: id for id, piece in enumerate(pieces)}
        inner = tokenizers.models.BPE(
            ids,
            _merges(pieces, scores, kinds),
            unk_token=pieces[kinds.index(UNKNOWN)],
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    built = tokenizers.Tokenizer(inner)
    prefix = bool(rules.get(3, 1))
    if trainer.get(3, UNIGRAM) == UNIGRAM:
        scheme = "always" if prefix else "never"
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        spaces: list[Any] = [decoders.Metaspace(prepend_scheme=scheme)]
    else:
        # There is no pre-tokenizer, since merges may cross spaces.
        steps += [normalizers.Prepend("▁")] * prefix
        steps.append(normalizers.Replace(" ", "▁"))
        spaces = [decoders.Replace("▁", " ")]
    built.normalizer = normalizers.Sequence(steps)
    if has_bytes:
        spaces += [decoders.ByteFallback(), decoders.Fuse()]
    if trainer.get(3, UNIGRAM) != UNIGRAM and prefix:
        spaces.append(decoders.Strip(" ", 1, 0))
    built.decoder = decoders.Sequence(spaces)
    sentinels = [codec.token(id) for id in range(len(pieces), codec.vocab_size)]
    built.add_special_tokens(sentinels)
    return built


def _merges(
    pieces: list[str], scores: list[float], kinds: list[int]
) -> list[tuple[str, str]]:
    """Returns the merges of a BPE model in the order of training, which scores show."""
    ids = {piece: id for id, piece in enumerate(pieces) if kinds[id] == NORMAL}
    found = []
    for piece, id in ids.items():
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pairs = [pair for pair in cuts if pair[0] in ids and pair[1] in ids]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(-scores[id], n, pair) for n, pair in enumerate(pairs)]
    return [pair for _, _, pair in sorted(found, key=lambda item: item[0])]


def _score(bits: int) -> float:
    return struct.unpack("<f", bits.to_bytes(4, "little"))[0]
