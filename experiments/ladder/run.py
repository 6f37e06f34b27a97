"""Trains every kind of language model on one text, and compares them.

    python experiments/ladder/run.py --dir=DIR [--text=FILE] [--steps=500] [--quick]
        [--only=KINDS]

Each kind is a run of its own, DIR/<kind>, by `python -m lm.main` with the config
experiments/ladder/config.py. A finished run is not repeated; one that was stopped goes
on where it was. The results of all are in DIR/results.json, the table in DIR/table.md
and, where matplotlib is installed, the plot in DIR/ladder.png, with unfinished runs as
far as they are. The exit code is 1 if a run failed; the others are made all the same.
After Ctrl-C, or SIGTERM to a run, the same command goes on.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for lm, where it is not installed

KINDS = {
    "ngram3": "3-gram, Kneser-Ney",
    "ngram5": "5-gram, Kneser-Ney",
    "hmm": "hidden Markov model",
    "elman": "Elman RNN",
    "lstm": "LSTM",
    "gru": "GRU",
    "cnn": "gated CNN",
    "transformer": "Transformer",
}
EVERY = 60  # seconds between two lines of progress
STOPPED = (75, 130)  # exit codes of a run that a signal stopped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="plain text; its last tenth is held")
    parser.add_argument("--steps", type=int, default=500, help="of gradient descent")
    parser.add_argument("--quick", action="store_true", help="a few steps of each")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, by commas")
    flags = parser.parse_args()
    kinds = flags.only.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"--only has {unknown[0]!r}, expected some of {','.join(KINDS)}")
    if flags.text and not flags.text.is_file():
        parser.error(f"--text={flags.text}: no such file")
    flags.dir.mkdir(parents=True, exist_ok=True)
    arguments = ["quick"] if flags.quick else [f"steps={flags.steps}"]
    if flags.text:
        arguments.append(f"text={flags.text.resolve()}")
    failed = []
    for number, kind in enumerate(kinds, 1):
        print(f"{kind} ({number} of {len(kinds)})", flush=True)
        code, error = rung(kind, ",".join([f"kind={kind}", *arguments]), flags.dir)
        if code in STOPPED:
            print("stopped and saved; the same command goes on")
            return code
        if error:
            failed.append(kind)
            print(f"  failed: {error}", flush=True)
    found = collect(flags.dir)
    table = as_table(found)
    (flags.dir / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (flags.dir / "table.md").write_text(table)
    print(table)
    draw(found, flags.dir / "ladder.png")
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries again")
    return int(bool(failed))


def rung(kind: str, argument: str, folder: Path) -> tuple[int, str | None]:
    """Trains a kind unless that is done; returns the exit code, and an error."""
    result, log = folder / f"{kind}.json", folder / f"{kind}.log"
    config = f"experiments/ladder/config.py:{argument}"
    attempts = json.loads(result.read_text()) if result.exists() else []
    if attempts and attempts[-1]["config"] != config:
        return 2, f"{result} is of {attempts[-1]['config']}: choose another --dir"
    if attempts and attempts[-1]["code"] == 0:
        print("  done before")
        return 0, None
    workdir = folder / kind
    command = [sys.executable, "-m", "lm.main", f"--config={config}"]
    command.append(f"--workdir={workdir.resolve()}")
    with log.open("a") as out:
        attempt = measured(command, out, workdir)
    attempts.append({"config": config, **attempt})
    result.write_text(json.dumps(attempts, indent=1) + "\n")
    code = attempt["code"]
    lines = log.read_text().splitlines() or ["no output"]
    return code, f"exit code {code}: {lines[-1]} ({log})" if code else None


def measured(command: list[str], out: Any, workdir: Path) -> dict[str, Any]:
    """Runs a command from the root; its exit code, seconds, CPU seconds, peak bytes."""
    began = told = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    while True:
        try:
            pid, status, used = os.wait4(child.pid, os.WNOHANG)
        except KeyboardInterrupt:
            continue  # the child got it too, saves and ends
        if pid:
            break
        time.sleep(0.2)
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            rows = metrics(workdir)
            step = f"step {rows[-1]['step']}" if rows else "starting"
            print(f"  {step} after {told - began:.0f} s", flush=True)
    child.returncode = os.waitstatus_to_exitcode(status)
    return {
        "code": child.returncode,
        "seconds": time.monotonic() - began,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads the rows that a run has written so far."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def collect(folder: Path) -> list[dict[str, Any]]:
    """Gathers the results of all kinds in a folder, also those that are unfinished."""
    found = []
    for kind in KINDS:
        result = folder / f"{kind}.json"
        attempts = json.loads(result.read_text()) if result.exists() else []
        rows = [row for row in metrics(folder / kind) if "heldout/lm_loss" in row]
        if not rows:
            continue
        finished = bool(attempts) and attempts[-1]["code"] == 0
        used = attempts if finished else []
        size, flops = size_of(folder / kind)
        curve = [
            {"flops": flops and flops * row["step"], "loss": row["heldout/lm_loss"]}
            for row in rows
        ]
        found.append(
            {
                "kind": kind,
                "title": KINDS[kind] + f", at step {rows[-1]['step']}" * (not finished),
                "loss": curve[-1]["loss"],
                "bits_per_byte": rows[-1]["heldout/bits_per_byte"],
                "word_perplexity": rows[-1]["heldout/word_perplexity"],
                "targets": rows[-1]["heldout/targets"],
                "parameters": size,
                "flops": curve[-1]["flops"],
                "seconds": sum(each["seconds"] for each in used),
                "cpu_seconds": sum(each["cpu_seconds"] for each in used),
                "peak_bytes": max((each["peak_bytes"] for each in used), default=0),
                "curve": curve,
            }
        )
    if len(counts := {each["targets"] for each in found}) > 1:
        print(f"not comparable: the kinds predict {sorted(counts)} characters")
    return found


def size_of(workdir: Path) -> tuple[int, float | None]:
    """Counts a run's parameters and, if they are known, the FLOPs of one step."""
    import jax

    from lm import run as runs

    run = runs.open_run(workdir, note=lambda line: None)
    size = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    shape = jax.ShapeDtypeStruct((run.config.batch_size, run.config.seq_len), "int32")
    model = run.program.model
    return int(size), model.flops({"inputs": shape, "targets": shape})


