"""Characters that tell of a wrong encoding, by their kind."""

import re
import unicodedata

# UTF-8 that was read as Windows-1252 or Latin-1: the first byte of two or three became
# a letter with an accent, the next ones what these encodings have from 80 to BF on.
_NEXT = "[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
_NEXT += "\u2013\u2014\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
KINDS = {
    "lost": ("a character that could not be decoded (U+FFFD)", "\ufffd"),
    "misread": (
        "UTF-8 read as another encoding, such as \u00c3\u00a9 for \u00e9",
        f"[\u00c2-\u00df]{_NEXT}|[\u00e0-\u00ef]{_NEXT}{{2}}",
    ),
    "control": (
        "a control character",
        "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]",
    ),
    "mark": ("a byte order mark within the text", "\ufeff"),
    "markup": (
        "an HTML entity",
        r"&(?:amp|lt|gt|quot|nbsp|apos|#\d{1,6}|#x[0-9a-fA-F]{1,5});",
    ),
}
_ANY = re.compile("|".join(f"(?P<{name}>{text})" for name, (_, text) in KINDS.items()))
LOSSES = ("lost", "misread")  # of which the text cannot be read as it was
DECOMPOSED = "decomposed"
MEANINGS = {name: meaning for name, (meaning, _) in KINDS.items()} | {
    DECOMPOSED: "letters and accents apart (no NFC)"
}


def troubles(text: str) -> frozenset[str]:
    """Returns the kinds of trouble in a text, keys of `MEANINGS`."""
    found = {match.lastgroup or "" for match in _ANY.finditer(text)}
    if not unicodedata.is_normalized("NFC", text):
        found.add(DECOMPOSED)
    return frozenset(found)
