"""Sources: what each reads, how it names what it cannot read, and its fingerprint."""

import csv as stdlib_csv
import dataclasses
import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lm.data import files
from lm.data.sources import base, builtin, csv, jsonl, memory, text, tfds, tsv
from lm.errors import ConfigError, DataError


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(source: base.Source) -> list[str]:
    return [record.fields["text"] for record in source.records()]


def the_error(source: base.Source) -> DataError:
    """The one bad record of a source."""
    (error,) = [item for item in source.records() if isinstance(item, DataError)]
    return error


# ---- every source ----


def test_parts_split_the_records_evenly_and_without_rest():
    items = tuple(f"text {i}" for i in range(100))
    parts = {
        part: texts(memory.Source(items=items, part=part, holdout=0.1))
        for part in ("all", "train", "heldout")
    }
    assert parts["all"] == list(items)
    assert parts["heldout"] == [f"text {i}" for i in range(9, 100, 10)]
    assert sorted(parts["train"] + parts["heldout"]) == sorted(items)


def test_a_bad_record_moves_no_other_between_the_parts(tmp_path):
    lines = [b"a", b"b\xff", b"c", b"d", b"e", b"f"]
    source = text.Source(
        files=write(tmp_path / "x.txt", b"\n".join(lines)),
        split="line",
        part="heldout",
        holdout=0.34,
    )
    held_out = list(source.records())
    assert [record.fields["text"] for record in held_out] == ["c", "f"]


def test_an_empty_part_is_an_error_with_the_numbers():
    source = memory.Source(items=("a", "b", "c"), part="heldout", holdout=0.05)
    with pytest.raises(DataError, match=r"3 in all, holdout=0\.05.*above 0\.333"):
        list(source.records())


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "no records"),
        (" \n\n\t\n", "no records"),
        (b"\xff\n", "1 records, 1 of them unreadable"),
    ],
)
@pytest.mark.parametrize("split", ["blank_line", "file", "line"])
def test_a_source_without_text_is_an_error(tmp_path, content, found, split):
    source = text.Source(files=write(tmp_path / "x.txt", content), split=split)
    with pytest.raises(DataError, match=rf"x\.txt: found {found}"):
        list(source.records())


def test_blank_records_alone_are_an_error_with_their_number():
    with pytest.raises(DataError, match="2 records"):
        list(memory.Source(items=(" ", "")).records())


def test_fingerprint_follows_content_and_options_but_not_place_or_weight(tmp_path):
    here = write(tmp_path / "a.txt", "one\n\ntwo\n")
    there = write(tmp_path / "b.txt", "one\n\ntwo\n")
    changed = write(tmp_path / "c.txt", "one\n\ntwp\n")

    def of(**options):
        return text.Source(**{"files": here} | options).fingerprint()

    assert of() == of(files=there) == of(weight=2.0) == of(holdout=0.2)
    different = [
        of(),
        of(files=changed),
        of(files=(here, there)),
        of(split="line"),
        of(part="train"),
        of(part="train", holdout=0.2),
        csv.Source(files=here).fingerprint(),
    ]
    assert len(set(different)) == len(different)
    assert (
        len({memory.Source(items=("a",), weight=w).fingerprint() for w in (1.0, 2.0)})
        == 1
    )
    assert all(len(value) == 64 for value in different)


def test_values_are_text_or_finite_numbers():
    items = ("a", {"text": "b", "n": 2, "x": 0.5, "yes": True, "label": "c"})
    records = list(memory.Source(items=items).records())
    assert records[0] == base.Record({"text": "a"}, "memory[0]")
    assert records[1] == base.Record(items[1], "memory[1]")


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"text": 3}, "'text' of type int"),
        ({"text": "a", "label": None}, "'label' of type NoneType"),
        ({"text": "a", "label": ["b"]}, "'label' of type list"),
        ({"text": "a", "x": float("nan")}, "'x' = nan"),
        ({"text": "ab\0"}, r"'text' with U\+0000 at character 3"),
        ({"text": "é\udc80"}, r"'text' with U\+DC80 at character 2"),
    ],
)
def test_other_values_are_bad_records(fields, found):
    error = the_error(memory.Source(items=("good", fields)))
    with pytest.raises(DataError, match=rf"memory\[1\]: found {found}"):
        raise error


