"""Answers equal those of `transformers`, token for token, as a user of it gets them."""

import json

import jax
import pytest

from lm import convert, generate, transfer
from lm import run as runs
from lm.config import resolve as configs
from lm.decoding import chat, loop
from lm.hf import generation
from lm.workdir import checkpoint
from tests.hf import goldens, speaking

WANTED = json.loads((goldens.PLACE / "answers.json").read_text())
FEW = ("qwen2",)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
        for name in speaking.CASES
    ],
)
def case(request, test_data, tmp_path_factory):
    """(name, the workdir that lm.convert --from makes of it, what it printed)."""
    place = tmp_path_factory.mktemp("answers")
    data = {test_data(name).parent for name in ("vocab_gpt2", "vocab_mistral_v1")}
    folder = speaking.make(request.param, place / "hf", data.pop())
    workdir = place / "run"
    assert convert.main([f"--from=hf:{folder}", f"--workdir={workdir}"]) == 0
    return request.param, workdir


def opened(workdir):
    """(corpus, a decoder that holds the run's parameters)."""
    config = configs.of_run(workdir)
    corpus = runs.open_corpus(config, workdir, print)
    program = runs.open_program(config, corpus, jax.devices()[:1])
    init = checkpoint.Init(source=str(workdir), checkpoint=0)
    params, _ = transfer.load_params(init, program.params)
    return corpus, loop.holding(runs.make_decoder(corpus, program), params)


def test_prompts_answers_and_dialogues_are_theirs(case):
    name, workdir = case
    wanted = WANTED[name]
    _, options = generate.parse([f"--workdir={workdir}", "x"])
    with jax.default_device(jax.devices()[0]):
        corpus, decoder = opened(workdir)
        prompts = [
            corpus.objective.prompt(corpus.codec, prompt) for prompt in speaking.PROMPTS
        ]
        assert prompts == wanted["prompts"]
        content = generation.read(workdir / "tokenizer")
        for prompt, answer in zip(prompts, wanted["answers"], strict=True):
            most = generation.max_tokens(content, [prompt], False)
            changes = {} if most is None else {"max_tokens": most}
            settings = loop.Settings(**options | changes)
            ((best, *_),) = loop.answer(decoder, [prompt], settings)
            ends = content["eos_token_id"]
            ends = ends if isinstance(ends, list) else [ends]
            said = [id for id in answer if id not in ends]
            assert best.ids == said
            assert len(said) >= len(answer) - 1, "an end in the middle"
    if "chat" in wanted:
        render, stops = generate.form(corpus.codec, workdir, corpus.objective)
        turns = [chat.Turn(**turn) for turn in speaking.TURNS]
        assert render(turns) == wanted["chat"] and stops == ()


def test_an_export_says_how_it_answers(case, tmp_path):
    _, workdir = case
    out = tmp_path / "out"
    assert convert.main([f"--to=hf:{out}", f"--workdir={workdir}"]) == 0
    kept = generation.read(workdir / "tokenizer")
    found = json.loads((out / "generation_config.json").read_text())
    for key in kept:
        assert key == "bos_token_id" or found[key] == kept[key], key
