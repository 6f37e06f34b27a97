"""Tagging: losses by enumeration, constraints, alignment, runs from end to end."""

import collections
import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lm import predict
from lm import run as runs
from lm.data import words
from lm.data.sources.base import Record
from lm.errors import ConfigError, DataError, require
from lm.main import main
from lm.models.rnn import Model
from lm.objectives import tagging
from lm.tokenizers import hf, word
from tests import tiny

LABELS = ("O", "B-x", "I-x")
TASK = tagging.Objective(labels=LABELS, wrap="none")
SIZES = {"vocab_size": 12, "num_layers": 1, "d_model": 8, "bidirectional": True}


@functools.cache
def bound(task):
    """A bidirectional network with the heads of an objective, and its parameters."""
    model = Model(**SIZES, dropout=0.0, init_std=1.0, heads=task.heads())
    made = jax.jit(lambda key: model.init(key, method="touch")["params"])
    params = meta.unbox(made(jax.random.key(0)))
    if "crf" in params["heads"]:
        rng = np.random.default_rng(5)
        crf = params["heads"]["crf"]
        params["heads"]["crf"] = {k: rng.normal(size=v.shape) for k, v in crf.items()}
    return model, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


LENGTH, WORDS = 13, 9


def batch_of(rows, labels=()):
    """A batch of two rows, each a list of sentences, each the pieces of its words."""
    made = []
    for sentences in [*rows, []][:2]:
        pieces = [np.asarray(p) for sentence in sentences for p in sentence]
        border = [[0] * len(sentence) for sentence in sentences]
        for part in border:
            part[0] += 1
            part[-1] += 2
        row = {
            "pieces": pieces,
            "sizes": [len(sentence) for sentence in sentences] or [0],
            "tag": np.arange(len(pieces), dtype=np.int32) * 2 % 3,
            "read": np.ones(len(pieces)),
            "border": np.asarray([*itertools.chain(*border)], np.int32),
            "marked": np.zeros(len(pieces), np.int32),
        }
        made.append(words.Aligned(LENGTH, (), (), 0)(row, None))
    batch = {name: np.stack([m[name] for m in made]) for name in made[0]}
    for name in batch:
        batch[name] = batch[name][:, : WORDS if "word" in name else LENGTH]
    for name in ("labels", "label_weights"):
        batch[name] = batch[name][:, :WORDS]
    for row, given in enumerate(labels):
        batch["labels"][row, : len(given)] = given
    return {name: jnp.asarray(array) for name, array in batch.items()}


SENTENCES = ([[1, 2], [3], [4, 5, 6], [7]], [[8], [9, 10]])
GOLD = [[1, 2, 0, 1], [0, 1]]
TWO = batch_of([[SENTENCES[0]], [SENTENCES[1]]], GOLD)


@functools.cache
def compiled(task):
    model, _ = bound(task)

    @jax.jit
    def both(params, batch):
        def ask(model):
            scores = task._scores(model, batch, False)
            loss = task.loss(model, batch, train=False)["tag"]
            found = task.predict(model, batch)
            return loss, task.metrics(model, batch), found, scores.emissions

        return model.apply({"params": params}, method=ask)

    return both


def call(task, batch, params=None):
    """The loss of a batch, its metrics, what is predicted, and the emissions."""
    return jax.device_get(compiled(task)(params or bound(task)[1], batch))


def by_enumeration(task, batch):
    """(loss, best tags, their marginals) of each row of one sentence."""
    scores = call(TASK, batch)[3].astype(np.float64)
    crf = bound(task)[1]["heads"].get("crf")
    crf = crf or {"kernel": np.zeros((3, 3)), "bias": np.zeros((2, 3))}
    pairs, (start, end) = (np.asarray(crf[k], np.float64) for k in ("kernel", "bias"))

    def total(row, way):
        each = sum(scores[row, at, tag] for at, tag in enumerate(way))
        moves = sum(pairs[i, j] for i, j in itertools.pairwise(way))
        return each + moves + start[way[0]] + end[way[-1]]

    def allowed(way):
        return way[0] != 2 and (0, 2) not in itertools.pairwise(way)

    for row, gold in enumerate(GOLD):
        ways = {
            way: total(row, way)
            for way in itertools.product(range(3), repeat=len(gold))
        }
        legal = {way: value for way, value in ways.items() if allowed(way)}
        over = legal if task.constrain == "train" else ways
        all_legal = np.logaddexp.reduce([*legal.values()])
        best = max(legal, key=legal.get)
        chances = [
            np.exp(
                np.logaddexp.reduce([v for w, v in legal.items() if w[at] == tag])
                - all_legal
            )
            for at, tag in enumerate(best)
        ]
        loss = np.logaddexp.reduce([*over.values()]) - ways[tuple(gold)]
        yield loss, best, chances


