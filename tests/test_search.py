"""lm.search: an index built once, what is found in it, and what is refused."""

import io
import json
import math
import types

import pytest

import lm
from lm import search
from lm.formats import trec
from lm.metrics import ranking
from tests import tiny

CORPUS = {
    "w1": "the flow over a wing",
    "w2": "heat flows in slabs",
    "w10": "wings of aircraft",
    "w9": "wings of aircraft",
}
QUERIES = {"q1": "flow", "q2": "aircraft wing", "q3": ""}
QRELS = {"q1": {"w2": 1}, "q2": {"w10": 2, "w1": 1, "w2": 0}}


@pytest.fixture
def place(tmp_path):
    """A folder with a corpus, queries, judgements and the index of the corpus."""
    for name, texts in (("corpus", CORPUS), ("queries", QUERIES)):
        rows = [json.dumps({"_id": id, "text": text}) for id, text in texts.items()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    (tmp_path / "qrels.tsv").write_text(trec.format_qrels(QRELS))
    assert command(tmp_path, f"--corpus={tmp_path}/corpus.jsonl") == 0
    return tmp_path


def command(place, *flags):
    return search.main([f"--index={place}/index", *flags])


def hits(out):
    """The ids of each row of the output."""
    rows = [json.loads(line) for line in out.splitlines()]
    return {row["id"]: [hit["id"] for hit in row["hits"]] for row in rows}


def test_queries_find_documents(place, capsys):
    assert command(place, f"--input={place}/queries.jsonl") == 0
    said = capsys.readouterr()
    # w9 and w10 are equal: the larger id, as a text, stands first.
    assert hits(said.out) == {"q1": ["w2", "w1"], "q2": ["w9", "w10", "w1"], "q3": []}
    assert "1 of 3 queries find nothing" in said.err
    assert command(place, "--query=flow", "--k=1", "--texts") == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    idf, norm = math.log(1 + 2.5 / 2.5), 1.2 * (0.25 + 0.75 * 3 / 2.5)
    (hit,) = row.pop("hits")
    assert row == {"id": "1", "query": "flow"} and hit["text"] == CORPUS["w2"]
    assert hit["id"] == "w2" and hit["score"] == pytest.approx(idf * 2.2 / (1 + norm))


def test_standard_input_and_files(place, capsys, monkeypatch):
    stdin = types.SimpleNamespace(
        isatty=lambda: False, buffer=io.BytesIO(b"slabs\n\nwing\n")
    )
    monkeypatch.setattr("sys.stdin", stdin)
    assert command(place, "--input=-", f"--output={place}/out.jsonl") == 0
    found = hits((place / "out.jsonl").read_text())
    assert found == {"1": ["w2"], "2": [], "3": ["w9", "w10", "w1"]}
    flags = (f"--input={place}/queries.jsonl", f"--output={place}/out.run")
    assert command(place, *flags, "--k=2") == 0
    run = trec.read_run(place / "out.run")
    assert {q: [*d] for q, d in run.items()} == {
        "q1": ["w2", "w1"],
        "q2": ["w9", "w10"],
    }
    assert capsys.readouterr().out == ""


def test_measures_of_a_search(place, capsys):
    flags = (f"--input={place}/queries.jsonl", f"--qrels={place}/qrels.tsv")
    assert command(place, *flags) == 0
    said = capsys.readouterr()
    shown = {line.split()[0]: line.split()[1] for line in said.err.splitlines()[1:]}
    # q1: rank 1 of one; q2: ranks 2 and 3 of two, gains 2 and 1.
    ndcg = (2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3))
    assert shown["ndcg@10"] == f"{(1 + ndcg) / 2:.4f}"
    assert shown["map"] == f"{(1 + (1 / 2 + 2 / 3) / 2) / 2:.4f}"
    assert shown["mrr"] == "0.7500" and said.out == ""


def test_hard_negatives_are_written(place, capsys):
    texts = [json.dumps({"_id": f"x{n}", "text": "wing " * 3}) for n in range(12)]
    corpus = (place / "corpus.jsonl").read_text() + "\n" + "\n".join(texts)
    (place / "more.jsonl").write_text(corpus)
    flags = (f"--input={place}/queries.jsonl", f"--qrels={place}/qrels.tsv")
    flags += (f"--corpus={place}/more.jsonl", f"--mine={place}/triples.jsonl")
    assert search.main([f"--index={place}/more", *flags, "--negatives=3"]) == 0
    rows = [json.loads(x) for x in (place / "triples.jsonl").read_text().splitlines()]
    # Two documents answer with both words and w1 with one; the negatives are the x, of
    # which 12 follow rank 1 and 2, and only w10 is better by more than 5 %.
    expected = {
        "text": QUERIES["q2"],
        "positive": CORPUS["w10"],
        "negative": "wing " * 3,
    }
    assert rows == [expected] * 3


def test_an_index_is_built_once(place, capsys):
    corpus = f"--corpus={place}/corpus.jsonl"
    before = (place / "index" / "MANIFEST.json").stat().st_mtime_ns
    assert command(place, corpus) == 0
    assert (place / "index" / "MANIFEST.json").stat().st_mtime_ns == before
    assert "is there" in capsys.readouterr().err
    assert command(place, corpus, "--stem=false") == 3
    assert "found an index with settings" in capsys.readouterr().err
    (place / "corpus.jsonl").write_text('{"_id": "w1", "text": "another"}')
    assert command(place, corpus) == 3
    assert "an index with corpus" in capsys.readouterr().err


