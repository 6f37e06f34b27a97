"""Tag schemes: how the tags of words mark spans, such as the entities of a sentence.

A tag is "O", outside of every span, or a letter, a hyphen and the type of the span:
"B-person". The letter says which word of the span it is:

    io      I for each word (adjacent spans of one type cannot be told apart)
    iob1    I for each word; B for the first one after a span of the same type
    bio     B for the first word, I for the others (IOB2)
    bioes   B, I, E for the last word, S for a span of one word (IOBES, BILOU)
    bmes    the same with M for I
    word    no letters: every tag is a span of one word, except those named outside

See Ramshaw & Marcus 1995 (iob1), Tjong Kim Sang & Veenstra 1999.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

Scheme = Literal["word", "io", "iob1", "bio", "bioes", "bmes"]
Rule = Literal["conlleval", "strict"]
Span = tuple[str, int, int]  # type, first word, word after the last

OUTSIDE = "O"
# scheme -> the letters of a first word, one in between, a last one, and the only one.
LETTERS = {
    "io": ("I", "I", "I", "I"),
    "iob1": ("I", "I", "I", "I"),
    "bio": ("B", "I", "I", "B"),
    "bioes": ("B", "I", "E", "S"),
    "bmes": ("B", "M", "E", "S"),
}


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The tags that a scheme allows beside each other, as bool arrays.

    Attributes:
      start, end: (C,) whether a sentence may begin, and end, with the tag.
      pairs: (C, C) whether the tag of the column may follow that of the row.
    """

    start: np.ndarray
    pairs: np.ndarray
    end: np.ndarray


def split(tag: str) -> tuple[str, str]:
    """Returns the letter and the type of a tag; those of "O" are "O" and ""."""
    letter, _, kind = tag.partition("-")
    return letter, kind


def fits(tag: str, scheme: Scheme) -> bool:
    """Tells whether a tag is one of the scheme."""
    if scheme == "word" or tag == OUTSIDE:
        return True
    extra = "B" if scheme == "iob1" else ""
    letter, _ = split(tag)
    return letter in {*LETTERS[scheme], *extra}


def spans(
    tags: Sequence[str],
    scheme: Scheme,
    rule: Rule = "conlleval",
    outside: Collection[str] = (OUTSIDE,),
) -> list[Span]:
    """Returns the spans that the tags of a sentence mark, from left to right.

    Args:
      rule: what is read from a sequence that the scheme does not allow. "conlleval", of
        the shared tasks' program: a tag other than O continues the span before it if it
        is of the same type, has neither B nor S, and the tag before it neither E nor S;
        otherwise it begins a span. "strict": only what the scheme allows is a span.
      outside: for scheme="word", the tags that are no span.
    """
    if scheme == "word":
        found = enumerate(tags)
        return [(tag, at, at + 1) for at, tag in found if tag not in outside]
    parts = [split(tag) for tag in tags]
    if rule == "strict" and scheme not in ("io", "iob1"):
        return _strict(parts, scheme)
    made: list[Span] = []
    first, before = -1, ("O", "")
    for at, (letter, kind) in enumerate([*parts, ("O", "")]):
        inside = letter != OUTSIDE
        begins = letter in ("B", "S") or before[0] in ("E", "S") or kind != before[1]
        if first >= 0 and (begins or not inside):
            made.append((before[1], first, at))
            first = -1
        if inside and first < 0:
            first = at
        before = letter, kind
    return made


def _strict(parts: Sequence[tuple[str, str]], scheme: Scheme) -> list[Span]:
    """Returns the spans that are whole by the scheme."""
    begin, middle, last, only = LETTERS[scheme]
    made: list[Span] = []
    at = 0
    while at < len(parts):
        letter, kind = parts[at]
        end = at + 1
        whole = letter == only
        if letter == begin:
            while end < len(parts) and parts[end] == (middle, kind):
                end += 1
            if last != middle:
                whole = end < len(parts) and parts[end] == (last, kind)
                end += whole
        if whole:
            made.append((kind, at, end))
        at = end
    return made


