r"""Grammars as text: a rule on each line, its probability in brackets.

    START -> S [1.0]
    S -> NP VP [1.0]
    NP -> DT N [0.4] | 'john' [0.6]
    NP -> '<class 3>' [0.1]

Words stand in quotes, as nltk writes them; a backslash stands before a quote or
backslash within. The rules of the first line's symbol to one symbol without quotes give
the probabilities of roots, and it has no other rules; without such rules it is the only
root. A word `<class N>` stands for unknown words of a class (`lm.models.pcfg`), `<class
any>` for all of them; the probabilities of the other rules of a symbol sum to 1. Where
no rule has a probability, as in a grammar that tells only which sentences it has, those
of a symbol are equally likely. Lines that begin with # are comments.

Rules are written in the order of their names, a probability as the shortest text whose
logarithm is the same float32, so that a file that was written here is read and written
again to the byte.
nltk reads a file whose symbols are made of letters, digits and / ^ < > -.
"""

import gzip
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import ConfigError, DataError
from lm.host import inputs, storage
from lm.ops import cky

RULE = re.compile(r"(\S+)\s*->\s*(\S.*)")
OR = re.compile(r"\s\|(?=\s)")
RIGHT = re.compile(r"(.+?)\s*(?:\[([^\[\]]*)\])?")
WORD = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
CLASS = re.compile(r"<class (\d+|any)>")
CLASSES = 64  # of lm.models.pcfg, unless a file has more
PAD, UNKNOWN, CLOSE = "<pad>", "<unk>", ")"
TREES = {
    "sources": [{"name": "trees", "items": ("(S (NN word) (VB word))",)}],
    "max_unknown": 1.0,
}

Rule = tuple[str, ...]  # parent, left, right; parent, word; or root, symbol


class Grammar(NamedTuple):
    """A grammar in Chomsky normal form.

    Attributes:
      symbols: their names, sorted.
      start: (S,) log-probabilities of the symbols as the root, float32.
      rules: `parent`, `left`, `right` and `weights` as in lm.ops.cky.Rules.
      lexical: (symbol, word, log-probability) of each lexical rule.
    """

    symbols: list[str]
    start: np.ndarray
    rules: dict[str, np.ndarray]
    lexical: list[tuple[int, str, float]]


# ── In ──────────────────────────────────────────────────────────────────────────────


def read(path: Path) -> Grammar:
    """Reads a file; decompresses `.gz`. See `parse`."""
    return parse(inputs.read_lines(path, lambda _: None), str(path))


def parse(lines: Iterable[inputs.Line], name: str) -> Grammar:
    """Reads a grammar.

    Args:
      name: of the file, for errors.

    Raises:
      DataError: a line is no rule, a probability is outside [0, 1], a rule appears
        twice, or those of a symbol do not sum to 1 within 1e-4.
    """
    found = _Rules(name)
    for where, text in lines:
        line = text.strip()
        if not line or line.startswith("#"):
            continue
        match = RULE.fullmatch(line)
        if match is None:
            expected = "A -> B C [p] or A -> 'word' [p]"
            raise DataError(where, f"{line!r:.60}", expected)
        for right in OR.split(match[2]):
            found.add(match[1], right.strip(), where)
    return found.made()