def test_builtin_is_a_page_a_topic_in_sorted_order():
    source = builtin.Source()
    source.check()
    records = list(source.records())
    places = [record.where for record in records]
    assert places == sorted(places)
    assert "pydoc_data.topics['while']" in places
    assert sum(len(record.fields["text"]) for record in records) > 200_000


# ---- files ----


def test_globs_are_sorted_and_patterns_keep_their_order(tmp_path):
    for name in ("b.txt", "a.txt", "z/c.txt", "._a.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, name)
    write(tmp_path / "d[1].txt", "brackets")
    patterns = (f"{tmp_path}/z/**/*.txt", f"{tmp_path}/[ab].txt")
    assert texts(text.Source(files=patterns)) == ["z/c.txt", "a.txt", "b.txt"]
    assert texts(text.Source(files=f"{tmp_path}/d[1].txt")) == ["brackets"]


def test_gz_reads_as_the_file_itself(tmp_path):
    content = "one\ntwo\n\nthree\n"
    plain = write(tmp_path / "x.txt", content)
    packed = write(tmp_path / "x2.txt.gz", gzip.compress(content.encode()))
    source = text.Source(files=packed)
    source.check()
    assert texts(source) == texts(text.Source(files=plain)) == ["one\ntwo", "three"]


def test_missing_files_name_what_lies_near(tmp_path):
    write(tmp_path / "train.txt", "a")
    for pattern in ("trian.txt", "trian*.txt"):
        with pytest.raises(DataError, match=r"trian.*no .*holds train\.txt"):
            text.Source(files=str(tmp_path / pattern)).check()
    with pytest.raises(DataError, match=r"no such file.*holds train\.txt"):
        text.Source(files=str(tmp_path / "gone/deep/x.txt")).check()


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda d: text.Source(files=str(d)), "a folder"),
        (lambda d: text.Source(files=str(d / "._x.jsonl")), "a macOS resource fork"),
        (lambda d: text.Source(files=str(d / "x.jsonl")), 'name="jsonl"'),
        (lambda d: text.Source(files=str(d / "x.parquet")), r"a \.parquet file"),
        (lambda d: jsonl.Source(files=str(d / "x.csv")), r"ends in '\.csv'"),
        (lambda d: csv.Source(files=str(d / "x.jsonl")), r"ends in '\.jsonl'"),
        (lambda d: tsv.Source(files=str(d / "x.csv")), r"ends in '\.csv'"),
        (lambda d: text.Source(files=(str(d / "x.txt"),) * 2), "name 2 times"),
        (lambda d: text.Source(files=str(d / "no\0where.txt")), "no such file"),
        (lambda d: text.Source(files=str(d / "no\0where/**")), "no file that matches"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, make, found):
    for name in ("x.txt", "x.jsonl", "._x.jsonl", "x.parquet", "x.csv"):
        write(tmp_path / name, "a")
    with pytest.raises(DataError, match=found):
        make(tmp_path).check()


def test_no_files_at_all_is_a_config_error():
    for none in ("", ()):
        with pytest.raises(ConfigError, match="no files"):
            text.Source(files=none).check()