CRF = dataclasses.replace(TASK, decoder="crf")


@pytest.mark.parametrize("constrain", tiny.few(["decode", "train"], {"train"}))
def test_a_crf_is_the_sum_over_all_sequences(constrain):
    task = dataclasses.replace(CRF, constrain=constrain)
    (loss, count), metrics, found, _ = call(task, TWO)
    wanted = [*by_enumeration(task, TWO)]
    assert loss == pytest.approx(sum(part for part, _, _ in wanted), rel=1e-5)
    assert count == 6 and metrics["tag_loss"][1] == 6
    right = 0
    for row, (_, best, chances) in enumerate(wanted):
        used = len(best)
        assert found["tags"][row, :used].tolist() == list(best)
        some = found["probabilities"][row, :used]
        np.testing.assert_allclose(some, chances, rtol=1e-4)
        right += np.sum(np.equal(GOLD[row], best))
    assert metrics["tag_accuracy"] == (right, 6)


def test_forbidden_tags_are_never_predicted_and_have_no_probability():
    """Emissions that want I-x everywhere; it cannot begin a sentence or follow O."""
    free = dataclasses.replace(TASK, constrain="none")
    (loss, _), _, found, scores = call(TASK, TWO)
    other = call(free, TWO)
    assert loss == other[0][0]  # the loss is that of each word by itself
    plain = scores[0, :4].argmax(-1).tolist()
    assert other[2]["tags"][0, :4].tolist() == plain
    for row, (_, best, chances) in enumerate(by_enumeration(TASK, TWO)):
        assert found["tags"][row, : len(best)].tolist() == list(best)
        some = found["probabilities"][row, : len(best)]
        np.testing.assert_allclose(some, chances, rtol=1e-4)
    kernel = bound(TASK)[1]["heads"]["tag"]["kernel"] * 0
    head = {"kernel": kernel, "bias": jnp.asarray([0.0, -1.0, 9.0])}
    wants = {**bound(TASK)[1], "heads": {"tag": head}}
    assert call(free, TWO, wants)[2]["tags"][0, :4].tolist() == [2, 2, 2, 2]
    assert call(TASK, TWO, wants)[2]["tags"][0, :4].tolist() == [1, 2, 2, 2]
    zeros = tagging.chain.Chain(jnp.zeros((2, WORDS, 3)), jnp.zeros((3, 3)))
    constrained = TASK._constrained(zeros, TWO)
    chances = tagging.chain.expectations(constrained, TWO["word_segments"])
    assert chances.transitions[0, 2] == 0.0 and chances.transitions[1, 2] > 0
    assert (chances.emissions[:, 0, 2] == 0).all()
    assert chances.emissions[0, 1, 2] > 0


@pytest.mark.parametrize(
    "task", [TASK, dataclasses.replace(CRF, pieces="mean")], ids=["independent", "crf"]
)
def test_padding_and_packing_change_nothing(task):
    (loss, count), _, found, _ = call(task, TWO)
    packed = batch_of([[*SENTENCES]], [[*itertools.chain(*GOLD)]])
    (other, same), _, again, _ = call(task, packed)
    assert loss == pytest.approx(other, rel=1e-5) and count == same == 6
    wanted = [*found["tags"][0, :4], *found["tags"][1, :2]]
    assert again["tags"][0, :6].tolist() == wanted
    empty = TWO | {"label_weights": TWO["label_weights"].at[0].set(0)}
    alone = batch_of([[SENTENCES[1]]], GOLD[1:])
    assert call(task, empty)[0][0] == pytest.approx(call(task, alone)[0][0], rel=1e-5)


