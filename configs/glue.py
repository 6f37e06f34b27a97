"""GLUE: sentences and pairs of sentences, fine-tuned task by task (Wang et al. 2019).

What:     an encoder with a head on its first token, as in Devlin et al. 2019, section
          4.1: batch 32, three epochs, a tenth of warm-up. STS-B is a regression.
Data:     the files of gluebenchmark.com in a folder, as they are; train= and dev= name
          others of the same columns, separated by + where there are several.
Command:  python -m lm.main --config=configs/glue.py:task=cola,dir=data/CoLA \
              --config.init.source=hf:all-MiniLM-L6-v2
          The predictions for the server, from its test.tsv:
          python -m lm.predict --workdir=runs/glue-... --input=data/CoLA/test.tsv \
              --columns=text=sentence --output=CoLA.tsv --format=glue
Sweep:    python -m lm.sweep with the flags of the first command: the learning rates of
          section 4.1 (BERT-base), and five seeds of each, which are ours. `quick`: two
          rates and seeds.
Arguments, joined by commas: task=cola|sst2|mrpc|stsb|qqp|mnli|qnli|rte|wnli,
          quick (a few steps on sentences of its own), dir=FOLDER, train=FILE, dev=FILE,
          preset=bert_mini (the shape of a run's encoder; hf: that of init.source),
          scratch (a new encoder with a tokenizer of its own).
Results:  configs/README.md
"""

import ml_collections

from lm.config import parse_arg

YES_NO = ("not_entailment", "entailment")
# task: (first column, second column or None, label's column, labels, metrics)
TASKS = {
    "cola": ("text", None, "label", ("0", "1"), ("matthews", "accuracy")),
    "sst2": ("sentence", None, "label", ("0", "1"), ("accuracy",)),
    "mrpc": ("#1 String", "#2 String", "Quality", ("0", "1"), ("f1", "accuracy")),
    "stsb": ("sentence1", "sentence2", "score", (), ("spearman", "pearson")),
    "qqp": ("question1", "question2", "is_duplicate", ("0", "1"), ("f1", "accuracy")),
    "mnli": (
        "sentence1",
        "sentence2",
        "gold_label",
        ("contradiction", "entailment", "neutral"),
        ("accuracy",),
    ),
    "qnli": ("question", "sentence", "label", YES_NO, ("accuracy",)),
    "rte": ("sentence1", "sentence2", "label", YES_NO, ("accuracy",)),
    "wnli": ("sentence1", "sentence2", "label", ("0", "1"), ("accuracy",)),
}
SENTENCES = (
    ("the dog sleeps near the river", "a dog is asleep by the river", 1),
    ("the old house is on the hill", "she likes red fish", 0),
    ("a bird finds a small tree", "a small tree is found by a bird", 1),
    ("he runs under the bridge", "the cat eats and sleeps", 0),
    ("they walked home in the rain", "in the rain they walked home", 1),
    ("the soup was cold and late", "two trains leave at noon", 0),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        quick=False,
        scratch=False,
        task=tuple(TASKS),
        dir="data/glue",
        train="",
        dev="",
        preset="bert_tiny",
    )
    first, second, column, labels, metrics = TASKS[arg.task]
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = "10 steps" if arg.quick else "3 epochs"
    c.batch_size = 4 if arg.quick else 32
    c.seq_len = {"cola": 64, "sst2": 64}.get(arg.task, 128)

    c.model = dict(name="transformer", preset=arg.preset, vocab_size=None)
    kind = dict(kind="regression", scale=5.0, between=(0.0, 5.0))
    if labels:
        kind = dict(classes=len(labels), labels=labels)
    pair = "pair" if second else None
    c.objective = dict(name="classification", pair=pair, **kind)
    c.optim = dict(
        name="adamw",
        lr=5e-5,
        schedule="linear",
        warmup="10%",
        weight_decay=0.01,
        clip=1.0,
    )
    # What a fine-tuned run starts with; the classifier and its pooler are new.
    c.init = dict(source=None, missing=("pooler/.*", "heads/classify/.*"))
    c.tokenizer = None
    if arg.scratch or arg.quick:
        size = 200 if arg.quick else 8192
        c.tokenizer = dict(name="hf", kind="wordpiece", vocab_size=size, lowercase=True)

    wanted = dict(text=first, label=column) | (dict(pair=second) if second else {})
    # CoLA's training and development files name no columns.
    form = dict(columns=wanted)
    if arg.task == "cola":
        form = dict(columns=("source", "label", "star", "text"), header=False)

    def source(names):
        files = tuple(f"{arg.dir}/{name}" for name in names.split("+"))
        return dict(name="tsv", files=files, **form)

    matched = "dev_matched.tsv" if arg.task == "mnli" else "dev.tsv"
    sets = dict(dev=source(arg.dev or matched))
    if arg.task == "mnli" and not arg.dev:
        sets["dev_mm"] = source("dev_mismatched.tsv")
    train = source(arg.train or "train.tsv")
    if arg.quick:
        names = labels or ("1.0", "4.5")
        records = [
            dict(text=text, pair=pair, label=names[label])
            for text, pair, label in SENTENCES
        ]
        train = dict(name="memory", items=records)
        sets = dict(dev=train)
        c.seq_len = 32
    # A few rows of QQP lack a column.
    c.data = dict(sources=[train], on_bad="skip", max_bad=0.001)
    c.evals = {
        name: dict(
            evaluator="predictions",
            metrics=metrics,
            data=dict(sources=[one]),
            every="1 epochs",
            write=True,
        )
        for name, one in sets.items()
    }
    best = f"dev/{metrics[0]}"
    c.checkpoint = dict(every="1 epochs", keep_last=1, best=best, best_mode="max")
    c.log = dict(every=2 if arg.quick else 20)
    return c


def sweep(add, arg: str) -> None:
    quick = "quick" in arg.split(",")
    for lr in (5e-5, 2e-5) if quick else (5e-5, 4e-5, 3e-5, 2e-5):
        for seed in range(2 if quick else 5):
            add({"optim.lr": lr}, seed=seed)
