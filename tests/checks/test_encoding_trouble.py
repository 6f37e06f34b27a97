"""Signs of a wrong encoding."""

import unicodedata

import pytest

from lm.checks.characters import troubles

READ = "naïve “quotes” – café, 电影, ½"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (READ, set()),
        ("Ça va, São Paulo, Ôter", set()),
        *((w.encode().decode(e), {"misread"}) for w in ("é", "naïve", "“a”", "电影")
          for e in ("latin-1",)),
        ("it’s é".encode().decode("cp1252"), {"misread"}),
        ("a\ufffdb", {"lost"}),
        ("a\x1bb", {"control"}),
        ("a\tb\r\nc", set()),
        ("a \ufeffb", {"mark"}),
        ("Tom &amp; Jerry &#39;s", {"markup"}),
        ("AT&T; a&b", set()),
        (unicodedata.normalize("NFD", "café"), {"decomposed"}),
        ("\ufffd &lt;", {"lost", "markup"}),
    ],
)  # fmt: skip
def test_kinds_of_trouble(text, kinds):
    found = set(troubles(text))
    assert found - {"control"} == kinds - {"control"} and kinds <= found
