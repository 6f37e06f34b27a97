"""Loads an export with `transformers`, and prints what it finds, as JSON.

python tests/goldens/load.py DIRECTORY [INPUTS.npz OUTPUTS.npz]

The tests call it with a Python that has PyTorch ($LM_TRANSFORMERS_PYTHON).
"""

import json
import sys

import numpy as np
import torch
import transformers

TEXTS = ["The bird, a cat.", "sees  the dogs", "", "naïve [SEP] </s> 北京"]


def main(directory: str, inputs: str = "", outputs: str = "") -> None:
    config = transformers.AutoConfig.from_pretrained(directory)
    cls = getattr(transformers, config.architectures[0])
    model, info = cls.from_pretrained(directory, output_loading_info=True)
    found = {key: sorted(map(str, info[key])) for key in info}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        found["ids"] = tokenizer(TEXTS)["input_ids"]
        found["plain"] = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    except (OSError, ValueError) as error:
        found["tokenizer"] = str(error)
    if inputs:
        given = np.load(inputs)
        names = ("input_ids", "attention_mask", "token_type_ids")
        names += tuple(f"decoder_{name}" for name in names[:2])
        batch = {n: torch.tensor(given[n]) for n in names if n in given}
        with torch.no_grad():
            out = model.eval()(**batch)
        names = (n for n in out if "logits" in n or n == "last_hidden_state")
        kept = {name: out[name].numpy() for name in names}
        np.savez(outputs, **kept)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
