"""G1 to G4: what is asked for wrongly."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.config import resolve as configs
from lm.errors import ConfigError
from lm.main import main
from tests.test_processes import free_port

FILE = "tests/faults/config.py"

WRONG = [
    ("--config.optim.lrr=1e-3", "optim.lr"),
    ("--config.optm.lr=1e-3", "optim"),
    ("--config.optim.lr=fast", "optim.lr"),
    ("--config.model.lr=1e-3", "optim.lr"),
    ("--config.model.num_layers=two", "model.num_layers"),
    ("--config.steps=[1]", "steps"),
    ("--config.evals.hedlout.every=5", "did you mean evals.heldout?"),
    ("--config.compute.attention=splah", "did you mean splash?"),
    ("--wrkdir=x", "--wrkdir"),
]
OUTSIDE = [
    ("--config.optim.lr=nan", "optim.lr"),
    ("--config.optim.lr=-1", "optim.lr"),
    ("--config.optim.lr=inf", "optim.lr"),
    ("--config.steps=-5", "steps"),
    (f"--config.steps={10**20}", "steps"),
    ("--config.grad_accum=3", "grad_accum"),
    ("--config.optim.warmup=900", "optim.warmup"),
    ("--config.seq_len=9999", "seq_len"),
    ("--config.data.sources.0.weight=-1", "weight"),
    ("--config.stop.max_skips=-1", "stop.max_skips"),
]


@pytest.fixture(autouse=True)
def here(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize(("row", "flag", "word"), [
    *(("G1", *case) for case in WRONG), *(("G2", *case) for case in OUTSIDE)
])  # fmt: skip
def test_G1_G2_a_wrong_config_is_one_line_with_2(row, flag, word, tmp_path, capsys):
    """G1: names and types; G2: values outside their bounds."""
    began = time.monotonic()
    assert main([f"--config={FILE}", flag, f"--workdir={tmp_path / 'run'}"]) == 2
    assert time.monotonic() - began < 10
    line = capsys.readouterr().err
    assert line.startswith("error[config] ") and word in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_F11_a_tokenizer_that_is_a_device_is_not_copied(tmp_path, capsys):
    argv = [f"--config={FILE}", "--config.tokenizer.path=/dev/zero"]
    assert main([*argv, f"--workdir={tmp_path / 'run'}"]) == 3
    assert "tokenizer.path: found a pipe or device" in capsys.readouterr().err


SOURCE = "[{'name': 'memory', 'items': [{'text': 'the dog', 'label': 0}]}]"
CLASSIFIER = ["--config.objective={'name': 'classification', 'summary': 'last'}"]
CLASSIFIER += ["--config.data.pack=false", f"--config.data.sources={SOURCE}"]
CLASSIFIER += [f"--config.evals.heldout.data.sources={SOURCE}"]
CLASSIFIER += ["--config.evals.heldout.data.pack=false"]
UNFIT = [
    (["--config.evals.heldout.evaluator=predictions"], "which needs labels"),
    (["--config.evals.heldout.evaluator=generation"], "which needs extend"),
    ([*CLASSIFIER, "--config.evals.heldout.baseline=unigram"], "which needs tokens"),
    ([*CLASSIFIER, "--config.objective.labels=('a','b','c')"], "objective.classes=3"),
    (["--config.checkpoint.best=heldout/mlm_los"], "did you mean heldout/mlm_loss?"),
    (["--config.stop.metric=heldout/mlm_los"], "did you mean heldout/mlm_loss?"),
    (["--config.checkpoint.best=heldot/loss"], "did you mean heldout/loss?"),
    (["--config.objective.name=causal_lm"], "model.kind: found 'encoder'"),
    (["--config.evals.heldout.objective.rate=2"], "evals.heldout.objective.rate"),
]


@pytest.mark.parametrize(("flags", "word"), UNFIT, ids=[word for _, word in UNFIT])
def test_G2_parts_that_do_not_fit_are_refused_before_step_1(
    flags, word, tmp_path, capsys
):
    began = time.monotonic()
    assert main([f"--config={FILE}", *flags, f"--workdir={tmp_path / 'run'}"]) == 2
    assert time.monotonic() - began < 10
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error[config] ") and word in line
    assert not (tmp_path / "run").exists()


FIELDS = ["optim.lr", "steps", "seed", "batch_size", "model.dropout", "optim.options"]
FIELDS += ["model.d_model", "data.sources", "optim.decay_mask", "stop.metric", "mesh"]
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.recursive(
        st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)
    ).map(repr),
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_G2_any_value_is_taken_or_refused_in_a_line(field, value):
    try:
        configs.load(FILE, [f"--config.{field}={value}"])
    except ConfigError as error:
        assert "\n" not in error.line() or len(error.line().splitlines()) <= 2


CODE = [
    "__import__('os').system('touch {}')",
    "!!python/object/apply:os.system ['touch {}']",
    "$(touch {})",
    "`touch {}`",
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}} {}",
    "(lambda: open({!r}, 'w'))()",
]


@pytest.mark.parametrize("code", CODE, ids=range(len(CODE)))
def test_G3_code_in_a_value_stays_text_or_is_refused(code, tmp_path, capsys):
    canary = tmp_path / "canary"
    text = code.format(str(canary))
    for field in ("optim.lr", "model.name", "data.sources", "tokenizer.special"):
        flag = f"--config.{field}={text}"
        assert main([f"--config={FILE}", flag, f"--workdir={tmp_path / 'run'}"]) == 2
    assert not canary.exists()
    assert "Traceback" not in capsys.readouterr().err


# 24 places; max_tokens is 8 where nothing else is said.
PROMPTS = [
    ([""], "3: error[data] prompt 1: found an empty prompt"),
    (["the " * 30], "3: error[data] prompt 1: found a prompt of 31 tokens"),
    (["the", "--max-tokens=0"], "2: error[config] --max-tokens: found 0"),
    (["the", "--max-tokens=30"], "2: error[config] "),
    (["--input={file}"], "3: error[data] {file}:2: found a byte that is not UTF-8"),
    (["the " * 30, "--truncate"], "0: "),
]


@pytest.mark.slow
def test_G4_a_prompt_that_cannot_be_answered_is_one_line(server, tmp_path):
    workdir, file = tmp_path / "run", tmp_path / "prompts.jsonl"
    made = server.run(workdir, config="tests/faults/config.py:decoder")
    assert made.code == 0, made.text()
    before = sorted(workdir.rglob("*"))
    file.write_bytes(b'{"prompt": "the"}\n{"prompt": "na\xefve"}\n')
    for flags, expected in PROMPTS:
        flags = [flag.format(file=file) for flag in flags]
        if not any(flag.startswith("--max-tokens") for flag in flags):
            flags.append("--max-tokens=8")
        done = server.run(workdir, *flags, module="lm.generate", config="")
        said = f"{done.code}: {done.error() if done.code else ''}"
        assert said.startswith(expected.format(file=file)), done.text()
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.slow
def test_G1_two_processes_with_two_configs_end_with_2(server, tmp_path):
    """Each of them says so, and nothing is left in the workdir."""
    work = tmp_path / "run"
    place = {"LM_COORDINATOR": f"localhost:{free_port()}", "LM_PROCESSES": "2"}
    running = [
        server.start(work, f"--config.optim.lr={lr}", LM_PROCESS=str(i), **place)
        for i, lr in enumerate((0.01, 0.02))
    ]
    assert [each.wait() for each in running] == [2, 2]
    for each in running:
        assert "optim.lr: found 0.02 in process 1, expected 0.01" in each.text()
        assert "Traceback" not in each.text()
    assert not (work / "config.json").exists()
