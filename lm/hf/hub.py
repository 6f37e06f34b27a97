"""Fetches models of the Hugging Face hub by name: once, then from the hub's cache.

Only data are fetched: JSON, safetensors, msgpack and the tokenizer's files; no pickle
and no code. The settings of huggingface_hub apply: proxies, the token (HF_TOKEN), the
folder of the cache (HF_HOME) and offline use (HF_HUB_OFFLINE=1).
"""

import functools
import re
from pathlib import Path

from lm.hf.formats.files import refuse

NAME = re.compile(r"(?!\.)\w[\w.-]*(?:/\w[\w.-]*)?(?:@[\w./-]+)?")
# config.json and the tokenizer's files. Of the weights one format is fetched, the first
# of WEIGHTS that the model has.
ABOUT = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS = ("*.safetensors", "flax_model*.msgpack")
SECONDS = 10  # the longest wait for an answer of the hub


def is_name(text: str) -> bool:
    """Returns whether a text has the form of a model's name, as "org/model@v1" has."""
    return NAME.fullmatch(text) is not None


@functools.cache
def fetch(name: str) -> Path:
    """Returns the directory with the files of a model, in the hub's cache.

    Args:
      name: "org/model", and after "@", if given, a branch, a tag or a commit.

    Raises:
      CheckpointError: there is no such model, the user may not read it, or the hub does
        not answer and the cache does not have the model.
    """
    import huggingface_hub

    model, _, revision = name.partition("@")

    def snapshot(patterns: tuple[str, ...]) -> Path:
        # Subfolders hold other formats, such as onnx/.
        return Path(
            huggingface_hub.snapshot_download(
                model,
                revision=revision or None,
                allow_patterns=list(patterns),
                ignore_patterns="*/*",
                etag_timeout=SECONDS,
            )
        )

    try:
        place = snapshot(ABOUT)
        for pattern in WEIGHTS:
            place = snapshot((pattern,))
            if any(place.glob(pattern)):
                break
    except Exception as error:  # The hub, network and disk have no common class.
        reason = " ".join(str(error).split())[:200]
        refuse(
            f"hf:{name}",
            f"no such folder here, and from the hub {type(error).__name__}: {reason}",
            "a folder with config.json and weights, or a model of the hub",
            f"hf download {model} --local-dir=DIR on a machine with a network fetches "
            "one.",
        )
    return place
