"""Tokens per second of generation, GPT-2 small in size, beside Hugging Face's.

    python experiments/benchmarks/generate.py [--peer=PYTHON] [--rounds=3]

Greedy continuation of prompts of 32 tokens by 128, float32, random weights, no early
end, for batches of 1 and 8. The peer is `transformers`' generate in PyTorch (sdpa
attention, its cache, inference mode), run by the interpreter PYTHON (by default this
one, where it has torch) in a process of its own, with as many threads as there are
cores. The two take turns; the table shows medians over rounds after one of warm-up,
prefill included. Of ours also the time per token in the first and in the last quarter
of an answer, and how often a program was compiled after the warm-up.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
from bert_step import ROOT, ask, has_torch, processor

V, PROMPT = 50257, 32


def make_prompts(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, V, (rows, PROMPT))


def ours(tokens: int) -> tuple[Callable[[int], dict], str]:
    """A function that answers a batch of so many rows, and the versions used."""
    sys.path.insert(0, str(ROOT))
    import jax

    from lm.config import resolve as config
    from lm.decoding import loop
    from lm.models.presets import PRESETS
    from lm.models.transformer import Model
    from lm.training import step

    model = config.build(Model, PRESETS["gpt2_small"])
    params = jax.jit(step.make(model, None).init)(jax.random.key(0))
    codec = SimpleNamespace(vocab_size=V, pad_id=None, bos_id=None, eos_id=None)
    decoder = loop.with_params(loop.make_decoder(model, codec), params)
    del params
    settings = loop.Settings(max_tokens=tokens)

    def run(rows: int) -> dict:
        prompts = make_prompts(rows).tolist()
        times = []

        def stopped(generated: list[list[int]]) -> list[bool]:
            times.append((len(generated[0]), time.perf_counter()))
            return [False] * len(generated)

        found = loop.answer(decoder, prompts, settings, should_stop=stopped)
        assert all(len(answer.ids) == tokens for (answer,) in found)
        return {
            "first": pace([t for t in times if t[0] <= max(tokens // 4, 17)]),
            "last": pace([t for t in times if t[0] >= tokens - max(tokens // 4, 16)]),
            "programs": decoder.start._cache_size() + decoder.advance._cache_size(),
        }

    return run, " ".join(f"{name} {version(name)}" for name in ("jax", "flax"))


def pace(times: list[tuple[int, float]]) -> float:
    """Seconds per token between the first and the last of the moments."""
    (first, begin), (last, end) = times[0], times[-1]
    return (end - begin) / max(last - first, 1)


def peer(tokens: int) -> tuple[Callable[[int], dict], str]:
    """The same for PyTorch."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=V, attn_implementation="sdpa")
    model = transformers.GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def run(rows: int) -> dict:
        ids = torch.tensor(make_prompts(rows))
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
        )
        assert found.shape[1] == PROMPT + tokens
        return {}

    versions = f"torch {torch.__version__} transformers {transformers.__version__}"
    return run, versions


def serve(make: Callable, tokens: int) -> None:
    """One side in its own process: a line of JSON for every batch size it is sent."""
    run, versions = make(tokens)
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        facts = run(int(line))
        facts |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(facts), flush=True)


def start(python: str, side: str, tokens: int) -> subprocess.Popen:
    command = [python, __file__, f"--serve={side}", f"--tokens={tokens}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=sys.executable, help="Python with torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--tokens", type=int, default=128, help="new tokens of each row"
    )
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve({"ours": ours, "peer": peer}[options.serve], options.tokens)

    sides = {"ours": start(sys.executable, "ours", options.tokens)}
    if has_torch(options.peer):
        sides["peer"] = start(options.peer, "peer", options.tokens)
    else:
        print(f"{options.peer} has no torch and transformers: ours alone")
    versions = {name: ask(process) for name, process in sides.items()}
    batches = [int(size) for size in options.batches.split(",")]
    rounds = {(size, name): [] for size in batches for name in sides}
    for turn in range(options.rounds + 1):
        for (size, name), found in rounds.items():
            answer = ask(sides[name], f"{size}\n")
            answer["warm_up"] = turn == 0
            found.append(answer)
    for process in sides.values():
        process.stdin.close()
        process.wait()
    report(versions, rounds, options)


def report(versions: dict, rounds: dict, options: argparse.Namespace) -> None:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    command = " ".join(["python experiments/benchmarks/generate.py", *sys.argv[1:]])
    print(f"command: {command}\ncommit: {commit}")
    print(f"hardware: {processor()}, {os.cpu_count()} cores")
    for name, version_ in versions.items():
        print(f"{name}: {version_}")
    print(f"{options.tokens} new tokens, {options.rounds} rounds, seed 0\n")
    print(
        "| batch | side | tokens/s (median) | range | CPU s per round | ms per token |"
    )
    print("|---|---|---|---|---|---|")
    speeds = {}
    for (size, name), found in rounds.items():
        kept = [answer for answer in found if not answer["warm_up"]]
        rates = [size * options.tokens / answer["wall"] for answer in kept]
        speeds[size, name] = statistics.median(rates)
        cpu = statistics.median(answer["cpu"] for answer in kept)
        wall = statistics.median(answer["wall"] for answer in kept)
        print(
            f"| {size} | {name} | {speeds[size, name]:.1f} "
            f"| {min(rates):.1f} to {max(rates):.1f} | {cpu:.2f} "
            f"| {1000 * wall / options.tokens:.1f} |"
        )
    print()
    for size in dict(rounds):
        if size[1] != "ours":
            continue
        warm, *kept = rounds[size]
        first, last = (
            1000 * statistics.median(answer[part] for answer in kept)
            for part in ("first", "last")
        )
        print(
            f"batch {size[0]}, ours: {first:.1f} ms per token in the first quarter, "
            f"{last:.1f} in the last"
        )
        if (size[0], "peer") in speeds:
            ratio = speeds[size] / speeds[size[0], "peer"]
            print(f"batch {size[0]}, ours / peer: {ratio:.2f}")
    programs = [a["programs"] for (_, n), f in rounds.items() if n == "ours" for a in f]
    warm = max(f[0]["programs"] for (_, n), f in rounds.items() if n == "ours")
    print(f"programs compiled after the warm-up: {max(programs) - warm}")


if __name__ == "__main__":
    main()
