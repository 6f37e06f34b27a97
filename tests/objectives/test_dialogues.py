"""Dialogues: which tokens are learned, what generation reads, what is refused."""

import io
import itertools
import math
import types

import jax
import numpy as np
import pytest

import lm
from lm import generate
from lm.data.index import Index, Rows
from lm.data.sources.base import Record
from lm.decoding.chat import Turn
from lm.errors import DataError
from lm.objectives.chat import Objective
from lm.tokenizers.dialogues import Conversation
from lm.tokenizers.hf import Tokenizer as HF
from lm.tokenizers.spm import Tokenizer as SPM
from lm.tokenizers.word import Tokenizer as Words
from tests import tiny
from tests.hf.decoders import CHATML, INST

MODEL = {
    "name": "transformer",
    "preset": "llama_tiny",
    "vocab_size": None,
    "num_layers": 2,
    "d_model": 32,
    "num_heads": 2,
    "d_ff": 64,
    "attention": {"kv_heads": 1},
}
SAID = [
    ["Hi there", "Hello, you."],
    ["Where is the old dog?", "At the river.", "And the cat?", "Here."],
    ["One", "Two", "Three", "]Four"],
]
TEXTS = list(itertools.chain(*SAID)) * 4


def dialogue(*texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    turns = [Turn(*pair) for pair in zip(roles, texts)]
    return [Turn("system", system), *turns] if system else turns


def record(turns, where="chat.jsonl:7"):
    fields = {"roles": tuple(t.role for t in turns)}
    return Record(fields | {"contents": tuple(t.content for t in turns)}, where)


def marked(folder, template):
    """A byte-level BPE with special tokens and a chat template."""
    import tokenizers as hf

    symbols = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    ids = {symbol: n for n, symbol in enumerate([*symbols, "ĊĊ", "ĠH", "]]"])}
    merges = [("Ċ", "Ċ"), ("Ġ", "H"), ("]", "]")]
    made = hf.Tokenizer(hf.models.BPE(ids, merges))
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    made.add_special_tokens([hf.AddedToken(name, special=True) for name in names])
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    return HF(kind="bpe", path=str(folder))


def codec_of(tokenizer, folder):
    folder.mkdir(parents=True)
    tokenizer.make(lambda: iter(TEXTS), folder)
    codec = tokenizer.load(folder)
    codec.directory = folder
    return codec


INST_MARKED = INST.replace("bos_token", "'<|endoftext|>'").replace(
    "eos_token", "'<|im_end|>'"
)
CODECS = {
    "bytes": lambda place: Words(kind="byte"),
    "words": lambda place: Words(kind="word"),
    "lines": lambda place: Words(kind="word", line_ends=True),
    "bpe": lambda place: HF(kind="bpe", vocab_size=300),
    "spm": lambda place: SPM(vocab_size=60),
    "chatml": lambda place: marked(place / "own", CHATML),
    "inst": lambda place: marked(place / "own", INST_MARKED),
}


@pytest.fixture(params=CODECS)
def codec(request, tmp_path):
    if request.param in ("chatml", "inst"):
        pytest.importorskip("jinja2")
    return codec_of(CODECS[request.param](tmp_path), tmp_path / "tokenizer")


def squeezed(text):
    return "".join(text.lower().split())


def test_the_targets_are_the_answers_and_their_ends(codec):
    """And the tokens before each are those that generation reads."""
    form = Objective().form(codec)
    turns = [dialogue(*texts) for texts in SAID]
    found = form.dialogues([Conversation(each) for each in turns])
    unk = codec.unk_id
    for own, (ids, answers) in zip(turns, found, strict=True):
        said = [turn.content for turn in own if turn.role == "assistant"]
        assert len(said) == len(answers)
        assert ids[answers[-1][1] :] == []
        for number, (text, (start, stop)) in enumerate(zip(said, answers)):
            *answer, end = ids[start:stop]
            assert (end,) == form.ends
            assert squeezed(codec.decode(answer)) == squeezed(text) or unk in answer
            assert ids[:start] == form.prompt(own[: 2 * number + 1])


def test_rows_have_these_targets_packed_or_not(codec):
    objective, rows = Objective(), {}
    for pack in (False, True):
        layout = objective.layout(codec, seq_len=400, pack=pack)
        out = Rows()
        records = ((record(dialogue(*texts)), []) for texts in SAID)
        layout.write(records, out)
        learned = []
        none = np.zeros(1, np.int64)
        index = Index(tokens=none, spans=none, rows=none, fields={}, facts={})
        for _, row in out.rows:
            example = row
            for transform in objective.transforms(index, codec, seq_len=400):
                example = transform(example, np.random.default_rng(0))
            learned.append(example["targets"][example["weights"] > 0].tolist())
            ends = example["end_weights"] > 0
            assert ends.sum() >= 1 and (example["weights"][ends] == 1).all()
        rows[pack] = learned
    assert len(rows[True]) == 1 and len(rows[False]) == len(SAID)
    assert rows[True][0] == [*itertools.chain(*rows[False])]
    found = (
        Objective()
        .form(codec)
        .dialogues([Conversation(dialogue(*texts)) for texts in SAID])
    )
    wanted = [d.ids[start:stop] for d in found for start, stop in d.answers]
    assert rows[True][0] == [*itertools.chain(*wanted)]


@pytest.fixture
def plain(tmp_path):
    return codec_of(Words(kind="byte"), tmp_path / "plain")


def pieces(codec, *turns, length, **options):
    """The texts of rows, of what is learned in each, and the counts."""
    layout = Objective(**options).layout(codec, seq_len=length, pack=False)
    out = Rows()
    layout.write(((record(each), []) for each in turns), out)
    texts = []
    for _, row in out.rows:
        (ids,) = row["pieces"]
        assert len(ids) == len(row["learned"]) + 1 <= length + 1
        learned = codec.decode(ids[1:][row["learned"] == 1].tolist())
        texts.append((codec.decode(ids.tolist()), learned))
    return texts, dict(out.counts)


LONG = dialogue("a", "b" * 9, "c", "d" * 9, "e", "f" * 9, system="S")
HEAD = "System: S\n"
PARTS = [f"User: {q}\nAssistant: {a * 9}" for q, a in ("ab", "cd", "ef")]


def test_a_dialogue_that_does_not_fit(plain):
    short = dialogue("x", "y")
    fits = ("User: x\nAssistant: y", " y")
    with pytest.raises(DataError, match=r"chat.jsonl:7: found a dialogue of 100 tok"):
        pieces(plain, short, LONG, length=80)
    texts, counts = pieces(plain, short, LONG, length=80, too_long="skip")
    assert (texts, counts) == ([fits], {"too_long_skip": 1})
    texts, counts = pieces(plain, short, LONG, length=50, too_long="cut")
    assert texts[1][1] == " " + "b" * 9
    assert counts == {"too_long_cut": 1}
    texts, counts = pieces(plain, short, LONG, length=24, too_long="cut")
    assert (texts, counts) == ([fits], {"too_long_cut": 1, "no_answer_left_skip": 1})


def test_windows_have_each_answer_once(plain):
    for length, groups in ((90, [2, 1]), (60, [1, 1, 1])):
        texts, counts = pieces(plain, LONG, length=length, too_long="window")
        wanted, rest = [], list(PARTS)
        for size in groups:
            wanted.append(HEAD + "\n".join(rest[:size]))
            del rest[:size]
        assert [text for text, _ in texts] == wanted
        assert "".join(own for _, own in texts) == "".join(f" {a * 9}" for a in "bdf")
        assert counts == {"too_long_window": 1}
    with pytest.raises(DataError, match="a question and its answer of 40 tokens"):
        pieces(plain, LONG, length=36, too_long="window")
    last = {"learn": "last", "too_long": "window"}
    for length, count in ((106, 3), (90, 2), (50, 1)):
        [(text, learned)], _ = pieces(plain, LONG, length=length, **last)
        assert text == HEAD + "\n".join(PARTS[-count:])
        assert learned == " " + "f" * 9


def test_sizes_are_those_of_the_answers(plain):
    out = Rows()
    layout = Objective().layout(plain, seq_len=99, pack=False)
    layout.write(iter([(record(dialogue("x y", "é b", "z", "c")), [])]), out)
    [(_, row)] = out.rows
    assert row["bytes"] == len("é b".encode()) + 1
    assert row["words"] == 2 + 1 + 1 + 1  # and an end each


def test_the_turn_after_the_last_answer_is_left_out(plain):
    texts, counts = pieces(plain, dialogue("x", "y", "z"), length=50)
    assert texts == [("User: x\nAssistant: y", " y")]
    assert counts == {"last_turn_without_answer": 1}


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("tool", "x")], "turn 1 of 'tool', expected one of system, user, assistant"),
        ([("assistant", "x")], "turn 1 of assistant, expected a turn of system or"),
        ([("user", "x"), ("user", "y")], "turn 2 of user after one of user"),
        ([("user", "x"), ("system", "y")], "turn 2 of system after one of user"),
        ([("user", "x"), ("assistant", " \n")], "turn 2, of assistant, empty"),
        ([("system", "x"), ("user", "y")], "2 turns, the last of user, and none of th"),
        ([("user", "x")], "expected an answer of the assistant to learn"),
    ],
)
def test_turns_that_are_no_dialogue_are_refused(turns, message, plain):
    layout = Objective().layout(plain, seq_len=50, pack=False)
    with pytest.raises(DataError) as error:
        layout.texts(record([Turn(*turn) for turn in turns]))
    assert error.value.where == "chat.jsonl:7"
    assert message in str(error.value)


