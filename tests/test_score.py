"""lm.score: figures of every kind of model, continued outputs, and what is refused."""

import io
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import convert, evaluate, score
from lm import run as runs
from lm.data.scoring import Settings, Text
from lm.evaluators import likelihood
from tests import tiny

DECODER = {
    "name": "transformer",
    "kind": "decoder",
    "num_layers": 1,
    "d_model": 16,
    "num_heads": 2,
    "d_ff": 32,
    "max_len": 24,
    "token_types": 0,
    "norm_position": "pre",
    "embedding": "plain",
}
PAIR = {"source": "a red dog runs", "target": "the old dog sees"}
PAIRS = {"sources": [{"name": "memory", "items": (PAIR,) * 8}], "pack": False}
KINDS = {
    "causal": {"model": DECODER, "objective": {"name": "causal_lm"}},
    "recurrent": {
        "model": {"name": "rnn", "d_model": 8},
        "objective": {"name": "causal_lm"},
    },
    "masked": {},
    "pairs": {
        "model": DECODER | {"kind": "encoder_decoder", "position": "sinusoidal"},
        "objective": {"name": "seq2seq"},
        "data": PAIRS,
    },
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """A scorer with random weights, and a function (method, arrays) on its model."""
    config = tiny.config(**KINDS[request.param], evals={})
    corpus, program = tiny.program(config, tmp_path_factory.mktemp("run"))
    params = program.init(jax.random.key(0))
    scorer = runs.make_scorer(corpus, program, params)

    @jax.jit
    def log_probs(params, batch):
        def run(model, batch):
            return jax.nn.log_softmax(model.logits(model(batch, train=False)))

        return program.model.apply({"params": params}, batch, method=run)

    def ask(batch):
        arrays = {name: jnp.asarray(rows) for name, rows in batch.items()}
        with jax.set_mesh(program.mesh):
            return np.asarray(log_probs(params, arrays), np.float64)

    with jax.set_mesh(program.mesh):
        yield request.param, scorer, ask


def row_of(ids, side=""):
    places = np.arange(len(ids))[None]
    arrays = {"inputs": np.asarray(ids)[None], "positions": places}
    arrays |= {"segment_ids": np.ones_like(places)}
    return {side + name: array for name, array in arrays.items()}


def test_scores_are_those_of_the_logits_one_text_at_a_time(kind):
    """A text alone and without padding, against many of different lengths."""
    name, scorer, ask = kind
    codec = scorer.codec
    words = "the old dog sees a red bird near the river then"
    texts = [Text(" ".join(words.split()[:n])) for n in (2, 11)]
    ids = [codec.encode(text.text) for text in texts]
    if name == "pairs":
        texts = [text._replace(context=PAIR["source"]) for text in texts]
    found = scorer(texts, Settings(end=True))
    for tokens, score_ in zip(ids, found, strict=True):
        if name == "masked":
            wanted = by_masking(tokens, codec, ask)
        else:
            tokens = [*tokens, codec.eos_id]
            row = row_of([codec.bos_id, *tokens[:-1]])
            if name == "pairs":
                source = [*codec.encode(PAIR["source"]), codec.eos_id]
                row |= row_of(source, "source_")
            wanted = ask(row)[0]
        assert score_.ids == tokens
        picked = wanted[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(score_.log_probs, picked, atol=2e-5)
        assert score_.best.tolist() == (wanted.argmax(-1) == tokens).tolist()
        assert score_.total == pytest.approx(picked.sum(), abs=1e-4)


def by_masking(ids, codec, ask):
    """Log-probabilities of each token given all others (Salazar et al. 2020)."""
    if not ids:
        return np.zeros((0, codec.vocab_size))
    whole = np.asarray([codec.cls_id, *ids, codec.sep_id])
    rows = np.repeat(whole[None], len(ids), 0)
    rows[np.arange(len(ids)), 1 + np.arange(len(ids))] = codec.mask_id
    batch = {name: np.repeat(a, len(ids), 0) for name, a in row_of(whole).items()}
    batch |= {"inputs": rows, "token_types": np.zeros_like(rows)}
    return ask(batch)[np.arange(len(ids)), 1 + np.arange(len(ids))]


def test_rows_have_few_shapes_and_do_not_depend_on_each_other(kind):
    name, scorer, _ = kind
    if name != "causal":
        return
    shapes = set()

    def judge(batch):
        assert len({len(a) for a in batch.values()}) == 1
        shapes.add(batch["inputs"].shape)
        return scorer.judge(batch)

    seen = likelihood.Scorer(
        scorer.objective, scorer.codec, scorer.context, judge, tokens=128
    )
    texts = [Text("the dog " * (n % 10) + "runs") for n in range(40)]
    many = seen(texts)
    assert shapes == {(8, 16), (5, 24)}
    for n in (0, 18, 37, 39):
        [alone] = seen(texts[n : n + 1])
        np.testing.assert_allclose(many[n].log_probs, alone.log_probs, atol=2e-5)
        assert len(alone.ids) == 2 * (n % 10) + 1


def test_a_source_that_is_too_long(kind):
    name, scorer, _ = kind
    if name != "pairs":
        return
    long = Text("a", context="dog " * 40, where="x.jsonl:7")
    with pytest.raises(lm.errors.DataError, match=r"x\.jsonl:7: .* 41 tokens.* 24"):
        scorer([long])


# The command


@pytest.fixture(scope="module")
def arpa(test_data, tmp_path_factory):
    """KenLM's model of nine sentences as a run."""
    workdir = tmp_path_factory.mktemp("toy") / "run"
    source = test_data("ref_kenlm") / "toy.arpa"
    assert convert.main([f"--from=arpa:{source}", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def say(capsys, monkeypatch):
    """Runs the command: (exit code, standard output, standard error)."""

    def run(*argv, stdin=b""):
        stream = types.SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False)
        monkeypatch.setattr("sys.stdin", stream)
        with tiny.some_devices(tiny.config(evals={})):
            code = score.main([str(a) for a in argv])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def words_of_kenlm(file):
    """The word, whether it is known, and log10 of its probability, of `query`."""
    for field in file.read_text().replace("\n", "\t").split("\t"):
        if field.strip():
            known, _, value = field.split(" ")
            word, _, number = known.rpartition("=")
            yield word, number != "0", float(value)


def check_words(say, workdir, reference, name):
    """Compares each word of a test text with KenLM's figure; returns the summary."""
    flags = f"--workdir={workdir}", "--end=true", "--per-token"
    code, out, error = say(*flags, f"--input={reference / f'{name}.test.txt'}")
    assert code == 0, error
    rows = [json.loads(line) for line in out.splitlines()]
    ours = [w for r in rows for w in zip(r["token_texts"], r["token_log_probs"])]
    theirs = [*words_of_kenlm(reference / f"{name}.query.txt")]
    for (token, nats), (word, known, log10) in zip(ours, theirs, strict=True):
        assert token == (word if known else "<unk>")
        assert nats / math.log(10) == pytest.approx(log10, abs=1e-5)
    return " ".join(error.split())


def test_each_word_has_the_figure_of_kenlm(arpa, say, test_data):
    found = check_words(say, arpa, test_data("ref_kenlm"), "toy")
    assert "21 tokens" in found and "perplexity 6.14" in found
    assert "1 unknown (perplexity 5.69 without)" in found


def test_an_evaluation_has_the_same_figures(arpa, say, capsys, test_data):
    """Tokens, unknown words, and perplexity with and without them (evaluator mean)."""
    text = test_data("ref_kenlm") / "toy.test.txt"
    _, out, _ = say(f"--workdir={arpa}", "--end=true", f"--input={text}")
    rows = [json.loads(line) for line in out.splitlines()]
    tokens, unknown, nats, lost = (
        sum(row[name] for row in rows)
        for name in ("tokens", "unknown", "log_prob", "unknown_log_prob")
    )
    source = {"name": "text", "files": str(text), "split": "every_line"}
    evals = {"test": {"evaluator": "mean", "data": {"sources": [source]}}}
    with tiny.some_devices(tiny.config(evals={})):
        assert evaluate.main([f"--workdir={arpa}", f"--config.evals={evals}"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given["test/targets"] == tokens and given["test/unknown"] == unknown == 1
    assert given["test/unknown_share"] == pytest.approx(unknown / tokens)
    assert given["test/perplexity"] == pytest.approx(math.exp(-nats / tokens))
    rest = math.exp((lost - nats) / (tokens - unknown))
    assert given["test/perplexity_without_unknown"] == pytest.approx(rest)
    assert rest < given["test/perplexity"]


@pytest.mark.slow
def test_each_word_of_a_larger_text_has_the_figure_of_kenlm(say, test_data, tmp_path):
    reference, workdir = test_data("ref_kenlm"), tmp_path / "run"
    source = f"--from=arpa:{reference / 'mid.arpa.gz'}"
    assert convert.main([source, f"--workdir={workdir}"]) == 0
    say("--workdir=none", "--input=-", stdin=b"a")  # drops what convert printed
    found = check_words(say, workdir, reference, "mid")
    assert "515 tokens" in found and "perplexity 298.31" in found
    assert "174 unknown (perplexity 92.92 without)" in found


def test_the_figures_of_a_text(arpa, say):
    code, out, _ = say(
        f"--workdir={arpa}", "--input=-", stdin="the cat größer\n\n".encode()
    )
    assert code == 0
    row, empty = map(json.loads, out.splitlines())
    assert row["text"] == "the cat größer" and row["measure"] == "log_likelihood"
    assert (row["tokens"], row["bytes"], row["unknown"]) == (3, 16, 1)
    assert row["perplexity"] == pytest.approx(math.exp(-row["log_prob"] / 3), rel=1e-5)
    bits = -row["log_prob"] / math.log(2) / 16
    assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert (row["unscored"], row["cut"], row["greedy"]) == (0, 0, False)
    assert empty["log_prob"] == 0 and empty["greedy"]
    assert empty["perplexity"] is empty["bits_per_byte"] is None
    [same] = lm.open(arpa).score(["the cat größer"])
    assert same == {k: v for k, v in row.items() if k != "text"}
    given = {"context": "the cat", "continuation": " größer"}
    [rest] = lm.open(arpa).score([given], per_token=True)
    assert rest["token_texts"] == ["<unk>"]
    assert rest["log_prob"] == row["unknown_log_prob"]


def test_a_stopped_output_is_continued(arpa, say, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "CHUNK", 2)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"id": n, "text": "the cat " * n + "sat"} for n in range(5)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--workdir={arpa}", f"--input={source}", f"--output={output}"
    code, out, error = say(*flags)
    assert (code, out) == (0, "")
    whole = output.read_text()
    made = [json.loads(line) for line in whole.splitlines()]
    assert [{k: row[k] for k in ("id", "text")} for row in made] == rows
    lines = whole.splitlines(keepends=True)
    output.write_text("".join(lines[:3]) + '{"te')
    code, _, again = say(*flags)
    assert code == 0 and output.read_text() == whole
    assert "3 of 5 rows are there" in again
    assert again.splitlines()[-2:] == error.splitlines()[-2:]  # The sums are of all.
    source.write_text(source.read_text().replace("sat", "ate"))
    code, _, error = say(*flags)
    assert code == 3
    assert f"{output}:1: found text 'sat', expected 'ate', as in " in error
    assert say(*flags, "--end=true")[0] == 3


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ("", "", "no text"),
        ('{"text": 3}', ":1", "text=3"),
        ('{"text": "a"}\n{"txt": "a"}', ":2", "a row with 'txt', expected {\"text\""),
        ('{"context": "a"}', ":1", '{"context": "...", "continuation": "..."}'),
        ('{"text": "a"}\n[', ":2", "no JSON"),
        ('{"text": "\\ud800"}', ":1", "surrogate"),
    ],
)
def test_refused_inputs(arpa, say, tmp_path, content, line, what):
    source = tmp_path / "in.jsonl"
    source.write_text(content)
    code, _, error = say(f"--workdir={arpa}", f"--input={source}")
    assert code == 3, error
    assert error.startswith(f"error[data] {source}{line}: found")
    assert what in error and len(error.splitlines()) == 1


def test_refused_flags(arpa, say):
    for flags, code, what in (
        (["--input=none.txt"], 3, "no such file"),
        (["--input=-", "--stride=0"], 2, "--stride: found 0"),
        (["--input=-", "--output=a.csv"], 2, "ends in .jsonl"),
        (["--input=-", "--checkpoint=7"], 4, "7"),
    ):
        found, _, error = say(f"--workdir={arpa}", *flags, stdin=b"a")
        assert (found, what in error) == (code, True), error


def test_an_objective_that_scores_no_text_is_refused():
    config = tiny.config(objective={"name": "classification"}, data__pack=False)
    with pytest.raises(lm.errors.ConfigError, match=r"\(score\).* for lm\.score"):
        runs.check(config, {"score"}, "lm.score")


def test_the_reference_log_likelihoods(test_data, say, tmp_path):
    """Contexts' last spaces, empty contexts, left cuts, rolling windows: to 1e-4."""
    reference = test_data("ref_loglikelihood")
    workdir, asked = tmp_path / "run", tmp_path / "in.jsonl"
    source = f"--from=hf:{reference / 'gpt2_tiny'}"
    assert convert.main([source, f"--workdir={workdir}"]) == 0
    items = [
        json.loads(line)
        for line in (reference / "multiple_choice.jsonl").read_text().splitlines()
    ]
    documents = [
        json.loads(line)
        for line in (reference / "rolling.jsonl").read_text().splitlines()
    ]
    rows = [
        {"context": i["context"], "continuation": c}
        for i in items
        for c in i["choices"]
    ]
    rows += [{"text": document["text"]} for document in documents]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out.jsonl"
    flags = f"--workdir={workdir}", f"--input={asked}", f"--output={output}"
    code, _, error = say(*flags)
    assert code == 0, error
    expected = [each for item in items for each in item["expected"]] + documents
    for line, wanted in zip(output.read_text().splitlines(), expected, strict=True):
        row = json.loads(line)
        # Documents of a thousand tokens: float32 sums differ in the eighth digit.
        nats = pytest.approx(wanted["loglikelihood"], abs=1e-4, rel=1e-7)
        assert row["log_prob"] == nats
        for name in {"tokens", "bytes", "greedy"} & wanted.keys():
            assert row[name] == wanted[name], row
