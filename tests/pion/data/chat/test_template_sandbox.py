"""The sandbox of chat templates renders as that of transformers does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pion.data.chat.template_sandbox import compiled

SAID: dict[str, Any] = {
    "messages": [{"role": "user", "content": "1 < 2 & 'é'"}, {"role": "assistant", "content": "b"}],
    "tools": [{"function": {"name": "add", "parameters": {"z": 1, "a": [True, None, "<"]}}}],
    "add_generation_prompt": True,
    "mood": "good",
}
SOURCES = {
    "whitespace": "a\n  {% if mood %}\n  b  \n    {%- endif %}\n\n{# c #}\n {{ mood }}\n\n",
    "variables": "{{ add_generation_prompt }}{{ documents }}{{ mood }}{{ nothing }}",
    "json": (
        "{{ tools | tojson }}{{ tools | tojson(indent=2) }}{{ messages[0] | tojson(true) }}"
        "{{ tools | tojson(separators=(',', ':'), sort_keys=true) }}"
    ),
    "loops": (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}"
        "{% break %}{% endfor %}{% set ns = namespace(n=1) %}{% for m in messages %}"
        "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    ),
    "an answer": (
        "{% set a = 1 %}{% for m in messages %}\n{% generation %}{% set a = a + 1 %}{{ a }}\n"
        "  {{- m.content }}{% endgeneration %}\n{% endfor %}{{ a }}"
    ),
    "a macro": "{% macro say(m) %}{{ m.role | upper ~ mood }}{% endmacro %}{{ say(messages[0]) }}",
    "its own error": "{{ raise_exception('only one') }}",
    "a change of the messages": "{{ messages.append(1) }}",
    "attributes": "{{ messages.__class__.__mro__ }}",
    "wrong syntax": "\n{% for %}",
    "no end of an answer": "{% generation %}a",
    "another file": "{% include 'a' %}",
}

REFUSED = list(SOURCES)[-6:]


def ours(source: str) -> str:
    return compiled(source).render(documents=None, **SAID)


def theirs(source: str) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    given = SAID | {"conversations": [SAID["messages"]], "chat_template": source}
    del given["messages"]
    rendered: Any = render_jinja_template(**given)
    text: str = rendered[0][0]
    return text


def found(render: Callable[[str], str], source: str) -> str:
    """Return what is written, or the error."""
    try:
        return f"written: {render(source)}"
    except Exception as error:
        return repr(error)


@pytest.mark.parametrize("name", SOURCES)
def test_a_template_is_rendered_as_by_transformers(name: str) -> None:
    expected = found(theirs, SOURCES[name])
    assert found(ours, SOURCES[name]) == expected
    assert expected.startswith("written") == (name not in REFUSED)
