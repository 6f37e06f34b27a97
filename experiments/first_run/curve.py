"""Draws the losses of a run as a small SVG, from its metrics.jsonl.

python experiments/first_run/curve.py WORKDIR EVALUATION OUTPUT.svg
"""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 300, 46, 30, 132, 36
BLUE, ORANGE, GREY = "#2f6fb0", "#d9822b", "#7a7f85"
Points = list[tuple[int, float]]


def read(workdir: Path, evaluation: str) -> dict[str, Points]:
    """The training loss, its mean over 10 steps, and the losses of an evaluation."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    losses = [(row["step"], row["train/loss"]) for row in rows]
    chunks = [losses[n : n + 10] for n in range(0, len(losses), 10)]
    mean = [(c[-1][0], sum(value for _, value in c) / len(c)) for c in chunks]
    heldout, unigram = (
        [(row["step"], row[name]) for row in rows if name in row]
        for name in (f"{evaluation}/loss", f"{evaluation}/unigram_loss")
    )
    return {"training": mean, "held out": heldout, "unigram": unigram}


def draw(lines: dict[str, Points], title: str) -> str:
    """An SVG of the lines over a white ground, each with its name at its end."""
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points]
    low, high, last = min(values) - 0.2, max(values) + 0.2, max(steps)

    def place(step: float, value: float) -> tuple[float, float]:
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        x, y = LEFT + across * step / last, TOP + down * (high - value) / (high - low)
        return round(x, 1), round(y, 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{GREY}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" fill="#333">{title}</text>',
    ]
    for tick in range(int(low) + 1, int(high) + 1):
        x, y = place(0, tick)
        end = WIDTH - RIGHT
        out.append(f'<path d="M{x} {y}H{end}" stroke="#e3e5e8"/>')
        out.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{tick}</text>')
    for step in range(0, last + 1, max(last // 4, 1)):
        x, y = place(step, low)
        out.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{step}</text>')
    for (name, points), colour in zip(lines.items(), (BLUE, ORANGE, GREY), strict=True):
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
        dash = ' stroke-dasharray="5 4"' if name == "unigram" else ""
        out.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="2"{dash}/>'
        )
        x, y = place(*points[-1])
        shift = {"training": 14, "held out": -4, "unigram": 4}[name]
        text = f"{name} {points[-1][1]:.2f}"
        out.append(f'<text x="{x + 8}" y="{y + shift}" fill="{colour}">{text}</text>')
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    folder, evaluation, target = sys.argv[1:]
    title = "Loss in nats a token, by step"
    Path(target).write_text(draw(read(Path(folder), evaluation), title))
