"""Features of words: templates by hand, the same on the host and on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import words

LETTERS = ["<pad>", "<unk>", *"aAbBcCd1-"]
SENTENCES = [["Abc", "a1-b", "abc"], ["ABC"], ["abc", "d"]]
TEMPLATES = (
    *("bias", "word", "lower", "shape", "digit", "hyphen", "capital", "upper"),
    *("prefix:2", "suffix:2", "lprefix:3", "lsuffix:2"),
    *("-1:lower", "+1:lower", "-1:word|word", "+2:word"),
)


def rows():
    """All sentences in one row, as `lm.data.words` aligns them."""
    text = [LETTERS.index(c) for s in SENTENCES for word in s for c in word]
    sizes = [len(word) for s in SENTENCES for word in s]
    ends = np.cumsum(sizes)
    segments = [n for n, s in enumerate(SENTENCES, 1) for _ in s]
    columns = [table[text] for table in words.alphabet(LETTERS)]
    parts = *columns, ends - sizes, ends, segments
    padded = [np.pad(np.array(part, np.int32), (0, 3))[None] for part in parts]
    return words.Letters(*padded[:3]), *padded[3:]


def test_equal_values_have_equal_hashes_and_others_have_not():
    parsed = [words.parse(t) for t in TEMPLATES]
    found = words.hashes(parsed, *rows(), np)
    other = words.hashes(parsed, *jax.tree.map(jnp.asarray, rows()), jnp)
    np.testing.assert_array_equal(found, other)
    assert (found[0, 6:] == words.NONE).all()  # padding
    # For each template which words have the same value, 0 for those that have none.
    wanted = {
        "bias": [1, 1, 1, 1, 1, 1],
        "word": [1, 2, 3, 4, 3, 5],
        "lower": [1, 2, 1, 1, 1, 3],
        "shape": [1, 2, 3, 4, 3, 3],
        "digit": [0, 1, 0, 0, 0, 0],
        "hyphen": [0, 1, 0, 0, 0, 0],
        "capital": [1, 0, 0, 1, 0, 0],
        "upper": [0, 0, 0, 1, 0, 0],
        "prefix:2": [1, 2, 3, 4, 3, 0],
        "suffix:2": [1, 2, 1, 3, 1, 0],
        "lprefix:3": [1, 2, 1, 1, 1, 0],
        "lsuffix:2": [1, 2, 1, 1, 1, 0],
        "-1:lower": [1, 2, 3, 1, 1, 2],
        "+1:lower": [1, 2, 3, 3, 4, 3],
        "-1:word|word": [1, 2, 3, 4, 5, 6],
        "+2:word": [1, 2, 2, 2, 2, 2],
    }
    seen = set()
    for number, template in enumerate(TEMPLATES):
        column = found[0, :6, number].tolist()
        groups = wanted[template]
        for a in range(6):
            assert (column[a] == 0) == (groups[a] == 0)
            for b in range(6):
                same = column[a] == column[b]
                assert same == (groups[a] == groups[b]), (template, a, b)
        values = {value for value in column if value}
        assert not values & seen  # templates do not share hashes
        seen |= values


def test_keys_are_found():
    keys = np.array([3, 7, 900], np.uint32)
    features = np.array([900, 3, 5, 0, 1000], np.uint32)
    assert words.find(keys, features, np).tolist() == [2, 0, 3, 3, 3]


def test_buckets():
    features = np.array([0, 3, 13, 2**32 - 1], np.uint32)
    assert words.bucket(features, 10, np).tolist() == [10, 3, 3, 5]
    assert words.bucket(jnp.asarray(features), 10, jnp).tolist() == [10, 3, 3, 5]


@pytest.mark.parametrize(
    "template", ["", "sufix:2", "suffix", "word:2", "suffix:0", "a|b"]
)
def test_what_is_no_template(template):
    with pytest.raises(ValueError, match=r"size|kind"):
        words.parse(template)