def test_damaged_gzip_names_the_file(tmp_path):
    packed = gzip.compress(b"word " * 2000 + np.random.default_rng(0).bytes(5000))
    flipped, senseless = bytearray(packed), bytearray(packed)
    flipped[len(flipped) // 2] ^= 255
    senseless[10] = 255  # a kind of block that does not exist
    for damaged in (packed[:-100], flipped, senseless, b"not gzip at all"):
        source = text.Source(
            files=write(tmp_path / "x.txt.gz", bytes(damaged)), split="file"
        )
        with pytest.raises(DataError, match=r"x\.txt\.gz: found a damaged gzip file"):
            list(source.records())
    with pytest.raises(DataError, match="a damaged gzip file"):
        source.check()


def test_records_beyond_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_RECORD", 10)
    path = write(tmp_path / "x.txt", "12345678\n12345678\n")
    assert len(texts(text.Source(files=path, split="line"))) == 2
    for split in ("file", "blank_line"):
        with pytest.raises(DataError, match="a record of more than"):
            list(text.Source(files=path, split=split).records())
    path = write(tmp_path / "y.txt", "1234567890123")
    with pytest.raises(DataError, match=r"y\.txt:1"):
        list(text.Source(files=path, split="line").records())


# ---- text ----

POEMS = "\n \none\ntwo  \n\n\t\nthree\r\n\n"


@pytest.mark.parametrize(
    ("split", "documents"),
    [
        ("blank_line", [("one\ntwo  ", 3), ("three", 7)]),
        ("line", [("one", 3), ("two  ", 4), ("three", 7)]),
        (
            "every_line",
            [
                *[("", 1), (" ", 2), ("one", 3), ("two  ", 4), ("", 5)],
                *[("\t", 6), ("three", 7), ("", 8)],
            ],
        ),
        ("file", [(POEMS.replace("\r\n", "\n"), 1)]),
        ("heading", [(POEMS.replace("\r\n", "\n"), 1)]),
    ],
)
def test_documents_and_their_first_lines(tmp_path, split, documents):
    path = write(tmp_path / "x.txt", POEMS)
    expected = [
        base.Record({"text": document}, f"{path}:{line}")
        for document, line in documents
    ]
    assert list(text.Source(files=path, split=split).records()) == expected


def test_headings_of_the_first_level_between_blank_lines_begin_documents(tmp_path):
    first = " \n = One = \n \n of = \n = no title = \n z\n = nor this = \n \n"
    first += " = = Part = = \n \n = = nor this = \n \n x\n \n"
    second = " = Two = = 2 = \n \n y\n \n = last line = \n"
    path = write(tmp_path / "x.txt", first + second)
    source = text.Source(files=path, split="heading")
    assert texts(source) == [first, second]
    assert [item.where for item in source.records()] == [f"{path}:1", f"{path}:15"]
    path = write(tmp_path / "y.txt", "before\n\n= A =\n\nz")
    assert texts(text.Source(files=path, split="heading")) == [
        "before\n\n",
        "= A =\n\nz",
    ]


def test_wikitext_has_its_published_number_of_articles(test_data):
    folder = test_data("lm_wikitext2")
    for name, articles in (("valid.txt", 60), ("test.txt", 60), ("train.txt.gz", 600)):
        found = texts(text.Source(files=str(folder / name), split="heading"))
        assert len(found) == articles
        whole = texts(text.Source(files=str(folder / name), split="file"))
        assert "".join(found) == whole[0]


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"ok\n\nab\nc\xc3\xa9 \x80 x\n", r"x\.txt:4: found byte 0x80 at column 4"),
        (b"ok\n\nab\0\n", r"x\.txt:3: found byte 0x00 at column 3"),
        (b"ok\n\n\xed\xa0\x80\n", r"x\.txt:3: found byte 0xed at column 1"),
        (b"ok\n\n\xc3", r"x\.txt:3: found byte 0xc3 at column 1"),
    ],
)
@pytest.mark.parametrize("split", ["blank_line", "line"])
def test_bad_bytes_are_named_and_other_documents_stay(tmp_path, raw, found, split):
    source = text.Source(files=write(tmp_path / "x.txt", raw), split=split)
    with pytest.raises(DataError, match=found):
        raise the_error(source)
    assert next(source.records()).fields["text"] == "ok"


def test_byte_order_mark_and_crlf_leave_no_trace(tmp_path):
    path = write(tmp_path / "x.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert texts(text.Source(files=path)) == ["one\ntwo", "three"]


# ---- jsonl ----


def test_jsonl_takes_and_renames_columns_and_passes_over_blank_lines(tmp_path):
    lines = (
        '{"body": "a", "n": 1, "x": 1.5, "z": null}\n\n{"n": 2, "body": "b", "x": 2}'
    )
    path = write(tmp_path / "x.jsonl", lines)
    source = jsonl.Source(files=path, columns={"text": "body", "label": "n", "x": "x"})
    source.check()
    assert list(source.records()) == [
        base.Record({"text": "a", "label": 1, "x": 1.5}, f"{path}:1"),
        base.Record({"text": "b", "label": 2, "x": 2}, f"{path}:3"),
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"text": "a"', r"broken JSON \(Expecting ',' delimiter at column 13\)"),
        (b'["text"]', "a JSON list, expected one JSON object"),
        (b'{"txt": "a"}', r"columns 'txt', expected a column 'text'.*mean 'txt'"),
        (b'{"text": ["a"]}', "'text' of type list"),
        (b'{"text": "a", "text": "b"}', r"JSON .* \(the key 'text' stands twice"),
        (b'{"text": NaN}', r"JSON .* \(NaN is no number"),
        (b'{"text": "a\\ud800"}', r"'text' with U\+D800 at character 2"),
        (b'{"text": "\\u0000"}', r"'text' with U\+0000 at character 1"),
        (b'{"text": "\x80"}', "byte 0x80 at column 11"),
        (b"[" * 100_000, "JSON that cannot be taken"),
        (b"9" * 10_000, "JSON that cannot be taken"),
    ],
)
def test_bad_json_lines_are_bad_records_with_file_and_line(tmp_path, line, found):
    path = write(tmp_path / "x.jsonl", b'{"text": "ok"}\n' * 2 + line + b"\n")
    source = jsonl.Source(files=path)
    source.check()
    with pytest.raises(DataError, match=rf"x\.jsonl:3: found {found}"):
        raise the_error(source)


