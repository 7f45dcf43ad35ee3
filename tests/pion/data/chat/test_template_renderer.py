"""The process that renders chat templates: its bounds, its environment and its end."""

import datetime
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pion.data.chat import template_renderer as renderer_module
from pion.data.chat.messages import Conversation
from pion.data.chat.template_renderer import Refused, Renderer
from pion.data.chat.template_worker import Rendering, answer_to
from pion.errors import BadInput
from tests.support.waiting import wait_until

DAY = datetime.date(2026, 1, 2)
TALK = Conversation([{"role": "user", "content": "Hi"}], None, "data.jsonl:3")


def made(template):
    return Renderer(template, {"eos_token": "</s>"}, DAY, "its/folder")


def test_a_template_is_rendered_with_names_and_the_date_in_a_process_without_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    own = made("{{ messages[0].content ~ eos_token ~ strftime_now('%c') ~ mood }}")
    assert own.text(TALK, prompt=False) == "Hi</s>Fri Jan  2 00:00:00 2026"
    environment = Path(f"/proc/{own._child.process.pid}/environ").read_text()
    assert "PYTHONPATH" in environment
    assert "hf_secret" not in environment
    own._child.process.kill()
    with pytest.raises(BadInput, match=r"its/folder: .*its process ended \(data"):
        own.text(TALK, prompt=False)
    own.close()
    assert own._child.process.poll() is not None


def test_transformers_stays_out_of_the_process_that_trains():
    code = (
        "import sys, pion.data.chat.template; "
        "assert not {'transformers', 'jinja2', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---------------------------------------------------------------- hostile templates

LOOP = "{% for a in range(99999) %}"
# Attacks on rendering. `n` is 1, but jinja does not know this when it compiles the template.
ATTACKS = {
    "a text of terabytes": ("{{ 'a' * (n * 10**13) }}", "more than 1,024 MB"),
    "a long text": ("{% set a = 'a' * 2**20 %}{% for i in range(99) %}{{ a }}{% endfor %}", "endl"),
    "a wide column": ("{{ 'a'.ljust(n * 10**13) }}", "more than 1,024 MB"),
    "a long format": ("{{ '%999999999999d' % n }}", "more than 1,024 MB|ValueError"),
    "attributes": ("{{ messages.__class__.__mro__ }}", "sandbox refused it"),
    "globals": ("{{ raise_exception.__globals__.os }}", "sandbox refused it"),
    "a change of the messages": ("{{ messages.append(1) }}", "sandbox refused it"),
    "a large range": ("{% for a in range(n * 10**9) %}{% endfor %}", "Range too big"),
    "endless recursion": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
    "another file": ("{% include '/etc/passwd' %}", "TypeError|no loader"),
    "its own error": ("{{ raise_exception('\x1b[2J' * 999) }}", "TemplateError"),
}
# Attacks on the compiler, which computes what is constant.
UNUSABLE = {
    "a constant of terabytes": ("{{ 'a' * 10**13 }}", "more than 1,024 MB"),
    "depth": ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "RecursionError|MB|ended"),
}


@pytest.fixture(scope="module")
def attacked():
    """Return a renderer whose template makes the attack that the first message names."""
    cases = "".join(
        f"{{% if messages[0].content == '{name}' %}}{attack}{{% endif %}}"
        for name, (attack, _) in ATTACKS.items()
    )
    renderer = made("{% set n = messages | length %}" + cases + "unharmed")
    yield renderer
    renderer.close()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_template_is_stopped(attacked, attack):
    talk = Conversation([{"role": "user", "content": attack}], None, "data.jsonl:3")
    with pytest.raises((BadInput, Refused), match=ATTACKS[attack][1]) as error:
        attacked.text(talk, prompt=True)
    assert len(str(error.value)) < 1000
    assert attacked.text(TALK, prompt=True) == "unharmed"


@pytest.mark.soak
@pytest.mark.parametrize("attack", UNUSABLE)
def test_a_template_that_can_not_be_compiled_is_refused(attack):
    template, message = UNUSABLE[attack]
    renderer = made(template)
    with pytest.raises((BadInput, Refused), match=message) as error:
        renderer.text(TALK, prompt=True)
    assert len(str(error.value)) < 1000
    renderer.close()


def test_wrong_syntax_breaks_a_template_with_its_line():
    rendering = Rendering(renderer_module.first_request("\n{% for %}", {}, DAY))
    request = {"messages": TALK.messages, "tools": None, "options": {}, "answers": []}
    assert (
        "line 2: TemplateSyntaxError" in answer_to(rendering, request | {"prompt": True})["broken"]
    )


def test_an_endless_template_is_killed(monkeypatch):
    monkeypatch.setattr(renderer_module, "SECONDS", 0.2)
    slow = LOOP * 4 + "{% endfor %}" * 4
    renderer = made("{% if messages[0].content != 'quick' %}" + slow + "{% endif %}rendered")
    started = time.monotonic()
    with pytest.raises(BadInput, match=r"took more than 0.2 s \(data.jsonl:3\)"):
        renderer.text(TALK, prompt=True)
    assert time.monotonic() - started < 10
    assert renderer._child.process.poll() is not None
    monkeypatch.undo()
    quick = Conversation([{"role": "user", "content": "quick"}], None, "data.jsonl:4")
    assert renderer.text(quick, prompt=True) == "rendered"  # in another process
    process = renderer._child.process
    del renderer  # the process ends with the object
    assert process.poll() is not None


@pytest.mark.soak
def test_an_endless_template_ends_when_the_process_that_asked_is_gone():
    code = (
        "import datetime, os; import pion.data.chat.template_renderer as r;"
        "from pion.data.chat.messages import Conversation;"
        "day = datetime.date(2026, 1, 2);"
        f"made = r.Renderer({LOOP * 4 + '{% endfor %}' * 4!r}, {{}}, day, 'x');"
        'made._child._socket.sendall(b\'[-4, {"messages": [], "tools": null, "answers": [],'
        ' "prompt": true}]\\n\');'
        "print(made._child.process.pid, flush=True); os._exit(9)"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert asked.returncode == 9, asked.stderr
    wait_until(lambda: has_ended(int(asked.stdout)), "the end of the process")


def has_ended(process):
    try:
        return " Z " in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
