"""Training of WordPiece and byte-level BPE vocabularies, for `hf.py`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.tokenizers.base import Texts
from lm.tokenizers.files import alphabet_too_large, no_texts

# Special tokens of a trained vocabulary, in the order of their ids.
NEW_SPECIAL = {
    "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "bpe": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}


def bert_normalizer(lowercase: bool) -> Any:
    """Makes BERT's normaliser.

    It removes control characters and puts spaces around Chinese characters; with
    `lowercase` it strips accents too.
    """
    from tokenizers.normalizers import BertNormalizer

    return BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True,
        strip_accents=lowercase,
        lowercase=lowercase,
    )


def train_wordpiece(
    texts: Texts,
    vocab_size: int,
    *,
    min_frequency: int,
    character_coverage: float,
    lowercase: bool,
) -> list[str]:
    """Trains the pieces of a WordPiece vocabulary, the same ones in every process.

    The library's `WordPieceTrainer` gives ids in hash order. Instead its BPE trainer
    makes the merges, with every single-character piece given as a special token.

    Raises:
      DataError: the texts are empty, or have more characters than `vocab_size` holds.
    """
    import tokenizers

    normalizer = bert_normalizer(lowercase)
    words: Counter[str] = Counter()
    for text in texts():
        words.update(normalizer.normalize_str(text).split())
    first: Counter[str] = Counter()
    inner: set[str] = set()
    for word, count in words.items():
        for character in word:
            first[character] += count
        inner.update(word[1:])
    if not first:
        raise no_texts()
    kept, covered, total = [], 0, first.total()
    for character, count in sorted(first.items(), key=lambda item: (-item[1], item[0])):
        if covered >= character_coverage * total:
            break
        kept.append(character)
        covered += count
    kept.sort()
    seeds = NEW_SPECIAL["wordpiece"] + kept + ["##" + c for c in kept if c in inner]
    if len(seeds) > vocab_size:
        raise alphabet_too_large(
            "WordPiece",
            len(seeds),
            vocab_size,
            "raise it, or lower tokenizer.character_coverage",
        )
    dropped = {ord(character): " " for character in first.keys() - {*kept}}
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=seeds,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    model = tokenizers.models.BPE(continuing_subword_prefix="##")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        (normalizer.normalize_str(text).translate(dropped) for text in texts()), trainer
    )
    ids = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def train_bpe(
    texts: Texts,
    vocab_size: int,
    directory: Path,
    *,
    min_frequency: int,
    lowercase: bool,
    add_prefix_space: bool,
) -> None:
    """Trains byte-level BPE and writes `vocab.json` and `merges.txt` to `directory`.

    Raises:
      DataError: the texts are empty, or `vocab_size` is below the 256 bytes.
    """
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    seeds = NEW_SPECIAL["bpe"] + alphabet
    if len(seeds) > vocab_size:
        raise alphabet_too_large("byte-level", len(seeds), vocab_size, "raise it")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=seeds,
        show_progress=False,
    )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if lowercase:
        tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=add_prefix_space
    )
    seen = False

    def watched() -> Iterator[str]:
        nonlocal seen
        for text in texts():
            seen = seen or bool(text.strip())
            yield text

    tokenizer.train_from_iterator(watched(), trainer)
    if not seen:
        raise no_texts()
    tokenizer.model.save(str(directory))
