"""Tests chat templates: common ones, and hostile ones."""

import json

import pytest

from lm.errors import DataError
from lm.hf import chat

pytest.importorskip("jinja2")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}\n"
    "  {% if m.role not in ['user', 'assistant'] %}{{ raise_exception('role!') }}"
    "{% endif %}\n"
    "  {% if loop.index0 > 4 %}{% break %}{% endif %}\n"
    "[{{ m.role }}] {% generation %}{{ m.content | trim }}{% endgeneration %}\n"
    "{% endfor %}{{ {'a': 'ü<'} | tojson }}"
)
ASKED = [{"role": "user", "content": " hello "}, {"role": "assistant", "content": "hi"}]


def render(template, messages=ASKED, **keywords):
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return chat.render(template, messages, tokens=tokens, **keywords)


def test_the_usual_templates():
    assert render(CHATML) == (
        "<|im_start|>user\n hello <|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert render(CHATML, add_generation_prompt=False).endswith("hi<|im_end|>\n")
    assert render(LLAMA) == '<s>[user] hello[assistant] hi{"a": "ü<"}'


def test_a_template_may_refuse_the_conversation():
    with pytest.raises(DataError, match="role!"):
        render(LLAMA, [{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ raise_exception.__globals__['sys'].exit(0) }}",
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
        "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{% include 'CANARY' %}",
        "{{ messages.append(1) }}",
        "{% for i in range(99999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'a' * 10**12 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'a' | center(10 ** 12) }}",
        "{% set n = namespace(x='ab') %}"
        "{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in messages %}",
    ],
)
def test_a_hostile_template_is_refused(template, tmp_path):
    canary = tmp_path / "canary"
    with pytest.raises(DataError):
        render(template.replace("CANARY", str(canary)))
    assert not canary.exists()


def test_templates_are_found_in_the_files(tmp_path):
    assert chat.read_template(tmp_path) is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "one"}))
    assert chat.read_template(tmp_path) == "one"
    named = [{"name": "default", "template": "two"}, {"name": "rag", "template": "3"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert chat.read_template(tmp_path) == "two"
    assert chat.read_template(tmp_path, "rag") == "3"
    with pytest.raises(DataError, match="default, rag, expected one named 'tools'"):
        chat.read_template(tmp_path, "tools")
    (tmp_path / "chat_template.jinja").write_text("four")
    assert chat.read_template(tmp_path) == "four"