LAST = (
    "{% for m in messages %}<|im_start|>{% if loop.last or m.role == 'user' %}"
    "{{ m.content }}{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "text", "message"),
    [
        (LAST, "b", "turns that are written in another way when others follow"),
        (CHATML.replace("<|im_end|>", ""), "b", "an answer that ends with 'I.\\\\n'"),
        ("{{ raise_exception('never!') }}", "b", "nothing .*never!"),
        (CHATML, "<|im_end|>", "turn 2 with the special token '<|im_end|>'"),
    ],
)
def test_a_template_that_does_not_do_is_refused(template, text, message, tmp_path):
    pytest.importorskip("jinja2")
    codec = codec_of(marked(tmp_path / "own", template), tmp_path / "tokenizer")
    with pytest.raises(DataError, match=message) as error:
        pieces(codec, dialogue("a", text, "c", "d"), length=99)
    if "another way" in message:
        assert str(tmp_path / "tokenizer") in str(error.value)
        assert "objective.learn=last" in str(error.value)
        [(_, learned)], _ = pieces(codec, dialogue("a", "b"), length=99, learn="last")
        assert learned == "b"
    texts, _ = pieces(codec, dialogue("a", "<|im_end|>"), length=99, template=False)
    assert texts == [("User: a\nAssistant: <|im_end|>", " <|im_end|>")]