@pytest.mark.slow
def test_a_window_learns_its_own_words_and_decodes_all():
    """A window in the middle of a sentence has neither first nor last word."""
    inner = TWO | {"word_borders": TWO["word_borders"] * 0}
    read = jnp.asarray([0.0, 1.0, 1.0, 0.0])
    inner["label_weights"] = TWO["label_weights"].at[0, :4].set(read)
    (loss, count), _, _, scores = call(CRF, inner)
    pairs = np.asarray(bound(CRF)[1]["heads"]["crf"]["kernel"], np.float64)
    wanted = 0.0
    for row, start in ((0, 1), (1, 0)):
        one, two = scores[row, start], scores[row, start + 1]
        table = one[:, None] + pairs + two
        chosen = table[GOLD[row][start], GOLD[row][start + 1]]
        wanted += np.logaddexp.reduce(table.ravel()) - chosen
    assert loss == pytest.approx(wanted, rel=1e-5) and count == 4
    np.testing.assert_allclose(scores, call(TASK, TWO)[3], rtol=1e-5, atol=1e-6)


def test_a_word_is_read_at_its_pieces():
    hidden = jnp.arange(8.0)[None, :, None] ** 2
    batch = {"word_starts": jnp.asarray([[0, 2, 3, 0]])}
    batch["word_ends"] = jnp.asarray([[2, 3, 6, 0]])
    for pieces, wanted in {
        "first": [0, 4, 9],
        "last": [1, 4, 25],
        "mean": [0.5, 4, (9 + 16 + 25) / 3],
    }.items():
        found = tagging.pool(hidden, batch, pieces)[0, :3, 0]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


TEXTS = ["naïve Füchse in 東京 ！ tres", "the unbelievable dogs, all the dogs"] * 4


@pytest.mark.parametrize(
    ("options", "text", "pieces"),
    [
        (
            {"kind": "wordpiece", "vocab_size": 100, "lowercase": True},
            "naïve 東京 \u200b \x07 dogs",
            "NN00N",
        ),
        ({"kind": "bpe", "vocab_size": 300}, "naïve 東京 dogs", "NNN"),
    ],
)
def test_pieces_of_words_with_accents_chinese_and_words_that_vanish(
    tmp_path, options, text, pieces
):
    """Each piece stands in the row at its own word, in order."""
    tokenizer = hf.Tokenizer(**options)
    tokenizer.make(lambda: iter(TEXTS), tmp_path)
    codec = tokenizer.load(tmp_path)
    task = dataclasses.replace(TASK, wrap="delimiters")
    layout = task.layout(codec, seq_len=64, pack=False)
    given = tuple(text.split(" "))
    record = Record({"words": given, "tags": ("O",) * len(given)}, "x:1")
    encoded = codec.encode_batch(layout.texts(record))
    assert "".join("N" if ids else "0" for ids in encoded) == pieces
    kept = [at for at, ids in enumerate(encoded) if ids]
    rows = []

    class Out:
        record, counts = 0, collections.Counter()

        def row(self, pieces, **values):
            rows.append({"pieces": [np.asarray(p) for p in pieces], **values})

    layout.write(iter([(record, encoded)]), Out())
    aligned = words.Aligned(64, (codec.cls_id,), (codec.sep_id,), codec.pad_id)
    example = aligned(rows[0], None)
    spans = zip(example["word_starts"], example["word_ends"])
    found = [example["inputs"][a:b].tolist() for a, b in itertools.islice(spans, 9)]
    assert found[: len(kept)] == [encoded[at] for at in kept]
    assert rows[0]["word"].tolist() == kept
    assert example["inputs"][0] == codec.cls_id
    if options["kind"] == "bpe":  # " dogs", as within a text
        assert encoded[-1] == codec.encode("the dogs")[len(codec.encode("the")) :]


