"""Opens the weights of a directory in any format, under their PyTorch names.

The formats are `model.safetensors`, its index, `flax_model.msgpack` and TensorFlow 1
checkpoints. All tensors are read-only views of the mapped files. Pickles are refused,
never loaded.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lm.hf.formats import msgpack, safetensors, tf1
from lm.hf.formats.files import is_file, refuse, regular

SINGLE = "model.safetensors"
FLAX = "flax_model.msgpack"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".h5", ".keras")
# First bytes of a file -> its format, which its name may hide.
MAGIC = {
    b"PK\x03\x04": "a zip archive, as PyTorch, NumPy and Keras write",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes",
    b"\x93NUMPY": "a NumPy array",
}
PICKLE = "a pickle, as PyTorch and Python write"
MAGIC |= {bytes([0x80, protocol]): PICKLE for protocol in range(2, 6)}
TF1 = (
    (r"^cls/predictions/output_bias$", "cls/predictions/bias"),
    (r"^cls/seq_relationship/output_weights$", "cls/seq_relationship/weight"),
    (r"^cls/seq_relationship/output_bias$", "cls/seq_relationship/bias"),
    (r"^output_weights$", "classifier/weight"),
    (r"^output_bias$", "classifier/bias"),
    (r"/gamma$", "/weight"),
    (r"/beta$", "/bias"),
    (r"/kernel$", "/weight"),
    (r"_embeddings$", "_embeddings/weight"),
)
CONVERT = (
    "make a safetensors of it where PyTorch is installed and the file is trusted: "
    'python -c "import transformers as t; '
    "t.AutoModel.from_pretrained('{folder}').save_pretrained('{folder}-safe')\", "
    "with the class of your head (AutoModelForCausalLM, ...) for AutoModel."
)


def open_tensors(place: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Opens the weights of a directory.

    Args:
      place: a directory with config.json, or a file of weights.

    Returns:
      The file, and PyTorch name -> tensor, in PyTorch's layout.

    Raises:
      CheckpointError: no file of weights can be read, or it is damaged.
    """
    place = Path(place)
    if not place.is_dir():
        return place, _open_file(place)
    for name in (SINGLE, safetensors.INDEX, FLAX):
        if is_file(place / name):
            return place / name, _open_file(place / name)
    for pattern in ("*.safetensors", "*.ckpt*.index", "*.index"):
        found = sorted(place.glob(pattern))
        if len(found) == 1:
            return found[0], _open_file(found[0])
        if found:
            names = ", ".join(path.name for path in found[:4])
            expected = f"{SINGLE}, its index, or one file of weights"
            fix = "name the file itself, or fetch the index too."
            refuse(place, names, expected, fix)
    there = sorted(path.name for path in place.iterdir())
    for name in there:
        if name.endswith(PICKLES):
            _refuse_pickle(place / name)
    names = ", ".join(there[:6]) or "an empty folder"
    expected = f"{SINGLE}, {safetensors.INDEX}, {FLAX} or bert_model.ckpt.index"
    refuse(place, names, expected, "fetch the weights too.")


def _open_file(path: Path) -> dict[str, np.ndarray]:
    regular(path)
    if path.name.endswith(".index.json"):
        return safetensors.read_sharded(path)
    if path.suffix == ".index":
        return _renamed(tf1.read(path), from_tf1, path)
    if _kind(path) or path.name.endswith(PICKLES):
        _refuse_pickle(path)
    if path.suffix == ".msgpack":
        return _renamed(msgpack.read(path), from_flax, path)
    return safetensors.read(path)


def _renamed(
    arrays: dict[str, np.ndarray], rename: Callable[[str], str | None], path: Path
) -> dict[str, np.ndarray]:
    """Returns PyTorch name -> array; a kernel (in, out) becomes a weight (out, in)."""
    tensors: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        new = rename(name)
        if new in tensors:
            refuse(path, f"{new!r} under two names", "each tensor once")
        turn = name.endswith("/kernel") and array.ndim == 2
        if new is not None:
            tensors[new] = array.T if turn else array
    return tensors


def _kind(path: Path) -> str | None:
    with open(path, "rb") as file:
        start = file.read(8)
    kinds = (kind for magic, kind in MAGIC.items() if start.startswith(magic))
    return next(kinds, None)


def _refuse_pickle(path: Path) -> None:
    found = _kind(path) or f"a {path.suffix} file"
    fix = CONVERT.format(folder=path.parent)
    refuse(path, found, "safetensors: pickles can run code", fix)


def from_flax(name: str) -> str:
    """Returns the PyTorch name of a Flax parameter; the modules have the same names."""
    *modules, last = name.split("/")
    if last in ("kernel", "scale", "embedding"):
        last = "weight"
    return ".".join([*modules, last])


def from_tf1(name: str) -> str | None:
    """Returns the PyTorch name of a variable of google-research/bert.

    None is a variable of the optimiser.
    """
    if re.search(r"(^|/)(adam_[mv]|Adam(_1)?|global_step|beta[12]_power)$", name):
        return None
    name = re.sub(r"/layer_(\d+)/", r"/layer/\1/", name)
    for old, new in TF1:
        name = re.sub(old, new, name)
    return name.replace("/", ".")