def test_jsonl_check_sees_a_missing_column_in_every_file(tmp_path):
    good = write(tmp_path / "a.jsonl", '{"text": "a"}')
    bad = write(tmp_path / "b.jsonl", '\n{"body": "a"}')
    with pytest.raises(DataError, match=r"b\.jsonl:2: found columns 'body'"):
        jsonl.Source(files=(good, bad)).check()


# ---- csv and tsv ----


def test_csv_of_quoted_cells_keeps_line_numbers(tmp_path):
    rows = 'id,text,label\r\n1,"a, ""b""\r\nc",0\r\n\r\n2,d,1\r\n'
    path = write(tmp_path / "x.csv", "\ufeff" + rows)
    source = csv.Source(files=path, columns={"text": "text", "label": "label"})
    source.check()
    assert list(source.records()) == [
        base.Record({"text": 'a, "b"\nc', "label": "0"}, f"{path}:2"),
        base.Record({"text": "d", "label": "1"}, f"{path}:5"),
    ]


def test_csv_equals_the_standard_library_over_long_and_odd_cells(tmp_path):
    rng = np.random.default_rng(0)
    cells = [
        "".join(rng.choice(list('ab,;"\n é\t'), rng.integers(1, 30))) for _ in range(60)
    ]
    cells[7] = "long " * 40_000  # beyond the standard library's own limit
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        stdlib_csv.writer(file, quoting=stdlib_csv.QUOTE_ALL).writerows(
            [["text", "n"], *([cell, i] for i, cell in enumerate(cells))]
        )
    source = csv.Source(files=str(path), columns=("text", "n"))
    found = [tuple(record.fields.values()) for record in source.records()]
    assert found == [(cell, str(i)) for i, cell in enumerate(cells)]


def test_tsv_leaves_quotes_alone_and_names_columns_without_a_header(tmp_path):
    path = write(tmp_path / "x.tsv", 'a "quoted\t1\n"b\t0\n')
    source = tsv.Source(files=path, columns=("text", "label"), header=False)
    source.check()
    assert list(source.records()) == [
        base.Record({"text": 'a "quoted', "label": "1"}, f"{path}:1"),
        base.Record({"text": '"b', "label": "0"}, f"{path}:2"),
    ]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (b"only", r"x\.csv:3: found 1 cells, expected 2 \(text, label\)"),
        (b"a,b,c", r"x\.csv:3: found 3 cells"),
        (b'"a\n\xff",1', r"x\.csv:4: found byte 0xff at column 1"),
        (b'"a\nb\0",1', r"x\.csv:4: found byte 0x00 at column 2"),
        (b'"a"b,1', r"x\.csv:3: found a row that cannot be parsed"),
    ],
)
def test_bad_rows_are_bad_records_and_the_next_is_read(tmp_path, row, found):
    content = b"text,label\na,0\n" + row + b"\nlast,1\n"
    source = csv.Source(
        files=write(tmp_path / "x.csv", content), columns=("text", "label")
    )
    source.check()
    with pytest.raises(DataError, match=found):
        raise the_error(source)
    assert list(source.records())[-1].fields["text"] == "last"


def test_an_open_quote_is_an_error_where_it_begins(tmp_path):
    path = write(tmp_path / "x.csv", 'text\na\n"b\nc\n')
    with pytest.raises(DataError, match=r"x\.csv:3: found a row that cannot be parsed"):
        raise the_error(csv.Source(files=path))