def test_a_space_belongs_to_a_word_only_where_pieces_have_spaces(tmp_path):
    for name, tokenizer, wanted in [
        ("bytes", hf.Tokenizer(kind="bpe", vocab_size=300), " "),
        ("pieces", hf.Tokenizer(kind="wordpiece", vocab_size=100), ""),
        ("words", word.Tokenizer(), ""),
        ("characters", word.Tokenizer(kind="char"), ""),
    ]:
        (tmp_path / name).mkdir()
        tokenizer.make(lambda: iter(["the cat on the cats"]), tmp_path / name)
        assert tagging.word_prefix(tokenizer.load(tmp_path / name)) == wanted


ITEMS = [
    {
        "words": ["the", "old", "Ana", "May", "runs"],
        "tags": ["O", "O", "B-x", "I-x", "O"],
    },
    {
        "words": ["Ana", "\u200b", "sees", "the", "dog"],
        "tags": ["B-x", "I-x", "O", "O", "O"],
    },
    {"words": ["no"], "tags": ["O"]},
    {"words": ["\u200b"], "tags": ["B-x"]},
    {"words": ["May"] * 30, "tags": ["O", "B-x", "I-x"] * 10},
]


def settings(items=ITEMS, evals=None, **changes):
    data = {"sources": [{"name": "memory", "items": items, "lists": True}]}
    found = {"evaluator": "tags", "every": 30, "samples": 10}
    found["data"] = data | {"pack": False}
    objective = {"name": "tagging", "labels": LABELS}
    return {
        "objective": objective | changes.pop("objective", {}),
        "tokenizer": {"name": "hf", "kind": "wordpiece", "vocab_size": 80},
        "data": data | {"pack": True},
        "evals": {"dev": found | (evals or {})},
        "steps": 30,
        "batch_size": 2,
        "checkpoint": {"every": 30},
    } | changes


@pytest.mark.slow
def test_a_run_learns_scores_every_word_and_tags_new_texts(tmp_path, capsys):
    """Also words without a piece, and a sentence that needs windows."""
    assert tiny.run(settings(), tmp_path) == 0
    last = tiny.rows(tmp_path)[-1]
    assert last["train/loss"] < 0.7 * tiny.rows(tmp_path)[0]["train/loss"]
    text = (tmp_path / "samples" / "dev-30.txt").read_text()
    found = [line.split() for line in text.splitlines() if not line.startswith("#")]
    shown = [cells for cells in found if len(cells) == 3]
    assert len(shown) == sum(len(item["words"]) for item in ITEMS) == 42
    assert [cells[1] for cells in shown] == [t for i in ITEMS for t in i["tags"]]
    lost = [cells for cells in shown if cells[0] == "\u200b"]
    assert [cells[2] for cells in lost] == ["O", "O"]
    assert f"sentences:5|gold:{2 + 1 + 10}" in text
    assert last["dev/accuracy"] > 0.5 and np.isnan(last["dev/unknown_accuracy"])
    given = ["the Ana May runs", "", "Ana " * 40]
    with tiny.some_devices(tiny.config(**settings())):
        flags = [f"--workdir={tmp_path}", "--what=tags", "--batch-size=2", *given]
        assert predict.main(flags) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["words"] for row in rows] == given
    assert [len(row["tags"]) for row in rows] == [4, 0, 40]
    assert {tag for row in rows for tag in row["tags"]} <= {*LABELS}


