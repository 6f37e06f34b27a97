"""The checks of `lm.doctor`: what would make the results of a config's data wrong."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lm.checks import characters, conflicts, duplicates, leakage
from lm.data import pipeline
from lm.data.index import Index
from lm.data.pipeline import Data
from lm.data.sources.base import Record
from lm.data.stream import Stream
from lm.data.summary import share
from lm.errors import DataError
from lm.tokenizers.base import Codec

OVERLAP = 0.01  # words of an evaluation's texts that are trained on
CONFLICTS = 0.05  # training records whose text has another label elsewhere
UNKNOWN = 0.05  # unknown tokens
LOST = 0.05  # records with characters that were lost or misread
TRAINING = "training"  # the name of the set
SHOWN = 3  # examples of a finding
Verdict = Literal["ok", "note", "wrong"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check of one set.

    Attributes:
      check: its name.
      of: the name of the set, "training" or that of an evaluation.
      verdict: "wrong" where the results would be wrong.
      text: what was found.
      examples: some of it, with file and line.
      figures: the same as numbers.
    """

    check: str
    of: str
    verdict: Verdict
    text: str
    examples: tuple[str, ...] = ()
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Set:
    """A set of the config.

    Attributes:
      name: "training", or that of the evaluation.
      data: its section.
      objective: decides which texts of a record are read.
      codec: the tokenizer.
      seq_len: tokens of a row.
      stream: its rows.
    """

    name: str
    data: Data
    objective: Any
    codec: Codec
    seq_len: int
    stream: Stream

    @property
    def train(self) -> bool:
        return self.name == TRAINING

    @property
    def indices(self) -> tuple[Index, ...]:
        return self.stream.indices

    def records(self) -> Iterator[tuple[int, int, Record, list[str]]]:
        """Yields source, number, record and texts of each record that can be read."""
        layout = self.objective.layout(
            self.codec, seq_len=self.seq_len, pack=self.data.pack
        )
        opened = pipeline.open_sources(self.data, train=self.train)
        for source, each in enumerate(opened):
            for number, record in enumerate(each.records()):
                if isinstance(record, DataError):
                    continue  # The index has counted it, or refused it.
                try:
                    texts = layout.texts(record)
                except DataError:
                    continue
                yield source, number, record, texts

    def texts(self) -> Iterator[duplicates.Text]:
        for _, _, record, texts in self.records():
            yield duplicates.Text(record.where, duplicates.words_of(texts))

    @property
    def classes(self) -> int | None:
        """How many labels there are; None where a row has not one class of several."""
        fields = [i.fields["labels"] for i in self.indices if "labels" in i.fields]
        if len(fields) < len(self.indices) or any(f.dtype.kind == "f" for f in fields):
            return None
        return 1 + max(int(field.max(initial=-1)) for field in fields)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """The rows of each label, (labels,)."""
        counts = [
            np.bincount(index.fields["labels"], minlength=self.classes or 0)
            for index in self.indices
        ]
        return np.sum(counts, axis=0)

    def fact(self, name: str) -> int:
        return sum(index.facts.get(name, 0) for index in self.indices)


Tell = Callable[[str], None]


def rows(each: Set) -> Iterator[Finding]:
    """How long the rows are, what was cut or left out, and the unknown tokens."""
    lengths = np.concatenate([index.row_lengths for index in each.indices])
    at = np.percentile(lengths, (50, 90, 99, 100)).astype(int).tolist()
    edges = [0, *(2**n for n in range(2, 30) if 2**n < at[-1]), at[-1]]
    counts = np.histogram(lengths + 0.5, np.asarray(edges) + 1)[0].tolist()
    text = (
        f"{each.fact('records'):,} records, {len(lengths):,} rows of a median of "
        f"{at[0]:,} tokens, 90% to {at[1]:,}, 99% to {at[2]:,}, the longest {at[3]:,}"
    )
    histogram = {"up to": edges[1:], "rows": counts}
    yield Finding("lengths", each.name, "ok", text, (), histogram)
    for name in sorted({n for index in each.indices for n in index.facts["counted"]}):
        count = each.fact(name)
        if not count:
            continue
        what, _, done = name.rpartition("_")
        part = share(count, each.fact("records"))
        text = f"{what.replace('_', ' ')}: {count:,} {done}, {part} of the records"
        figures = {"count": count, "records": each.fact("records")}
        yield Finding("cut", each.name, "note", text, (), figures)
    unknown, encoded = each.fact("unknown"), each.fact("encoded")
    verdict: Verdict = "wrong" if unknown > UNKNOWN * encoded else "ok"
    text = f"{share(unknown, encoded)} unknown tokens"
    figures = {"unknown": unknown, "tokens": encoded}
    yield Finding("unknown", each.name, verdict, text, (), figures)
    if blank := each.fact("blank"):
        text = f"{blank:,} records without text"
        yield Finding("blank", each.name, "note", text, (), {"blank": blank})


