"""Renders a chat template in a process that chat.py starts; imports nothing of lm.

Reads {"template", "values"} as JSON and writes {"text"} or {"error"}. With
"conversations", and "last", it writes {"rendered"}: for each conversation "text" and
"answers", or why there is none, "error".
"""

import datetime
import json
import math
import resource
import sys
import time


def limit(seconds: int) -> None:
    """Limits this process: a second more than given, 256 MB of memory, no files."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    room = now + 256 * 2**20
    for kind, most in (
        (resource.RLIMIT_AS, room),
        (resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def spans(template, values: dict, messages: list[dict], last: bool) -> dict:
    """Renders a conversation, and finds its answers.

    Each is given by where the text stops that asks for it, and where that of its turn
    stops; both must be beginnings of the whole.
    """
    try:
        text = template.render(
            **values,
            messages=messages,
            add_generation_prompt=messages[-1]["role"] != "assistant",
        )
        answers = []
        for n, message in enumerate(messages):
            if message["role"] != "assistant" or (last and n + 1 < len(messages)):
                continue
            asked, said = (
                template.render(
                    **values, messages=messages[:count], add_generation_prompt=ask
                )
                for count, ask in ((n, True), (n + 1, False))
            )
            if not (said.startswith(asked) and text.startswith(said)):
                return {"unlike": n + 1}
            answers.append([len(asked), len(said)])
        return {"text": text, "answers": answers}
    except MemoryError:
        raise
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Renders the template that standard input holds."""
    import jinja2
    import jinja2.debug  # An error imports it, when no file can be opened any more.
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Renders what {% generation %} encloses, the answers, as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        """Fails with the message of a template that refuses a conversation."""
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, **_) -> str:
        """Dumps a value as templates expect it, without escapes of HTML."""
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    now = datetime.datetime.now()
    environment.globals["strftime_now"] = lambda form: now.strftime(str(form))
    asked = json.load(sys.stdin)
    # Rendering imports modules, which it cannot once no file can be opened.
    environment.from_string("{{ [1] | map('string') | join }}").render()
    out = sys.stdout
    if sys.platform == "linux":
        limit(1 + len(asked.get("conversations", ())) // 8)
    try:
        template, values = environment.from_string(asked["template"]), asked["values"]
        if "conversations" in asked:
            several, last = asked["conversations"], asked["last"]
            answer: dict = {
                "rendered": [spans(template, values, m, last) for m in several]
            }
        else:
            answer = {"text": template.render(**values)}
    except MemoryError:
        answer = {"error": "a template that exceeds its limit of memory"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    out.write(json.dumps(answer))


if __name__ == "__main__":
    main()
