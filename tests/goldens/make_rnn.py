"""Makes the reference outputs of recurrent networks with `torch.nn`: tiny and random.

python tests/goldens/make_rnn.py     (development only: needs PyTorch)

`rnn.npz` has for each cell of lm.ops.recurrence the weights of two layers, named as
torch names them, the states of the last layer after each token, and those of both
layers after the last. Made with PyTorch 2.13.0.
"""

from pathlib import Path

import numpy as np
import torch

WORDS, UNITS, ROWS, LENGTH = 24, 8, 3, 11
CELLS = {
    "lstm": (torch.nn.LSTM, {}),
    "gru": (torch.nn.GRU, {}),
    "elman": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "elman_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
}


def main() -> None:
    torch.manual_seed(0)
    table = torch.randn(WORDS, UNITS)
    tokens = torch.randint(WORDS, (ROWS, LENGTH))
    found = {"table": table.numpy(), "tokens": tokens.numpy().astype(np.int32)}
    for name, (cls, options) in CELLS.items():
        network = cls(UNITS, UNITS, 2, batch_first=True, **options)
        with torch.no_grad():
            for weight in network.parameters():
                weight.uniform_(-0.6, 0.6)
            states, last = network(table[tokens])
        parts = {"h": last[0], "c": last[1]} if name == "lstm" else {"h": last}
        found |= {f"{name}/{k}": v.numpy() for k, v in network.state_dict().items()}
        found |= {f"{name}/last/{k}": v.numpy() for k, v in parts.items()}
        found[f"{name}/states"] = states.numpy()
    np.savez_compressed(Path(__file__).parent / "rnn.npz", **found)


if __name__ == "__main__":
    main()
