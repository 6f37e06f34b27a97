"""Word-level language modelling on WikiText-2, comparable with the published figures.

What:     a causal Transformer, strongly regularised, that says every word of the text
          and the end of every line, <unk> among them (Merity et al. 2017); perplexity
          over the whole validation and test text, read in windows that overlap.
Data:     train.txt.gz, valid.txt and test.txt of WikiText-2 in a folder.
Command:  python -m lm.main --config=configs/wikitext2.py:dir=data/wikitext2
Arguments, joined by commas: quick (a few steps on the built-in text), dir=FOLDER.
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="data/wikitext2")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "4 epochs"
    c.batch_size = 8
    c.seq_len = 128

    c.tokenizer = dict(
        name="word", kind="word", line_ends=True, specials=("unk", "eos")
    )
    c.model = dict(
        name="transformer",
        preset="llama_tiny",
        vocab_size=None,
        vocab_multiple=1,
        d_model=192,
        num_heads=6,
        d_ff=512,
        output="tied",
        dropout=0.1,
        attention=dict(kv_heads=6, dropout=0.1),
    )
    # The text is one stream, as in the published figures; every line has its own end.
    c.objective = dict(name="causal_lm", eos=False)
    c.compute = dict(remat="none", unroll=0)
    c.optim = dict(
        name="adamw",
        lr=1.5e-3,
        schedule="cosine",
        end_lr=0.01,
        warmup="2%",
        weight_decay=0.1,
        clip=1.0,
        options=dict(b2=0.98),
    )

    def text(file: str) -> dict:
        return dict(
            sources=[dict(name="text", files=f"{arg.dir}/{file}", split="file")]
        )

    c.data = dict(text("train.txt.gz"), pack=True)
    valid, test = text("valid.txt"), text("test.txt")
    if arg.quick:
        c.data = dict(sources=[dict(name="builtin", part="train")], pack=True)
        valid = test = dict(sources=[dict(name="builtin", part="heldout")])
    overlapping = dict(stride=c.seq_len // 4)
    c.evals = dict(
        valid=dict(evaluator="mean", data=valid, every="10%"),
        test=dict(evaluator="mean", data=test, every="100%", objective=overlapping),
    )
    c.checkpoint = dict(every="10%", keep_last=1, best="valid/loss", best_mode="min")
    c.log = dict(every=50)

    if arg.quick:
        c.steps = "10 steps"
        c.batch_size = 4
        c.seq_len = 32
        c.tokenizer.vocab_size = 1000
        c.model.update(num_layers=2, d_model=48, d_ff=128)
        c.evals.test.objective.stride = 8
        c.evals.valid.limit = c.evals.test.limit = 16
        c.log.every = 2
    return c