@pytest.mark.parametrize(
    ("content", "options", "found"),
    [
        ("sentence,label\na,1\n", {}, r"columns 'sentence', 'label'.*header=False"),
        ("txt,label\na,1\n", {}, r"did you mean 'txt'\?"),
        ("text,text\na,1\n", {}, "two columns 'text'"),
        ("", {}, "columns none"),
        ("a,b,c\n", {"header": False}, r"3 cells, expected 1 \(text\)"),
    ],
)
def test_tables_with_the_wrong_columns_fail_the_check(
    tmp_path, content, options, found
):
    source = csv.Source(files=write(tmp_path / "x.csv", content), **options)
    with pytest.raises(DataError, match=found):
        source.check()


def test_columns_must_go_with_the_other_options(tmp_path):
    path = write(tmp_path / "x.csv", "a,1\n")
    for columns in ({"text": "a"}, (), ("text", "text"), "abc"):
        with pytest.raises(ConfigError, match="columns"):
            csv.Source(files=path, columns=columns, header=False).check()
    with pytest.raises(ConfigError, match="columns"):
        csv.Source(files=write(tmp_path / "y.csv", "abc\n"), columns="abc").check()


def test_published_tables_have_their_published_sizes(test_data):
    sst2 = test_data("cls_sst2") / "dev.tsv"
    records = list(
        tsv.Source(files=str(sst2), columns=("text", "label"), header=False).records()
    )
    assert len(records) == 872
    assert {record.fields["label"] for record in records} == {"0", "1"}
    mrpc = test_data("pair_mrpc") / "msr_paraphrase_test.txt"
    columns = {"text": "#1 String", "text_b": "#2 String", "label": "Quality"}
    assert len(list(tsv.Source(files=str(mrpc), columns=columns).records())) == 1725