def balance(each: Set, train: Set) -> Iterator[Finding]:
    """How often each label occurs, and labels that training never shows."""
    if each.classes is None or train.classes is None:
        return
    names = label_names(each, max(each.classes, train.classes))
    sizes = each.sizes
    told = ", ".join(
        f"{names[n]} {share(int(sizes[n]), int(sizes.sum()))}"
        for n in np.argsort(-sizes, kind="stable")[:8].tolist()
    )
    more = f" and {len(sizes) - 8} more" if len(sizes) > 8 else ""
    absent = [
        n
        for n in np.flatnonzero(sizes).tolist()
        if n >= train.classes or not train.sizes[n]
    ]
    figures = {names[n]: int(sizes[n]) for n in range(len(sizes))}
    if not each.train and absent:
        count = int(sizes[absent].sum())
        told = (
            f"{', '.join(names[n] for n in absent[:8])}: {count:,} records of a label "
            "that is never trained on"
        )
        yield Finding("labels", each.name, "wrong", told, (), figures)
    else:
        yield Finding("labels", each.name, "ok", told + more, (), figures)


def overlap(each: Set, train: Set, note: Tell) -> Finding:
    """Texts of an evaluation that are trained on, to the word or nearly."""

    def others() -> Iterator[duplicates.Text]:
        for n, text in enumerate(train.texts(), 1):
            if n % 100_000 == 0:
                note(f"overlap of {each.name}: {n:,} training records compared")
            yield text

    total = words = 0

    def own() -> Iterator[duplicates.Text]:
        nonlocal total, words
        for text in each.texts():
            total, words = total + 1, words + len(text.words)
            yield text

    found = exact = same_words = 0
    examples: list[str] = []
    for match in duplicates.find(own(), others):
        found, exact = found + 1, exact + match.exact
        same_words += match.words
        if len(examples) < SHOWN:
            kind = "the words of" if match.exact else f"{match.similarity:.2f} like"
            examples.append(f"{match.where} has {kind} {match.other}")
    text = (
        f"{found:,} of {total:,} texts are trained on ({exact:,} to the word, "
        f"{found - exact:,} nearly), {share(same_words, words)} of their words"
    )
    verdict: Verdict = "wrong" if same_words > OVERLAP * words else "note"
    figures = {"texts": total, "exact": exact, "near": found - exact}
    figures |= {"words": words, "shared_words": same_words}
    if not found:
        verdict, text = "ok", f"none of {total:,} texts is trained on"
    return Finding("overlap", each.name, verdict, text, tuple(examples), figures)


