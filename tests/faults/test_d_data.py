"""D1 to D11: data that changed, that are broken, that do not fit."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lm.data import index as indices
from lm.data import pipeline
from lm.data.mixture import Mixture
from lm.data.pipeline import Data, Shares
from lm.data.stream import Stream
from lm.errors import CheckpointError, DataError
from lm.workdir import adopt
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


class Words:
    """A tokenizer of a number per letter."""

    vocab_size, fingerprint = 128, "letters"
    pad_id = bos_id = eos_id = unk_id = cls_id = sep_id = mask_id = None
    special_ids = frozenset()

    def encode_batch(self, texts):
        return [[ord(c) % 128 for c in text if c.strip()] for text in texts]


class Rows:
    """A layout of one row for each text."""

    def texts(self, record):
        return [str(record.fields["text"])]

    def write(self, records, out):
        for _, pieces in records:
            out.row(pieces)


def source(name, **fields):
    from lm.config import resolve as configs

    return configs.load_class("data.sources", name)(**fields)


def build(folder, made_of, **options):
    options = {"skip_bad": False, "max_bad": 0.0, "note": lambda line: None} | options
    indices.build(folder, made_of, Rows(), Words(), **options)
    return indices.load(folder)


PARTS = {
    "tokenizer": "abc",
    "rows": [{"rows": 3, "name": "x"}],
    "mixture": [1.0],
    "seed": 3,
    "batch_size": 8,
}


@pytest.mark.parametrize("part", PARTS)
def test_D1_a_checkpoint_of_other_data_is_refused_by_the_part(part):
    adopt.check_data(PARTS, PARTS)
    with pytest.raises(CheckpointError, match=f"data fingerprint: {part}") as caught:
        adopt.check_data(PARTS, PARTS | {part: "other"})
    assert caught.value.exit_code == 4


@pytest.mark.slow
def test_F5_an_evaluation_edited_between_kill_and_resume_is_refused(server, tmp_path):
    """The file of an evaluation is part of the data of a checkpoint."""
    file, run = tmp_path / "heldout.txt", tmp_path / "run"
    text = "\n\n".join(document["text"] for document in tiny.documents(12, seed=1))
    file.write_text(text)
    source = {"name": "text", "files": str(file)}
    flags = [f"--config.evals.heldout.data.sources={[source]}"]
    assert server.run(run, *flags, LM_CRASHPOINT="step:6").code == -9
    before = tiny.raw_rows(run)
    file.write_text(text.replace("the", "cat"))
    refused = server.run(run, *flags)
    assert refused.code == 4, refused.text()
    line = refused.error()
    assert line.startswith("error[checkpoint] data fingerprint: evals.heldout: ")
    assert tiny.raw_rows(run) == before
    file.write_text(text)
    done = server.run(run, *flags)
    assert done.code == 0, done.text()
    assert [row["step"] for row in tiny.rows(run)] == [*range(1, 9)]


@pytest.mark.slow
def test_D2_killed_in_later_epochs_with_packing_and_mixing(server, tmp_path):
    flags = {"config": "tests/faults/config.py:mixed"}
    golden, run = tmp_path / "golden", tmp_path / "run"
    assert server.run(golden, **flags).code == 0
    for point in ("step:5", "save-arrays:3", "batch:9"):
        assert server.run(run, LM_CRASHPOINT=point, **flags).code == -9
    done = server.run(run, **flags)
    assert done.code == 0, done.text()
    assert tiny.raw_rows(run) == tiny.raw_rows(golden)
    assert tiny.state_bits(run) == tiny.state_bits(golden)
    numbers = [row["train/batch"] for row in tiny.rows(run)]
    assert numbers == list(range(24))


def stream(weights=(3.0, 1.0, 2.0), seed=3):
    """Three sources of rows without transforms, mixed."""
    rng = np.random.default_rng(0)
    made = []
    for source in range(3):
        count = 11 + 4 * source
        tokens = rng.integers(0, 99, count * 3).astype(np.uint16)
        spans = np.arange(0, 3 * count + 1, 3)
        rows = np.arange(count + 1)
        made.append(indices.Index(tokens, spans, rows, {}, {}))
    kept = (lambda row, rng: {"inputs": row["pieces"][0], "draw": rng.random()},)
    return Stream(tuple(made), Mixture(weights), (kept,) * 3, seed)


def ids(processes, first, last, batch=12):
    """Each step's example ids and draws, over all processes."""
    parts = [
        pipeline.batches(
            stream(),
            batch_size=batch,
            first_step=first,
            last_step=last,
            data=Data(),
            shares=Shares(process, processes),
        )
        for process in range(processes)
    ]
    for shares in zip(*parts, strict=True):
        yield [
            (*example.tolist(), float(draw))
            for share in shares
            for example, draw in zip(share["example_ids"], share["draw"], strict=True)
        ]