# ---- tfds ----


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a data set `tiny`: 4 training records, one of them not UTF-8."""
    import tensorflow_datasets as library

    class Tiny(library.core.GeneratorBasedBuilder):
        VERSION = library.core.Version("1.0.0")

        def _info(self):
            features = {
                "sentence": library.features.Text(),
                "label": library.features.ClassLabel(names=["no", "yes"]),
                "score": library.features.Scalar(np.float64),
                "ids": library.features.Sequence(library.features.Scalar(np.int64)),
            }
            return library.core.DatasetInfo(
                builder=self, features=library.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples(b"\xc3\xa9", b"b", b"\xff", b"d")}

        def _generate_examples(self, *sentences):
            for i, sentence in enumerate(sentences):
                row = {"sentence": sentence, "label": i % 2, "score": 0.5}
                yield i, row | {"ids": [1, 2]}

    folder = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


COLUMNS = {"text": "sentence", "label": "label", "score": "score"}


def tiny(folder: Path, **options) -> tfds.Source:
    options = {"dataset": "tiny", "columns": COLUMNS} | options
    return tfds.Source(data_dir=str(folder), **options)


def test_tfds_reads_prepared_records_in_order(prepared):
    source = tiny(prepared)
    source.check()
    items = list(source.records())
    good = [item for item in items if isinstance(item, base.Record)]
    rows = {item.fields["text"]: item.fields for item in good}
    assert set(rows) == {"é", "b", "d"}
    assert rows["b"] == {"text": "b", "label": 1, "score": 0.5}
    assert [type(value) for value in rows["b"].values()] == [str, int, float]
    with pytest.raises(
        DataError, match=r"tiny:train\[\d\] 'sentence': found byte 0xff"
    ):
        raise the_error(source)
    part = list(tiny(prepared, split="train[2:]").records())
    assert [type(item) for item in part] == [type(item) for item in items[2:]]
    assert source.fingerprint() == tiny(prepared, weight=3.0).fingerprint()
    assert source.fingerprint() != tiny(prepared, split="train[2:]").fingerprint()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"dataset": "tinny"}, r"tfds\.builder\('tinny', file_format='array_record'"),
        ({"dataset": "tiny:9.0.0"}, "nothing prepared"),
        ({"dataset": "no such!"}, "nothing prepared"),
        ({"split": "test"}, "split 'test', expected one of train"),
        ({"split": "train[:900%]"}, r"split 'train\[:900%\]'"),
        ({"columns": ("sentense",)}, "did you mean 'sentence'"),
    ],
)
def test_tfds_names_what_is_missing(prepared, options, found):
    with pytest.raises(DataError, match=found):
        tiny(prepared, **options).check()


def test_tfds_imports_no_module_that_a_data_set_names(prepared, tmp_path, monkeypatch):
    """tfds imports the class of each feature by name, from the current folder too."""
    shutil.copytree(prepared, tmp_path / "sets")
    (file,) = (tmp_path / "sets").rglob("features.json")
    text = file.read_text()
    name = re.search(r"[\w.]+text_feature.Text", text)[0]
    file.write_text(text.replace(name, "theirs.evil.Text"))
    (tmp_path / "theirs").mkdir()
    canary = tmp_path / "canary"
    (tmp_path / "theirs/evil.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match=r"features.json: found .*theirs\.evil\.Text"):
        tiny(tmp_path / "sets").check()
    assert not canary.exists()


def test_tfds_refuses_arrays_and_damaged_shards(prepared, tmp_path):
    source = tiny(prepared, columns=("ids", "label"))
    items = [*source.read()]
    assert "'ids' of type list" in str(items[0])
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    (shard,) = folder.glob("tiny/1.0.0/*.array_record*")
    whole = shard.read_bytes()
    fingerprint = tiny(folder).fingerprint()
    shard.write_bytes(whole[: len(whole) // 2])
    assert tiny(folder).fingerprint() != fingerprint
    with pytest.raises(DataError, match="an unreadable shard"):
        list(tiny(folder).records())
    shard.unlink()
    with pytest.raises(DataError, match=r"no such file.*delete the data set's folder"):
        tiny(folder).check()


def test_tfds_refuses_other_file_formats(prepared, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    (shard,) = folder.glob("tiny/1.0.0/*.array_record*")
    shard.rename(str(shard).replace("array_record", "tfrecord"))
    info = folder / "tiny/1.0.0/dataset_info.json"
    facts = json.loads(info.read_text()) | {"fileFormat": "tfrecord"}
    info.write_text(json.dumps(facts))
    with pytest.raises(
        DataError, match=r"format tfrecord, expected array_record.*ANOTHER"
    ):
        tiny(folder).check()


def test_the_end_of_each_text_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("0123456789\nabcdefghi\n")
    (tmp_path / "b.txt").write_text("xyz" * 10)

    def texts(part):
        source = text.Source(
            files=f"{tmp_path}/*.txt",
            split="file",
            held="end",
            part=part,
            holdout=0.1,
        )
        return [record.fields["text"] for record in source.records()]

    assert texts("train") == ["0123456789\nabcdefg", "xyz" * 9]
    assert texts("heldout") == ["hi\n", "xyz"]
    assert texts("all") == ["0123456789\nabcdefghi\n", "xyz" * 10]


def test_holding_out_the_end_is_for_whole_files(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(ConfigError, match="held='end' with split='line'"):
        text.Source(files=f"{tmp_path}/a.txt", split="line", held="end").check()


def test_the_folder_of_a_file_is_a_field(tmp_path):
    """As a label; its name is part of the fingerprint, where it is asked for."""
    for label in ("neg", "pos"):
        (tmp_path / label).mkdir()
        write(tmp_path / label / "0.txt", f"a {label} text\n\nof two parts\n")
    patterns = tuple(str(tmp_path / label / "*.txt") for label in ("pos", "neg"))
    plain = text.Source(files=patterns, split="file")
    named = dataclasses.replace(plain, folder="label")
    assert [record.fields["label"] for record in named.records()] == ["pos", "neg"]
    assert texts(named) == texts(plain)
    ends = dataclasses.replace(named, held="end", part="heldout", holdout=0.5)
    assert [record.fields["label"] for record in ends.records()] == ["pos", "neg"]

    before = plain.fingerprint(), named.fingerprint()
    assert len({*before, dataclasses.replace(plain, folder="kind").fingerprint()}) == 3
    (tmp_path / "pos").rename(tmp_path / "positive")
    moved = (str(tmp_path / "positive/*.txt"), patterns[1])
    after = [
        dataclasses.replace(each, files=moved).fingerprint() for each in (plain, named)
    ]
    assert after[0] == before[0] and after[1] != before[1]
    with pytest.raises(ConfigError, match="folder='text'"):
        dataclasses.replace(plain, folder="text").check()
