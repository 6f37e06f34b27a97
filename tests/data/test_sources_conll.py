"""The source conll: columns, CoNLL-U, roles, and how it names what is broken."""

import pytest

from lm.data.sources import conll
from lm.errors import ConfigError, DataError


def source(tmp_path, text, **options):
    path = tmp_path / "x.conll"
    path.write_bytes(text.encode())
    return conll.Source(files=str(path), **options)


def sentences(found, field="words"):
    return [" ".join(record.fields[field]) for record in found.records()]


def test_sentences_end_at_blank_lines_of_every_kind(tmp_path):
    """A lone tab ends a sentence as an empty line does; CRLF; no line at the end."""
    text = "\n\na\tO\nb\tB-x\n\t\nc\tO\r\n\r\n-DOCSTART-\t-X-\n\n#d e\tO\n \n\nf\tO"
    found = source(tmp_path, text)
    assert sentences(found) == ["a b", "c", "#d e", "f"]
    assert sentences(found, "tags") == ["O B-x", "O", "O", "O"]
    lines = [record.where.rpartition(":")[2] for record in found.records()]
    assert lines == ["3", "6", "10", "13"]


def test_any_column_for_word_and_tag(tmp_path):
    text = "EU NNP  I-NP B-ORG\nrejects VBZ I-VP O\n\n-DOCSTART- -X- -X- O\n\n"
    found = source(tmp_path, text, columns={"words": 1, "tags": -1, "pos": 2})
    assert sentences(found, "pos") == ["NNP VBZ"]
    assert sentences(found, "tags") == ["B-ORG O"]
    blank = source(tmp_path, "　 B-x\n \xa0 O\n")  # An ideographic space is a word.
    assert [r.fields["words"] for r in blank.records()] == [("　", "\xa0")]


CONLLU = """\
# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_
1\tvamos\tir\tVERB\tV
2\tnos\tnosotros\tPRON\tP
2.1\tx\tx\tVERB\tV

1\t#\t#\tSYM\tS
"""


def test_conll_u_has_words_without_contractions_and_empty_nodes(tmp_path):
    options = {"format": "conllu", "columns": {"words": 2, "tags": 4}}
    found = source(tmp_path, CONLLU, comments=True, **options)
    assert sentences(found) == ["vamos nos", "#"]
    assert sentences(found, "tags") == ["VERB PRON", "SYM"]
    notes = [record.fields["comments"] for record in found.records()]
    assert notes == ["# sent_id = 1\n# text = vámonos al mar", ""]


ROLES = """\
1\tYes\t_\t

1\tBush\t_\tARG0\tARG1
2\tsays\tsay.01\tV\t_
3\tcome\tcome.02\tARG1\tV
"""


def test_each_predicate_makes_a_record_of_its_roles(tmp_path):
    """A sentence without one ends in an empty column, which splitting must keep."""
    options = {"format": "conllu", "columns": {"words": 2}, "frames": 3}
    found = [record.fields for record in source(tmp_path, ROLES, **options).records()]
    assert [(f["predicate"], f["frame"], f["tags"]) for f in found] == [
        (1, "say.01", ("ARG0", "V", "ARG1")),
        (2, "come.02", ("ARG1", "_", "V")),
    ]
    broken = source(tmp_path, ROLES.replace("\tV\t_", "\tV"), **options)
    (error,) = [item for item in broken.read() if isinstance(item, DataError)]
    assert error.where.endswith("x.conll:4")
    assert error.found == "4 columns" and error.expected.startswith("5: one of roles")


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("a\tO\nb\nc\tO\n\nd\tO\n", 2, "'b'"),
        ("a\tO\n\tO\n\nd\tO\n", 2, "an empty cell in column 1 (words)"),
        ("a\tO\nb\t\n\nd\tO\n", 2, "an empty cell in column -1 (tags)"),
        ("a\tO\nb\x00\tO\n\nd\tO\n", 2, "byte 0x00 at column 2"),
    ],
)
def test_a_broken_line_is_named_and_spoils_its_sentence_alone(
    tmp_path, text, line, found
):
    broken = source(tmp_path, text)
    items = [*broken.read()]
    assert items[0].where.endswith(f"x.conll:{line}") and items[0].found == found
    assert items[1].fields["words"] == ("d",)
    with pytest.raises(DataError, match=f"x.conll:{line}"):
        broken.check()


def test_missing_columns_and_wrong_options(tmp_path):
    with pytest.raises(DataError, match=r"x.conll:1: found 2 columns.*words 1, tags 5"):
        source(tmp_path, "a O\n", columns={"words": 1, "tags": 5}).check()
    with pytest.raises(DataError, match=r"begins with 'a'.*format='columns'"):
        source(tmp_path, "a\tO\n", format="conllu").check()
    for options, found in [
        ({"columns": {"words": 0}}, "words: 0"),
        ({"columns": {}}, "none"),
        ({"comments": True}, "True with format='columns'"),
        ({"frames": 3}, "a field 'tags'"),
        ({"frames": 0, "columns": {"words": 1}}, "frames: found 0"),
    ]:
        with pytest.raises(ConfigError, match=found):
            source(tmp_path, "a\tO\n", **options).check()


@pytest.mark.parametrize(
    ("name", "options", "records", "words"),
    [
        ("tag_wnut17_ner/wnut17train.conll", {}, 3394, 62730),
        ("tag_wnut17_ner/emerging.test.annotated", {}, 1287, 23394),
        ("tag_zh_resume_ner/dev.char.bmes", {}, 463, 13890),
        (
            "tag_ud_english_ewt/en_ewt-ud-dev.conllu",
            {"format": "conllu", "columns": {"words": 2, "tags": 4}},
            2001,
            25147,
        ),
        (
            "srl_up_english_ewt_dev/en_ewt-up-dev.conllu",
            {"format": "conllu", "columns": {"words": 2}, "frames": 11},
            4977,
            105068,
        ),
    ],
)
def test_published_counts(test_data, name, options, records, words):
    folder, _, file = name.partition("/")
    found = [*conll.Source(files=str(test_data(folder) / file), **options).records()]
    assert len(found) == records
    assert sum(len(record.fields["words"]) for record in found) == words
