"""Speed of charts (`lm/ops/cky.py`) beside the chart parser of nltk, in one run.

    python -m lm.convert --to=grammar:gum.txt --workdir=RUN
    python -m experiments.benchmarks.cky --grammar=gum.txt --trees=test.ptb.gz \
        --peer=PYTHON_WITH_NLTK [--sentences=24] [--longest=8] [--rounds=2]

RUN is one of `configs/pcfg.py:tags`: its words are the parts of speech of the trees.
The first sentences of 2 to `longest` words that the grammar has are parsed, ours in
batches of equal length rounded up to a multiple of 4. Ours are the best tree, the sum
over all trees, and membership; nltk's ViterbiParser finds the best tree. The sides take
turns, theirs until 20 s of a round have passed; the table shows sentences a second,
medians over rounds. The probabilities of the best trees must be equal.
"""

import argparse
import gzip
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH, STEP, LIMIT = 8, 4, 20.0


# ── nltk, in its own interpreter ────────────────────────────────────────────────────


def serve() -> None:
    """Answers lines of sentences with the time and log-probabilities of best trees."""
    import nltk

    root, rules = json.loads(sys.stdin.readline())
    symbol = nltk.Nonterminal
    made = [
        nltk.ProbabilisticProduction(
            symbol(left),
            [symbol(name) if inner else name for name in right],
            prob=share,
        )
        for left, right, inner, share in rules
    ]
    grammar = nltk.PCFG(symbol(root), made)
    parser = nltk.ViterbiParser(grammar, max_time=None)
    print(json.dumps(f"nltk {nltk.__version__}"), flush=True)
    for line in sys.stdin:
        found, start = [], time.perf_counter()
        for words in json.loads(line):
            tree = next(iter(parser.parse(words)), None)
            found.append(None if tree is None else math.log(tree.prob()))
            if time.perf_counter() - start > LIMIT:
                break
        print(json.dumps([time.perf_counter() - start, found]), flush=True)


def ask(process: subprocess.Popen, line: object) -> list:
    process.stdin.write(json.dumps(line) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


# ── Ours ────────────────────────────────────────────────────────────────────────────


def batches(grammar, sentences: list[list[str]]) -> list[tuple]:
    """Arguments of the charts for each batch, after the numbers of its sentences."""
    import jax.numpy as jnp
    import numpy as np

    above: dict[str, list] = {}
    for symbol, word, log in grammar.lexical:
        above.setdefault(word, []).append((symbol, log))
    by_length: dict[int, list[int]] = {}
    for number, words in enumerate(sentences):
        by_length.setdefault(-(-len(words) // STEP) * STEP, []).append(number)
    made = []
    for length, numbers in sorted(by_length.items()):
        for first in range(0, len(numbers), BATCH):
            part = numbers[first : first + BATCH]
            words = np.full((len(grammar.symbols), BATCH, length), -np.inf, np.float32)
            lengths = np.zeros(BATCH, np.int32)
            for row, number in enumerate(part):
                lengths[row] = len(sentences[number])
                for at, word in enumerate(sentences[number]):
                    for symbol, log in above.get(word, ()):
                        words[symbol, row, at] = log
            made.append((part, jnp.asarray(words), jnp.asarray(lengths)))
    return made


def timed(chart, rules, start, made: list[tuple]) -> tuple[float, dict[int, float]]:
    """Seconds for all batches, and what the chart says of each sentence."""
    import jax

    begun = time.perf_counter()
    found = [chart(rules, start, words, lengths) for _, words, lengths in made]
    jax.block_until_ready(found)
    seconds = time.perf_counter() - begun
    pairs = ((part, jax.device_get(said)) for (part, *_), said in zip(made, found))
    return seconds, {n: float(x) for part, said in pairs for n, x in zip(part, said)}


def tags_of(path: Path, longest: int) -> list[list[str]]:
    from lm.data import trees

    with gzip.open(path, "rt") as file:
        read = [tree for _, tree in trees.read(enumerate(file, 1), str(path))]
    kept = [[tag for tag, _ in trees.tags(trees.clean(tree))] for tree in read]
    return [words for words in kept if 2 <= len(words) <= longest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--grammar", type=Path, help="as lm.convert writes it")
    parser.add_argument("--trees", type=Path, help="brackets, packed by gzip")
    parser.add_argument("--peer", help="an interpreter with nltk")
    parser.add_argument("--sentences", type=int, default=24)
    parser.add_argument("--longest", type=int, default=8, help="words of a sentence")
    parser.add_argument("--rounds", type=int, default=2)
    flags = parser.parse_args()
    if flags.serve:
        return serve()

    import jax
    import jax.numpy as jnp

    from lm.formats import grammar as formats
    from lm.ops import cky

    grammar = formats.read(flags.grammar)
    rules = cky.Rules(*map(jnp.asarray, grammar.rules.values()))
    start = jnp.asarray(grammar.start)
    charts = {
        "best tree": jax.jit(lambda *given: cky.viterbi(*given).scores),
        "sum over all trees": jax.jit(cky.inside),
        "membership": jax.jit(cky.recognize),
    }
    sentences = tags_of(flags.trees, flags.longest)
    _, member = timed(
        charts["membership"], rules, start, batches(grammar, sentences[: 4 * BATCH])
    )
    sentences = [sentences[n] for n in sorted(member) if member[n]][: flags.sentences]
    made = batches(grammar, sentences)
    first = {
        name: timed(chart, rules, start, made)[0] for name, chart in charts.items()
    }

    names = grammar.symbols
    sent = [
        ("START", [name], True, math.exp(log))
        for name, log in zip(names, grammar.start.tolist())
        if log > -math.inf
    ]
    for parent, left, right, log in zip(*(x.tolist() for x in grammar.rules.values())):
        sent.append((names[parent], [names[left], names[right]], True, math.exp(log)))
    for symbol, word, log in grammar.lexical:
        if not formats.CLASS.fullmatch(word):
            sent.append((names[symbol], [word], False, math.exp(log)))
    peer = subprocess.Popen(
        [flags.peer, __file__, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    version = ask(peer, ["START", sent])

    speeds: dict[str, list[float]] = {}
    for _ in range(flags.rounds):
        said = {}
        for name, chart in charts.items():
            seconds, said[name] = timed(chart, rules, start, made)
            speeds.setdefault(f"ours, {name}", []).append(len(sentences) / seconds)
        seconds, found = ask(peer, sentences)
        theirs = speeds.setdefault("nltk's ViterbiParser, best tree", [])
        theirs.append(len(found) / seconds)
        for number, log in enumerate(found):
            best = said["best tree"][number]
            assert log is not None and abs(log - best) < 1e-3, (number, log, best)
    peer.stdin.close()
    peer.wait()
    words = sum(map(len, sentences)) / len(sentences)
    print(f"jax {jax.__version__}, {version}, load {os.getloadavg()[0]:.1f}", end=" ")
    print(f"on {os.cpu_count()} cores; {len(sentences)} sentences of {words:.1f} words")
    print("first call, with compilation:", end=" ")
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in first.items()))
    print("\n| side | sentences/s | range |\n|---|---|---|")
    for name, each in speeds.items():
        middle = statistics.median(each)
        print(f"| {name} | {middle:.3g} | {min(each):.3g} to {max(each):.3g} |")


if __name__ == "__main__":
    main()
