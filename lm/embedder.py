"""Part: makes vectors of texts with any encoder, a run or a Hugging Face directory.

opened = open_run("runs/x")  # or "hf:DIR"
embedder = open_embedder(opened)
with opened.on_mesh():
    embedder.embed(["a text", "another"])  # (2, D) float32
"""

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from lm import ask, transfer
from lm import run as runs
from lm.config import resolve as configs
from lm.config.flags import UNEVALUATED
from lm.config.resolve import Config
from lm.data.sources.base import Record
from lm.errors import ConfigError
from lm.hf import adopting, checkpoint, source
from lm.models.base import check_can
from lm.objectives.contrastive import Objective
from lm.tokenizers.base import Codec
from lm.training import sharding, step
from lm.workdir import identity
from lm.workdir.checkpoint import Init, Which

Pooling = Literal["mean", "cls", "max", "last"]


@dataclasses.dataclass(frozen=True)
class Embedder:
    """An encoder, ready to be asked for vectors.

    Attributes:
      asker: asks it; its objective offers "embeddings" for single texts.
      dims: the first so many dimensions are given; None: all.
      normalize: whether vectors have length 1.
    """

    asker: ask.Asker
    dims: int | None
    normalize: bool

    def vectors(
        self, records: Iterable[Record]
    ) -> Iterator[tuple[Record, dict[str, Any]]]:
        """Yields each record with its `embedding` (D,) float32, in their order.

        Beside it stands `truncated`, how many tokens of the text did not fit.

        Raises:
          DataError: a text that the objective refuses.
          NumericalError: a vector of no numbers.
        """
        for record, (row,) in self.asker.asked(records):
            vector = row.predictions["embeddings"][0, : self.dims]
            if self.normalize:
                vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
            found = {"embedding": np.asarray(vector, np.float32)}
            yield record, found | {"truncated": int(row.row["cut"])}

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Returns the vector of each text, in the order given."""
        (column,) = self.asker.opened.corpus.objective.columns()
        records = (
            Record({column: text}, f"text {number}")
            for number, text in enumerate(texts, 1)
        )
        found = [answer["embedding"] for _, answer in self.vectors(records)]
        return np.stack(found) if found else np.zeros((0, self.width), np.float32)

    def with_params(self, params: Any) -> "Embedder":
        """Returns the same with other weights of the model."""
        opened = dataclasses.replace(self.asker.opened, params=params)
        return dataclasses.replace(
            self, asker=dataclasses.replace(self.asker, opened=opened)
        )

    @property
    def width(self) -> int:
        """The dimensions of a vector."""
        (column,) = self.asker.opened.corpus.objective.columns()
        shapes = self.asker.shapes(Record({column: "a"}, "a text"))
        width = shapes["embeddings"].shape[-1]
        return min(self.dims or width, width)


def config_of(place: str) -> Config:
    """Returns the config of a run, or that of a Hugging Face directory's model.

    Args:
      place: a workdir, or "hf:DIR" or "hf:org/model".

    Raises:
      ConfigError, CheckpointError: there is none.
    """
    if not source.is_hf(place):
        return configs.of_run(Path(place), UNEVALUATED)
    opened = checkpoint.open_checkpoint(checkpoint.directory_of(place))
    tree, _ = adopting.tree(opened, place, vectors=True)
    return configs.load(tree, [])


def objective_of(config: Config, pooling: Pooling | None = None) -> Any:
    """Returns the objective by which a run makes the vectors of single texts.

    It is the run's own where that offers "embeddings"; of any other run the vector is
    the mean of the states of a text's tokens.

    Args:
      pooling: replaces that of the objective.

    Raises:
      ConfigError: a model without hidden states, or one that reads more than a text.
    """
    objective = runs.open_objective(config)
    model = runs.open_model(config, objective)
    if "embeddings" not in objective.can:
        objective = Objective()
    changes: dict[str, Any] = {} if pooling is None else {"pooling": pooling}
    # A text that is left out would have no vector.
    if objective.too_long == "skip":
        changes["too_long"] = "cut"
    objective = dataclasses.replace(objective.unlabelled(), **changes)
    check_can(model, objective.needs, "lm.embed")
    if reads := sorted(model.reads - objective.gives):
        found = f"{config.model.name!r}, which reads {', '.join(reads)}"
        raise ConfigError("model.name", found, "one that reads one text, for lm.embed")
    return objective


def open_run(
    place: str,
    which: Which = "latest",
    *,
    config: Config | None = None,
    weights: Literal["averaged", "trained"] = "averaged",
    note: runs.Note = print,
) -> runs.Run:
    """Opens a run, or a Hugging Face directory as if it were one.

    Args:
      place: as for `config_of`.
      which: the checkpoint of a run, "latest", "best" or a step.
      config: what `config_of` returned.
      weights: those of a run, "averaged", where it keeps an average, or "trained".
      note: takes lines for the user.

    Raises:
      ConfigError, CheckpointError, DataError: it cannot be opened.
    """
    config = config or config_of(place)
    if not source.is_hf(place):
        return runs.open_run(
            Path(place), which, config=config, weights=weights, note=note
        )
    with tempfile.TemporaryDirectory() as folder:
        corpus = runs.open_corpus(config, Path(folder), note)
    program = runs.open_program(config, corpus)
    with jax.set_mesh(program.mesh):
        params, _ = transfer.load_params(Init(place), program.params)
    directory = checkpoint.directory_of(place)
    return runs.Run(config, directory, corpus, program, params, 0)


def open_embedder(
    opened: runs.Run,
    *,
    pooling: Pooling | None = None,
    dims: int | None = None,
    normalize: bool | None = None,
    batch_size: int = 32,
) -> Embedder:
    """Makes a run ready to be asked for vectors of texts.

    Args:
      pooling: how the states of a text become a vector; None is the objective's own,
        or the mean.
      dims: the first so many dimensions are given; None: all.
      normalize: whether vectors have length 1; None is the objective's own.
      batch_size: texts computed at a time.

    Raises:
      ConfigError: the model gives no vectors of texts, a batch does not divide over the
        mesh, or there are not so many dimensions.
    """
    objective = objective_of(opened.config, pooling)
    own = opened.corpus.objective
    if "embeddings" not in own.can:
        objective = dataclasses.replace(objective, wrap=_wrap(opened.corpus.codec))
    mesh = opened.program.mesh
    sharding.check_batch(batch_size, 1, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    if normalize is None:
        normalize = objective.normalize
    # Vectors are cut before they are normalised.
    objective = dataclasses.replace(objective, normalize=False)
    program = step.make(opened.program.model, objective)
    corpus = dataclasses.replace(opened.corpus, objective=objective)
    asker = ask.Asker(
        dataclasses.replace(opened, corpus=corpus),
        batch_size,
        jax.jit(program.predict, out_shardings=whole),
    )
    embedder = Embedder(asker, dims, normalize)
    if dims is not None and not 1 <= dims <= (width := embedder.width):
        raise ConfigError("dims", str(dims), f"from 1 to {width}, the model's own")
    return embedder


def _wrap(codec: Codec) -> str:
    """Returns `wrap` for a run whose objective does not say it."""
    if codec.cls_id is not None and codec.sep_id is not None:
        return "delimiters"
    return "none" if codec.bos_id is None else "bos"


def name_of(place: str) -> str | None:
    """Returns what tells a run from others: its id, or the path of a directory.

    Of a directory of Hugging Face the weights may change under the same path, which is
    not noticed, and the same directory has another name by another path.
    """
    if source.is_hf(place):
        return place
    own = identity.read(Path(place))
    return None if own is None else own.run
