"""lm.generate: from a run to text, in every way in and out; and what it refuses."""

import io
import json
import re
import resource
import shutil
import types

import pytest

from lm import generate
from lm.decoding import chat
from lm.decoding.text import settled
from lm.tokenizers.base import TextCodec
from tests import tiny

PAIR = {"source": "a red dog runs", "target": "the old dog sees"}


def settings(**changes):
    model = {
        "name": "transformer",
        "kind": "decoder",
        "num_layers": 1,
        "d_model": 16,
        "num_heads": 2,
        "d_ff": 32,
        "max_len": 48,
        "token_types": 0,
        "norm_position": "pre",
        "embedding": "plain",
    }
    given = {
        "steps": 2,
        "model": model,
        "objective": {"name": "causal_lm"},
        "tokenizer": {"name": "word", "kind": "byte"},
        "evals": {},
        "checkpoint": {"every": 2, "keep_last": 1},
    }
    return tiny.config(**given | changes)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("decoder")
    assert tiny.run(settings(), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("translator")
    config = settings(
        model=settings().model
        | {"kind": "encoder_decoder", "position": "sinusoidal", "name": "transformer"},
        objective={"name": "seq2seq"},
        data={"sources": [{"name": "memory", "items": (PAIR,) * 8}], "pack": False},
        tokenizer={"name": "word", "kind": "word"},
    )
    assert tiny.run(config, workdir) == 0
    return workdir


@pytest.fixture
def say(workdir, capsys, monkeypatch):
    """Runs the command: (exit code, standard output, standard error)."""

    def run(*argv, where=workdir, stdin=b""):
        stream = types.SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False)
        monkeypatch.setattr("sys.stdin", stream)
        argv = [str(a) for a in (f"--workdir={where}", "--max-tokens=12", *argv)]
        with tiny.some_devices(settings()):
            code = generate.main(argv)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_the_ways_in_and_out(say, tmp_path):
    prompts = ["the dog", "a cat runs over"]
    code, out, _ = say(*prompts, "--batch-size=2")
    assert code == 0
    assert out
    rows = tmp_path / "in.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    assert say(f"--input={rows}")[1] == out
    assert say(stdin="\n".join(prompts).encode())[1] == out
    assert say(*prompts, "--stream")[1] == out
    output = tmp_path / "out.jsonl"
    assert say(f"--input={rows}", f"--output={output}")[0] == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in found] == prompts
    assert "".join(row["answers"][0]["text"] + "\n" for row in found) == out


def test_draws_are_the_prompts_own(say):
    argv = ("--temperature=1.5", "--seed=3", "--top-k=200")
    first = say("the dog", "the dog", *argv)[1]
    assert say("the dog", "the dog", *argv)[1] == first
    assert say("the dog", *argv)[1] in first
    assert say("the dog", "the dog", "--temperature=1.5", "--seed=4")[1] != first


def test_a_stop_string_ends_an_answer(say):
    whole = say("the dog", "--temperature=3", "--max-tokens=30")[1]
    stop = whole[6:8]
    for more in ((), ("--stream",)):
        argv = ("--temperature=3", "--max-tokens=30", f"--stop={stop}", *more)
        assert say("the dog", *argv)[1] == whole[: whole.index(stop)] + "\n"


def test_a_search_shows_scores(say):
    code, out, _ = say("the dog", "--beams=3", "--n-best=2")
    assert code == 0
    scores = [float(s) for s in re.findall(r"^(-\d+\.\d{4})\t", out, re.MULTILINE)]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)


def test_an_encoder_decoder_reads_the_prompt(say, translator):
    code, out, _ = say(PAIR["source"], "a dog", where=translator)
    assert code == 0
    words = set(PAIR["source"].split() + PAIR["target"].split()) | {"<unk>"}
    assert set(out.split()) <= words


# An output that is continued


@pytest.fixture
def begun(say, tmp_path):
    rows, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = [f"{n} dogs" for n in range(5)]
    rows.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    argv = [f"--input={rows}", f"--output={output}", "--batch-size=2"]
    argv += ["--temperature=1"]
    assert say(*argv)[0] == 0
    return argv, output, output.read_text()


