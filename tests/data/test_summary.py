"""What the log tells of the data, and data that are refused before step 1."""

import json
import resource
import shutil

import numpy as np
import pytest

from lm.data import index as indices
from lm.data import labels, layouts, pipeline, sentences, summary
from lm.data.sources import memory
from lm.data.stream import Stream
from lm.errors import ConfigError, DataError, StorageError
from lm.host import storage
from lm.workdir import adopt
from tests import tiny


class Letters:
    """A token per letter; capitals are unknown."""

    vocab_size, fingerprint, unk_id = 128, "letters", 0

    def token(self, id):
        return "<unk>"

    def encode_batch(self, texts):
        return [[ord(c) * c.islower() for c in t if c.strip()] for t in texts]


def build(folder, layout, *records):
    made_of = memory.Source(items=tuple(records))
    options = {"skip_bad": True, "max_bad": 0.5, "note": lambda line: None}
    indices.build(folder, made_of, layout, Letters(), **options)
    return indices.load(folder)


def rows_of(index):
    """The texts of each row."""
    pieces = [index.row(i)["pieces"] for i in range(len(index))]
    return [["".join(map(chr, piece)) for piece in row] for row in pieces]


def stream(*parts):
    return Stream(tuple(parts), None, ((),) * len(parts), 0)


# ---- the rows ----


def test_records_of_every_layout(tmp_path):
    texts = [{"text": t} for t in ("abcdef", "gh", "i")]
    documents = build(tmp_path / "a", layouts.Documents(6, 2, False), *texts)
    assert documents.fields["record"].tolist() == [0, 0, 1, 2]
    packed = build(tmp_path / "b", layouts.Documents(8, 2, True), *texts)
    assert [r.tolist() for r in packed.arrays["record"]] == [[0], [1, 2]]
    assert packed.row(1)["record"].tolist() == [1, 2]
    pairs = build(
        tmp_path / "c",
        sentences.Sentences(11, 0.0),
        *texts[1:],
        {"text": "a. b. cdefg"},
    )
    assert pairs.fields["record"].tolist() == [0, 2]


def test_arrays_per_row_are_ragged_and_verified(tmp_path):
    class Spans:
        """Rows with arrays of two columns, and of floats."""

        def texts(self, record):
            return [record.fields["text"]]

        def write(self, records, out):
            for _, (tokens,) in records:
                spans = np.arange(2 * len(tokens), dtype=np.int32).reshape(-1, 2)
                scores = np.linspace(0, 1, len(tokens) % 3, dtype=np.float32)
                out.row([tokens], spans=spans, scores=scores, record=out.record)

    index = build(tmp_path / "a", Spans(), "abcd", "a", "abcdef", "ab")
    for i, n in enumerate((4, 1, 6, 2)):
        row = index.row(i)
        assert row["spans"].shape == (n, 2) and row["spans"].dtype == np.int32
        assert row["spans"].ravel().tolist() == list(range(2 * n))
        assert row["scores"].dtype == np.float32 and len(row["scores"]) == n % 3
    values = tmp_path / "a" / "array_spans.bin"
    values.write_bytes(values.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"array_spans\.bin"):
        indices.load(tmp_path / "a")


@pytest.mark.parametrize(
    "second", [{"x": np.zeros(2)}, {"x": [1], "y": 2}, {}, {"x": np.zeros((1, 1), int)}]
)
def test_rows_of_different_kinds_are_a_mistake_of_the_layout(tmp_path, second):
    out = indices.FileWriter(tmp_path, 128)
    out.row([[1]], x=[1, 2])
    with pytest.raises(ValueError, match="others"):
        out.row([[1]], **second)


def test_columns_are_written_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(indices, "CHUNK", 4)
    texts = ["a" * (n % 5 + 1) for n in range(50)]
    index = build(tmp_path / "a", layouts.Documents(8, 2, False), *texts)
    assert [len(index.row(i)["pieces"][0]) for i in range(50)] == list(map(len, texts))
    assert index.fields["record"].tolist() == list(range(50))


# ---- too long, blank ----


def labelled(**options):
    options = {"length": 6, "overhead": 2} | options
    return layouts.Labelled(("text",), labels.Class("label", (), 2), **options)


LONG = [
    {"text": "abcd", "label": 0},
    {"text": "abcdefg", "label": 1},
    {"text": " ", "label": 1},
]


