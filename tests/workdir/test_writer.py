"""The rows of a run, what is shown of it, and that a viewer never stops it."""

import io
import json
import os
import pty
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lm.workdir import writer as module
from lm.workdir.writer import Log, Writer, _json_row, cut, read_rows

QUIET = Log(tensorboard=False)


def timing(step: int) -> dict:
    return {
        "time": 1e9 + step * 2.0,
        "tokens": 1000,
        "step_seconds": 0.5,
        "tokens_per_second": 2000.0,
        "waiting": 0.01,
    }


def write(workdir, steps, *, start=0, every=10, total=100, log=QUIET, extra=None):
    """What the terminal shows of these steps."""
    stream = io.StringIO()
    with Writer(workdir, log, stream=stream) as writer:
        writer.start(start, every=every, total_steps=total)
        for step in steps:
            metrics = {"train/loss": np.float32(1 / step), **(extra or {})}
            writer.row(step, metrics, timing(step))
        writer.sync()
    return stream.getvalue()


@given(st.floats(width=32))
@example(0.1)
@example(-0.0)
@example(1e-45)
@example(float("inf"))
@example(float("nan"))
def test_float32_bits_survive_a_row(value):
    line = _json_row(1, {"x": np.float32(value)})
    json.loads(line, parse_constant=pytest.fail)  # No NaN that JSON does not know.
    back = np.float32(json.loads(line)["x"])
    if np.isnan(value):  # All NaN are one.
        assert np.isnan(back)
    else:
        assert back.tobytes() == np.float32(value).tobytes()


@given(st.floats(allow_nan=False))
def test_float64_survives_a_row(value):
    for each in (value, np.float64(value)):
        assert float(json.loads(_json_row(1, {"x": each}))["x"]) == value


def test_a_row_is_sorted_and_short():
    values = {
        "train/loss": jnp.float32(0.1),
        "heldout/f1": 0.25,
        "optim/lr": np.float32(1e-5),
        "train/tokens": jnp.int32(3),
        "train/half": jnp.bfloat16(1.5),
    }
    assert _json_row(7, values) == (
        '{"heldout/f1": 0.25, "optim/lr": 1e-05, "step": 7, "train/half": 1.5, '
        '"train/loss": 0.1, "train/tokens": 3}\n'
    )


def test_one_row_per_step_in_both_files_whatever_is_shown(tmp_path):
    write(tmp_path, range(1, 21), every=10)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert set(rows[0]) == {"step", "train/loss"}
    assert np.float32(rows[2]["train/loss"]) == np.float32(1 / 3)
    times = read_rows(tmp_path / "timing.jsonl")
    assert [row["step"] for row in times] == list(range(1, 21))
    assert times[0]["tokens_per_second"] == 2000.0


def test_read_rows_gives_back_what_json_cannot_hold(tmp_path):
    write(tmp_path, [1], extra={"a/x": float("inf"), "a/y": float("nan")})
    row = read_rows(tmp_path / "metrics.jsonl")[0]
    assert row["a/x"] == float("inf") and np.isnan(row["a/y"])


def test_a_resumed_run_has_the_rows_of_one_that_never_stopped(tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    write(straight, range(1, 13))
    write(stopped, range(1, 10))
    with open(stopped / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 10, "train/lo')
    shown = write(stopped, range(7, 13), start=6)
    assert "warning" not in shown
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert (stopped / name).read_bytes() == (straight / name).read_bytes()


def test_rows_of_a_run_that_never_saved_are_dropped(tmp_path):
    write(tmp_path, range(1, 5))
    write(tmp_path, [1, 2], start=0)
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2


def test_cut_leaves_an_untouched_file_and_no_other(tmp_path):
    write(tmp_path, range(1, 5))
    path = tmp_path / "metrics.jsonl"
    before = path.stat().st_ino
    assert cut(path, 4) is None and path.stat().st_ino == before
    assert cut(path, 3) is None and path.stat().st_ino != before
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"metrics.jsonl", "timing.jsonl", "run.log"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"step": 1}\n{"step": 2}\n', "last row is of step 2, not 3"),
        (b'{"step": 1}\nrubbish\n{"step": 3}\n', "1 lines that are no rows"),
        (b'{"step": 1}\n[]\n{"step": 3}\n', "1 lines that are no rows"),
        (b"", "last row is of step 0, not 3"),
        (None, "absent"),
    ],
)
def test_rows_that_are_missing_are_told(tmp_path, text, complaint):
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_bytes(text)
    assert complaint in cut(path, 3)


def test_a_step_is_never_written_twice(tmp_path):
    with pytest.raises(AssertionError, match="step 2 follows"):
        write(tmp_path, [1, 2, 2])
    with pytest.raises(AssertionError, match="step 3 follows"):
        write(tmp_path, [3], start=3)


def test_only_process_zero_writes(tmp_path):
    stream = io.StringIO()
    with Writer(tmp_path, QUIET, primary=False, stream=stream) as writer:
        writer.start(0, every=1, total_steps=9)
        writer.row(1, {"train/loss": 1.0}, timing(1))
        writer.note("hello")
        writer.sync()
    assert list(tmp_path.iterdir()) == [] and stream.getvalue() == ""


