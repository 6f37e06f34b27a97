"""A model of the Hugging Face hub, by its name: fetched once, then from its cache.

Only data are fetched: JSON, safetensors, msgpack and the tokenizer's files; no pickle
and no code. Proxies, tokens (HF_TOKEN), the place of the cache (HF_HOME) and staying
offline (HF_HUB_OFFLINE=1) are huggingface_hub's own.
"""

import functools
import re
from pathlib import Path

from lm.hf.formats.files import refuse

NAME = re.compile(r"(?!\.)\w[\w.-]*(?:/\w[\w.-]*)?(?:@[\w./-]+)?")
# config.json and the tokenizer's files; one format of the weights is taken, this one
# before the next.
ABOUT = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS = ("*.safetensors", "flax_model*.msgpack")
SECONDS = 10  # to wait for an answer of the hub


def is_name(text: str) -> bool:
    """Whether it could be a model of the hub: "gpt2", "org/model", "org/model@v1"."""
    return NAME.fullmatch(text) is not None


@functools.cache
def fetch(name: str) -> Path:
    """The directory of a model, with its files.

    Args:
      name: "org/model", and after "@" a branch, a tag or a commit.

    Raises:
      CheckpointError: there is no such model, it may not be read, or the hub does not
        answer and the cache does not have it.
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
    except Exception as error:  # its own, of the network, of the disk: no common class
        said = " ".join(str(error).split())[:200]
        refuse(
            f"hf:{name}",
            f"no such folder here, and from the hub {type(error).__name__}: {said}",
            "a folder with config.json and weights, or a model of the hub",
            f"hf download {model} --local-dir=DIR on a machine with a network fetches "
            "one.",
        )
    return place
