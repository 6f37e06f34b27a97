"""Every kind of language model in JAX: the Python face, which loads nothing early.

    import lm

    run = lm.train("configs/llama_tiny.py:quick", "runs/first")
    run.evaluate()  # {"heldout/loss": ...}
    run.generate(["The value of"], max_tokens=20)  # ["..."]
    run.predict(["a clever film"])  # [{"label": "good", ...}], of a classifier
    run.score(["The value of a list"])  # [{"log_prob": ..., "perplexity": ...}]
    run.embed(["a clever film"])  # (1, D) float32, of any encoder

    run = lm.open("runs/first", "best")  # a run that any command has made

Works in a script, in a notebook (where an event loop is running) and in a thread. The
same as commands: `python -m lm --help`.
"""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["Run", "open", "train"]
__version__ = "0.2.0"

TYPE_CHECKING = False  # that of `typing`, whose import alone would take as long as this
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any, Literal

    from lm.config import schema
    from lm.config.resolve import Config
    from lm.workdir.checkpoint import Which


class Run:
    """A run's model with the weights of one checkpoint, ready to be asked.

    Made by `lm.open` and `lm.train`.

    Attributes:
      workdir: where the run lives.
      config: the run's config, complete; its keys are attributes too.
      step: the step of the checkpoint.
    """

    workdir: Path
    config: Config
    step: int

    def __init__(self, workdir: str | Path, which: Which = "latest"):
        from pathlib import Path

        from lm.config import resolve
        from lm.host import process

        self.workdir = Path(workdir)
        config = resolve.of_run(self.workdir)
        process.platform_setup()

        from lm import run

        opened = run.open_run(self.workdir, which, config=config, note=_note)
        self._opened = opened
        self.config, self.step = opened.config, opened.step
        self._corpus, self._program = opened.corpus, opened.program
        self._params = opened.params

    def __repr__(self) -> str:
        return f"lm.open({str(self.workdir)!r}, {self.step})"

    def evaluate(self, *names: str) -> dict[str, float]:
        """Runs the evaluations of the run's config on this checkpoint.

        Args:
          names: which of `config.evals`; all of them where none is named.

        Returns:
          `{"<evaluation>/<metric>": value}`.

        Raises:
          lm.errors.Refusal: no such evaluation; data that are missing or damaged.
        """
        import jax

        from lm import evaluations
        from lm.config import resolve

        for name in names:
            if name not in self.config.evals:
                raise resolve.no_such("evaluate", name, self.config.evals)
        evals = {name: self.config.evals[name] for name in names or self.config.evals}
        config = resolve.Config(self.config | {"evals": resolve.Config(evals)})
        opened = evaluations.open_evaluators(
            config, self.workdir, self._corpus, self._program
        )
        found: dict[str, float] = {}
        with jax.set_mesh(self._program.mesh):
            for evaluate in opened.values():
                found |= evaluate(self._params, self.step)
        return found

    def generate(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 8,
        stop: Sequence[str] = (),
        truncate: bool = False,
        **settings: Any,
    ) -> list[str]:
        """Continues each text, or answers it with an encoder-decoder.

        Args:
          texts: the prompts.
          batch_size: how many are answered at a time.
          stop: texts before the first of which an answer ends; () takes those of the
            generation_config.json of an imported run.
          truncate: cut a prompt that is longer than the context rather than refuse it.
          settings: fields of `lm.decoding.loop.Settings`, such as `max_tokens=20` and
            `temperature=0.8`. Where one is left out, the generation_config.json of an
            imported run decides, and else the default of `Settings`, which is greedy.

        Returns:
          For each text its answer, of a beam search the best one.

        Raises:
          lm.errors.Refusal: a model that generates no text, an empty or too long
            prompt, a setting that is unknown or out of bounds.
        """
        found = self.search(
            texts, batch_size=batch_size, stop=stop, truncate=truncate, **settings
        )
        return [answers[0][0] for answers in found]

    def score(
        self,
        texts: Sequence[str | Mapping[str, str]],
        *,
        per_token: bool = False,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Gives the log-probability of each text in nats, and figures derived from it.

        Args:
          texts: each a text, or {"context": ..., "continuation": ...}; of an
            encoder-decoder {"source": ..., "target": ...}.
          per_token: whether to add `token_texts` and `token_log_probs`.
          settings: fields of `lm.data.scoring.Settings`, such as `end=True`.

        Returns:
          For each text `log_prob`, `tokens`, `bytes`, `perplexity`, `bits_per_byte`,
          `unknown`, `greedy`, `measure` and others, as rows of `python -m lm.score`.

        Raises:
          lm.errors.Refusal: a model that scores no text, a text that it cannot read, a
            setting that is unknown or out of bounds.
        """
        import jax

        from lm import run
        from lm.data.scoring import Settings
        from lm.evaluators.likelihood import text_of

        chosen = Settings(**_checked("score", settings))
        texts = [texts] if isinstance(texts, str) else texts
        objective = self._corpus.objective
        asked = [
            text_of(
                {"text": t} if isinstance(t, str) else dict(t), f"text {n}", objective
            )
            for n, t in enumerate(texts)
        ]
        with jax.set_mesh(self._program.mesh):
            scorer = run.make_scorer(self._corpus, self._program, self._params)
            return scorer.figures(asked, chosen, per_token=per_token)

    def search(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 8,
        stop: Sequence[str] = (),
        truncate: bool = False,
        **settings: Any,
    ) -> list[list[tuple[str, float | None]]]:
        """Gives the `n_best` answers to each text with their scores, the best first.

        A score is the log-probability divided by the penalty of the length, None
        without a beam search (`beams=1`). The rest is as in `generate`.
        """
        import jax

        from lm import run
        from lm.decoding import loop
        from lm.decoding.text import TextGenerator, with_max_length
        from lm.hf import generation

        if isinstance(texts, str):
            texts = [texts]
        rows = max(1, min(batch_size, len(texts)))
        defaults = generation.defaults(
            self.workdir / "tokenizer",
            _fields("generate"),
            _checked("generate", settings),
        )
        for line in defaults.notes:
            _note(line)
        chosen = loop.Settings(**defaults.settings)
        with jax.set_mesh(self._program.mesh):
            if not hasattr(self, "_decoder"):
                empty = run.make_decoder(self._corpus, self._program)
                self._decoder = loop.with_params(empty, self._params)
            objective, codec = self._corpus.objective, self._corpus.codec
            prompts = [objective.prompt(codec, text) for text in texts]
            model, limit = self._decoder.model, defaults.max_length
            chosen = with_max_length(chosen, model, prompts, limit)
            stops = tuple(stop or defaults.stop)
            generator = TextGenerator(self._decoder, chosen, stops, rows)
            ids = [
                generator.fit_prompt(prompt, f"text {n}", truncate=truncate)
                for n, prompt in enumerate(prompts)
            ]
            draws = loop.draws_of(ids)
            batches = (slice(n, n + rows) for n in range(0, len(ids), rows))
            return [a for b in batches for a in generator.answers(ids[b], draws[b])]

    def predict(
        self,
        texts: Sequence[str | Mapping[str, Any]],
        *,
        what: str | None = None,
        batch_size: int = 32,
    ) -> list[dict[str, Any]]:
        """Predicts for each text what the objective says of it, such as its class.

        Args:
          texts: each a text, or its columns by name, such as question and context.
          what: as `--what` of `python -m lm.predict`, such as "labels" or "logits"; by
            default the first that the objective offers.
          batch_size: how many are computed at a time.

        Returns:
          For each text its prediction, in the order given: of a classifier `label` and
          `probabilities`, by the names of the classes. `truncated` counts the tokens
          that did not fit.

        Raises:
          lm.errors.Refusal: an objective that predicts nothing for a text, no such
            `what`, a text without one of the columns or that does not fit.
        """
        import jax

        from lm import ask, records, run
        from lm.data import inputs

        if isinstance(texts, str):
            texts = [texts]
        run.check(self.config, {"answers"}, "predict")
        columns = self._corpus.objective.columns()
        fields = ask.fields_of(self._corpus.objective, what, "what")
        items = [
            (f"text {n}", {columns[0]: text} if isinstance(text, str) else text)
            for n, text in enumerate(texts, 1)
        ]
        asker = ask.open_asker(self._opened, batch_size)
        given = inputs.Given(items=tuple(items)).read()
        with jax.set_mesh(self._program.mesh):
            found = asker.answers(records.good(given))
            return [{name: answer[name] for name in fields} for _, answer in found]

    def embed(
        self,
        texts: Sequence[str],
        *,
        pooling: Literal["mean", "cls", "max", "last"] | None = None,
        dims: int | None = None,
        normalize: bool | None = None,
        batch_size: int = 32,
    ) -> Any:
        """Gives the vector of each text.

        Args:
          texts: those longer than `config.seq_len` are cut.
          pooling: the vector of a text, from the states of its tokens: their mean or
            largest values, or the first or last of them. None is as the run was
            trained by objective contrastive, and the mean of any other run.
          dims: the first so many dimensions are given; None: all.
          normalize: whether vectors have length 1; None is as the run was trained, and
            true of any other run.
          batch_size: how many are computed at a time.

        Returns:
          The vectors in the order given, (texts, D) float32 numpy.

        Raises:
          lm.errors.Refusal: a model without hidden states of a text by itself, a
            setting that does not fit.
        """
        from lm import embedder

        made = embedder.open_embedder(
            self._opened,
            pooling=pooling,
            dims=dims,
            normalize=normalize,
            batch_size=batch_size,
        )
        with self._opened.on_mesh():
            return made.embed([texts] if isinstance(texts, str) else texts)


def open(workdir: str | Path, which: Which = "latest") -> Run:
    """Opens a run that any command has made, with the weights of one checkpoint.

    Args:
      workdir: the folder of the run.
      which: "latest", "best" or the number of a step.

    Raises:
      lm.errors.Refusal: no run or no such checkpoint there, or a damaged one.
    """
    return Run(workdir, which)


def _train(
    config: str | Mapping[str, Any],
    workdir: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    strict: bool = False,
    allow_change: Sequence[str] = (),
) -> Run:
    """Trains as `python -m lm.main` does, or continues the run that is in `workdir`.

    Args:
      config: `FILE[:ARG]`, or what such a file's `get_config` returns.
      workdir: where the run lives; `runs/<config name>[-<arg>]` where it is left out.
      overrides: fields by dotted path, as in `{"optim.lr": 1e-4}`.
      strict: refuse a damaged checkpoint rather than use the one before.
      allow_change: frozen fields that may differ from the run that is continued.

    Returns:
      The run at its last step.

    Raises:
      lm.errors.Refusal: what the command would refuse, with its exit code.
      KeyboardInterrupt: Ctrl-C or a notebook's interrupt; the run is saved.
      SystemExit: SIGTERM; the run is saved.
    """
    from pathlib import Path

    from lm import main
    from lm.config import resolve
    from lm.errors import ConfigError

    if not isinstance(config, str) and workdir is None:
        raise ConfigError("workdir", "None", "a folder, since the config is no file")
    place = Path(resolve.default_workdir(str(config)) if workdir is None else workdir)
    code = main.start(
        config, overrides or {}, place, strict=strict, allow_change=tuple(allow_change)
    )
    if code == main.process.INTERRUPTED:
        raise KeyboardInterrupt(f"saved in {place}; the same call continues")
    if code:
        raise SystemExit(code)
    return open(place)


SETTINGS = {"generate": "decoding/loop.py", "score": "data/scoring.py"}


def _fields(method: str) -> dict[str, schema.Field]:
    """Returns by name the fields of the `Settings` of a method."""
    from pathlib import Path

    from lm.config import schema

    place = Path(__file__).parent
    return schema.read_class(place / SETTINGS[method], "Settings", place)


def _checked(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the given fields of a method's Settings, in their types and bounds."""
    from lm.config import schema

    fields = _fields(method)
    for name in settings:
        if name not in fields:
            raise schema.no_such(method, name, fields)
    return {name: schema.check(fields[name], settings[name], name) for name in settings}


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ── `lm.train` is a function to its callers and a module to Python ──────────────────
# Python sets `lm.train` to the module of lm/train.py as soon as anything imports that
# file; so the module itself is made callable when it is set.


class _CallableModule(ModuleType):
    __call__ = staticmethod(_train)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train" and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if TYPE_CHECKING:
    train = _train
else:

    def __getattr__(name: str) -> Any:
        if name != "train":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return importlib.import_module("lm.train")