@pytest.mark.parametrize("kept, torn", [(3, ""), (2, '{"prompt": "2 do'), (5, "")])
def test_a_stopped_output_is_continued(say, begun, kept, torn):
    argv, output, whole = begun
    lines = whole.splitlines(keepends=True)
    output.write_text("".join(lines[:kept]) + torn)
    code, _, error = say(*argv)
    assert code == 0
    assert f"{kept} of 5 rows are there" in error
    assert ("torn" in error) == bool(torn)
    assert output.read_text() == whole


def test_an_output_of_something_else_is_refused(say, begun):
    argv, output, whole = begun
    code, _, error = say(*argv, "--seed=1")
    assert code == 3
    assert "answers made with seed=0, expected seed=1, as now" in error
    code, _, error = say("3 cats", *argv[1:])
    assert code == 3
    assert "5 rows, expected at most 1 prompts" in error
    code, _, error = say(*["a"] * 5, *argv[1:])
    assert code == 3
    assert "out.jsonl:1: found prompt '0 dogs', expected 'a', as in prompt 1" in error
    output.with_name("out.jsonl.settings.json").unlink()
    code, _, error = say(*argv)
    assert code == 3
    assert "a file of something else" in error
    assert output.read_text() == whole


# Refusals


@pytest.mark.parametrize(
    "argv, code, error",
    [
        (["  "], 3, "prompt 1: found an empty prompt"),
        (["a", ""], 3, "prompt 2: found an empty prompt"),
        (["a" * 60], 3, "found a prompt of 61 tokens, expected at most 36"),
        (["a", "--max-tokens=0"], 2, "--max-tokens: found 0, expected a whole number"),
        (["a", "--max-tokens=-3"], 2, "--max-tokens: found -3"),
        (["a", "--max-tokens=48"], 2, "48 with a model of 48 positions"),
        (["a", "--temperature=hot"], 2, "--temperature: found 'hot'"),
        (["a", "--top-p=0"], 2, "--top-p: found 0"),
        (["a", "--n-best=2"], 2, "n_best: found 2 with beams=1"),
        (["a", "--beams=2", "--stream"], 2, "--beams: found 2 with a stream"),
        (["a", "--checkpoint=7"], 4, "[2]"),
        (["a", "--checkpoint=newest"], 2, "latest, best or a step"),
        (["a", "--input=x.jsonl"], 2, "prompts and input"),
        (["--input=absent.jsonl"], 3, "absent.jsonl: found no such file"),
        (["a", "--penalty=gnm"], 2, "gnmt"),
    ],
)
def test_refusals(say, argv, code, error):
    found, out, shown = say(*argv)
    assert found == code, shown
    assert error in shown
    assert len(shown.splitlines()) == 1
    assert not out


def test_refused_inputs(say, tmp_path):
    assert "none, expected at least one prompt" in say()[2]
    code, _, error = say(stdin=b"fine\nna\xefve\n")
    assert code == 3
    assert "standard input:2: found a byte that is not UTF-8 at offset 2" in error
    rows = tmp_path / "in.jsonl"
    for content in ('{"prompt": 3}', '{"text": "a"}', "[", "7"):
        rows.write_text('{"prompt": "a"}\n' + content + "\n")
        code, _, error = say(f"--input={rows}")
        assert code == 3, content
        assert f"{rows}:2: found" in error