def test_too_long_means_the_same_in_classification(tmp_path):
    cut = build(tmp_path / "cut", labelled(), *LONG)
    assert len(cut) == 3 and cut.facts["too_long_cut"] == 1 and cut.facts["blank"] == 1
    skip = build(tmp_path / "skip", labelled(too_long="skip"), *LONG)
    assert skip.fields["record"].tolist() == [0]
    assert skip.facts["too_long_skip"] == 1 and skip.facts["blank_skip"] == 1
    for records, found in ((LONG[:2], "7 tokens of text"), (LONG[::2], "no text in")):
        made_of = memory.Source(items=tuple(records))
        with pytest.raises(DataError, match=rf"memory\[1\]: found {found}"):
            indices.build(
                tmp_path / "error",
                made_of,
                labelled(too_long="error"),
                Letters(),
                skip_bad=False,
                max_bad=0.0,
                note=print,
            )
    window = build(tmp_path / "window", labelled(too_long="window"), *LONG)
    assert rows_of(window) == [["abcd"], ["abcd"], ["defg"], [""]]
    assert window.fields["record"].tolist() == [0, 1, 1, 2]
    assert window.fields["labels"].tolist() == [0, 1, 1, 1]
    assert window.facts["too_long_window"] == 1
    assert window.fields["cut"].tolist() == [0] * 4
    assert cut.fields["cut"].tolist() == [0, 3, 0]


def test_the_longer_text_of_a_pair_is_divided(tmp_path):
    layout = layouts.Labelled(("a", "b"), length=8, overhead=3, too_long="window")
    index = build(tmp_path / "a", layout, {"a": "xy", "b": "abcdefg"})
    assert rows_of(index) == [["xy", "abc"], ["xy", "cde"], ["xy", "efg"]]
    assert "labels" not in index.fields
    with pytest.raises(DataError, match="found 10 tokens of a and b, expected at most"):
        build(tmp_path / "b", layout, {"a": "wxyz", "b": "abcdef"})


def test_a_pair_with_a_blank_text_is_left_out_and_counted(tmp_path):
    pairs = [{"source": "a", "target": "b"}, {"source": " ", "target": "b"}]
    layout = layouts.Pairs(4, 4, 1, False, too_long="skip")
    index = build(tmp_path / "a", layout, *pairs)
    assert index.fields["record"].tolist() == [0] and index.facts["blank_skip"] == 1


@pytest.mark.parametrize(
    ("make", "field", "least"),
    [
        (lambda: labelled(length=2), "seq_len", 3),
        (
            lambda: layouts.Labelled(
                ("a", "b"), labels.Class("label", (), 2), length=4, overhead=3
            ),
            "seq_len",
            5,
        ),
        (lambda: layouts.Documents(2, 2, False), "seq_len", 3),
        (lambda: sentences.Sentences(4, 0.1), "seq_len", 5),
        (lambda: layouts.Pairs(8, 1, 1, False), "seq_len", 2),
        (lambda: layouts.Pairs(1, 8, 1, False), "objective.source_len", 2),
    ],
)
def test_C16_the_least_length_is_named(make, field, least):
    with pytest.raises(ConfigError, match=rf"{field}: found \d, .*at least {least}:"):
        make()


@pytest.mark.parametrize("length", [1, 2])
def test_C16_in_a_run(tmp_path, length):
    items = tuple(d | {"label": n % 2} for n, d in enumerate(tiny.documents(20)))
    changes = {
        "objective": {"name": "classification"},
        "data": {"sources": [{"name": "memory", "items": items}]},
        "seq_len": length,
        "evals": {},
    }
    with pytest.raises(ConfigError, match=r"seq_len: .*at least 3"):
        tiny.run(changes, tmp_path)


# ---- unknown tokens ----


def test_C9_a_source_of_unknown_tokens_is_refused_before_step_1(tmp_path):
    chinese = [{"text": "这 是 一 个 测 试"} for _ in range(40)]
    section = {"sources": [{"name": "memory", "items": tuple(chinese)}]}
    vocabulary = tmp_path / "vocab.txt"
    words = ["<pad>", "<unk>", "<cls>", "<sep>", "<mask>", *tiny.WORDS]
    vocabulary.write_text("\n".join(words) + "\n")
    tokenizer = {"name": "word", "path": str(vocabulary)}
    changes = {"data": section, "tokenizer": tokenizer, "evals": {}}
    with pytest.raises(DataError, match=r"100\.0% unknown tokens.*<unk>") as caught:
        tiny.run(changes, tmp_path / "run")
    assert caught.value.exit_code == 3
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    evals = {"x": {"evaluator": "mean", "data": section, "every": 4}}
    changes = {"tokenizer": tokenizer, "evals": evals}
    with pytest.raises(DataError, match=r"100\.0% unknown tokens"):
        tiny.run(changes, tmp_path / "evaluated")


def test_C9_the_limit_is_a_share_of_all_tokens(tmp_path):
    index = build(tmp_path / "a", layouts.Documents(8, 2, False), "abcdefg", "abC")
    assert (index.facts["unknown"], index.facts["encoded"]) == (1, 10)
    pipeline.check_unknown(index, Letters(), 0.1, "x")
    with pytest.raises(DataError, match=r"x: found 10\.0% unknown tokens \(1 of 10"):
        pipeline.check_unknown(index, Letters(), 0.09, "x")


