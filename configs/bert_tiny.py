"""A tiny BERT, pre-trained by masked language modelling: the first run of a newcomer.

What:     2 layers, 128 wide (Turc et al. 2019), documents packed into rows of 128,
          masks drawn anew in each epoch (Liu et al. 2019); a WordPiece vocabulary
          trained on the corpus itself.
Data:     the built-in English reference text, or your own:
          --config=configs/bert_tiny.py:text=my.txt
Command:  python -m lm.main --config=configs/bert_tiny.py
Sweep:    python -m lm.sweep --config=configs/bert_tiny.py --select=heldout/loss \
              --mode=min
          Three learning rates and three seeds.
Arguments, joined by commas: quick (a few steps), preset=bert_mini (and the other
          shapes), text=FILE (your own text; a share of it is held out),
          wikitext2=FOLDER (train.txt.gz and valid.txt of WikiText-2, a longer run).
          split=line takes each line of it as a document, instead of each paragraph.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, quick=False, preset="bert_tiny", text="", split="blank_line", wikitext2=""
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = 600
    c.batch_size = 32
    c.seq_len = 128

    c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=4096, lowercase=True)
    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    c.objective = dict(name="mlm")
    c.optim = dict(
        name="adamw",
        lr=2e-3,
        schedule="linear",
        warmup="10%",
        weight_decay=0.01,
        clip=1.0,
    )

    source = dict(name="builtin")
    if arg.text:
        source = dict(name="text", files=arg.text, split=arg.split)
    train, heldout = dict(source, part="train"), dict(source, part="heldout")
    if arg.wikitext2:
        source = dict(name="text", split="heading")
        train = dict(source, files=f"{arg.wikitext2}/train.txt.gz")
        heldout = dict(source, files=f"{arg.wikitext2}/valid.txt")
        c.steps = 5000
        c.tokenizer.vocab_size = 8192
    c.data = dict(sources=[train], pack=True)
    heldout = dict(sources=[heldout])
    c.evals = dict(
        heldout=dict(evaluator="mean", data=heldout, every="20%", baseline="unigram"),
        filled=dict(evaluator="samples", data=heldout, every="100%", rows=3),
    )
    c.checkpoint = dict(every="20%", keep_last=2)
    c.log = dict(every=20)

    if arg.quick:
        c.steps = 20
        c.batch_size = 8
        c.log.every = 5
    return c


def sweep(add) -> None:
    for lr in (1e-3, 2e-3, 4e-3):
        for seed in range(3):
            add({"optim.lr": lr}, seed=seed)
