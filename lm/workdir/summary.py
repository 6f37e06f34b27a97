"""Describes the results of a run, for the end of its log."""

from pathlib import Path

from lm.workdir.lines import figures, wrap
from lm.workdir.writer import read_rows


def summary(workdir: Path, step: int | None) -> str:
    """Describes the last evaluations, and shows the samples if there are any."""
    rows = read_rows(workdir / "metrics.jsonl")
    found = {
        name: value
        for name, value in (rows[-1] if rows else {}).items()
        if "/" in name and not name.startswith(("train/", "optim/"))
    }
    lines = [f"finished at step {step}: {workdir}"]
    for name in sorted({name.partition("/")[0] for name in found}):
        values = [
            f"{key.partition('/')[2].replace('_', ' ')} {value}"
            for key, value in figures(found).items()
            if key.startswith(f"{name}/")
        ]
        lines.append(wrap([f"  {name}: {values[0]}", *values[1:]], ", "))
    for file in sorted((workdir / "samples").glob(f"*-{step}.txt")):
        text = file.read_text()
        legend = ", a guess as [guess] or [guess|truth]" if "[" in text else ""
        lines.append(f"  {file}{legend}:")
        lines += [f"    {line}" for line in text.splitlines() if line]
    return "\n".join(lines)


def finished(workdir: Path, step: int, total: int, why: str = "") -> str:
    """Describes the results, and why the run ended before its last step if it did.

    Args:
      step: the last one made.
      total: the last step of the config.
      why: what ended the run early, or "".
    """
    lines = [summary(workdir, step)]
    if step > total:
        lines.append(f"the run is beyond the {total} steps of the config")
    if why:
        lines.append(f"the run ended early: {why}")
    return "\n".join(lines)
