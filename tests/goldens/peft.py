"""Loads an adapter with PEFT, or makes one of random numbers, and saves its logits.

python tests/goldens/peft.py load|make BASE ADAPTER INPUTS.npz OUTPUTS.npz

The tests call it with a Python that has PyTorch ($LM_TRANSFORMERS_PYTHON) and PEFT.
"""

import json
import sys

sys.path.pop(0)  # This folder, in which this file has the name of the library.

import numpy as np
import peft
import torch
import transformers


def main(what: str, base: str, place: str, inputs: str, outputs: str) -> None:
    name = transformers.AutoConfig.from_pretrained(base).architectures[0]
    model = getattr(transformers, name).from_pretrained(base)
    found: dict[str, list[str]] = {"missing": [], "unexpected": []}
    if what == "load":
        config = peft.PeftConfig.from_pretrained(place)
        model = peft.get_peft_model(model, config)
        tensors = peft.utils.load_peft_weights(place, device="cpu")
        result = peft.set_peft_model_state_dict(model, tensors)
        missing = (n for n in result.missing_keys if "lora_" in n or "to_save" in n)
        found = {"missing": [*missing], "unexpected": [*result.unexpected_keys]}
    else:
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=4,
            lora_alpha=3,
            use_rslora=True,
            target_modules="all-linear",
            init_lora_weights=False,
        )
        torch.manual_seed(0)
        model = peft.get_peft_model(model, config)
        model.save_pretrained(place)
    given = np.load(inputs)
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch = {n: torch.tensor(given[n]) for n in names if n in given}
    with torch.no_grad():
        np.savez(outputs, logits=model.eval()(**batch).logits.numpy())
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