def test_entities_have_offsets_into_the_text(tmp_path):
    """Of a text, of a list of words, and of characters; a word without a piece."""
    tokenizer = word.Tokenizer(kind="byte")
    tokenizer.make(lambda: iter(()), tmp_path)
    task, codec = TASK.unlabelled(), tokenizer.load(tmp_path)
    row = {"word": [0, 1, 3, 4], "read": [1, 1, 1, 0], "cut": 2}
    more = {"word": [3, 4], "read": [0, 1], "cut": 0}
    said = {"tags": [0, 1, 1, 2, 0], "probabilities": [0.5, 0.75, 1.0, 0.1, 0.0]}
    said = {name: np.asarray(values) for name, values in said.items()}
    other = {"tags": np.asarray([0, 2]), "probabilities": np.asarray([0.1, 0.25])}
    rows = [tagging.Asked(row, {}, said), tagging.Asked(more, {}, other)]
    found = task.answers(Record({"words": "so, Ana   Lee-Wu!"}, "x:1"), rows, codec)
    assert found["tokens"] == ["so", ",", "Ana", "Lee", "-", "Wu", "!"]
    assert found["tags"] == ["O", "B-x", "O", "B-x", "I-x", "O", "O"]
    assert found["entities"] == [
        {"type": "x", "text": ",", "start": 2, "end": 3, "probability": 0.75},
        {"type": "x", "text": "Lee-", "start": 10, "end": 14, "probability": 0.25},
    ]
    assert found["truncated"] == 2 and found["probabilities"][2] == 0.0
    words = Record({"words": ("so", "a b", "c", "Lee", "Wu")}, "x:1")
    entity = task.answers(words, rows, codec)["entities"][1]
    assert (entity["text"], entity["start"], entity["end"]) == ("Lee Wu", 9, 15)
    split = dataclasses.replace(task, split="characters")
    found = split.answers(Record({"words": "王伟，北京"}, "x:1"), rows, codec)
    assert [e["text"] for e in found["entities"]] == ["伟", "北京"]
    assert set(task.answers(words, [], codec).values()) == {None}
    fields = {field for names in task.says.values() for field in names}
    assert {*task.answers(words, [], codec)} == fields | {"truncated"}


@pytest.mark.parametrize(
    ("items", "changes", "found"),
    [
        ([{"words": ["a"], "tags": ["B-y"]}], {}, r"memory\[0\].*tags 'B-y' of word 1"),
        ([{"words": ["a"], "tags": ["O", "O"]}], {}, r"1 words and 2 tags"),
        ([{"words": ["a"]}], {}, r"columns words, expected a column 'tags'"),
        (ITEMS, {"objective": {"too_long": "error"}}, r"memory\[4\].*30 tokens"),
        (ITEMS, {"tokenizer": {"name": "word", "specials": ("unk",)}}, "wrap=none"),
    ],
)
def test_data_that_do_not_fit_are_refused_by_place(tmp_path, items, changes, found):
    config = tiny.config(**settings(items, **changes))
    with pytest.raises(DataError, match=found):
        runs.open_corpus(config, tmp_path, print).stream.example(0)


def test_the_command_exits_with_3_and_names_the_line(tmp_path, capsys):
    train, dev = tmp_path / "train.conll", tmp_path / "dev.conll"
    train.write_text("the\tO\nAna\tB-x\n\nno\tO\n")
    dev.write_text("a\tO\n\nthe\tO\nLeeds\tB-location\n")
    file = tmp_path / "config.py"

    def command(dev):
        tree = settings()
        tree["data"] = {"sources": [{"name": "conll", "files": str(train)}]}
        tree["evals"]["dev"]["data"]["sources"] = [{"name": "conll", "files": str(dev)}]
        tree |= {"model": tiny.tree()["model"], "seq_len": 24}
        tree["optim"] = {"name": "adamw"}
        file.write_text(f"def get_config():\n    return {tree!r}\n")
        code = main([f"--config={file}", f"--workdir={tmp_path / 'run'}"])
        return code, capsys.readouterr().err

    code, text = command(dev)
    assert code == 3 and f"{dev}:3: found tags 'B-location' of word 2 ('Leeds')" in text
    dev.write_text("a\tO\n\nthe\n")
    code, text = command(dev)
    assert code == 3 and f"{dev}:3: found 'the', expected 2 or more columns" in text


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"labels": ()}, "objective.labels"),
        ({"labels": ("O", "O")}, "objective.labels"),
        ({"labels": ("O", "S-x"), "scheme": "bio"}, "objective.labels"),
        ({"given": "word"}, "objective.given"),
        ({"constrain": "train"}, "objective.constrain"),
    ],
)
def test_options_that_do_not_go_together(options, field):
    with pytest.raises(ConfigError, match=f"^{field}"):
        require(dataclasses.replace(TASK, **options).rules({}))
    require(TASK.rules({}))


def test_a_marked_word_needs_a_model_with_token_types():
    task = dataclasses.replace(TASK, mark="predicate")
    with pytest.raises(ConfigError, match=r"objective\.mark"):
        call(task, TWO)
