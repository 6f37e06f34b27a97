"""Trees of phrases: read from brackets, made binary for a grammar, made whole again.

    (S (NP (DT the) (NN man)) (VP (VBZ sleeps)))

is a tree in the form of the Penn Treebank (Marcus et al. 1993). A preterminal, such as
(DT the), has one word; every other node has nodes. A grammar in Chomsky normal form has
two children to each rule, so before its rules are counted

- a node with one child and the child become one, with the labels joined by "+";
- a node A with children b c d becomes A over b and a new node A|<c-d> over c and d,
  named by the next `horizontal` children (Klein and Manning 2003, section 2);
- with `vertical` above 1 the labels of parents and further ancestors are added, as in
  NP^<S> (Johnson 1998).

`whole` undoes all of this exactly.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lm.errors import DataError

DEPTH = 200  # brackets within each other
PARTS = re.compile(r"[()]|[^\s()]+")
TRACE = "-NONE-"
MARKS = ("+", "|<", "^<")  # what `binary` adds to labels


class Tree(NamedTuple):
    """A node: its label, and its children, or the one word of a preterminal."""

    label: str
    children: tuple[Any, ...]  # Of Tree, to which pdoc cannot resolve the name here.

    @property
    def is_tag(self) -> bool:
        """Tells whether the node is a preterminal."""
        return isinstance(self.children[0], str)

    def nodes(self) -> "tuple[Tree, ...]":
        """Returns the children of a node that is no preterminal."""
        return tuple(child for child in self.children if isinstance(child, Tree))

    def __str__(self) -> str:
        return f"({self.label} {' '.join(map(str, self.children))})"


def tags(tree: Tree) -> Iterator[tuple[str, str]]:
    """Yields the preterminals from left to right, each as (label, word)."""
    if tree.is_tag:
        yield tree.label, str(tree.children[0])
    for child in tree.nodes():
        yield from tags(child)


def spans(tree: Tree, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yields (label, start, end) of each node that is no preterminal, bottom up."""
    at = start
    for child in tree.nodes():
        yield from spans(child, at)
        at += sum(1 for _ in tags(child))
    if not tree.is_tag:
        yield tree.label, start, at


# ── Reading ─────────────────────────────────────────────────────────────────────────


def read(
    lines: Iterable[tuple[int, str]], name: str
) -> Iterator[tuple[int, Tree] | DataError]:
    """Yields the trees of a file, each with the number of its first line.

    A tree may go on over several lines, which then begin with white space. Lines that
    begin with # between trees are comments. Brackets without a label around a whole
    tree are left out. Instead of a tree with a fault there is its error.

    Args:
      lines: with their numbers.
      name: of the file, for errors.
    """
    open_nodes: list[list] = []
    first, skip = 0, False

    def broken(number: int, found: str, expected: str) -> DataError:
        return DataError(f"{name}:{number}", found, expected)

    for number, line in lines:
        if open_nodes and line.startswith("("):
            expected = f"its closing bracket before line {number}, where a tree begins"
            yield broken(
                first, f"a tree with {len(open_nodes)} open brackets", expected
            )
            open_nodes = []
        if line.startswith(("(", "#")):
            skip = False
        if skip or (not open_nodes and line.startswith("#")):
            continue
        for part in PARTS.findall(line):
            error = None
            if part == "(":
                first = first if open_nodes else number
                open_nodes.append([])
                if len(open_nodes) > DEPTH:
                    found = f"{len(open_nodes)} brackets within each other"
                    error = broken(number, found, f"at most {DEPTH}")
            elif not open_nodes:
                kind = "a closing bracket" if part == ")" else f"{part!r:.40}"
                error = broken(number, f"{kind} outside of a tree", "(LABEL ...)")
            elif part != ")":
                open_nodes[-1].append(part)
            else:
                made = _close(open_nodes.pop())
                if isinstance(made, str):
                    error = broken(number, made, "(TAG word) or (LABEL (...) ...)")
                elif open_nodes:
                    open_nodes[-1].append(made)
                elif made.label:
                    yield first, made
                else:
                    found = "brackets without a label around several trees"
                    error = broken(first, found, "a label, or one tree in them")
            if error is not None:
                yield error
                open_nodes, skip = [], True
                break
    if open_nodes:
        found = f"a tree with {len(open_nodes)} open brackets"
        yield broken(first, found, "its closing bracket before the end of the file")