def texts(each: Set, folder: Path, note: Tell) -> Iterator[Finding]:
    """Texts that occur several times, other labels of them, and damaged characters."""
    kinds: collections.Counter[str] = collections.Counter()
    first: dict[str, str] = {}
    labels = [_label_of(index) for index in each.indices]
    total = 0

    def entries() -> Iterator[tuple[int, int, int]]:
        nonlocal total
        for source, number, record, own in each.records():
            total += 1
            if total % 100_000 == 0:
                note(f"texts of {each.name}: {total:,} records read")
            for kind in sorted({k for text in own for k in characters.troubles(text)}):
                kinds[kind] += 1
                first.setdefault(kind, record.where)
            words = duplicates.words_of(own)
            label_of = labels[source]
            label = label_of(number) if label_of else -1
            if words and label is not None:
                place = source << 48 | number
                yield duplicates.Text(record.where, words).digest, place, label

    found = conflicts.count(entries(), folder)
    text = f"{found.repeated:,} of {total:,} texts repeat an earlier one"
    figures = {"texts": total, "repeated": found.repeated}
    verdict: Verdict = "note" if found.repeated else "ok"
    yield Finding("repeated", each.name, verdict, text, (), figures)
    if any(labels):
        text = (
            f"{found.conflicting:,} of {total:,} texts have another label elsewhere in "
            "the set"
        )
        figures = {"texts": total, "conflicting": found.conflicting}
        many = found.conflicting > CONFLICTS * total
        verdict = "wrong" if many else "note" if found.conflicting else "ok"
        places = _places(each, {n for pair in found.pairs for n in pair})
        examples = tuple(f"{places[a]} and {places[b]}" for a, b in found.pairs)
        yield Finding("conflicts", each.name, verdict, text, examples, figures)
    damaged = False
    for kind, count in kinds.most_common():
        lost = kind in characters.LOSSES and count > LOST * total
        damaged = True
        yield Finding(
            "characters",
            each.name,
            "wrong" if lost else "note",
            f"{count:,} of {total:,} records with {characters.MEANINGS[kind]}",
            (f"first in {first[kind]}",),
            {"kind": kind, "records": total, "damaged": count},
        )
    if not damaged:
        text = f"no sign of a wrong encoding in {total:,} records"
        yield Finding("characters", each.name, "ok", text, (), {"records": total})


def telling(train: Set) -> Iterator[Finding]:
    """Tokens that give a label away."""
    size = train.codec.vocab_size
    if train.classes is None or train.classes < 2:
        return
    if train.classes * size > leakage.CELLS:
        text = f"not looked for: {train.classes:,} labels of {size:,} tokens are many"
        yield Finding("leakage", train.name, "note", text)
        return
    counts = leakage.counts_of(train.indices, size, train.classes)
    found = leakage.telling(counts, train.sizes)
    names = label_names(train, train.classes)
    examples = tuple(
        f"{train.codec.token(one.token)!r}: {share(round(one.pure * 1e6), 10**6)} of "
        f"its {one.rows:,} rows are {names[one.label]}, and "
        f"{share(round(one.covered * 1e6), 10**6)} of {names[one.label]} have it"
        for one in found[:SHOWN]
    )
    text = (
        f"{len(found):,} tokens give a label away"
        if found
        else ("no token gives a label away")
    )
    verdict: Verdict = "wrong" if found else "ok"
    figures = {"tokens": [train.codec.token(one.token) for one in found[:100]]}
    yield Finding("leakage", train.name, verdict, text, examples, figures)


def label_names(each: Set, labels: int) -> list[str]:
    """Returns the names of the labels; their numbers where they have none."""
    known = each.objective.class_names() if "classes" in each.objective.can else ()
    return [*known, *map(str, range(len(known), labels))]


def _label_of(index: Index) -> Callable[[int], int | None] | None:
    """Returns a function from a record's number to its label; None without labels.

    Several labels at once are one number, a hash of them. A record without rows has
    the label None.
    """
    if "record" not in index.fields:
        return None
    records = index.fields["record"]  # in ascending order
    one, several = index.fields.get("labels"), index.arrays.get("labels")
    if several is None and (one is None or one.dtype.kind == "f"):
        return None

    def label_of(number: int) -> int | None:
        row = int(np.searchsorted(records, number))
        if row == len(records) or records[row] != number:
            return None
        if several is not None:
            return hash(tuple(several[row].tolist()))
        return None if one is None else int(one[row])

    return label_of


def _places(each: Set, wanted: set[int]) -> dict[int, str]:
    """Returns where these records stand, by source and number."""
    found: dict[int, str] = {}
    for source, number, record, _ in each.records():
        if len(found) == len(wanted):
            break
        if (place := source << 48 | number) in wanted:
            found[place] = record.where
    return found