class _Rules:
    """The rules of a file with their probabilities, sorted by kind."""

    def __init__(self, name: str):
        self.name = name
        self.root: str | None = None
        self.binary: dict[Rule, float | None] = {}
        self.lexical: dict[Rule, float | None] = {}
        self.roots: dict[Rule, float | None] = {}
        self.lines: dict[str, str] = {}  # where the first one of each parent stands

    def add(self, parent: str, right: str, where: str) -> None:
        """Adds what a parent becomes, as a line says."""
        match = RIGHT.fullmatch(right)
        if match is None:
            raise DataError(where, f"{right!r:.60}", "two symbols or a word in quotes")
        share = None if match[2] is None else _share(match[2], where)
        self.root = self.root or parent
        self.lines.setdefault(parent, where)
        parts = match[1].split()
        word = WORD.fullmatch(match[1])
        rules, rule = self.binary, (parent, *parts)
        if word is not None:
            quoted = word[1] if word[1] is not None else word[2]
            text = re.sub(r"\\(.)", r"\1", quoted)
            _check_word(text, where)
            rules, rule = self.lexical, (parent, text)
        elif len(parts) == 1 and parent == self.root:
            rules = self.roots
        elif len(parts) != 2:
            found = f"a rule to {len(parts)} symbols"
            expected = "two, a word in quotes, or one as the root of a tree"
            raise DataError(where, found, expected)
        if rule in rules:
            found = f"{parent} -> {' '.join(rule[1:])} again"
            raise DataError(where, found, "each rule once")
        rules[rule] = share

    def made(self) -> Grammar:
        """Makes the grammar.

        Raises:
          DataError: there is no word, or the probabilities are no probabilities.
        """
        if not self.lexical:
            raise DataError(self.name, "no rule with a word", "a grammar")
        every = [*self.binary.items(), *self.lexical.items(), *self.roots.items()]
        if self.roots:
            for (parent, *_), _ in every[: -len(self.roots)]:
                if parent == self.root:
                    found = f"{parent} with rules to one symbol and others"
                    expected = "one as the root of trees, and no others"
                    raise DataError(self.lines[parent], found, expected)
        shares = self._shares(every)
        if not self.roots:
            shares[str(self.root), str(self.root)] = 1.0
            self.roots = {(str(self.root), str(self.root)): 1.0}
        heads = {symbol for _, symbol in self.roots} | {p for p, _ in self.lexical}
        names = sorted(heads | {symbol for rule in self.binary for symbol in rule})
        number = {name: at for at, name in enumerate(names)}
        rows = sorted(([number[s] for s in rule], shares[rule]) for rule in self.binary)
        columns = np.array([rule for rule, _ in rows], np.int32).reshape(-1, 3)
        start = np.zeros(len(names))
        for root in self.roots:
            start[number[root[1]]] = shares[root]
        with np.errstate(divide="ignore"):
            weights = np.log([share for _, share in rows]).astype(np.float32)
            lexical = [
                (number[rule[0]], rule[1], float(np.log(shares[rule])))
                for rule in sorted(self.lexical)
            ]
            start = np.log(start).astype(np.float32)
        rules = dict(zip(("parent", "left", "right"), columns.T))
        return Grammar(names, start, rules | {"weights": weights}, lexical)

    def _shares(self, every: list[tuple[Rule, float | None]]) -> dict[Rule, float]:
        """Returns the probability of each rule, after a check of the sums."""
        totals: dict[str, float] = {}
        none = all(share is None for _, share in every)
        for (parent, *right), share in every:
            if share is None and not none:
                found = f"{parent} -> {' '.join(right)} without a probability"
                expected = "one in brackets, as others have, or none at all"
                raise DataError(self.lines[parent], found, expected)
            if len(right) > 1 or not CLASS.fullmatch(right[0]):
                own = 1.0 if share is None else share
                totals[parent] = totals.get(parent, 0.0) + own
        for symbol, total in totals.items():
            if not none and abs(total - 1) > 1e-4:
                found = f"probabilities of {symbol} that sum to {total:.6g}"
                raise DataError(self.lines[symbol], found, "1")
        return {
            rule: 1 / totals.get(rule[0], 1.0) if share is None else share
            for rule, share in every
        }


