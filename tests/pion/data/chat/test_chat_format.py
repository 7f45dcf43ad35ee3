"""Which format a model talks in, found by the files next to its tokenizer.json."""

import json

import pytest

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import Turn, chat_template, tokenize
from pion.data.chat.tool_call_form import Call, CallForm
from pion.data.tokens.tokenizer import Tokenizer
from tests.support.chat_templates import CHATML, DEEPSEEK, QWEN3, QWEN25
from tests.support.tokenizer_kinds import write_files

pytestmark = pytest.mark.usefixtures("quick_renderer")

ASKED = [{"role": "user", "content": "Hi"}]


def found(folder):
    return ChatFormat(folder / "tokenizer.json", Tokenizer.from_file(folder / "tokenizer.json"))


def test_the_template_of_a_model_gives_prompts_and_the_stop(tmp_path):
    write_files("smollm2", tmp_path, CHATML)
    talks = found(tmp_path)
    assert not talks.own
    ids = talks.prompt_ids(ASKED)
    text = talks.tokenizer.decode(ids, specials=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    end = talks.tokenizer.special_ids["<|im_end|>"]
    assert talks.end_of_turn == end
    assert end in talks.stop_ids
    talks.close()


def test_without_a_template_and_with_pions_it_is_pions_own_format(tmp_path):
    write_files("smollm2", tmp_path, CHATML)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = tmp_path / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings))
    bare = found(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(chat_template(bare.tokenizer))
    for talks in (bare, found(tmp_path)):
        assert talks.own
        turns = [Turn("user", "Hi")]
        expected = tokenize(talks.tokenizer, turns, add_generation_prompt=True).ids.tolist()
        assert talks.prompt_ids(ASKED) == expected
        assert talks.end_of_turn == talks.tokenizer.end_of_text
        assert talks.end_of_turn in talks.stop_ids
        talks.close()


# ---------------------------------------------------------------- how calls are written


TOLD = "{{- tools | tojson if tools else '' -}}"
TURNS = (
    "{%- for m in messages -%}{%- if m.tool_calls -%}CALLS{%- else -%}"
    "{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
BEGIN, END = "{{- '<|im_start|>assistant\n' -}}", "{{- '<|im_end|>\n' -}}"
# Llama 3.1: one call, nothing around the call, and another key.
BARE = (
    BEGIN
    + (
        '{{- \'{"name": "\' ~ m.tool_calls[0].function.name ~ \'", "parameters": \' -}}'
        "{{- m.tool_calls[0].function.arguments | tojson ~ '}' -}}"
    )
    + END
)
# Mistral: a list of calls with ids.
LISTED = (
    BEGIN
    + (
        "{{- '[TOOL_CALLS][' -}}{%- for c in m.tool_calls -%}"
        "{{- {'name': c.function.name, 'arguments': c.function.arguments, 'id': c.id} | tojson -}}"
        "{{- ', ' if not loop.last -}}{%- endfor -%}{{- ']' -}}"
    )
    + END
)
# Qwen 3 writes an empty thought before the call.
AFTER_THOUGHT = (
    BEGIN
    + (
        "{{- '<think>\n\n</think>\n\n<tool_call>\n' -}}"
        "{{- m.tool_calls[0].function | tojson ~ '\n</tool_call>' -}}"
    )
    + END
)
# Phi 4: after each call a special token, at which no answer ends.
CLOSED = (
    BEGIN
    + (
        "{%- for c in m.tool_calls -%}"
        "{{- '<tool>' ~ c.function | tojson ~ '<|message|>' -}}{%- endfor -%}"
    )
    + END
)
# Command R: thoughts before the calls, and numbers in place of ids.
AFTER_MARKS = (
    BEGIN
    + (
        "{{- '<|channel|>' ~ m.reasoning_content ~ '<|message|>[\n' -}}"
        "{{- {'id': 0, 'tool_name': m.tool_calls[0].function.name, 'parameters':"
        " m.tool_calls[0].function.arguments} | tojson ~ '\n]<|channel|>' -}}"
    )
    + END
)
# All of the API's call, with the id of this call.
WITH_ID = BEGIN + "{{- m.tool_calls | tojson -}}" + END
# Qwen3-Coder: no JSON.
XML = (
    BEGIN
    + (
        "{%- for c in m.tool_calls -%}{{- '<tool_call>\n<function=' ~ c.function.name ~ '>\n' -}}"
        "{%- for name, value in c.function.arguments | items -%}"
        "{{- '<parameter=' ~ name ~ '>\n' ~ value ~ '\n</parameter>\n' -}}{%- endfor -%}"
        "{{- '</function>\n</tool_call>' -}}{%- endfor -%}"
    )
    + END
)
# gpt-oss: the name before the JSON.
TO_CHANNEL = (
    "{{- '<|start|>assistant to=functions.' ~ m.tool_calls[0].function.name -}}"
    "{{- '<|channel|>commentary json<|message|>' -}}"
    "{{- m.tool_calls[0].function.arguments | tojson ~ '<|return|>' -}}"
)


def turns(calls, told=TOLD):
    return told + TURNS.replace("CALLS", calls)


def marked(calls):
    """Return a template whose special tokens are gpt-oss's."""
    return turns(calls).replace("<|im_start|>", "<|start|>").replace("<|im_end|>", "<|return|>")


HERMES = CallForm("<tool_call>\n", "</tool_call>", "name", "arguments", listed=False)
FORMS = {
    "Qwen 2.5": (QWEN25, HERMES),
    "after a thought": (turns(AFTER_THOUGHT), HERMES),
    "Llama 3.1": (turns(BARE), CallForm("", "", "name", "parameters", listed=False)),
    "Mistral": (turns(LISTED), CallForm("[TOOL_CALLS]", "", "name", "arguments", listed=True)),
    "Phi 4": (marked(CLOSED), CallForm("<tool>", "<|message|>", "name", "arguments", listed=False)),
    "Command R": (
        marked(AFTER_MARKS),
        CallForm("<|message|>", "<|channel|>", "tool_name", "parameters", listed=True),
    ),
    "an id outside": (turns(WITH_ID), None),
    "no JSON": (turns(XML), None),
    "gpt-oss": (marked(TO_CHANNEL), None),
    "tools are not shown": (turns(BARE, told=""), None),
    "calls are not written": (CHATML, None),
    "the name is outside": (DEEPSEEK, None),
    "thoughts only": (QWEN3, None),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_is_what_the_template_writes(name, tmp_path):
    template, form = FORMS[name]
    kind = "harmony" if "<|start|>" in template else "qwen"
    file = write_files(kind, tmp_path, template) / "tokenizer.json"
    chat_format = ChatFormat(file, Tokenizer.from_file(file))
    try:
        assert chat_format.call_form == form
        assert chat_format.thinks == ("think" in template)
    finally:
        chat_format.close()


def test_pion_s_own_template_has_no_calls(tmp_path):
    file = write_files("qwen", tmp_path) / "tokenizer.json"
    assert ChatFormat(file, Tokenizer.from_file(file)).call_form is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "5", "[5]", '{"name": "f"}', '{"name": "f", "arguments": 5}', "[" * 9999],
)
def test_what_is_no_call_is_none(text):
    assert not HERMES.calls(text)


def test_a_call_or_a_list_of_calls_is_read():
    call = '{"name": "f", "arguments": {"a": [1]}}'
    assert HERMES.calls(call) == [Call("f", {"a": [1]})]
    assert HERMES.calls(f"[{call}, {call}]") == [Call("f", {"a": [1]})] * 2


def test_the_schema_has_the_names_of_the_form_and_shared_parts_at_its_root():
    parameters = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/X"}},
        "$defs": {"X": {"type": "integer"}},
    }
    form = CallForm("", "", "name", "parameters", listed=True)
    schema = form.schema([{"name": "f", "parameters": parameters}, {"name": "g"}])
    assert schema["$defs"] == {"X": {"type": "integer"}}
    names = [one["properties"]["name"] for one in schema["items"]["anyOf"]]
    assert names == [{"const": "f"}, {"const": "g"}]
    assert "$defs" in parameters  # the request's own is not changed
