"""One-sentence summaries of scientific papers: from the abstract to its TLDR.

What:     SciTLDR-A (Cachola et al. 2020), 1,992 abstracts with one summary each for
          training, several for dev. An encoder-decoder of 3 layers, 128 wide, with
          relative positions (Raffel et al. 2020), trained on these alone; or one that
          another run has pre-trained.
Data:     train.jsonl.gz and dev.jsonl of SciTLDR-Data/SciTLDR-A in a folder, from
          https://github.com/allenai/scitldr.
Command:  python -m lm.main --config=configs/scitldr.py:dir=data/scitldr
          From a run of configs/t5_small.py, whose shape and tokenizer it then has:
          python -m lm.main --config=configs/scitldr.py:dir=data/scitldr,run=runs/t5
Arguments, joined by commas: quick (a few steps on a few abstracts of its own),
          dir=FOLDER, run=WORKDIR, preset=t5_small (the shape of the other run).
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

TASKS = ("parsing", "translation", "summarisation", "tagging", "retrieval", "dialogue")
ABSTRACTS = tuple(
    dict(
        source=[
            f"Models for {task} need large labelled sets.",
            f"We present a method that learns {task} from few examples.",
            "It is better than the baselines on three sets.",
        ],
        target=[f"A method that learns {task} from few examples."],
    )
    for task in TASKS
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="data/scitldr", run="", preset="t5_small")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "20 steps" if arg.quick else "30 epochs"
    c.batch_size = 16
    c.seq_len = 96

    c.model = dict(
        name="transformer",
        kind="encoder_decoder",
        vocab_size=None,
        num_layers=3,
        d_model=128,
        num_heads=4,
        d_ff=512,
        position="relative",
        token_types=0,
        norm="rms",
        norm_position="pre",
        norm_epsilon=1e-6,
        activation="relu",
        bias="none",
        embedding="plain",
        output="scaled",
        dropout=0.2,
        init_std=None,
    )
    c.tokenizer = dict(name="spm", vocab_size=8000)
    c.init = dict(source=None)
    if arg.run:
        c.init.source = arg.run
        c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
        c.tokenizer = None
    c.objective = dict(
        name="seq2seq",
        prefix="summarize: ",
        source_len=512,
        too_long="cut",
        label_smoothing=0.1,
    )
    c.optim = dict(
        name="adamw",
        lr=5e-4 if arg.run else 1e-3,
        schedule="linear",
        warmup="10%",
        weight_decay=0.01,
        clip=1.0,
    )

    lists = dict(name="jsonl", columns=("source", "target"), lists=True)
    train = dict(lists, files=f"{arg.dir}/train.jsonl.gz")
    dev = dict(lists, files=f"{arg.dir}/dev.jsonl")
    test = dict(lists, files=f"{arg.dir}/test.jsonl")
    if arg.quick:
        train = dev = test = dict(name="memory", items=ABSTRACTS, lists=True)
        c.tokenizer = dict(name="word", kind="word")
    c.data = dict(sources=[train], pack=True)
    c.evals = dict(
        dev=dict(
            evaluator="mean",
            data=dict(sources=[dev]),
            objective=dict(targets="each"),
            every="10%",
        ),
        test=dict(
            evaluator="generation",
            data=dict(sources=[test], pack=False),
            metrics=("rouge1", "rouge2", "rougeL"),
            every="100%",
            beams=4,
            max_tokens=64,
        ),
    )
    c.checkpoint = dict(every="10%", keep_last=1, best="dev/loss", best_mode="min")
    c.log = dict(every=20)

    if arg.quick:
        c.batch_size = 4
        c.seq_len = 32
        c.objective.source_len = 64
        c.model.num_layers = 2
        c.model.d_model = 32
        c.model.d_ff = 64
        c.evals.test.update(max_tokens=8, beams=2)
        c.log.every = 5
    return c
