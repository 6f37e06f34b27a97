"""Zero and few shots: the tasks of a folder, asked of a decoder as it is.

What:     multiple choice and cloze by log-likelihood (evaluator choices), answers that
          are generated (evaluator answers), with examples before a question; Brown et
          al. 2020. A task is data: NAME.json, the fields of its evaluator such as the
          template, beside NAME.jsonl, its questions (configs/tasks has four).
Data:     dir=FOLDER, with these files.
Command:  python -m lm.evaluate --workdir=runs/mine \
              --evals=configs/zero_shot.py:dir=my_tasks
          asks the decoder, or the encoder-decoder, of any run, without training. One of
          Hugging Face becomes a run before:
          python -m lm.convert --from=hf:gpt2 --workdir=runs/gpt2
          The questions with their prompts and answers are in runs/mine/samples.
Arguments, joined by commas: quick (a tiny decoder, a few steps), dir=FOLDER. Given to
          lm.main, it trains a tiny Llama on the built-in text and asks that.
Hardware: two cores, or one accelerator.
Results:  none yet
"""

from pathlib import Path

import ml_collections

from lm.config import parse_arg
from lm.config.tasks import read_tasks

TASKS = Path(__file__).parent / "tasks"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, quick=False, dir="")
    c = ml_collections.ConfigDict()
    c.job = "train"
    c.seed = 0
    c.steps = 10 if arg.quick else 1000
    c.batch_size = 4 if arg.quick else 16
    c.seq_len = 64 if arg.quick else 128

    c.tokenizer = dict(name="hf", kind="bpe", vocab_size=1000 if arg.quick else 2000)
    c.model = dict(name="transformer", preset="llama_tiny", vocab_size=None)
    if arg.quick:
        c.model.update(num_layers=2, d_model=64, d_ff=172)
    c.objective = dict(name="causal_lm")
    c.optim = dict(
        name="adamw", lr=1e-3, schedule="cosine", warmup="5%", weight_decay=0.1
    )

    c.data = dict(sources=[dict(name="builtin")], pack=True)
    unused = dict(sources=[dict(name="memory", items=[dict(text="no row is read")])])
    c.evals = {
        name: dict(task, data=unused, every="100%")
        for name, task in read_tasks(arg.dir or str(TASKS)).items()
    }
    c.checkpoint = dict(every="100%", keep_last=1)
    c.log = dict(every=2 if arg.quick else 20)
    return c
