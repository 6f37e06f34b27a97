"""What the vectors of words know: answers to analogies, and nearest neighbours."""

import numpy as np
from jaxtyping import Float, Int

SMALL = 1e-3  # the epsilon of 3CosMul


def normalised(vectors: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Divides vectors by their lengths; a vector of zeros stays as it is."""
    sizes = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(sizes > 0, sizes, 1)


def solve(
    questions: Int[np.ndarray, "Q 3"],
    vectors: Float[np.ndarray, "V D"],
    chunk: int = 256,
) -> tuple[Int[np.ndarray, "Q"], Int[np.ndarray, "Q"]]:
    """Answers "a is to b as c is to ?" by 3CosAdd and by 3CosMul.

    3CosAdd (Mikolov et al. 2013) takes the word with the largest cos(d, b) - cos(d, a)
    + cos(d, c); 3CosMul (Levy and Goldberg 2014) that with the largest product of the
    cosines with b and c, over the cosine with a, each moved to [0, 1]. a, b and c
    themselves are no answer.

    Args:
      questions: a, b and c as rows of `vectors`, which have length 1.
      chunk: questions computed at a time.

    Returns:
      The row of the answer to each question, by both.
    """
    added: list[np.ndarray] = []
    multiplied: list[np.ndarray] = []
    for start in range(0, len(questions), chunk):
        asked = questions[start : start + chunk]
        a, b, c = (vectors[asked[:, k]] @ vectors.T for k in range(3))
        total = b - a + c
        product = (b + 1) * (c + 1) / (a + 1 + 2 * SMALL)
        for scores, found in ((total, added), (product, multiplied)):
            np.put_along_axis(scores, asked, -np.inf, axis=1)
            found.append(scores.argmax(axis=1))
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *added]), np.concatenate([none, *multiplied])


def nearest(
    words: Int[np.ndarray, "W"], vectors: Float[np.ndarray, "V D"], count: int
) -> tuple[Int[np.ndarray, "W k"], Float[np.ndarray, "W k"]]:
    """Finds the `count` rows nearest to each word by cosine, and the cosines.

    Args:
      vectors: of length 1.
    """
    scores = vectors[words] @ vectors.T
    np.put_along_axis(scores, words[:, None], -np.inf, axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return best, np.take_along_axis(scores, best, axis=1)
