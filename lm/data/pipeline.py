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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lm.config import resolve as configs
from lm.data import folds
from lm.data import index as indices
from lm.data.lanes import WARM_UP, Lanes
from lm.data.mixture import Mixture
from lm.data.sources.base import Record
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


@dataclasses.dataclass(frozen=True)
class Stream:
    """Examples by their number: endless and shuffled, or an evaluation set in order.

    Args:
      indices: the rows of each source.
      mixture: their proportions; None is one source after the other.
      transforms: for each source, what makes an example of a row.
      seed: of the shuffle and of every draw within an example.
      lanes: the order "stream", or None. Rows then have `passed`, the rows that their
        lane has read before them.
    """

    indices: tuple[indices.Index, ...]
    mixture: Mixture | None
    transforms: tuple[tuple[Callable, ...], ...]
    seed: int
    lanes: Lanes | None = None

    def __len__(self) -> int:
        """Rows of all sources: an epoch, if there is only one source."""
        return sum(map(len, self.indices))

    @functools.cached_property
    def _orders(self) -> list[Any]:
        import grain

        rows = [grain.MapDataset.range(len(index)) for index in self.indices]
        return [r.shuffle(seed=self.seed + i).repeat() for i, r in enumerate(rows)]

    def locate(self, n: int) -> tuple[int, int, int]:
        """Returns (source, epoch, row of its index) of example n.

        An empty example of a lane is made of the row before it.
        """
        if self.lanes is not None:
            epoch, _, row, _ = self.lanes.locate(n)
            if row is None:
                row = self.lanes.locate(max(n - self.lanes.count, 0)).row
            source, row = self._nth(row or 0)
            return source, epoch, row
        if self.mixture is None:
            source, row = self._nth(n)
            return source, 0, row
        source, place = self.mixture.locate(n)
        row = int(self._orders[source][place])
        return source, place // len(self.indices[source]), row

    def _nth(self, n: int) -> tuple[int, int]:
        """Returns source and row of the n-th row, one source after the other."""
        for source, index in enumerate(self.indices):
            if n < len(index):
                return source, n
            n -= len(index)
        raise IndexError(n)

    def describe_batch(self, number: int, size: int) -> str:
        """Returns the number of a batch and its examples, for an error line."""
        places = (self.locate(number * size + row) for row in range(size))
        examples = " ".join(":".join(map(str, place)) for place in places)
        return f"batch {number} of the examples (source:epoch:row) {examples}"

    def example(self, n: int) -> Example:
        """Makes example n of its row, with draws that depend on (seed, epoch, row)."""
        source, epoch, row = self.locate(n)
        bits = np.random.Philox(key=self.seed, counter=[0, row, epoch, source])
        rng = np.random.Generator(bits)
        example = self.indices[source].row(row)
        counts = True
        if self.lanes is not None:
            _, example["passed"], _, counts = self.lanes.locate(n)
        for transform in self.transforms[source]:
            example = transform(example, rng)
        example |= {"example_ids": np.asarray([source, epoch, row])}
        return example if counts else without_weight(example)

    def evaluated(self, rows: int) -> int:
        """Returns the number of examples that hold the first `rows` rows."""
        return rows if self.lanes is None else self.lanes.steps * self.lanes.count

    def example_or_padding(self, n: int, rows: int) -> Example:
        """Makes example n of the first `rows`; beyond them one without weight."""
        if n < self.evaluated(rows):
            return self.example(n)
        return without_weight(self.example(0))


def without_weight(example: Example) -> Example:
    """Returns the example as padding: arrays named `...weights` are zero."""
    return {k: v * 0 if k.endswith("weights") else v for k, v in example.items()}


def batches(
    stream: Stream,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    data: Data,
    shares: Shares,
    rows: int | None = None,
) -> Iterator[Example]:
    """Yields this process's rows of the batches of steps first_step .. last_step - 1.

    Args:
      rows: examples of an evaluation set; beyond them come rows without weight. None
        for training rows, which are endless.

    Yields:
      Arrays with a leading axis of batch_size / processes.
    """
    import grain

    share = batch_size // shares.processes
    offset = shares.process * share

    def batch(step: int) -> Example:
        first = step * batch_size + offset
        numbers = range(first, first + share)
        if rows is None:
            examples = [stream.example(n) for n in numbers]
        else:
            examples = [stream.example_or_padding(n, rows) for n in numbers]
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
    return tokenizer.load(folder)


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
    lanes: int,
    limit: int | None = None,
    cache: Path,
    shares: Shares,
    note: Callable[[str], None],
    counts: Callable[[], np.ndarray] | None = None,
) -> Stream:
    """Opens the stream of a `data` section; indexes its rows where they are not yet.

    Args:
      lanes: rows of a batch, for the order "stream".
      limit: rows of an evaluation; None is all.
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
    warm = 0 if train or lanes == 1 else -(-WARM_UP // seq_len)
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
        lanes=Lanes(lanes, min(rows, limit or rows), warm) if streams else None,
    )


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
        "lanes": stream.lanes.count if stream.lanes else None,
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
    text = json.dumps([section[key] for key in ("data", "objective", "seed")])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"section": digest, "rows": rows_of(stream)}
