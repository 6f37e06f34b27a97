"""Makes directories of golden cases with a tokenizer, as a download has them."""

import json
import shutil
from pathlib import Path

from lm.hf import checkpoint
from tests.hf import goldens

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), ".", ",", "!", "?")


def bert(place: Path, case: str = "bert_pretraining") -> Path:
    """Makes a directory of a golden case of BERT's with a vocabulary of 61 tokens."""
    shutil.copytree(goldens.PLACE / case, place)
    (place / "vocab.txt").write_text("".join(f"{t}\n" for t in VOCABULARY))
    (place / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return place


def model_of(place: Path) -> dict:
    """Returns config.model of a directory, without opening the weights."""
    family, config, path = checkpoint.read_config(place)
    return family.read(config, path)