def test_D2_D3_the_order_is_a_function_of_the_step_alone():
    """D2: begun anywhere, in epoch 0, 1 and 2; D3: by 1, 2, 3 or 4 processes."""
    golden = list(ids(1, 0, 12))
    epochs = {epoch for step in golden for _, epoch, _, _ in step}
    assert {0, 1, 2} <= epochs
    moved = [*ids(1, 0, 4), *ids(2, 4, 8), *ids(1, 8, 12)]
    assert moved == golden
    for processes in (2, 3, 4):
        assert list(ids(processes, 5, 9)) == golden[5:9]


BROKEN = [
    ("text", "a.txt", b"good\n\nbad \x80 byte\n", "a.txt:3"),
    ("jsonl", "b.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', "b.jsonl:2"),
    ("jsonl", "c.jsonl", b'{"text": "a"}\n{"text": \n', "c.jsonl:2"),
    ("jsonl", "d.jsonl", b'{"text": "a"}\n{"txt": "a"}\n', "d.jsonl:2"),
    ("jsonl", "e.jsonl", b'{"text": "a"}\n["text"]\n', "e.jsonl:2"),
    ("csv", "f.csv", b"body,label\na,1\n", "f.csv"),
    ("tsv", "g.tsv", b"text\tlabel\na\t1\nb\n", "g.tsv:3"),
]


@pytest.mark.parametrize(
    ("kind", "name", "content", "where"), BROKEN, ids=[case[1] for case in BROKEN]
)
def test_D4_D6_broken_records_are_named_by_file_and_line(
    tmp_path, kind, name, content, where
):
    """D4: bytes that are no text; D6: lines and columns that do not fit."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        build(tmp_path / "index", source(kind, files=str(tmp_path / name)))
    assert where in str(caught.value) and caught.value.exit_code == 3
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa\n\nb\n", b"a\r\n\r\nb\r\n"])
def test_D4_a_byte_order_mark_and_other_line_ends_are_no_content(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    index = build(tmp_path / "index", source("text", files=str(tmp_path / "a.txt")))
    assert [index.row(i)["pieces"][0].tolist() for i in range(len(index))] == [
        [ord("a")],
        [ord("b")],
    ]


def test_D4_bad_records_may_be_skipped_up_to_a_share(tmp_path):
    lines = [b'{"text": "good"}'] * 19 + [b"{"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    made_of = source("jsonl", files=str(tmp_path / "a.jsonl"))
    index = build(tmp_path / "a", made_of, skip_bad=True, max_bad=0.05)
    assert len(index) == 19 and index.facts["skipped"] == 1
    listed = (tmp_path / "a" / "bad_records.jsonl").read_text()
    assert "a.jsonl:20" in json.loads(listed)["where"]
    with pytest.raises(DataError, match="1 bad records of 20"):
        build(tmp_path / "b", made_of, skip_bad=True, max_bad=0.04)


MEMORY = """
import re, sys
from pathlib import Path
from tests.faults.test_d_data import build, source
index = build(Path(sys.argv[1] + ".index"), source("text", files=sys.argv[1]))
# Not getrusage: its peak is also that of the process which started this one.
status = Path("/proc/self/status").read_text()
print(len(index), int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "rows"),
    [(b"word " * 4_000_000, 1), (b"a b\n\n" * 300_000, 300_000), (b"a\n\n \n\n\n", 1)],
    ids=["huge", "many", "blank"],
)
def test_D5_huge_many_and_empty_documents(tmp_path, content, rows):
    (tmp_path / "a.txt").write_bytes(content)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a.txt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found, megabytes = map(int, done.stdout.split())
    assert found == rows
    assert megabytes < 300 + 25 * len(content) / 2**20, megabytes


