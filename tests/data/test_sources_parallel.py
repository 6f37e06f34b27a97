"""Parallel files, and records whose values are lists."""

import gzip
import json

import pytest

from lm.data import index as indices
from lm.data import layouts, pipeline
from lm.data.pipeline import Data
from lm.data.sources import jsonl, memory, parallel
from lm.data.stream import Stream
from lm.errors import ConfigError, DataError

EN, DE = b"one\ntwo\nthree\n", b"eins\nzwei\ndrei\n"


def source(folder, en=EN, de=DE, **options):
    for name, content in (("x.en", en), ("x.de", de)):
        (folder / name).write_bytes(content)
    files = {"source": str(folder / "x.en"), "target": str(folder / "x.de")}
    return parallel.Source(**{"files": files} | options)


def pairs(source):
    return [tuple(record.fields.values()) for record in source.records()]


def test_line_i_of_all_files_is_a_record(tmp_path):
    found = list(source(tmp_path).records())
    assert [r.fields for r in found] == [
        {"source": "one", "target": "eins"},
        {"source": "two", "target": "zwei"},
        {"source": "three", "target": "drei"},
    ]
    assert [r.where for r in found] == [f"{tmp_path / 'x.en'}:{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("en", "de"),
    [
        (EN.replace(b"\n", b"\r\n"), DE),
        (b"\xef\xbb\xbf" + EN, b"\xef\xbb\xbf" + DE),
        (EN.removesuffix(b"\n"), DE),
        (EN.replace(b"two\n", b"two\n\n"), DE.replace(b"zwei\n", b"zwei\n \n")),
    ],
    ids=["crlf", "bom", "no last line feed", "blank in both"],
)
def test_the_ways_in_which_lines_are_written_change_nothing(tmp_path, en, de):
    assert pairs(source(tmp_path, en, de)) == pairs(source(tmp_path))


def test_more_than_two_columns_and_gz(tmp_path):
    (tmp_path / "x.fr.gz").write_bytes(gzip.compress(b"un\ndeux\ntrois\n"))
    files = source(tmp_path).files | {"other": str(tmp_path / "x.fr.gz")}
    three = parallel.Source(files=files)
    three.check()
    assert pairs(three)[2] == ("three", "drei", "trois")


def test_globs_go_together_file_by_file(tmp_path):
    for name, content in (("a.en", "1\n2\n"), ("a.de", "1\n2\n"), ("b.en", "3\n")):
        (tmp_path / name).write_text(content)
    files = {"source": str(tmp_path / "*.en"), "target": str(tmp_path / "*.de")}
    with pytest.raises(DataError, match="2 files of source, 1 files of target"):
        parallel.Source(files=files).check()
    (tmp_path / "b.de").write_text("drei\n")
    assert pairs(parallel.Source(files=files)) == [
        ("1", "1"),
        ("2", "2"),
        ("3", "drei"),
    ]
    (tmp_path / "a.de").write_text("1\n")  # now all lines together are too few, too
    with pytest.raises(DataError, match=r"2 lines in .*a\.en, 1 lines in .*a\.de"):
        pairs(parallel.Source(files=files))


@pytest.mark.parametrize(
    ("en", "de", "counts"),
    [(EN, DE + b"vier\n\n", (3, 5)), (EN + b"four\n", DE, (4, 3)), (EN, b"", (3, 0))],
)
def test_different_numbers_of_lines_are_counted(tmp_path, en, de, counts):
    pattern = rf"{counts[0]} lines in .*x\.en, {counts[1]} lines in .*x\.de"
    with pytest.raises(DataError, match=pattern):
        pairs(source(tmp_path, en, de))


def test_bytes_that_are_no_text_name_their_file(tmp_path):
    found = list(source(tmp_path, de=b"eins\nzw\xffei\ndrei\n").records())
    assert [type(item) is DataError for item in found] == [False, True, False]
    assert found[1].where == f"{tmp_path / 'x.de'}:2"


def test_held_out_lines_stay_together(tmp_path):
    train, held = (
        pairs(source(tmp_path, part=part, holdout=0.34))
        for part in ("train", "heldout")
    )
    assert held == [("three", "drei")]
    assert train == [("one", "eins"), ("two", "zwei")]


def test_the_fingerprint_follows_content_and_columns(tmp_path):
    base = source(tmp_path).fingerprint()
    names = source(tmp_path).files
    (tmp_path / "y.en").write_bytes(EN)
    moved = parallel.Source(files=names | {"source": str(tmp_path / "y.en")})
    swapped = parallel.Source(
        files={"source": names["target"], "target": names["source"]}
    )
    renamed = parallel.Source(files={"a": names["source"], "target": names["target"]})
    assert base == moved.fingerprint()
    assert base not in (swapped.fingerprint(), renamed.fingerprint())
    assert base != source(tmp_path, de=DE.replace(b"z", b"Z")).fingerprint()