# ---- the summary ----


def test_C22_the_summary_tells_what_a_run_should_know(tmp_path):
    train = build(tmp_path / "train", labelled(), *LONG, *LONG[:1], {"text": "aB"})
    held = build(tmp_path / "held", labelled(), LONG[0], {"text": "xy", "label": 1})
    lines = summary.describe(stream(train), {"dev": stream(held)}, ("no", "yes"))
    text = " ".join(" ".join(lines).split())
    assert all(len(part) <= 80 for line in lines for part in line.split("\n"))
    assert "training: 5 records in 4 rows; 0.0% unknown tokens; " in text
    assert "1 unreadable records left out; 1 blank; too long: 1 (cut)" in text
    assert "labels no 2, yes 2" in text
    assert "dev: 2 records in 2 rows" in text
    assert "1 of its 2 texts are trained on too" in text


@pytest.mark.slow
def test_C22_it_stands_in_the_log_of_every_run(tmp_path):
    assert tiny.run({"steps": 2, "evals__heldout__every": 2}, tmp_path) == 0
    for _ in range(2):
        log = (tmp_path / "run.log").read_text()
        assert "training: 60 records in" in log and "heldout: 12 records in" in log
        (tmp_path / "run.log").unlink()
        assert tiny.run({"steps": 2, "evals__heldout__every": 2}, tmp_path) == 0


def test_many_labels_are_summed_up(tmp_path):
    layout = layouts.Labelled(("text",), labels.Class("label", (), 20))
    records = [{"text": "a", "label": n % 15} for n in range(20)]
    index = build(tmp_path / "a", layout, *records)
    (line,) = summary.describe(stream(index), {})
    assert "15 of 15 labels, each 1 to 2 times" in " ".join(line.split())


# ---- F5, F22 ----


def test_F5_an_index_under_another_name_is_refused(tmp_path):
    layout = layouts.Documents(8, 2, False)
    for name, text in (("a", "abc"), ("b", "xyz")):
        build(tmp_path / name, layout, text)
    shutil.move(tmp_path / "a", tmp_path / "c")
    shutil.move(tmp_path / "b", tmp_path / "a")
    with pytest.raises(DataError, match=r"index 'b'.*index 'a'.*delete"):
        indices.load(tmp_path / "a")


def test_F5_the_evaluations_are_part_of_the_identity(tmp_path):
    corpus, _ = tiny.program(tiny.config(), tmp_path)
    now = json.loads(json.dumps(corpus.identity()))
    adopt.check_data(now, now)
    edited = json.loads(json.dumps(now))
    edited["evals"]["heldout"]["rows"][0]["name"] = "other"
    with pytest.raises(Exception, match=r"data fingerprint: evals\.heldout") as caught:
        adopt.check_data(edited, now)
    assert caught.value.exit_code == 4
    # Another section is another evaluation, which the config decides; so is none.
    edited["evals"]["heldout"]["section"] = "other"
    adopt.check_data(edited, now)
    adopt.check_data({k: v for k, v in now.items() if k != "evals"}, now)


def test_a_checkpoint_of_another_format_is_compared_by_counts():
    row = {"name": "new", "records": 3, "skipped": 0, "rows": 2, "tokens": 9}
    now = {"format": 2, "tokenizer": "t", "rows": [row], "mixture": [1.0], "seed": 1}
    old = {k: v for k, v in now.items() if k != "format"}
    old["rows"] = [row | {"name": "old", "dtype": "uint16", "fields": []}]
    adopt.check_data(old, now)
    old["rows"] = [row | {"tokens": 8}]
    with pytest.raises(Exception, match="data fingerprint: rows"):
        adopt.check_data(old, now)


def test_F22_a_full_disk_leaves_nothing_and_the_next_run_builds(tmp_path):
    texts = ["abcdefghij" * 100] * 100  # 200,000 bytes of token ids
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StorageError) as caught:
            build(tmp_path / "a", layouts.Documents(64, 2, False), *texts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 5 and "a.partial" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    index = build(tmp_path / "a", layouts.Documents(64, 2, False), *texts)
    assert index.facts["tokens"] == 100_000


def test_F22_a_tokenizer_on_a_full_disk_leaves_nothing(tmp_path):
    texts = [f"word{n}" for n in range(9000)]
    section = {"name": "word", "kind": "word"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError):
            pipeline.open_tokenizer(
                section, tmp_path / "t", lambda: iter(texts), pipeline.Shares(), print
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_names_its_index(tmp_path):
    build(tmp_path / "a", layouts.Documents(8, 2, False), "abc")
    assert storage.read_manifest(tmp_path / "a")["index"] == "a"