def as_table(found: list[dict[str, Any]]) -> str:
    """Writes the results as a table in Markdown."""
    columns = "model | nats a character | bits a byte | perplexity a word | parameters"
    columns += " | training FLOPs | CPU s | wall s | peak memory"
    lines = [f"| {columns} |", "| --- " * (columns.count("|") + 1) + "|"]
    for each in sorted(found, key=lambda each: -each["loss"]):
        cells = [
            each["title"],
            f"{each['loss']:.4f}",
            f"{each['bits_per_byte']:.4f}",
            f"{each['word_perplexity']:,.1f}",
            f"{each['parameters']:,}",
            "-" if each["flops"] is None else f"{each['flops']:.2e}",
        ]
        if each["seconds"]:
            cells += [f"{each[name]:.0f}" for name in ("cpu_seconds", "seconds")]
            cells += [f"{each['peak_bytes'] / 2**20:,.0f} MiB"]
        else:  # unfinished
            cells += ["-", "-", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(found: list[dict[str, Any]], to: Path) -> None:
    """Draws the held-out loss against the FLOPs of training.

    Kinds whose FLOPs are not counted are level lines. Where matplotlib is missing a
    line says so, and nothing is drawn.
    """
    if importlib.util.find_spec("matplotlib") is None:
        needs = "pip install -r experiments/ladder/requirements.txt"
        print(f"no plot: {needs}, then the same command")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    dashes = iter([":", "--", "-.", (0, (5, 1))])
    for number, each in enumerate(found):
        title, colour = each["title"], f"C{number}"
        if each["flops"] is None:
            style = {"linestyle": next(dashes), "label": f"{title}, fitted"}
            axes.axhline(each["loss"], color=colour, linewidth=1.2, **style)
            continue
        flops, losses = zip(*((p["flops"], p["loss"]) for p in each["curve"]))
        axes.plot(flops, losses, color=colour, marker="o", markersize=4, label=title)
    axes.set_xscale("log")
    axes.set_xlabel("FLOPs of training")
    axes.set_ylabel("held-out loss, nats a character")
    axes.grid(which="both", alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(to, dpi=130)
    print(f"plot: {to}")


if __name__ == "__main__":
    sys.exit(main())