def test_plain_lines_are_thinned_and_kept_in_run_log(tmp_path):
    shown = write(tmp_path, range(1, 26), every=10, total=1000).splitlines()
    # Two seconds of wall time a step, half a second of it the step's own.
    assert shown == [
        "step 10/1000  loss 0.1000  2.0k tokens/s  left 0:33:00",
        "step 20/1000  loss 0.0500  2.0k tokens/s  left 0:32:40",
    ]
    kept = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in kept] == shown


def test_a_line_of_many_evaluations_is_wrapped_and_kept_whole(tmp_path):
    names = [f"heldout/metric_{n:02}" for n in range(12)]
    found = dict.fromkeys(names, np.float32(0.5))
    shown = write(tmp_path, [2], total=4, extra=found).splitlines()
    assert max(map(len, shown)) <= 80
    assert [word for line in shown for word in line.split() if "/m" in word] == names
    (kept,) = [t for t in (tmp_path / "run.log").read_text().splitlines() if "/m" in t]
    assert len(kept) > 200


def test_evaluations_and_the_last_step_are_shown_at_once(tmp_path):
    stream = io.StringIO()
    with Writer(tmp_path, QUIET, stream=stream) as writer:
        writer.start(0, every=10, total_steps=4)
        writer.row(1, {"train/loss": 1.0}, timing(1))
        writer.row(2, {"train/loss": 1.0, "heldout/loss": 5.12341}, timing(2))
        writer.row(4, {"train/loss": 1.0}, timing(4))
    shown = stream.getvalue().splitlines()
    assert shown[0] == "step 2/4  heldout/loss 5.1234"
    assert shown[1] == "step 4/4  loss 1.0000  2.0k tokens/s  left 0:00:00"
    assert len(shown) == 2


def test_a_terminal_without_the_letters_still_shows_a_note(tmp_path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Writer(tmp_path, QUIET, stream=stream) as writer:
        writer.note("今天 \udcff")
        stream.seek(0)
        assert stream.read() == "\\u4eca\\u5929 \\udcff\n"


def events(workdir):
    """(step, tag -> value or None) of each event of all event files, in order."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            points = {v.tag: v.simple_value for v in event.summary.value}
            found.append((event.step, points, event.session_log.status))
    return found


def test_tensorboard_points_and_the_purge_of_a_resumed_run(tmp_path):
    write(tmp_path, range(1, 21), every=10, log=Log())
    write(tmp_path, range(16, 21), start=15, every=10, log=Log())
    steps = [(step, start) for step, _, start in events(tmp_path)]
    assert steps == [(0, 0), (1, 1), (10, 0), (20, 0), (0, 0), (16, 1), (20, 0)]
    points = events(tmp_path)[2][1]
    assert points["train/loss"] == np.float32(0.1)
    assert points["timing/tokens_per_second"] == 2000.0


def test_a_failing_tensorboard_warns_once_and_stops_nothing(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    shown = write(tmp_path, range(1, 31), every=10, log=Log())
    assert shown.count("TensorBoard is off") == 1
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 30


def test_a_tensorboard_that_fails_later_warns_once(tmp_path, monkeypatch):
    def fail(self, step, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module._TensorBoard, "write", fail)
    shown = write(tmp_path, range(1, 31), every=10, log=Log())
    assert shown.count("No space left") == 1
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 30


RUN = """
import sys, time
from pathlib import Path
from lm.workdir.writer import Log, Writer
with Writer(Path(sys.argv[1]), Log(tensorboard=False)) as w:
    w.start(0, every=10, total_steps=100000)
    for step in range(1, 41):
        timing = {"time": time.time(), "tokens": 123456, "step_seconds": 0.01}
        w.row(step, {"train/loss": 6.5 / step}, timing)
        time.sleep(0.01)
    w.note("a note")
print("the end")
"""


def test_a_terminal_shows_a_bar_of_one_line(tmp_path):
    reader, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)],
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(reader, 4096)
        except OSError:  # The other end is closed.
            break
    os.close(reader)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "step 40/100000" in text and "12.3M tokens/s" in text and "left 0:" in text
    assert "\ra note" in text.replace("\x1b[2K", "") and "the end" in text
    hidden, shown_again = text.count("\x1b[?25l"), text.count("\x1b[?25h")
    assert hidden == shown_again == 1  # The cursor.
    assert "step 10/100000  loss" not in text
    assert "step 10/100000  loss 0.6500" in (tmp_path / "run.log").read_text()


def test_a_reader_that_has_gone_stops_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80"},
    )
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0, complaint
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 40


def test_a_row_is_cheap(tmp_path):
    stream = io.StringIO()
    metrics = {f"train/{i}": np.float32(i / 7) for i in range(12)}
    with Writer(tmp_path, QUIET, stream=stream) as writer:
        writer.start(0, every=100, total_steps=400)
        start = time.perf_counter()
        for step in range(1, 401):
            writer.row(step, metrics, timing(step))
    assert (time.perf_counter() - start) / 400 < 2e-3