def test_the_settings_of_words_are_those_of_the_index(place, capsys):
    flags = (f"--index={place}/plain", f"--corpus={place}/corpus.jsonl")
    assert search.main([*flags, "--stem=false", "--query=wing"]) == 0
    assert hits(capsys.readouterr().out) == {"1": ["w1"]}
    assert command(place, "--query=wing") == 0
    assert hits(capsys.readouterr().out) == {"1": ["w9", "w10", "w1"]}


@pytest.mark.parametrize(
    "flags, code, found",
    [
        ([], 2, "nothing to do"),
        (["--query=a", "--input=b"], 2, "--query and --input"),
        (["--query=a", "--k=0"], 2, "--k: found 0"),
        (["--query=a", "--stem=false"], 2, "--stem without --corpus"),
        (["--corpus=c", "--b=2"], 2, "--b: found 2"),
        (["--corpus=c", "--output=x.jsonl"], 2, "--output without queries"),
        (["--query=a", "--output=x.txt"], 2, "'x.txt'"),
        (["--query=a", "--qrels=q"], 2, "--qrels with --query"),
        (["--input=i", "--mine=m.jsonl"], 2, "--mine without --qrels"),
        (["--query=a", "--method=dense"], 2, "--method=dense without --workdir"),
        (["--corpus=c", "--method=bm25"], 2, "--method without queries"),
        (["--quary=a"], 2, "--query"),
        (["--corpus=none.jsonl"], 3, "none.jsonl: found no such file"),
        (["--input=none.tsv"], 3, "none.tsv: found no such file"),
    ],
)
def test_wrong_flags(flags, code, found, place, capsys):
    assert command(place, *flags) == code
    said = capsys.readouterr().err.splitlines()[-1]
    assert found in said and said.startswith("error[")


def test_damage_and_unknown_ids_have_their_exit_codes(place, capsys):
    queries = f"--input={place}/queries.jsonl"
    (place / "other.tsv").write_text(trec.format_qrels({"q1": {"w2": 1, "w77": 1}}))
    assert command(place, queries, f"--qrels={place}/other.tsv") == 3
    assert "1 unknown of 2 documents, such as 'w77'" in capsys.readouterr().err
    (place / "other.tsv").write_text(trec.format_qrels({"q9": {"w2": 1}}))
    assert command(place, queries, f"--qrels={place}/other.tsv") == 3
    assert "1 unknown of 1 queries, such as 'q9'" in capsys.readouterr().err
    torn = (place / "index" / "postings.npz").read_bytes()[:-9]
    (place / "index" / "postings.npz").write_bytes(torn)
    assert command(place, queries) == 4
    assert f"{place}/index/postings.npz" in capsys.readouterr().err
    assert search.main([f"--index={place}/none", queries]) == 4
    assert "no folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The run of an encoder of texts."""
    workdir = tmp_path_factory.mktemp("encoder")
    items = tiny.documents(8)
    config = tiny.config(
        steps=2,
        objective={"name": "contrastive", "texts": ("text", "text")},
        data={"sources": [{"name": "memory", "items": items}], "pack": False},
        evals={},
        checkpoint={"every": 1, "keep_last": 2},
    )
    assert tiny.run(config, workdir) == 0
    return workdir


@pytest.mark.slow
def test_an_index_with_vectors(place, workdir, capsys):
    flags = (f"--workdir={workdir}", "--batch-size=2", f"--index={place}/dense")
    queries = f"--input={place}/queries.jsonl"
    with tiny.some_devices(tiny.config()):
        assert search.main([*flags, f"--corpus={place}/corpus.jsonl"]) == 0
        assert search.main([*flags, queries, "--method=dense"]) == 0
        found = hits(capsys.readouterr().out)
        vectors = lm.open(workdir).embed([*CORPUS.values(), QUERIES["q2"]])
        scores = dict(zip(CORPUS, (vectors[:4] @ vectors[4]).tolist()))
        assert found["q2"] == ranking.ranked(scores) and found["q3"] == []
        assert search.main([*flags, queries]) == 0
        fused = hits(capsys.readouterr().out)
        assert len(fused["q2"]) == 4 and fused != found
        # Another step or another run is refused, and words need neither.
        assert search.main([*flags, queries, "--checkpoint=1"]) == 4
        assert "vectors made with step 2" in capsys.readouterr().err
        (place / "other").mkdir()
        for name in ("config.json", "tokenizer", "checkpoints"):
            (place / "other" / name).symlink_to(workdir / name)
        (place / "other" / "run.json").write_text('{"before": [], "run": "another"}')
        other = [f"--workdir={place}/other", f"--index={place}/dense"]
        assert search.main([*other, queries]) == 4
        assert "vectors made with run" in capsys.readouterr().err
        assert command(place, f"--workdir={workdir}", queries) == 2
        assert "an index without vectors" in capsys.readouterr().err
    assert search.main([f"--index={place}/dense", queries]) == 0
    assert hits(capsys.readouterr().out)["q1"] == ["w2", "w1"]