def test_a_chat_in_which_one_fails_is_named(tmp_path):
    pytest.importorskip("jinja2")
    template = "{% if messages[0].content == 'c' %}{{ ''.x.y }}{% endif %}" + CHATML
    codec = codec_of(marked(tmp_path / "own", template), tmp_path / "tokenizer")
    form = Objective().form(codec)
    several = [Conversation(dialogue(q, "b"), f"row {q}") for q in "abcd"]
    with pytest.raises(DataError, match=r"row c: found the chat template of .*Undefi"):
        form.dialogues(several)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    codec = codec_of(HF(kind="wordpiece", vocab_size=80), tmp_path / "tokenizer")
    with pytest.raises(DataError, match=r"no end token \(eos\), expected one, which"):
        Objective().layout(codec, seq_len=9, pack=False)


# ── Runs ────────────────────────────────────────────────────────────────────────────


def settings(**changes):
    items = [
        {"roles": ["user", "assistant"] * (len(texts) // 2), "contents": texts}
        for texts in SAID
    ]
    source = {"name": "memory", "items": items, "lists": True}
    given = {
        "model": MODEL,
        "objective": {"name": "chat"},
        "data": {"sources": [source], "pack": False},
        "evals": {"x": {"evaluator": "mean", "data": {"sources": [source]}}},
        "seq_len": 192,
        "tokenizer": {"name": "word", "kind": "byte"},
    }
    return tiny.config(**given | changes)


def test_packed_rows_have_the_loss_of_unpacked_ones(tmp_path):
    sums = {}
    for pack in (False, True):
        config = settings(data__pack=pack)
        corpus, program = tiny.program(config, tmp_path)
        params = program.init(jax.random.key(0))
        rows = []
        for n in range(len(corpus.stream)):
            row = {k: v[None] for k, v in corpus.stream.example(n).items()}
            del row["example_ids"]
            rows.append(program.metrics(params, row))
        sums[pack] = jax.tree.map(lambda *each: float(sum(each)), *rows)
        assert len(rows) == (1 if pack else 3)
    learned = sum(len(t.encode()) + 2 for texts in SAID for t in texts[1::2])
    assert sums[True]["lm_loss"][1] == learned
    for name, pair in sums[True].items():
        assert pair == pytest.approx(sums[False][name], rel=1e-5), name


@pytest.mark.slow
def test_a_run_answers_as_it_was_taught_and_stops(tmp_path, capsys, monkeypatch):
    config = settings(
        steps=90,
        optim={"name": "adamw", "lr": 1e-2, "warmup": 10},
        checkpoint={"every": 90, "keep_last": 1},
        log={"every": 50, "tensorboard": False},
        evals__x__every=90,
    )
    assert tiny.run(config, tmp_path) == 0
    with tiny.some_devices(config):
        run = lm.open(tmp_path)
        assert run.generate(["Hi there"], max_tokens=30) == [" Hello, you."]
        lines = "\n".join(SAID[1][0::2]).encode()
        stream = types.SimpleNamespace(buffer=io.BytesIO(lines), isatty=lambda: False)
        monkeypatch.setattr("sys.stdin", stream)
        capsys.readouterr()
        code = generate.main([f"--workdir={tmp_path}", "--chat", "--max-tokens=30"])
        assert code == 0
        assert capsys.readouterr().out == " At the river.\n Here.\n"
        # The score of an answer is the loss of its tokens in the evaluation.
        texts = [SAID[0]]
        scores = run.score([{"prompt": q, "answer": a} for q, a in texts])
    assert scores[0]["greedy"]
    assert scores[0]["tokens"] == len(" Hello, you.") + 1
    last = tiny.rows(tmp_path)[-1]
    assert last["x/perplexity"] == pytest.approx(math.exp(last["x/lm_loss"]))
    assert last["x/perplexity"] < 1.2


def test_the_form_is_part_of_the_fingerprint(tmp_path):
    pytest.importorskip("jinja2")
    codec = codec_of(marked(tmp_path / "own", CHATML), tmp_path / "tokenizer")
    made = [
        repr(Objective(template=own).layout(codec, seq_len=9, pack=False))
        for own in (True, False)
    ]
    (codec.directory / "chat_template.jinja").write_text(INST_MARKED)
    made.append(repr(Objective().layout(codec, seq_len=9, pack=False)))
    assert len({*made}) == 3
