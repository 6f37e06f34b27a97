"""Files of rows that are continued: tables with quotes, torn rows, other settings."""

import csv

import pytest

from lm.errors import ConfigError, DataError
from lm.workdir import outputs

ROWS = [
    {"text": f'a "b", line\nend {n}', "p": {"x": n / 8, "y": None}, "tags": [n]}
    for n in range(5)
]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_every_torn_output_is_continued_to_the_same_bytes(tmp_path, suffix):
    path, made = tmp_path / f"out.{suffix}", {"step": 3}

    def make():
        form = outputs.form_of(path)
        file = outputs.Output(path, made, len(ROWS), form=form)
        for row in ROWS[file.kept :]:
            file.write(row)
        file.close()
        return file.kept

    assert make() == 0
    whole = path.read_bytes()
    assert make() == 5
    ends = []
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        ends.append(make())
        assert path.read_bytes() == whole, size
    assert ends == sorted(ends) and {*ends} == {0, 1, 2, 3, 4}
    if suffix != "jsonl":
        delimiter = "," if suffix == "csv" else "\t"
        with path.open(newline="") as file:
            first, *rows = csv.reader(file, delimiter=delimiter)
        assert first == ["text", "p.x", "p.y", "tags"]
        assert rows[3] == [ROWS[3]["text"], "0.375", "", "[3]"]
    with pytest.raises(DataError, match="answers made with step=3, expected step=4"):
        outputs.Output(path, {"step": 4}, 5, form=outputs.form_of(path))
    with pytest.raises(DataError, match="5 rows, expected at most 4 rows"):
        outputs.Output(path, made, 4, form=outputs.form_of(path))
    outputs.settings_file(path).unlink()
    with pytest.raises(DataError, match="a file of something else"):
        outputs.Output(path, made, 5, form=outputs.form_of(path))


def test_a_name_says_the_form(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.jsonl"):
        outputs.form_of(tmp_path / "out.txt")
