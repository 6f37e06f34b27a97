"""Compares answers with those of `transformers`, token for token."""

import json

import jax
import pytest

import lm
from lm import convert, generate, transfer
from lm import run as runs
from lm.config import resolve as configs
from lm.decoding import chat, loop
from lm.decoding.text import with_max_length
from lm.hf import generation
from lm.workdir import checkpoint
from tests.hf import decoders, goldens
from tests.hf.test_adopting import changed, letters

WANTED = json.loads((goldens.PLACE / "answers.json").read_text())
FEW = ("qwen2",)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
        for name in decoders.CASES
    ],
)
def case(request, test_data, tmp_path_factory):
    """Gives the name of a case, and the workdir that lm.convert --from makes of it."""
    place = tmp_path_factory.mktemp("answers")
    data = {test_data(name).parent for name in ("vocab_gpt2", "vocab_mistral_v1")}
    folder = decoders.make(request.param, place / "hf", data.pop())
    workdir = place / "run"
    assert convert.main([f"--from=hf:{folder}", f"--workdir={workdir}"]) == 0
    return request.param, workdir


def opened(workdir):
    """Opens a run: its corpus, and a decoder with its parameters."""
    config = configs.of_run(workdir)
    corpus = runs.open_corpus(config, workdir, print)
    program = runs.open_program(config, corpus, jax.devices()[:1])
    init = checkpoint.Init(source=str(workdir), checkpoint=0)
    params, _ = transfer.load_params(init, program.params)
    return corpus, loop.with_params(runs.make_decoder(corpus, program), params)


def test_prompts_answers_and_chats_equal_those_of_transformers(case):
    name, workdir = case
    wanted = WANTED[name]
    _, options = generate.parse([f"--workdir={workdir}", "x"])
    with jax.default_device(jax.devices()[0]):
        corpus, decoder = opened(workdir)
        prompts = [
            corpus.objective.prompt(corpus.codec, prompt) for prompt in decoders.PROMPTS
        ]
        assert prompts == wanted["prompts"]
        content = generation.read(workdir / "tokenizer")
        limit = generation.max_length(content)
        for prompt, answer in zip(prompts, wanted["answers"], strict=True):
            settings = with_max_length(
                loop.Settings(**options), decoder.model, [prompt], limit
            )
            ((best, *_),) = loop.answer(decoder, [prompt], settings)
            ends = content["eos_token_id"]
            ends = ends if isinstance(ends, list) else [ends]
            said = [id for id in answer if id not in ends]
            assert best.ids == said
            assert len(said) >= len(answer) - 1, "an end in the middle"
    if "chat" in wanted:
        codec, objective = corpus.codec, corpus.objective
        render, stops = generate.dialogue_format(codec, workdir, objective)
        turns = [chat.Turn(**turn) for turn in decoders.TURNS]
        assert render(turns) == wanted["chat"] and stops == ()


def test_an_export_writes_the_settings_of_generation(case, tmp_path):
    _, workdir = case
    out = tmp_path / "out"
    assert convert.main([f"--to=hf:{out}", f"--workdir={workdir}"]) == 0
    kept = generation.read(workdir / "tokenizer")
    found = json.loads((out / "generation_config.json").read_text())
    for key in kept:
        assert key == "bos_token_id" or found[key] == kept[key], key


@pytest.fixture(scope="module")
def from_config_json(tmp_path_factory):
    """Makes a run of a checkpoint whose keys of generation are in config.json alone."""
    place = tmp_path_factory.mktemp("old")
    folder = letters(changed("llama", place / "hf"), eos_token="</s>")
    path = folder / "config.json"
    more = {"eos_token_id": [1, 3, 900], "num_beams": 2, "max_length": 7}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    workdir = place / "run"
    assert convert.main([f"--from=hf:{folder}", f"--workdir={workdir}"]) == 0
    return workdir


def test_config_json_alone_names_ends_and_settings(from_config_json, tmp_path, capsys):
    """`transformers` reads them where there is no generation_config.json."""
    kept = from_config_json / "tokenizer"
    assert generation.ends(kept, 29) == (1, 3)
    assert generation.ends(kept, 901) == (1, 3, 900)
    _, options = generate.parse([f"--workdir={from_config_json}", "x"])
    assert (options["beams"], options["early_stop"]) == (2, "heuristic")
    assert "config.json: --beams=2" in capsys.readouterr().err
    out = tmp_path / "out"
    assert convert.main([f"--to=hf:{out}", f"--workdir={from_config_json}"]) == 0
    written = json.loads((out / "generation_config.json").read_text())
    assert written["eos_token_id"] == [1, 3] and written["max_length"] == 7


def test_a_config_json_of_something_else_is_ignored(tmp_path):
    for text in ("{", "[]", '{"eos_token_id": 3}'):
        (tmp_path / "config.json").write_text(text)
        assert generation.read(tmp_path) == {}


@pytest.mark.parametrize("given", [{}, {"temperature": 0.5}, {"max_tokens": 2}])
def test_python_and_the_command_have_the_same_defaults(from_config_json, given, capsys):
    """Both apply beams and max_length of the file; given settings come first."""
    run = lm.open(from_config_json)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    capsys.readouterr()
    argv = [f"--workdir={from_config_json}", *flags, "cab"]
    assert generate.main(argv) == 0
    ((text, score),) = run.search(["cab"], **given)[0]
    shown = text if score is None else f"{score:.4f}\t{text}"
    assert capsys.readouterr().out == f"{shown}\n"
    assert (score is None) == ("temperature" in given)
    answer = run._corpus.codec.encode(text)
    assert len(answer) <= given.get("max_tokens", 7 - 3)