def test_F12_a_disk_that_fills_under_the_output_is_named_and_the_rest_follows(
    say, tmp_path
):
    rows, whole, cut = (tmp_path / name for name in ("in.jsonl", "whole", "cut"))
    prompts = [f"the dog {n}" for n in range(24)]
    rows.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    assert say(f"--input={rows}", f"--output={whole}")[0] == 0
    assert whole.stat().st_size > 1100
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, _, error = say(f"--input={rows}", f"--output={cut}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 5, error
    assert f"error[storage] {cut}: found file too large (need " in error
    assert re.search(r"free [\d,]+ bytes\)", error) and "--output" in error
    assert 0 < cut.stat().st_size <= 1000
    assert say(f"--input={rows}", f"--output={cut}")[0] == 0
    assert cut.read_bytes() == whole.read_bytes()


def test_F12_a_disk_that_is_full_under_standard_output(say, workdir, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        code, _, error = say("the dog")
        monkeypatch.undo()
    assert code == 5, error
    assert "error[storage] standard output: found no space left on device" in error


def test_an_encoder_has_nothing_to_say(say, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("bert")
    assert tiny.run(tiny.config(steps=2, evals={}), workdir) == 0
    code, _, error = say("a", where=workdir)
    assert code == 2
    assert "cannot continue a text from a cache" in error


def test_an_objective_without_prompts_is_refused_before_the_weights_are_read(
    say, tmp_path_factory
):
    workdir = tmp_path_factory.mktemp("classifier")
    items = tuple({"text": "a red dog", "label": n % 2} for n in range(8))
    config = settings(
        objective={"name": "classification", "summary": "last"},
        data={"sources": [{"name": "memory", "items": items}], "pack": False},
    )
    assert tiny.run(config, workdir) == 0
    shutil.rmtree(workdir / "checkpoints")
    code, _, error = say("a", where=workdir)
    assert code == 2, error
    assert "objective.name: found 'classification', which does not offer" in error
    assert "(prompt)" in error and "for lm.generate" in error


def test_what_a_run_evaluates_does_not_matter_here(say, workdir, tmp_path):
    """Such as a metric whose package is not installed on this machine."""
    own = tmp_path / "run"
    shutil.copytree(workdir, own)
    config = json.loads((own / "config.json").read_text())
    source = {"sources": [{"name": "memory", "items": [{"text": "a"}]}]}
    config["evals"] = {"x": {"evaluator": "predictions", "data": source}}
    config["checkpoint"]["best"] = "x/accuracy"
    (own / "config.json").write_text(json.dumps(config))
    assert say("a", where=own)[:2] == say("a")[:2]


def test_truncation(say):
    long = "".join(chr(97 + n % 26) for n in range(60))
    # 48 places less 12, one of them for the beginning of the text.
    assert say(long, "--truncate")[1] == say(long[-35:])[1]


# Streams and dialogues


def test_what_is_sure():
    assert settled("caf\ufffd") == "caf"
    assert settled("a User", ("\nUser:", "User: x")) == "a "
    assert settled("all of it", ("\nUser:",)) == "all of it"


def words(turns):
    return [word for turn in turns for word in turn.content.split()]


def test_the_oldest_turns_are_left_out():
    turns = [chat.Turn(r, f"{n} x") for n, r in enumerate(["user", "assistant"] * 3)]
    turns = turns[:5]
    assert chat.fit(turns, words, 10) == (words(turns), 0)
    assert chat.fit(turns, words, 9) == (words(turns[2:]), 2)
    assert chat.fit(turns, words, 2) == (words(turns[4:]), 4)
    assert chat.plain(turns[:2]) == "User: 0 x\nAssistant: 1 x\nAssistant:"


def test_special_tokens_of_a_template():
    codec = types.SimpleNamespace(
        special_ids={1, 2},
        token={1: "<|im|>", 2: "</s>"}.get,
        encode=lambda text: [ord(c) for c in text],
    )
    assert TextCodec.encode_marked(codec, "<|im|>hi</s>") == [1, 104, 105, 2]


def test_a_dialogue(say):
    """Its history has room, then its oldest turns do not."""
    lines = b"\n".join([b"hello", b"", b"you", b"x" * 80])
    code, out, error = say("--chat", "--max-tokens=8", "--temperature=1", stdin=lines)
    assert code == 0
    assert len(out) > 8
    assert "(2 of 3 turns left out: with them and the answer more than" in error
    assert "your last turn: found 98 tokens, expected at most 40" in error


def test_a_dialogue_by_template(say, workdir, tmp_path):
    own = tmp_path / "run"
    shutil.copytree(workdir, own)
    template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    (own / "tokenizer" / "chat_template.jinja").write_text(template)
    flags = ("--max-tokens=8", "--temperature=1")
    by_template = say("--chat", *flags, where=own, stdin=b"hey")[1]
    assert by_template != say("--chat", *flags, stdin=b"hey")[1]


def test_no_dialogue_with_a_translator(say, translator):
    code, _, error = say("--chat", where=translator, stdin=b"hey")
    assert code == 2
    assert "--chat: found a model that encodes a source" in error