def test_D5_a_batch_without_a_weight_gives_no_nan():
    import jax.numpy as jnp

    from lm.ops import losses

    zero = jnp.zeros((2, 3))
    logits = jnp.full((2, 3, 5), jnp.nan)
    sums = losses.cross_entropy(logits, zero.astype(int), zero)
    assert [float(x) for x in sums] == [0.0, 0.0]


def test_D7_ids_that_the_vocabulary_lacks_never_reach_the_device(tmp_path):
    """There JAX would clamp them in silence."""

    class Wrong(Words):
        vocab_size = 100

    (tmp_path / "a.txt").write_text("abc\n\nxyz\n")
    made_of = source("text", files=str(tmp_path / "a.txt"))
    if not hasattr(indices, "check_ids"):
        pytest.skip("the index does not check ids yet")
    with pytest.raises(DataError) as caught:
        indices.build(
            tmp_path / "index",
            made_of,
            Rows(),
            Wrong(),
            skip_bad=False,
            max_bad=0.0,
            note=print,
        )
    assert "120" in str(caught.value) or "100" in str(caught.value)


def test_D8_a_byte_that_changed_in_the_rows_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("abc\n\nxyz\n")
    folder = tmp_path / "index"
    build(folder, source("text", files=str(tmp_path / "a.txt")))
    for file in sorted(folder.glob("*.*")):
        good = file.read_bytes()
        for bad in (good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
            file.write_bytes(bad)
            with pytest.raises(DataError) as caught:
                indices.load(folder)
            assert str(file) in str(caught.value)
        file.write_bytes(good)
    indices.load(folder)


def test_D9_a_tokenizer_with_two_tokens_exchanged_is_refused(golden, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(golden, run)
    file = max((run / "tokenizer").glob("*.*"), key=lambda p: p.stat().st_size)
    for file in (run / "tokenizer").iterdir():
        text = file.read_text()
        if '"dog"' in text or "\ndog\n" in text:
            swapped = text.replace("dog", "#").replace("cat", "dog").replace("#", "cat")
            assert len(swapped) == len(text) and swapped != text
            file.write_text(swapped)
            break
    else:
        pytest.fail("no file of the tokenizer holds its words")
    with pytest.raises((DataError, CheckpointError)) as caught:
        tiny.run({"checkpoint": {"every": 2, "keep_last": 3}, "steps": 10}, run)
    assert file.name in str(caught.value) or "tokenizer" in str(caught.value)


def test_D10_no_data_or_too_little_are_told_with_numbers(tmp_path):
    for content in (b"", b"\n \n"):
        (tmp_path / "a.txt").write_bytes(content)
        section = [{"name": "text", "files": str(tmp_path / "a.txt")}]
        with pytest.raises(DataError, match=r"a\.txt"):
            tiny.run({"data__sources": section, "evals": {}}, tmp_path / "run")


def test_D11_two_runs_that_index_the_same_data_build_it_once(tmp_path, monkeypatch):
    """The second waits; and what a killed one left is no hindrance."""
    (tmp_path / "a.txt").write_text("one two three\n\n" * 50)
    built, inside, real = [], [], indices.build

    def slowly(folder, *rest, **options):
        inside.append(1)
        assert len(inside) == 1, "two build at once"
        time.sleep(0.3)
        real(folder, *rest, **options)
        built.append(folder)
        inside.pop()

    monkeypatch.setattr(indices, "build", slowly)
    section = {"sources": [{"name": "text", "files": str(tmp_path / "a.txt")}]}
    config = tiny.config(data=section, data__cache=str(tmp_path / "cache"), evals={})
    corpus, _ = tiny.program(config, tmp_path / "first")
    assert len(corpus.stream) and len(built) == 1
    shutil.rmtree(tmp_path / "cache")
    built.clear()
    failed = []

    def opened():
        try:
            corpus.open(config.data, seed=1, train=True)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=opened) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(built) == 1
