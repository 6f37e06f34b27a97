"""Dialogue: a decoder learns the answers of an assistant.

What:     instruction tuning (Ouyang et al. 2022, section 3.5): the model reads whole
          dialogues and learns the assistant's turns, with the token that ends each. Of
          the shape llama_tiny, from scratch or from another run or checkpoint.
Data:     train.jsonl and dev.jsonl in a folder, on each line {"messages": [{"role":
          "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}.
          Schema-Guided Dialogue (Rastogi et al. 2020) in this form:
          python -m experiments.dialogue.convert FOLDER data/sgd
Command:  python -m lm.main --config=configs/chat.py:dir=data/sgd
          From another run, whose shape and tokenizer it then has, or a checkpoint of
          Hugging Face with its chat template, if it has one:
          python -m lm.main --config=configs/chat.py:dir=data/sgd,run=runs/llama_tiny
          python -m lm.main --config=configs/chat.py:dir=data/sgd,run=hf:DIR,preset=hf
          Then: python -m lm.generate --workdir=runs/chat --chat
Arguments, joined by commas: quick (a few steps; without dir=, on dialogues of its own),
          dir=FOLDER, run=WORKDIR (what it starts from), preset=llama_tiny (its shape).
Results:  none yet
"""

import ml_collections

from lm.config import parse_arg

PLACES = ("the park", "the library", "the station", "a good bakery", "the museum")
DIALOGUES = tuple(
    dict(
        roles=("user", "assistant", "user", "assistant"),
        contents=(
            f"Where is {place}?",
            f"You will find {place} behind the old bridge.",
            "Is it far?",
            f"No, to {place} it is a walk of {number + 2} minutes.",
        ),
    )
    for number, place in enumerate(PLACES)
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="", run="", preset="llama_tiny")
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "10 epochs"
    c.batch_size = 4
    c.seq_len = 512

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    c.objective = dict(name="chat", too_long="window")
    c.init = dict(source=arg.run or None)
    c.tokenizer = None if arg.run else dict(name="hf", kind="bpe", vocab_size=2000)
    c.optim = dict(
        name="adamw",
        lr=3e-4 if arg.run else 1e-3,
        schedule="cosine",
        end_lr=0.1,
        warmup="10%",
        weight_decay=0.1,
        clip=1.0,
        options=dict(b2=0.95),
    )

    place = arg.dir or "data/sgd"
    train, dev = (
        dict(name="chat", files=f"{place}/{n}.jsonl") for n in ("train", "dev")
    )
    if arg.quick and not arg.dir:
        train, dev = (
            dict(name="memory", items=items, lists=True)
            for items in (DIALOGUES[:4], DIALOGUES[4:])
        )
    c.data = dict(sources=[train], pack=True)
    evaluation = dict(evaluator="mean", data=dict(sources=[dev]), every="10%")
    c.evals = dict(dev=evaluation)
    c.checkpoint = dict(every="10%", keep_last=1, best="dev/loss", best_mode="min")
    c.log = dict(every=10)

    if arg.quick:
        c.seq_len = 128
        if not arg.run:
            c.tokenizer.vocab_size = 400
            c.model.update(num_layers=2, d_model=64, d_ff=172)
        c.evals.dev.update(every="50%", limit=16)
        c.log.every = 2
    return c
