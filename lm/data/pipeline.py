"""From a config's sources to batches that are a pure function of (config, step).

Global row r of step s is example s·B + r of an endless stream. The stream is
arithmetic: the mixture says which source and which place in it, grain's shuffle says
which row of the index stands there in that epoch (or, in the order "stream", the rows
are cut into B lanes, one for each r), and the row's own random generator, made of
(seed, source, epoch, row), draws its masks. Process p of P reads the rows
[pB/P, (p+1)B/P) of a step, and a resume begins at its step without reading before it.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lm.config import resolve as configs
from lm.data import folds
from lm.data import index as indices
from lm.data.buckets import GROUP, make_buckets
from lm.data.lanes import WARM_UP, DrawnWindows, Lanes
from lm.data.layouts import check_length
from lm.data.mixture import Mixture
from lm.data.sources.base import Record
from lm.data.stream import Stream, without_weight
from lm.data.transforms import Example
from lm.errors import DataError, StorageError
from lm.host import storage
from lm.host.lock import Lock
from lm.tokenizers.base import Codec

WAIT = 6 * 3600  # seconds for another run that builds the same index
BOUNDS = {
    "max_bad": "[0, 1]",
    "max_unknown": "[0, 1]",
    "fold_seed": "[0, 4294967295]",
    "threads": "[1, 256]",
    "prefetch": "[1, 1024]",
    "buckets": "[1, 64]",
}
CHANGEABLE = ("max_unknown", "cache", "threads", "prefetch")


@dataclasses.dataclass(frozen=True)
class Data:
    """The section `config.data`, and `data` of an evaluation.

    Attributes:
      sources: one section per source; their `weight` says how often each is drawn.
      pack: whether a row may hold several documents, without attention across them.
      order: "shuffled" draws the training rows at random in each epoch, and takes those
        of an evaluation one after the other, each by itself. "stream": each row of a
        batch goes on where that row of the last batch ended, so that a model can carry
        its state from one to the next. The rows of all sources are then one text, cut
        into as many parts as a batch has rows; an epoch ends where the longest part
        does. In an evaluation each part is preceded by the end of the part before it,
        without weight (lm/data/lanes.py); with a batch_size of 1 it is one long text.
      windows: with order="stream", "drawn" trains on windows whose lengths are drawn
        about `seq_len` anew in each epoch (lm/data/lanes.py), and multiplies the
        learning rate of each step by the length of its window over `seq_len` (Merity et
        al. 2018). For one source; a duration in tokens counts `seq_len` for a row.
        Evaluations are cut every `seq_len` tokens.
      buckets: to how many lengths rows are padded where they are not packed: `seq_len`,
        and others down to a part of it, each a shape that is compiled when it is first
        needed. A batch has rows of similar length: training rows are sorted by length
        among those of 32 batches or an epoch, whose order is then drawn. 1 pads every
        row to `seq_len`, and draws every row by itself.
      fold: "2/5" trains on all records but those of the second of five folds, and in
        the data of an evaluation takes only these; "" takes all.
      fold_labels: a column whose values each fold has in the same proportions.
      fold_groups: a column whose values no two folds share, such as an author.
      fold_seed: of the folds.
      on_bad: whether a record that cannot be read ends the run or is left out.
      max_bad: with `skip`, the largest share of bad records that is accepted.
      max_unknown: the largest share of unknown tokens among those of a source. Where
        they are many the figures mean nothing: the unknown token is easy to predict.
      cache: where the rows are kept; None is `data/` within the workdir.
      threads: threads that make batches.
      prefetch: how many examples they may be ahead, rounded up to batches.
    """

    sources: tuple = ()
    pack: bool = False
    order: Literal["shuffled", "stream"] = "shuffled"
    windows: Literal["fixed", "drawn"] = "fixed"
    buckets: int = 8
    fold: str = ""
    fold_labels: str | None = None
    fold_groups: str | None = None
    fold_seed: int = 0
    on_bad: Literal["error", "skip"] = "error"
    max_bad: float = 0.001
    max_unknown: float = 0.3
    cache: str | None = None
    threads: int = 2
    prefetch: int = 64


@dataclasses.dataclass(frozen=True)
class Shares:
    """This process among all of them, and a barrier.

    Attributes:
      process: the number of this process.
      processes: how many there are.
      wait: waits until every process has called it with the same name.
    """

    process: int = 0
    processes: int = 1
    wait: Callable[[str], None] = lambda place: None


def this_process() -> Shares:
    """Returns the number of this process, with jax's barrier."""
    import jax

    if jax.process_count() == 1:
        return Shares()
    from jax.experimental import multihost_utils

    wait = multihost_utils.sync_global_devices
    return Shares(jax.process_index(), jax.process_count(), wait)


