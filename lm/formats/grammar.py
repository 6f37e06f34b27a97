"""Grammars as text: a rule on each line, its probability in brackets.

    S -> NP VP [1.0]
    NP -> DT N [0.4]
    NP -> 'john' [0.6]
    ROOT -> S [1.0]

Words stand in quotes, as nltk writes them. A rule to one symbol without quotes gives
its probability as the root of a tree, under a name that is the parent of nothing else.
Lines that begin with # are comments. The probabilities are written as the shortest
text that is the same float64.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lm.errors import CheckpointError
from lm.host import storage
from lm.ops.cky import Rules

RULE = re.compile(r"(\S+)\s*->\s*(.+?)\s*(?:\[([^\]]*)\])?")
WORD = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")


class Grammar(NamedTuple):
    """A grammar in Chomsky normal form.

    Attributes:
      symbols: their names.
      start: (S,) log-probabilities of the symbols as the root, float32.
      rules: the binary rules, with log-probabilities.
      lexical: (symbol, word, log-probability) of each lexical rule.
    """

    symbols: list[str]
    start: jnp.ndarray
    rules: Rules
    lexical: list[tuple[int, str, float]]


def parse(text: str, name: str, root: str | None = None) -> Grammar:
    """Reads a grammar.

    Args:
      name: of the file, for errors.
      root: the symbol of the roots; None is the parent of the first rule.

    Raises:
      CheckpointError: a line is no rule, a probability is outside [0, 1], a rule
        appears twice, or those of a symbol do not sum to 1 within 1e-4.
    """
    binary: dict[tuple[str, str, str], float] = {}
    lexical: dict[tuple[str, str], float] = {}
    roots: dict[str, float] = {}
    totals: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{name}:{number}"
        match = RULE.fullmatch(line.strip())
        if match is None:
            expected = "A -> B C [p] or A -> 'word' [p]"
            raise CheckpointError(where, repr(line.strip())[:60], expected)
        parent, right, share = match[1], match[2], _share(match[3], where)
        root = root or parent
        word = WORD.fullmatch(right)
        parts = right.split()
        rules: dict = binary
        key: object = (parent, *parts)
        if word is not None:
            quoted = word[1] if word[1] is not None else word[2]
            rules, key = lexical, (parent, re.sub(r"\\(.)", r"\1", quoted))
        elif len(parts) == 1 and parent == root:
            rules, key = roots, parts[0]
        elif len(parts) != 2:
            found = f"a rule to {len(parts)} symbols"
            expected = "two, a word in quotes, or one as the root of a tree"
            raise CheckpointError(where, found, expected)
        if key in rules:
            raise CheckpointError(where, "a rule that was there before", "each once")
        rules[key] = share
        totals[parent] = totals.get(parent, 0.0) + share
    if not lexical:
        raise CheckpointError(name, "no rule with a word", "a grammar")
    for symbol, total in totals.items():
        if abs(total - 1) > 1e-4:
            found = f"probabilities of {symbol} that sum to {total:.6g}"
            raise CheckpointError(name, found, "1")
    if not roots:
        roots = {str(root): 1.0}
    return _made(binary, lexical, roots)


def _share(text: str | None, where: str) -> float:
    try:
        share = float(text or "")
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        found = f"the probability {text!r}" if text else "no probability"
        raise CheckpointError(where, found, "a number from 0 to 1 in brackets")
    return share


def _made(
    binary: dict[tuple[str, str, str], float],
    lexical: dict[tuple[str, str], float],
    roots: dict[str, float],
) -> Grammar:
    names = sorted(
        {*roots, *(s for rule in binary for s in rule)} | {p for p, _ in lexical}
    )
    number = {name: at for at, name in enumerate(names)}
    rows = sorted(([number[s] for s in rule], p) for rule, p in binary.items())
    columns = np.array([rule for rule, _ in rows], np.int32).reshape(-1, 3)
    with np.errstate(divide="ignore"):
        weights = np.log([p for _, p in rows]).astype(np.float32)
        start = np.full(len(names), -np.inf, np.float32)
        for name, share in roots.items():
            start[number[name]] = np.log(share)
        words = [
            (number[parent], word, float(np.log(share)))
            for (parent, word), share in sorted(lexical.items())
        ]
    parent, left, right = (jnp.asarray(columns[:, i]) for i in range(3))
    rules = Rules(parent, left, right, jnp.asarray(weights))
    return Grammar(names, jnp.asarray(start), rules, words)


def read(path: Path, root: str | None = None) -> Grammar:
    """Reads a file; see `parse`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = f"a file that cannot be read ({error})"
        raise CheckpointError(str(path), found, "a grammar as text") from error
    return parse(text, str(path), root)


def text_of(grammar: Grammar, root: str = "START") -> str:
    """Writes a grammar; `root` is a name that no symbol has."""
    names, lines = grammar.symbols, []
    for name, log in zip(names, np.asarray(grammar.start).tolist()):
        if log > -math.inf:
            lines.append(f"{root} -> {name} [{_number(log)}]")
    for parent, left, right, weight in zip(*(x.tolist() for x in grammar.rules)):
        rule = f"{names[parent]} -> {names[left]} {names[right]}"
        lines.append(f"{rule} [{_number(weight)}]")
    for symbol, word, weight in grammar.lexical:
        quoted = re.sub(r"([\\'])", r"\\\1", word)
        lines.append(f"{names[symbol]} -> '{quoted}' [{_number(weight)}]")
    return "\n".join(lines) + "\n"


def _number(log: float) -> str:
    return repr(math.exp(log))


def write(grammar: Grammar, path: Path, root: str = "START") -> None:
    """Writes a file; see `text_of`."""
    storage.write_text(path, text_of(grammar, root))