def write(found: Sequence[Span], length: int, scheme: Scheme) -> list[str]:
    """Returns the tags of a sentence of `length` words with these spans.

    Args:
      found: spans that do not overlap, from left to right.

    Raises:
      ValueError: scheme="io" and two spans of one type beside each other, or
        scheme="word" and a span of several words; neither can be written.
    """
    tags = [OUTSIDE] * length
    before: Span = ("", -1, -1)
    for span in found:
        kind, start, end = span
        adjacent = before[0] == kind and before[2] == start
        if scheme == "word":
            if end - start > 1:
                raise ValueError(f"{kind} of {end - start} words in scheme 'word'")
            tags[start] = kind
            continue
        if adjacent and scheme == "io":
            raise ValueError(f"two spans of {kind} side by side in scheme 'io'")
        begin, middle, last, only = LETTERS[scheme]
        if adjacent and scheme == "iob1":
            begin = only = "B"
        letters = [begin, *[middle] * (end - start - 2), last]
        if end - start == 1:
            letters = [only]
        tail = f"-{kind}" if kind else ""
        tags[start:end] = [f"{letter}{tail}" for letter in letters]
        before = span
    return tags


def convert(
    tags: Sequence[str], old: Scheme, new: Scheme, *, repair: bool = True
) -> list[str]:
    """Returns the tags of a sentence in another scheme, or mended in the same one.

    Args:
      repair: whether a sequence that the old scheme does not allow is read by the rule
        of conlleval (`spans`); otherwise it is refused.

    Raises:
      ValueError: the sequence is refused, has a tag of another scheme, or cannot be
        written (`write`). The message names the word, from 1.
    """
    if old == new == "word":
        return [*tags]
    for at, tag in enumerate(tags):
        if not fits(tag, old):
            raise ValueError(f"{tag!r} of word {at + 1} in scheme {old!r}")
    at = -1 if repair else impossible(tags, old)
    if at >= 0:
        left = f"after {tags[at - 1]!r}" if at else "at the start"
        where = left if at < len(tags) else "at the end"
        tag = tags[min(at, len(tags) - 1)]
        word = min(at, len(tags) - 1) + 1
        raise ValueError(f"{tag!r} of word {word} {where}, impossible in {old!r}")
    return write(spans(tags, old), len(tags), new)


def impossible(tags: Sequence[str], scheme: Scheme) -> int:
    """Returns the first word whose tag cannot stand after the one before it, or -1.

    It is the number of words where the last tag cannot end a sentence.
    """
    names = sorted({*tags})
    allowed = allowed_of(names, scheme)
    ids = [names.index(tag) for tag in tags]
    if ids and not allowed.start[ids[0]]:
        return 0
    for at in range(1, len(ids)):
        if not allowed.pairs[ids[at - 1], ids[at]]:
            return at
    return len(ids) if ids and not allowed.end[ids[-1]] else -1


def allowed_of(labels: Sequence[str], scheme: Scheme) -> Allowed:
    """Returns which of the labels may follow which, by the scheme."""
    count = len(labels)
    start, end = np.ones(count, bool), np.ones(count, bool)
    pairs = np.ones((count, count), bool)
    if scheme in ("word", "io"):
        return Allowed(start, pairs, end)
    parts = [split(label) for label in labels]
    _, middle, last, _ = LETTERS[scheme]
    closes = last != middle  # a span has a last letter, which must come
    for at, (letter, kind) in enumerate(parts):
        if scheme == "iob1":
            start[at] = letter != "B"
            after = [letter != "B" or (b != OUTSIDE and k == kind) for b, k in parts]
        else:
            goes_on = letter in (middle, last)
            start[at] = not goes_on
            opened = ("B", middle) if closes else ("B", "I")
            after = [
                (b in opened and k == kind) if goes_on else not (closes and b in opened)
                for b, k in parts
            ]
            end[at] = not (closes and letter in opened)
        pairs[:, at] = after
    return Allowed(start, pairs, end)


def guess_scheme(labels: Collection[str]) -> Scheme:
    """Returns the scheme that the names of labels show; "word" if they show none."""
    named = [label for label in labels if label != OUTSIDE]
    typed = [label for label in named if "-" in label]
    letters = {split(label)[0] for label in named}
    if not named or len(typed) < len(named):
        return "word"
    for scheme in ("io", "bio", "bioes", "bmes"):
        if letters <= {*LETTERS[scheme]}:
            return scheme
    return "word"
