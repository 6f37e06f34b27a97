"""Extractive question answering (SQuAD 1.1 and 2.0), an encoder fine-tuned.

What:     an encoder with two outputs at each token, the start and the end of the answer
          (Devlin et al. 2019, sections 4.2 and 4.3): batch 32, two epochs. Contexts
          that do not fit a row are read in windows 128 tokens apart.
Data:     train-v1.1.json and dev-v1.1.json in a folder (rajpurkar.github.io/SQuAD-
          explorer), or, with v2, those of 2.0, in which questions may have no answer;
          train= and dev= name other files of this form, also .gz.
Command:  python -m lm.main --config=configs/squad.py:dir=data/squad,preset=hf \
              --config.init.source=hf:data/minilm
          Questions of your own, in a table with the columns question and context:
          python -m lm.predict --workdir=runs/squad-... --input=questions.tsv
Arguments, joined by commas: quick (a few steps on questions of its own), dir=FOLDER,
          train=FILE, dev=FILE, v2, preset=bert_mini (the shape of the run in
          init.source; hf: that of init.source=hf:DIR), scratch (a new encoder and a
          tokenizer of its own).
Results:  none yet
"""

import ml_collections

from lm.config import parse_arg

CONTEXT = (
    "The river rises in the old hills and runs for 90 miles to Port Alma, where a "
    "stone bridge was built in 1821."
)
QUESTIONS = (
    ("How long is the river?", "90 miles"),
    ("Where does the river rise?", "the old hills"),
    ("Where does the river end?", "Port Alma"),
    ("When was the bridge built?", "1821"),
    ("What was built in 1821?", "a stone bridge"),
    ("Who built the bridge?", ""),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        quick=False,
        scratch=False,
        v2=False,
        dir="data/squad",
        train="",
        dev="",
        preset="bert_tiny",
    )
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "2 epochs"
    c.batch_size = 4 if arg.quick else 32
    c.seq_len = 48 if arg.quick else 384

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    c.objective = dict(name="span_qa", question_len=64, stride=128)
    if arg.v2 or arg.quick:
        c.objective.null_threshold = 0.0
    c.optim = dict(
        name="adamw",
        lr=5e-5,
        schedule="linear",
        warmup="10%",
        weight_decay=0.01,
        clip=1.0,
    )
    # What a fine-tuned run starts with; the head is new, unless it has one.
    c.init = dict(source=None, missing=("heads/span/.*",))
    c.tokenizer = None
    if arg.scratch or arg.quick:
        size = 200 if arg.quick else 8192
        c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=size, lowercase=True)

    version = "2.0" if arg.v2 else "1.1"
    names = (arg.train or f"train-v{version}.json", arg.dev or f"dev-v{version}.json")
    train, dev = (dict(name="squad", files=f"{arg.dir}/{name}") for name in names)
    if arg.quick:
        items = [
            dict(
                id=f"q{n}",
                question=question,
                context=CONTEXT,
                answers=answer,
                starts=CONTEXT.index(answer),
            )
            for n, (question, answer) in enumerate(QUESTIONS)
        ]
        train = dev = dict(name="memory", items=items)
        c.objective.update(question_len=16, stride=8)
    c.data = dict(sources=[train])
    sources = dict(sources=[dev])
    c.evals = dict(
        dev=dict(evaluator="squad", data=sources, every="1 epochs", write=True),
        dev_loss=dict(evaluator="mean", data=sources, every="1 epochs"),
    )
    c.checkpoint = dict(every="1 epochs", keep_last=1, best="dev/f1", best_mode="max")
    c.log = dict(every=2 if arg.quick else 20)
    return c