def _share(text: str, where: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        expected = "a number from 0 to 1 in brackets"
        raise DataError(where, f"the probability {text!r:.40}", expected)
    return share


def _check_word(word: str, where: str) -> None:
    """Raises a DataError for a word that no sentence can hold."""
    bracket = word[:1] == "(" or word == CLOSE
    plain = word.split() == [word] and not bracket and word != PAD
    if not plain and not CLASS.fullmatch(word):
        expected = "a word without white space and brackets (-LRB- stands for one)"
        raise DataError(where, f"the word {word!r:.40}", expected)


def workdir(found: Grammar) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Makes the config, vocabulary and parameters of a run with the file's grammar.

    A file has no unigram model of words, so `model.backup` is 0: the probability of a
    sentence without a tree is 0. The data are only a stand-in.
    """
    classes = [CLASS.fullmatch(word) for _, word, _ in found.lexical]
    numbers = [int(match[1]) for match in classes if match and match[1] != "any"]
    count = max([CLASSES - 1, *numbers]) + 1
    own = {word for (_, word, _), match in zip(found.lexical, classes) if not match}
    words = [PAD, UNKNOWN, *sorted(own - {UNKNOWN})]
    tokens = [*words, *(f"({name}" for name in found.symbols), CLOSE]
    entry = {word: at for at, word in enumerate(words)}
    entry |= {f"<class {n}>": len(tokens) + n for n in range(count)}
    entry["<class any>"] = len(tokens) + count
    size = len(tokens) + count + 1
    symbols = np.arange(len(words), len(words) + len(found.symbols), dtype=np.int32)
    rows = sorted((symbol, entry[word], log) for symbol, word, log in found.lexical)
    symbol, entries, logs = (np.array(column) for column in zip(*rows))
    kinds = np.zeros(len(tokens), np.int8)
    kinds[symbols], kinds[-1] = 1, 2
    params = {
        "kinds": kinds,
        "symbols": symbols,
        "start": found.start,
        "rules": found.rules,
        "lexicon": {
            "symbol": symbol.astype(np.int32),
            "entry": entries.astype(np.int32),
            "weights": logs.astype(np.float32),
            "table": cky.table_of(entries, size),
        },
        "unigrams": np.full(size, -math.log(size), np.float32),
        "length": np.full(2, math.log(0.5), np.float32),
    }
    config: dict[str, Any] = {
        "job": "fit",
        "steps": 1,
        "batch_size": 8,
        "seq_len": 400,
        "tokenizer": {"name": "word", "kind": "word"},
        "model": {"name": "pcfg", "classes": count, "backup": 0.0},
        "objective": {"name": "parsing"},
        "data": TREES,
        "evals": {"items": {"evaluator": "brackets", "data": TREES}},
    }
    return config, tokens, params


# ── Out ─────────────────────────────────────────────────────────────────────────────


def write(path: Path, config: Any, codec: Any, params: dict[str, Any]) -> str:
    """Writes a run's grammar, compressed for `.gz`; returns a summary for the log.

    Raises:
      ConfigError: the run has no grammar.
    """
    if "lexicon" not in params:
        expected = "a grammar, such as model.name=pcfg fits"
        raise ConfigError("--workdir", f"model {config.model.name}", expected)
    names = [codec.token(int(token))[1:] for token in params["symbols"]]
    unknown = [*(f"<class {n}>" for n in range(config.model.classes)), "<class any>"]
    size = len(params["unigrams"]) - len(unknown)
    lexicon, rules = params["lexicon"], params["rules"]
    found = Grammar(
        names,
        np.asarray(params["start"]),
        {name: np.asarray(column) for name, column in rules.items()},
        [
            (symbol, codec.token(at) if at < size else unknown[at - size], log)
            for symbol, at, log in zip(
                *(lexicon[x].tolist() for x in ("symbol", "entry", "weights"))
            )
        ],
    )
    data = text_of(found).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, 6, mtime=0)
    storage.write_bytes(path, data)
    kinds = f"{len(rules['parent']):,} binary and {len(found.lexical):,} lexical rules"
    return f"{len(names):,} symbols, {kinds}"


def text_of(grammar: Grammar) -> str:
    """Writes a grammar; the name of the root is that of no symbol."""
    names, root = grammar.symbols, "START"
    while root in names:
        root += "-"
    lines = [
        f"{root} -> {name} [{_number(log)}]"
        for name, log in sorted(zip(names, grammar.start.tolist()))
        if log > -math.inf
    ]
    columns = [grammar.rules[x].tolist() for x in ("parent", "left", "right")]
    binary = zip(*([names[at] for at in column] for column in columns))
    for rule, log in sorted(zip(binary, grammar.rules["weights"].tolist())):
        lines.append(f"{rule[0]} -> {rule[1]} {rule[2]} [{_number(log)}]")
    for symbol, word, log in sorted((names[s], w, p) for s, w, p in grammar.lexical):
        quoted = re.sub(r"([\\'])", r"\\\1", word)
        lines.append(f"{symbol} -> '{quoted}' [{_number(log)}]")
    return "\n".join(lines) + "\n"


def _number(log: float) -> str:
    """Returns the shortest text of a probability whose logarithm this float32 is."""
    share = math.exp(log)
    for digits in range(1, 18):
        short = float(f"{share:.{digits}g}")
        if short and np.float32(math.log(short)) == np.float32(log):
            return repr(short)
    return repr(share)
