"""How long a BERT-base checkpoint of Hugging Face (434 MB) takes to become parameters.

python experiments/benchmarks/import_time.py [--dir=DIR]

Without --dir a checkpoint of random numbers is written into a temporary folder. Timed
are, in one process with the file in the page cache: opening and checking; the arrays;
and saving them. Beside them plain reading, and the peak of the process's memory.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}


def write(place: Path) -> None:
    """A checkpoint as BertForMaskedLM saves it, of random numbers."""
    from lm.hf import checkpoint
    from lm.hf.families import table
    from lm.hf.families.base import layers, sizes
    from lm.hf.formats import safetensors

    config = SHAPE | {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    (place / "config.json").write_text(json.dumps(config))
    family = checkpoint.family_of("bert")
    model = family.read(config, place)
    rules = [rule for rule in family.rules(model) if rule.part in ("", "mlm")]
    known = sizes(model, 2)
    shapes = {
        name: (np.dtype(np.float32), source.rule.tensor_shape(known))
        for source in table.sources(rules, known, layers(model)).values()
        for name in source.names
    }
    rng = np.random.default_rng(0)

    def value(name: str) -> np.ndarray:
        return rng.standard_normal(shapes[name][1], np.float32)

    safetensors.write(place, shapes, value)


def memory(field: str) -> float:
    """MB that this process has (VmRSS) or once had (VmHWM) in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if field in line) / 1024


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    if flags.dir is None:
        with tempfile.TemporaryDirectory() as place:
            write(Path(place))
            measure(Path(place), flags.rounds)
    else:
        measure(flags.dir, flags.rounds)


def measure(place: Path, rounds: int) -> None:
    import jax

    from lm.hf import checkpoint, importing
    from lm.trees import nest
    from lm.workdir.checkpoint import Checkpoint, Checkpointer

    jax.block_until_ready(jax.numpy.zeros(1))
    times: dict[str, list[float]] = {"read": [], "open": [], "arrays": [], "save": []}
    before, peak = memory("VmRSS"), 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        for file in place.glob("*.safetensors"):
            with open(file, "rb", buffering=0) as stream:
                chunk = bytearray(2**24)
                while stream.readinto(chunk):
                    pass
        times["read"].append(time.perf_counter() - start)
        start = time.perf_counter()
        opened = checkpoint.open_checkpoint(place)
        times["open"].append(time.perf_counter() - start)
        start = time.perf_counter()
        params = importing.load(opened, importing.shapes(opened))
        jax.block_until_ready(params)
        times["arrays"].append(time.perf_counter() - start)
        count = sum(leaf.size for leaf in params.values())
        peak = peak or memory("VmHWM")  # of the first round, before its save
        if not times["save"]:
            with tempfile.TemporaryDirectory() as workdir:
                saver = Checkpointer(Path(workdir), Checkpoint())
                start = time.perf_counter()
                saver.save(0, {"params": nest(params)}, {})
                saver.close()
                times["save"].append(time.perf_counter() - start)
        del params, opened
    print(f"parameters: {count:,} ({4 * count / 1e6:.0f} MB)")
    for name, values in times.items():
        print(f"{name}: median {statistics.median(values):.3f} s of {len(values)}")
    print(f"memory: {before:.0f} MB before, peak {peak:.0f} MB (mapped pages included)")


if __name__ == "__main__":
    main()