def test_what_check_finds(tmp_path):
    with pytest.raises(ConfigError, match="no files"):
        parallel.Source(files={}).check()
    with pytest.raises(DataError, match="no such file"):
        parallel.Source(files={"source": str(tmp_path / "absent")}).check()


# ---- lists ----

LISTS = {"source": ["One.", "Two."], "target": ["a", "b"], "n": 3}


@pytest.mark.parametrize("kind", ["jsonl", "memory"])
def test_lists_are_taken_where_they_are_allowed(tmp_path, kind):
    (tmp_path / "x.jsonl").write_text(json.dumps(LISTS))

    def opened(**options):
        if kind == "memory":
            return memory.Source(items=(LISTS,), **options)
        columns = ("source", "target", "n")
        return jsonl.Source(files=str(tmp_path / "x.jsonl"), columns=columns, **options)

    (record,) = opened(lists=True).records()
    assert record.fields == {"source": ("One.", "Two."), "target": ("a", "b"), "n": 3}
    assert opened().fingerprint() != opened(lists=True).fingerprint()
    with pytest.raises(
        DataError, match=r"no records|'source' of type list.*lists=True"
    ):
        raise next(opened().records())


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([], "'x' with an empty list"),
        (["a", 1], "'x' of type int"),
        (["a", None], "'x' of type NoneType"),
        (["a", ["b"]], "'x' of type list"),
        (["a", "b\0"], r"'x' with U\+0000"),
    ],
)
def test_lists_hold_texts_alone(value, found):
    items = ("good", {"x": value})
    error = list(memory.Source(items=items, lists=True).records())[1]
    with pytest.raises(DataError, match=rf"memory\[1\]: found {found}"):
        raise error


def test_a_tokenizer_is_trained_on_each_text_of_a_list():
    source = memory.Source(items=(LISTS,), lists=True)
    found = list(pipeline.texts_of([source], ("source", "target", "n")))
    assert found == ["One.", "Two.", "a", "b", "3"]


def test_an_objective_of_single_texts_refuses_a_list():
    (record,) = memory.Source(items=({"text": ["a"]},), lists=True).records()
    with pytest.raises(DataError, match=r"memory\[0\]: found text .*expected a text"):
        layouts.text_of(record, "text")


# ---- from rows back to records ----


class Letters:
    """A tokenizer of one token per letter."""

    vocab_size = 128
    unk_id = None

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


def test_records_are_found_again_from_rows(tmp_path):
    items = (
        {"source": "s0", "target": ("t0",)},
        {"source": "far too long", "target": ("t1",)},
        {"source": "", "target": ("t2",)},
        {"source": "s3", "target": ("t3", "u3")},
        {"source": "s4", "target": ("t4",)},
    )
    layout = layouts.Pairs(8, 8, 1, False, targets="each", too_long="skip")
    opened = []
    for part in (items, items[3:]):
        folder = tmp_path / str(len(part))
        indices.build(
            folder,
            memory.Source(items=part, lists=True),
            layout,
            Letters(),
            skip_bad=True,
            max_bad=1.0,
            note=lambda line: None,
        )
        opened.append(indices.load(folder))
    stream = Stream(tuple(opened), None, ((), ()), 0)
    options = {"name": "memory", "lists": True, "weight": 1.0}
    data = Data(sources=tuple(options | {"items": p} for p in (items, items[3:])))
    found = [r.fields["source"] for r in pipeline.records_of(stream, data, len(stream))]
    assert found == ["s0", "s3", "s3", "s4", "s3", "s3", "s4"]
    first = [r.fields["source"] for r in pipeline.records_of(stream, data, 2)]
    assert first == ["s0", "s3"]


def test_packed_rows_have_no_record(tmp_path):
    indices.build(
        tmp_path / "index",
        memory.Source(items=({"source": "s", "target": "t"},)),
        layouts.Pairs(8, 8, 1, True),
        Letters(),
        skip_bad=False,
        max_bad=1.0,
        note=lambda line: None,
    )
    stream = Stream((indices.load(tmp_path / "index"),), None, ((),), 0)
    source = {"name": "memory", "items": ({"source": "s", "target": "t"},)}
    with pytest.raises(DataError, match="pack=false"):
        list(pipeline.records_of(stream, Data(sources=(source,)), 1))
