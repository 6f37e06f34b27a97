"""Folders of sentence-transformers: read, written, and read by the library itself."""

import json
import os
import subprocess

import numpy as np
import pytest

import lm
from lm import convert, embedder
from lm.errors import CheckpointError
from lm.hf import adopting, checkpoint, sentences
from tests.hf import folders

TEXTS = ["a dog.", "the old cat, and a bird!", "dog"]
PEER = os.environ.get("LM_SENTENCE_TRANSFORMERS_PYTHON")
ENCODE = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
print(json.dumps(model.encode(json.loads(sys.argv[2])).tolist()))
"""


def folder(place, pooling="mean", normalize=True, similarity="cosine"):
    """A directory as the library has it, of a random BERT with a tiny vocabulary."""
    folders.bert(place)
    objective = {"pooling": pooling, "normalize": normalize, "similarity": similarity}
    objective["wrap"] = "delimiters"
    sentences.write(place, objective, width=24, length=10)
    return place


@pytest.mark.parametrize("pooling", sentences.POOLING)
def test_what_is_written_is_read(tmp_path, pooling):
    place = folder(tmp_path / "m", pooling, pooling == "mean", "dot")
    found, length = sentences.read(place)
    wanted = {"pooling": pooling, "normalize": pooling == "mean", "similarity": "dot"}
    assert found == {"name": "contrastive", **wanted} and length == 10
    tree, _ = adopting.tree(checkpoint.open_checkpoint(place), f"hf:{place}")
    assert tree["objective"] == found and tree["seq_len"] == 10


def test_the_form_of_version_6_is_read(tmp_path):
    place = folder(tmp_path / "m")
    file = place / "1_Pooling/config.json"
    for word, wanted in (("cls", "cls"), ("lasttoken", "last"), ("max", "max")):
        file.write_text(json.dumps({"embedding_dimension": 16, "pooling_mode": word}))
        assert sentences.read(place)[0]["pooling"] == wanted


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("modules.json", []),
        ("modules.json", {"idx": 0}),
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.WordEmbeddings"}]),
        (
            "modules.json",
            [{"type": "Transformer"}, {"type": "Pooling", "path": "../x"}],
        ),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}),
        ("1_Pooling/config.json", {}),
        ("sentence_bert_config.json", {"max_seq_length": "long"}),
        ("config_sentence_transformers.json", {"similarity_fn_name": "manhattan"}),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, file, content):
    place = folder(tmp_path / "m")
    (place / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        sentences.read(place)
    assert "\n" not in caught.value.line()


@pytest.mark.slow
def test_a_folder_a_run_and_an_export_give_the_same_vectors(tmp_path):
    place, run, out = folder(tmp_path / "m"), tmp_path / "run", tmp_path / "out"
    assert convert.main([f"--from=hf:{place}", f"--workdir={run}"]) == 0
    assert convert.main([f"--to=hf:{out}", f"--workdir={run}"]) == 0
    for name in ("modules.json", "1_Pooling/config.json"):
        assert json.loads((out / name).read_text()) == json.loads(
            (place / name).read_text()
        )
    found = lm.open(run).embed(TEXTS)
    for given in (f"hf:{place}", f"hf:{out}"):
        opened = embedder.open_run(given, note=lambda line: None)
        with opened.on_mesh():
            theirs = embedder.open_embedder(opened).embed(TEXTS)
        np.testing.assert_allclose(theirs, found, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not PEER, reason="LM_SENTENCE_TRANSFORMERS_PYTHON names no Python")
@pytest.mark.parametrize("pooling", sentences.POOLING)
def test_the_library_gives_the_same_vectors(tmp_path, pooling):
    """Of texts that are cut, too."""
    place, run, out = (
        folder(tmp_path / "m", pooling),
        tmp_path / "run",
        tmp_path / "out",
    )
    assert convert.main([f"--from=hf:{place}", f"--workdir={run}"]) == 0
    assert convert.main([f"--to=hf:{out}", f"--workdir={run}"]) == 0
    command = [PEER, "-c", ENCODE, str(out), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = np.array(json.loads(done.stdout.splitlines()[-1]))
    np.testing.assert_allclose(lm.open(run).embed(TEXTS), wanted, atol=2e-6)
