"""Every config loads in all its forms, and trains a little when asked for `:quick`."""

from pathlib import Path

import pytest

from lm.config import resolve as configs
from lm.main import main
from lm.workdir.writer import read_rows
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize(
    "config",
    [
        *FILES,
        *(f"{name}:quick" for name in FILES),
        "bert_base:paper",
        "bert_tiny:preset=bert_mini",
        "bert_tiny:text=notes.txt",
        "sst2:dir=elsewhere,scratch",
        "imdb:dir=elsewhere,scratch",
        "distil:dir=elsewhere,teacher=runs/teacher",
        "distil:quick,teacher=hf:DIR",
        "word2vec:dir=elsewhere,cbow,hierarchical",
        "word2vec:quick,one_hot",
        "stsb:kind=cosine,scratch",
        "embed:pairs,negatives,scratch,sts=sts.csv",
        "glue:task=stsb,quick",
        "glue:task=mnli,dir=elsewhere,scratch",
        "lora:task=stsb,dir=elsewhere,full",
        "squad:v2,dir=elsewhere,scratch",
        "multi30k:dir=elsewhere",
        "scitldr:dir=elsewhere,run=runs/t5",
        "t5_small:text=notes.txt",
        "t5_small:paper,vocab=spiece.model",
        "transformer_base:big,source=a.en,target=a.de",
    ],
)
def test_loads(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, _, arg = config.partition(":")
    overrides = []
    starts = ("sst2", "glue", "lora", "stsb", "embed", "squad", "search", "cranfield")
    starts += ("imdb", "dpo")
    if name in starts and "quick" not in arg and "scratch" not in arg:
        overrides = ["--config.init.source=runs/bert_tiny"]
    config = configs.load(f"configs/{name}.py:{arg}".rstrip(":"), overrides)
    assert config.steps


@pytest.mark.parametrize("name", tiny.few(FILES, {"llama_tiny"}))
def test_trains_two_quick_steps(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    options = configs.load(f"configs/{name}.py:quick", []).model
    small = {"num_layers": 2, "d_model": 64, "num_heads": 2, "d_ff": 128}
    size = [f"--config.model.{k}={v}" for k, v in small.items() if k in options]
    if "attention" in options:
        size.append("--config.model.attention.kv_heads=2")
    code = main(
        [
            f"--config=configs/{name}.py:quick",
            f"--workdir={tmp_path}",
            "--config.steps=2",
            "--config.mesh.data=8",
            "--config.batch_size=8",
            *size,
        ]
    )
    assert code == 0, capsys.readouterr()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert f"finished at step 2: {tmp_path}" in capsys.readouterr().out
