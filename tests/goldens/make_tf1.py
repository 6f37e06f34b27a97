"""Makes tf1_bert/ with TensorFlow: a tiny BERT as google-research/bert wrote it.

python tests/goldens/make_tf1.py     (development only; TensorFlow 2.21 was used)

Besides the variables, `bert_model.npz` holds the same values as NumPy arrays.
"""

import os
from pathlib import Path

import numpy as np
import tensorflow as tf

PLACE = Path(__file__).parent / "tf1_bert"
LAYERS, D, F, V, T = 2, 8, 12, 17, 10


def shapes() -> dict[str, tuple[int, ...]]:
    def dense(name: str, inputs: int, outputs: int) -> dict:
        return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}

    def norm(name: str) -> dict:
        return {f"{name}/LayerNorm/gamma": (D,), f"{name}/LayerNorm/beta": (D,)}

    found = {
        "bert/embeddings/word_embeddings": (V, D),
        "bert/embeddings/position_embeddings": (T, D),
        "bert/embeddings/token_type_embeddings": (2, D),
        **norm("bert/embeddings"),
        **dense("bert/pooler/dense", D, D),
        **dense("cls/predictions/transform/dense", D, D),
        **norm("cls/predictions/transform"),
        "cls/predictions/output_bias": (V,),
        "cls/seq_relationship/output_weights": (2, D),
        "cls/seq_relationship/output_bias": (2,),
    }
    for i in range(LAYERS):
        layer = f"bert/encoder/layer_{i}"
        for part in ("query", "key", "value"):
            found |= dense(f"{layer}/attention/self/{part}", D, D)
        found |= dense(f"{layer}/attention/output/dense", D, D)
        found |= norm(f"{layer}/attention/output")
        found |= dense(f"{layer}/intermediate/dense", D, F)
        found |= dense(f"{layer}/output/dense", F, D) | norm(f"{layer}/output")
    return found


def main() -> None:
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes().items()
    }
    PLACE.mkdir(exist_ok=True)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = [
            tf.compat.v1.get_variable(name, initializer=value)
            for name, value in values.items()
        ]
        kernel = next(
            v for v in made if v.op.name.endswith("layer_0/output/dense/bias")
        )
        made.append(tf.compat.v1.get_variable(f"{kernel.op.name}/adam_m", (D,)))
        made.append(tf.compat.v1.get_variable("global_step", initializer=np.int64(7)))
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(made)
        saver.save(session, str(PLACE / "bert_model.ckpt"), write_meta_graph=False)
    os.remove(PLACE / "checkpoint")
    np.savez_compressed(PLACE / "bert_model.npz", **values)


if __name__ == "__main__":
    main()