def parse(text: str) -> Tree:
    """Returns the one tree of a text.

    Raises:
      DataError: the text is no tree.
    """
    found = [*read([(1, text)], "tree")]
    for item in found:
        if isinstance(item, DataError):
            raise item
    if len(found) != 1:
        raise DataError("tree", f"{len(found)} trees in {text!r:.40}", "one")
    ((_, tree),) = (item for item in found if not isinstance(item, DataError))
    return tree


def _close(parts: list) -> Tree | str:
    """Makes the node of what stands between two brackets; a text says what is wrong."""
    words = [part for part in parts if isinstance(part, str)]
    if len(parts) == 1 and not words:
        only = parts[0]
        return only if isinstance(only, Tree) else "brackets without a label"
    if not parts:
        return "empty brackets"
    if len(words) == len(parts) == 2:
        return Tree(words[0], (words[1],))
    if len(parts) == 1:
        return f"({words[0]!s:.40}) without a word"
    if isinstance(parts[0], Tree):
        return Tree("", tuple(parts)) if not words else "words beside brackets"
    if len(words) > 1:
        return f"{words[-1]!r:.40} beside other words or brackets"
    return Tree(parts[0], tuple(parts[1:]))


def clean(tree: Tree) -> Tree | None:
    """Leaves out traces (-NONE-) and functions (NP-SBJ=1 is NP); None if all is trace.

    Labels that begin with - or =, such as -LRB-, stay as they are.
    """
    if tree.label == TRACE:
        return None
    label = re.split("[-=]", tree.label)[0] or tree.label
    if tree.is_tag:
        return Tree(label, tree.children)
    kept = [child for node in tree.nodes() if (child := clean(node)) is not None]
    return Tree(label, tuple(kept)) if kept else None


def built(
    nodes: Iterator[Sequence[int]],
    words: Sequence[str],
    label_of: Callable[[int], str],
) -> Tree:
    """Builds a binary tree from its nodes, from the top down (lm.ops.cky.Parse).

    Args:
      label_of: names the symbol of a node.
    """
    start, width, symbol = next(nodes)
    if width == 1:
        return Tree(label_of(symbol), (words[start],))
    left = built(nodes, words, label_of)
    return Tree(label_of(symbol), (left, built(nodes, words, label_of)))


# ── For a grammar ───────────────────────────────────────────────────────────────────


def binary(tree: Tree, horizontal: int = 2, vertical: int = 1) -> Tree:
    """Returns the tree with two children or a word to each node.

    Args:
      horizontal: the number of children in the names of new nodes.
      vertical: 1 for the labels as they are, n to add those of n - 1 ancestors.

    Raises:
      ValueError: a label has one of MARKS.
    """
    return _binary(_joined(tree), horizontal, vertical, ())


def _joined(tree: Tree) -> Tree:
    """Makes one node of each that has only one child."""
    if any(mark in tree.label for mark in MARKS):
        raise ValueError(f"the label {tree.label!r:.40}, which has {', '.join(MARKS)}")
    nodes = tuple(map(_joined, tree.nodes()))
    if len(nodes) == 1:
        return Tree(f"{tree.label}+{nodes[0].label}", nodes[0].children)
    return Tree(tree.label, nodes or tree.children)


def _binary(tree: Tree, horizontal: int, vertical: int, above: tuple[str, ...]) -> Tree:
    if tree.is_tag:
        return tree
    mark = f"^<{'-'.join(above)}>" if above else ""
    below = (tree.label, *above)[: vertical - 1]
    names = [node.label for node in tree.nodes()]
    nodes = [_binary(node, horizontal, vertical, below) for node in tree.nodes()]
    made = nodes[-1]
    for at in range(len(nodes) - 2, -1, -1):
        label = tree.label
        if at:
            label += f"|<{'-'.join(names[at : at + horizontal])}>"
        made = Tree(label + mark, (nodes[at], made))
    return made


def whole(tree: Tree) -> Tree:
    """Returns the tree that `binary` was given."""
    nodes = [part for node in tree.nodes() for part in _parts(node)]
    *above, last = tree.label.split("^<")[0].split("+")
    made = Tree(last, tuple(map(whole, nodes)) or tree.children)
    for label in reversed(above):
        made = Tree(label, (made,))
    return made


def _parts(tree: Tree) -> Iterator[Tree]:
    """Yields a node, or the parts of a new node."""
    if "|<" not in tree.label:
        yield tree
        return
    for node in tree.nodes():
        yield from _parts(node)


def tokens(tree: Tree) -> str:
    """Writes a tree as tokens with spaces between them: "(S (DT the ) ... )"."""
    parts = [tokens(c) if isinstance(c, Tree) else c for c in tree.children]
    return " ".join([f"({tree.label}", *parts, ")"])