def batches(
    stream: Stream,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    data: Data,
    shares: Shares,
    rows: int | None = None,
    by_length: bool = False,
) -> Iterator[Example]:
    """Yields this process's rows of the batches of steps first_step .. last_step - 1.

    Args:
      rows: examples of an evaluation set; beyond them come rows without weight. None
        for training rows, which are endless.
      by_length: whether the examples of an evaluation set are sorted by length, so that
        less of their batches is padding.

    Yields:
      Arrays with a leading axis of batch_size / processes.
    """
    import grain

    share = batch_size // shares.processes
    own = slice(shares.process * share, (shares.process + 1) * share)
    order = stream.from_longest(rows) if rows and by_length else None
    count = None if rows is None else stream.evaluated(rows)

    def batch(step: int) -> Example:
        places = range(step * batch_size, (step + 1) * batch_size)
        numbers: Sequence[int] = places
        if count is not None:  # The last example fills the last batch up.
            numbers = [min(n, count - 1) for n in places]
        if order is not None:
            numbers = order[numbers].tolist()
        lengths = stream.lengths(numbers)
        examples = [stream.example(n, lengths) for n in numbers[own]]
        if count is not None:
            examples = [
                example if place < count else without_weight(example)
                for place, example in zip(places[own], examples)
            ]
        return {name: np.stack([e[name] for e in examples]) for name in examples[0]}

    # A thread makes a whole batch: handing over single examples costs more than
    # making them, where they are short.
    ahead = -(-data.prefetch // share)
    options = grain.ReadOptions(
        num_threads=min(data.threads, ahead), prefetch_buffer_size=ahead
    )
    steps = grain.MapDataset.range(first_step, last_step).map(batch)
    yield from steps.to_iter_dataset(options)


def prefetch(items: Iterator[Any], put: Callable[[Any], Any], depth: int = 2):
    """Yields put(item) for each item, calling `put` `depth` items ahead.

    So the next batches are copied to the devices while a step runs.
    """
    waiting: collections.deque[Any] = collections.deque()
    for item in items:
        waiting.append(put(item))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def open_sources(data: Data, *, train: bool) -> list[Any]:
    """Opens the sources of a section, each checked without reading it as a whole.

    Args:
      train: whether they are trained on, without the records of `data.fold`.
    """
    if not data.sources:
        raise DataError(
            "data.sources", "no source", "at least one", "e.g. dict(name='builtin')"
        )
    sources = []
    for section in data.sources:
        cls = configs.load_class("data.sources", section["name"])
        source = configs.build(cls, section)
        source.check()
        if data.fold:
            chosen = (data.fold_labels, data.fold_groups, data.fold_seed, not train)
            number, count = map(int, data.fold.split("/"))
            source = folds.Folded(source, number, count, *chosen)
        sources.append(source)
    return sources


def texts_of(sources: list[Any], columns: tuple[str, ...]) -> Iterator[str]:
    """Yields all texts of the sources, for the training of a tokenizer."""
    for source in sources:
        for record in source.records():
            if not isinstance(record, DataError):
                for value in (record.fields[c] for c in columns if c in record.fields):
                    yield from map(str, value if isinstance(value, tuple) else (value,))


def records_of(stream: Stream, data: Data, rows: int) -> Iterator[Record]:
    """Yields the record of each of the first `rows` examples of an evaluation set.

    Evaluators use it that need the original texts, such as references; several examples
    may be of one record. The sources are read once more.

    Raises:
      DataError: rows of several records, or of none.
    """
    taken = 0
    for source, index in zip(open_sources(data, train=False), stream.indices):
        if "record" not in index.fields:
            raise DataError(
                "data.pack",
                "rows of several records",
                "one record in a row, so that its references can be found",
                "set pack=false in the data of this evaluation",
            )
        numbers = index.fields["record"][: rows - taken].tolist()
        taken += len(numbers)
        records = enumerate(source.records())
        at = -1
        for number in numbers:
            while at < number:
                at, record = next(records)
            yield record


def open_tokenizer(
    section: Mapping[str, Any],
    folder: Path,
    texts: Callable[[], Iterator[str]],
    shares: Shares,
    note: Callable[[str], None],
) -> Any:
    """Opens the tokenizer in `folder`; makes it there first where it is absent.

    Args:
      texts: returns the training texts, from the first one at every call.
    """
    tokenizer = configs.build(configs.load_class("tokenizer", section["name"]), section)
    if shares.process == 0 and not folder.exists():
        note("making the tokenizer")
        partial = folder.with_name(f"{folder.name}.partial")
        try:
            with storage.refusing(partial):
                storage.remove_tree(partial)
                partial.mkdir(parents=True)
                tokenizer.make(texts, partial)
            storage.commit(partial, folder)
        except StorageError:
            with contextlib.suppress(StorageError):
                storage.remove_tree(partial)
            raise
    shares.wait("tokenizer")
    storage.verify(folder)
    codec = tokenizer.load(folder)
    codec.directory = folder
    return codec


def copy_tokenizer(theirs: Path, own: Path) -> None:
    """Copies the tokenizer of another run into this run's folder `own`."""
    partial = own.with_name(f"{own.name}.partial")
    storage.remove_tree(partial)
    shutil.copytree(theirs, partial, ignore=shutil.ignore_patterns("MANIFEST.json"))
    storage.commit(partial, own)


def open_stream(
    data: Data,
    objective: Any,
    codec: Codec,
    *,
    seq_len: int,
    seed: int,
    train: bool,
    batch_size: int,
    limit: int | None = None,
    multiple: int = 1,
    cache: Path,
    shares: Shares,
    note: Callable[[str], None],
    counts: Callable[[], np.ndarray] | None = None,
) -> Stream:
    """Opens the stream of a `data` section; indexes its rows where they are not yet.

    Args:
      batch_size: rows of a batch.
      limit: rows of an evaluation; None is all.
      multiple: of every length but `seq_len` to which rows are padded.
      counts: returns how often each token occurs in the training rows, (V,); None:
        these are the training rows.

    Raises:
      DataError: a source that is missing, unreadable, gives no rows, or whose tokens
        are mostly unknown.
    """
    streams = data.order == "stream"
    weights = tuple(section["weight"] for section in data.sources)
    layout = objective.layout(codec, seq_len=seq_len, pack=data.pack)
    cache = Path(data.cache) if data.cache else cache
    rules = {"on_bad": data.on_bad, "max_bad": data.max_bad}
    opened = []
    for section, source in zip(data.sources, open_sources(data, train=train)):
        folder = cache / indices.fingerprint(source, layout, codec, rules)
        if shares.process == 0 and not folder.exists():
            # Another run may share the cache: one builds, the others wait for it.
            with Lock(folder.with_name(f"{folder.name}.lock"), wait=WAIT):
                if not folder.exists():
                    note(f"indexing {section['name']} once, into {folder}")
                    indices.build(
                        folder,
                        source,
                        layout,
                        codec,
                        skip_bad=data.on_bad == "skip",
                        max_bad=data.max_bad,
                        note=note,
                    )
        shares.wait(f"index {folder.name}")
        index = indices.load(folder)
        if not len(index):
            raise DataError(
                f"data.sources {source!r}",
                f"{index.facts['records']} records and no row",
                f"texts long enough for the objective at seq_len={seq_len}",
            )
        check_unknown(index, codec, data.max_unknown, source.place)
        opened.append(index)
    rows = sum(map(len, opened))
    drawn_windows = None
    if train and data.windows == "drawn":
        drawn_windows = open_windows(opened[0], batch_size, seq_len, seed, multiple)
    warm = 0 if train or batch_size == 1 else -(-WARM_UP // seq_len)
    lengths = [objective.row_lengths(layout, i) for i in opened if not data.pack]
    padded = None
    if lengths and all(each is not None for each in lengths) and not streams:
        padded = make_buckets(lengths, data.buckets, multiple)
    size = codec.vocab_size
    own = functools.cache(lambda: sum(index.token_counts(size) for index in opened))
    drawn = objective.by_counts(counts or own, codec, seq_len=seq_len)
    return Stream(
        indices=tuple(opened),
        mixture=Mixture(weights) if train and not streams else None,
        transforms=tuple(
            (*objective.transforms(index, codec, seq_len=seq_len), *drawn)
            for index in opened
        ),
        seed=seed,
        lanes=Lanes(batch_size, min(rows, limit or rows), warm)
        if streams and drawn_windows is None
        else None,
        drawn=drawn_windows,
        buckets=padded,
        group=batch_size if train else 0,
    )


def open_windows(
    index: indices.Index, lanes: int, length: int, seed: int, multiple: int
) -> DrawnWindows:
    """Cuts the rows of an index, made for order="stream", at drawn places.

    Raises:
      ConfigError: windows of `length` are too short for the noise of their lengths.
      DataError: the lanes are so short that a window might be without a token.
    """
    check_length(length, 20, "drawn windows differ by 5 tokens in the mean")
    tokens = int(index.row_lengths.sum()) - len(index)
    if tokens // lanes < 4 * length:
        raise DataError(
            "data.windows",
            f"'drawn' in {lanes} rows of {tokens // lanes} tokens",
            f"at least {4 * length} tokens, four windows of seq_len={length}",
            "lower batch_size or seq_len, or set data.windows=fixed",
        )
    return DrawnWindows(lanes, tokens, length, seed, multiple)


def check_unknown(index: indices.Index, codec: Codec, most: float, place: str) -> None:
    """Refuses a source of which too large a share has no token.

    Raises:
      DataError: names the share, and the limit.
    """
    unknown, tokens = index.facts["unknown"], index.facts["encoded"]
    if codec.unk_id is not None and unknown > most * tokens:
        name = codec.token(codec.unk_id)
        raise DataError(
            place,
            f"{unknown / tokens:.1%} unknown tokens ({unknown:,} of {tokens:,} are "
            f"{name})",
            f"at most {most:.0%} (data.max_unknown), since figures mean little beyond",
            "use a tokenizer made for these texts, or raise data.max_unknown",
        )


ROWS = ("name", "records", "skipped", "rows", "tokens")


def fingerprint(
    stream: Stream,
    codec: Codec,
    batch_size: int,
    evals: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns what a checkpoint keeps, to notice on resume that the data changed.

    Args:
      evals: the identities of the evaluations' sets, by name.
    """
    parts = {
        "format": indices.FORMAT,
        "tokenizer": codec.fingerprint,
        "rows": rows_of(stream),
        "mixture": list(stream.mixture.weights) if stream.mixture else [],
        "lanes": lanes.count if (lanes := stream.lanes or stream.drawn) else None,
        "sorted": GROUP if stream.buckets and stream.group else None,
        "seed": stream.seed,
        "batch_size": batch_size,
        "evals": dict(evals or {}) or None,
    }
    return {name: value for name, value in parts.items() if value is not None}


def rows_of(stream: Stream) -> list[dict[str, Any]]:
    """Returns the names and counts of a stream's indices."""
    return [{key: index.facts[key] for key in ROWS} for index in stream.indices]


def identity_of(section: Mapping[str, Any], stream: Stream) -> dict[str, Any]:
    """Returns what a checkpoint keeps of an evaluation: hash of the section, rows."""
    # Without folds their fields are left out, so that older runs continue; those of
    # training alone always are.
    folded = section["data"].get("fold")
    data = {
        name: value
        for name, value in section["data"].items()
        if name != "windows" and (folded or not name.startswith("fold"))
    }
    text = json.dumps([data, section["objective"], section["seed"]])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"section": digest, "rows": rows_of(stream)}
