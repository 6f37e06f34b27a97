"""The shape of a new run's model, taken from what it starts from."""

import json

from lm.config import resolve as configs
from lm.hf import source
from tests import tiny


def test_a_preset_of_none_takes_the_shape_of_another_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    theirs = tiny.config(model__d_ff=48)
    (run / "config.json").write_text(json.dumps(configs.plain(theirs, "config")))
    fill = source.with_shape(tmp_path / "new")

    def model(**fields):
        init = {"source": str(run)}
        return fill({"model": fields, "init": init})["model"]

    own = {"name": "transformer", "dropout": 0.25}
    shape = dict(theirs.model)
    assert model(preset=None, **own) == shape | {"dropout": 0.25}
    assert model(**own) == own
    assert model(preset="bert_mini", **own) == own | {"preset": "bert_mini"}
    other = {"name": "rnn", "preset": None}
    assert model(**other) == other
