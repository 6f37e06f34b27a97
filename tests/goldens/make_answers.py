"""Writes answers.json: answers of `transformers` with tests/hf/decoders.py's models.

python tests/goldens/make_answers.py DATA     (development only: needs PyTorch)

DATA holds vocab_gpt2/ and vocab_mistral_v1/. For each case: the ids of the prompts and
of a dialogue as the library's tokenizer gives them, and those of the answers, with the
settings of the directory's generation_config.json. Made with transformers 5.24.0.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.hf import decoders  # noqa: E402


def answers(place: Path) -> dict:
    """Returns the library's ids for a directory."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    model = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    found: dict = {"prompts": [], "answers": []}
    for prompt in decoders.PROMPTS:
        given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            said = model.generate(**given)[0].tolist()
        ids = given["input_ids"][0].tolist()
        found["prompts"].append(ids)
        found["answers"].append(said[len(ids) :])
    if tokenizer.chat_template:
        found["chat"] = tokenizer.apply_chat_template(
            list(decoders.TURNS), add_generation_prompt=True, return_dict=False
        )
    return found


def main(data: str) -> None:
    found = {}
    for case in decoders.CASES:
        with tempfile.TemporaryDirectory() as folder:
            place = decoders.make(case, Path(folder) / case, Path(data))
            found[case] = answers(place)
            print(case, found[case])
    text = json.dumps(found, separators=(",", ":")) + "\n"
    (Path(__file__).parent / "answers.json").write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
