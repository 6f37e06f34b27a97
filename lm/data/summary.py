"""A short summary of the data of a run, for its log."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lm.data.index import Index
from lm.data.stream import Stream

WIDTH = 80  # columns
CLASSES = 8  # Labels of more classes are summed up.
COMPARED = 10_000_000  # Sets with more records are not looked up in each other.


def describe(
    train: Stream, evals: Mapping[str, Stream], labels: Sequence[str] = ()
) -> list[str]:
    """Returns lines on the training rows and on those of each evaluation.

    Each names records and rows, the share of unknown tokens, texts that are blank, cut
    or left out, how often each label occurs, and how many texts of an evaluation are
    also trained on, to the letter.

    Args:
      train: the training rows.
      evals: those of the evaluations, by name.
      labels: names of the labels, in the order of their ids; () where they have none.
    """
    lines = [_line("training", [*_facts(train, labels)])]
    known = _digests(train)
    for name, stream in evals.items():
        parts = [*_facts(stream, labels)]
        own = _digests(stream)
        if known is not None and own is not None and len(own):
            shared = int(np.isin(own, known).sum())
            if shared:
                parts.append(f"{shared:,} of its {len(own):,} texts are trained on too")
        lines.append(_line(name, parts))
    return lines


def _line(name: str, parts: list[str]) -> str:
    text = f"  {name}: {'; '.join(parts)}"
    return "\n".join(textwrap.wrap(text, WIDTH, subsequent_indent="    "))


def _facts(stream: Stream, labels: Sequence[str]) -> Iterator[str]:
    """Yields the facts of one set."""
    total = _totals(stream.indices)
    yield f"{total['records']:,} records in {total['rows']:,} rows"
    yield f"{share(total['unknown'], total['encoded'])} unknown tokens"
    if total["skipped"]:
        yield f"{total['skipped']:,} unreadable records left out"
    if total["blank"]:
        yield f"{total['blank']:,} blank"
    for name, count in sorted(_counted(stream.indices).items()):
        what, _, done = name.rpartition("_")
        yield f"{what.replace('_', ' ')}: {count:,} ({done})"
    first = stream.indices[0]
    if "labels" in first.fields or "labels" in first.arrays:
        yield _labels(stream.indices, labels)


def share(part: int, whole: int) -> str:
    """Formats a share in percent; a small one is not rounded to 0."""
    percent = 100 * part / max(whole, 1)
    digits = 1 if percent >= 0.1 or part == 0 else 4
    return f"{percent:.{digits}f}%"


def _totals(indices: Sequence[Index]) -> dict[str, int]:
    names = ("records", "rows", "unknown", "encoded", "skipped", "blank")
    return {name: sum(index.facts[name] for index in indices) for name in names}


def _counted(indices: Sequence[Index]) -> dict[str, int]:
    """Sums the counts of the layouts, such as texts that were cut."""
    counts: dict[str, int] = {}
    for index in indices:
        for name in index.facts["counted"]:
            counts[name] = counts.get(name, 0) + index.facts[name]
    return counts


def _labels(indices: Sequence[Index], names: Sequence[str]) -> str:
    found = np.concatenate([label_values(index) for index in indices])
    if found.dtype.kind == "f":
        return f"labels {found.min():g} to {found.max():g}, mean {found.mean():.4g}"
    counts = np.bincount(found, minlength=len(names))
    if len(counts) > CLASSES:
        used = counts[counts > 0]
        return (
            f"{len(used):,} of {len(counts):,} labels, each {used.min():,} to "
            f"{used.max():,} times"
        )
    shown = [names[i] if i < len(names) else str(i) for i in range(len(counts))]
    return "labels " + ", ".join(f"{n} {c:,}" for n, c in zip(shown, counts))


def label_values(index: Index) -> np.ndarray:
    """Returns the labels of all rows: one of each, or all of each in turn."""
    if "labels" in index.fields:
        return index.fields["labels"]
    return index.arrays["labels"].values


def _digests(stream: Stream) -> np.ndarray | None:
    """Returns a hash of each record's texts; None where they are too many."""
    each = [index.digests for index in stream.indices if index.digests is not None]
    if not each or sum(map(len, each)) > COMPARED:
        return None
    return np.concatenate(each)
