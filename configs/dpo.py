"""Preference optimisation: the better of two answers becomes more probable (DPO).

What:     direct preference optimisation (Rafailov et al. 2023) of a decoder, such as
          one of configs/chat.py, against the weights that it begins with, which stay
          frozen beside it; with lora, low-rank matrices learn, and the frozen base is
          the reference.
Data:     train.jsonl and dev.jsonl in a folder, on each line {"prompt": "...",
          "chosen": "...", "rejected": "..."}. With turns, instead of the prompt
          {"messages": [...]} up to a user's turn.
Command:  python -m lm.main --config=configs/dpo.py:dir=data/preferences,run=runs/chat
          Two answers of Schema-Guided Dialogue, the system's and that to another turn:
          python -m experiments.dialogue.convert FOLDER data/sgd
          python -m lm.main --config=configs/dpo.py:turns,dir=data/sgd/pairs,run=RUN
Arguments, joined by commas: quick (a few steps; without dir=, on answers of its own),
          dir=FOLDER, run=WORKDIR (what it starts from, and the reference),
          preset=llama_tiny (its shape; hf: that of init.source), turns, lora.
Results:  none yet
"""

import ml_collections

from lm.config import parse_arg

PLACES = ("the park", "the library", "the station", "a good bakery", "the museum")
PAIRS = tuple(
    dict(
        prompt=f"Where is {place}?",
        chosen=f"You will find {place} behind the old bridge.",
        rejected=rejected,
    )
    for place in PLACES
    for rejected in ("Why?", f"I know {place} and do not tell you.")
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, dir="", run="", preset="llama_tiny", turns=False, lora=False
    )
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "1 epochs"
    c.batch_size = 4 if arg.quick else 16
    c.seq_len = 192 if arg.quick else 1024

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None, dropout=0.0)
    asked = None if arg.turns else "prompt"
    c.objective = dict(name="dpo", prompt_column=asked, beta=0.1, too_long="skip")
    c.adapter = dict(name="reference")
    c.init = dict(source=arg.run or None)
    c.tokenizer = None
    if arg.quick and not arg.run:
        c.tokenizer = dict(name="hf", kind="bpe", vocab_size=400)
        c.model.update(num_layers=2, d_model=64, d_ff=172)
    c.optim = dict(
        name="adamw",
        lr=1e-3 if arg.quick else 1e-5,
        schedule="linear",
        warmup="10%",
        weight_decay=0.0,
        clip=1.0,
    )
    if arg.lora:
        c.adapter = dict(name="lora", kernels=(r"layers/(attention|mlp)/\w+/kernel",))
        c.optim.lr = 2e-4

    place = arg.dir or "data/preferences"
    form = dict(name="jsonl", columns=("prompt", "chosen", "rejected"))
    if arg.turns:
        form = dict(name="chat", columns=("chosen", "rejected"))
    train, dev = (
        dict(form, files=f"{place}/{name}.jsonl") for name in ("train", "dev")
    )
    if arg.quick and not arg.dir:
        train = dict(name="memory", items=PAIRS[:-2])
        dev = dict(name="memory", items=PAIRS[-2:])
    c.data = dict(sources=[train])
    c.evals = dict(dev=dict(evaluator="mean", data=dict(sources=[dev]), every="25%"))
    c.checkpoint = dict(every="25%", keep_last=1)
    c.log = dict(every=2 if arg.quick else 10)
    return c
