"""Where the ends of two runs are compared."""

import json

from lm.checks import resume


def test_what_differs_at_the_end_is_named(tmp_path):
    ends = [tmp_path / "a", tmp_path / "b"]
    host = f"checkpoints/{resume.STEPS}/host.json"
    for end in ends:
        (end / host).parent.mkdir(parents=True)
        (end / host).write_text("{}")
    rows = [json.dumps({"step": step}) for step in (1, 2, 3)]
    (ends[0] / "metrics.jsonl").write_text("\n".join(rows))
    (ends[1] / "metrics.jsonl").write_text("\n".join([*rows[:2], "{}"]))
    found = resume.same_end(*ends)
    assert found.passed is False and found.note == "metrics.jsonl, line 3"
    (ends[1] / "metrics.jsonl").write_text("\n".join(rows[:1]))
    assert resume.same_end(*ends).note == "metrics.jsonl, line 2"
    (ends[1] / "metrics.jsonl").write_text("\n".join(rows))
    (ends[1] / host).write_text('{"data": 1}')
    assert resume.same_end(*ends).note == f"{host}, line 1"


def test_numbers_that_differ_at_the_end_are_named(tmp_path, monkeypatch):
    import numpy as np

    ends = [tmp_path / "a", tmp_path / "b"]
    for end in ends:
        step = end / f"checkpoints/{resume.STEPS}"
        step.mkdir(parents=True)
        (step / "host.json").write_text("{}")
        (end / "metrics.jsonl").write_text("{}")
    states = {"a": {"step": np.int32(9), "params/x": np.ones(3, np.float32)}}
    states["b"] = states["a"] | {"params/x": np.array([1, 1, 1.5], np.float32)}
    monkeypatch.setattr(resume, "leaves", lambda step: states[step.parts[-3]])
    found = resume.same_end(*ends)
    assert (found.passed, found.note, found.largest) == (False, "params/x", 0.5)
    states["b"] = {"step": np.int32(9)}
    assert resume.same_end(*ends).note == "params/x"
    states["b"] = states["a"]
    assert resume.same_end(*ends).passed is True
