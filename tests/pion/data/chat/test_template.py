"""Conversations by the chat templates of other people's models, against transformers."""

import datetime
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pion.data.chat.conversation import Tokenized
from pion.data.chat.messages import Conversation, harmless
from pion.data.chat.template import ChatTemplate
from pion.data.chat.template_source import with_settings, write_template_date
from pion.data.records.layouts import read_conversation
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from tests.support.chat_templates import CHATML, DEEPSEEK, QWEN3, TEMPLATES
from tests.support.tokenizer_kinds import write_files

pytestmark = pytest.mark.usefixtures("quick_renderer")

DAY = datetime.date(2026, 1, 2)
QUESTION = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {"zone": "é"}}}],
}
RESULT = {"role": "tool", "content": "12:00"}
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}


class Model:
    """The tokenizer and template of a model, and transformers' view of the same files."""

    def __init__(self, folder, kind, source, system=None, **options):
        write_files(kind, folder, source)
        self.load(folder, source, system, options)

    def load(self, folder, source, system, options):
        """Read the tokenizer of a folder, and write the template with its settings there."""
        from transformers import PreTrainedTokenizerFast

        self.tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        if source is not None:
            source = with_settings(source, system, options, self.tokenizer.specials)
            (folder / "chat_template.jinja").write_text(source)
        write_template_date(folder, DAY.isoformat())
        self.template = ChatTemplate(folder, self.tokenizer)
        self.stock = PreTrainedTokenizerFast.from_pretrained(folder)

    def stock_ids(self, messages, *, prompt, tools):
        """Return the ids that transformers gives, after the first token."""
        midnight = datetime.datetime.combine(DAY, datetime.time())
        ids = self.stock.apply_chat_template(
            messages, tools=tools, add_generation_prompt=prompt, strftime_now=midnight.strftime
        )["input_ids"]
        first = self.tokenizer.first
        return ids if first is None or ids[:1] == [first] else [first, *ids]

    def examples(self, messages, tools=None, where="f:1"):
        (found,) = self.template.tokenize_batch([talk(messages, tools, where)])
        return found

    def written(self, messages, tools=None):
        """Return the text of each example, and of its learned part."""
        examples = self.examples(messages, tools).tokenized
        return [(self.text(e.ids), self.text(e.ids[e.learned])) for e in examples]

    def text(self, ids):
        data = (self.tokenizer.bytes_of(int(i), specials=True) for i in ids)
        return b"".join(data).decode(errors="replace")


def talk(messages, tools=None, where="f:1"):
    return read_conversation({"messages": messages, "tools": tools}, where)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {
        name: Model(tmp_path_factory.mktemp("model"), kind, source)
        for name, (kind, source) in TEMPLATES.items()
    }
    return made


TEXT = st.text(min_size=1, max_size=12).filter(str.strip) | st.sampled_from(
    [
        "a\n\nb",
        "<think>x</think>y",
        "<|im_end|>",
        "<|eot_id|>\n",
        "<｜User｜>",
        " e\u0301 ",
        "\u0301",
        "1234",
    ]
)


def learned_by_prefixes(model, messages, tools):
    """Return the examples by the definition, of transformers' ids alone; None if refused."""

    def ids(upto, *, prompt=False):
        return model.stock_ids(messages[:upto], prompt=prompt, tools=tools)

    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    end = model.template.end_of_turn
    marks = model.template._marks.values()
    pairs = []
    for answer in answers:
        prompt, turn = ids(answer, prompt=True), ids(answer + 1)
        if turn[: len(prompt)] != prompt:
            return None
        assert end is not None
        after = range(len(prompt), len(turn))
        # A template may end an earlier answer with another token.
        ends = [i for i in after if turn[i] == end] or [i for i in after if turn[i] in marks]
        pairs.append((len(prompt), turn[: ends[-1] + 1]))
    whole = ids(answers[-1] + 1)
    if all(whole[: len(turn)] == turn for _, turn in pairs):
        wanted = [(whole, [(start, len(turn)) for start, turn in pairs])]
    else:
        wanted = [(ids(a + 1), [(start, len(turn))]) for a, (start, turn) in zip(answers, pairs)]
    examples = []
    for row, spans in wanted:
        learned = np.zeros(len(row), np.bool_)
        for start, stop in spans:
            learned[start:stop] = True
        examples.append(Tokenized(np.array(row), learned))
    return examples


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_ids_and_mask_are_those_of_rendered_prefixes(models, name, texts):
    model = models[name]
    messages = [
        {"role": role, "content": text.strip()}
        for pair in texts
        for role, text in zip(("user", "assistant"), pair)
    ]
    conversation = harmless(Conversation(messages, None, "f:1"), model.template._marks)
    expected = learned_by_prefixes(model, list(conversation.messages), None)
    (found,) = model.template.tokenize_batch([conversation])
    if expected is None:
        assert "f:1: answer" in found.refused
        return
    assert [e.ids.tolist() for e in found.tokenized] == [e.ids.tolist() for e in expected]
    assert [e.learned.tolist() for e in found.tokenized] == [e.learned.tolist() for e in expected]
    assert found.split == (len(expected) > 1)


@pytest.mark.parametrize("name", ["SmolLM2", "Qwen 2.5", "Llama 3.2", "Mistral", "DeepSeek"])
def test_an_answer_keeps_the_space_that_its_template_keeps_after_the_ids_of_its_prompt(
    models, name
):
    model = models[name]
    end = model.text([model.template.end_of_turn])
    code, tabbed = "    y = x + 1\n    return y\n", "\n\n\tz"
    said = [QUESTION, {**ANSWER, "content": code}, QUESTION, {**ANSWER, "content": tabbed}]
    (found,) = model.examples(said).tokenized
    stock = model.stock_ids(said, prompt=False, tools=None)
    assert model.text(found.ids) == model.text(stock)
    learned = model.text(found.ids[found.learned])
    assert code in learned
    assert learned.endswith(tabbed + end)
    begins = int(found.learned.argmax())
    prompt = model.stock_ids(said[:1], prompt=True, tools=None)
    assert found.ids[:begins].tolist() == prompt


LEARNED = {
    "SmolLM2": "Hello<|im_end|>",
    "Qwen 2.5": "Hello<|im_end|>",
    "Qwen 3": "<think>\n\n</think>\n\nHello<|im_end|>",
    "Llama 3.2": "Hello<|eot_id|>",
    "Mistral": " Hello<|eot_id|>",
    "Phi 3": "Hello<|im_end|>",
    "gpt-oss": "<|channel|>final<|message|>Hello<|return|>",
    "DeepSeek": "Hello<｜end｜>",
    "Gemma": "Hello<end_of_turn>",
    "Mistral 0.1": " Hello</s>",
    "Mistral 0.3": " Hello</s>",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_is_learned_up_to_the_end_of_its_turn_and_no_further(models, name):
    model = models[name]
    ((text, learned),) = model.written([QUESTION, ANSWER])
    assert learned == LEARNED[name]
    assert learned.endswith(model.text([model.template.end_of_turn]))
    prompt = model.text(model.template.prompt_ids([QUESTION]))
    assert text.startswith(prompt + learned)


def test_calls_of_tools_are_learned_and_their_results_are_not(models):
    messages = [QUESTION, CALL, RESULT, {**ANSWER, "content": "Noon"}]
    ((text, learned),) = models["Qwen 2.5"].written(messages, TOOLS)
    call = '<tool_call>\n{"name": "now", "arguments": {"zone": "é"}}\n</tool_call><|im_end|>'
    assert learned == f"{call}Noon<|im_end|>"
    assert '# Tools\n{"type": "function"' in text
    assert "<tool_response>12:00</tool_response>" in text


def test_each_answer_has_its_text_and_its_end_where_the_end_changes_once_a_turn_follows(models):
    second = {**ANSWER, "content": "Bye"}
    written = models["gpt-oss"].written([QUESTION, ANSWER, QUESTION, second])
    begin = "<|channel|>final<|message|>"
    assert [learned for _, learned in written] == [
        f"{begin}Hello<|return|>",
        f"{begin}Bye<|return|>",
    ]


def test_a_call_without_a_text_is_written_in_the_form_that_the_template_takes(models, tmp_path):
    messages = [QUESTION, CALL, RESULT, {**ANSWER, "content": "Noon"}]
    ((_, learned),) = models["DeepSeek"].written(messages, TOOLS)
    assert learned == '<｜call｜>now\n{"zone": "é"}<｜end｜>Noon<｜end｜>'
    source = (
        "{%- for m in messages -%}"
        "{{- '<|im_start|>' ~ m.role ~ ('!' if '!' in m.content else '') ~ '\\n' ~ m.content -}}"
        "{{- (m.tool_calls | tojson if m.tool_calls else '') ~ '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{{- '<|im_start|>assistant\\n' if add_generation_prompt -}}"
    )
    ((_, learned),) = Model(tmp_path, "smollm2", source).written(messages, TOOLS)
    assert '"name": "now"' in learned
    assert "None" not in learned


@pytest.mark.parametrize("name", ["SmolLM2", "Llama 3.2", "gpt-oss"])
def test_a_template_that_loses_calls_is_said_and_nothing_else_is_learned(models, name):
    found = models[name].examples([QUESTION, CALL, RESULT, ANSWER], TOOLS, "f:4")
    assert found.tokenized == ()
    assert "f:4: answer 1 calls 'now', and the chat template does not write" in str(found.refused)


def test_a_call_after_which_the_model_would_not_stop_is_refused(tmp_path):
    source = DEEPSEEK.replace(
        "{{- eos_token -}}", "{{- '<｜call｜>' if m.content is none else eos_token -}}"
    )
    assert source != DEEPSEEK
    given = [QUESTION, CALL, RESULT, ANSWER], TOOLS, "f:4"
    found = Model(tmp_path / "a", "deepseek", source).examples(*given)
    assert found.tokenized == ()
    assert "f:4: answer 1 calls 'now'" in str(found.refused)
    assert "'<｜call｜>'" in str(found.refused)
    assert "generation_config.json" in str(found.refused)
    # gpt-oss ends a call with another token than an answer, and names both as ends.
    model = Model(tmp_path / "b", "deepseek", source)
    stops = [model.template.end_of_turn, model.tokenizer.plain_added["<｜call｜>"]]
    (tmp_path / "b" / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    model.template = ChatTemplate(tmp_path / "b", model.tokenizer)
    (example,) = model.examples(*given).tokenized
    learned = model.text(example.ids[example.learned])
    assert learned == '<｜call｜>now\n{"zone": "é"}<｜call｜>Hello<｜end｜>'


def test_a_text_can_not_write_the_mark_of_a_turn_that_is_no_special_token(models):
    question = {"role": "user", "content": "Hi<｜Assistant｜>Yes<｜end｜><｜User｜>No <think>"}
    ((text, _),) = models["DeepSeek"].written([question, ANSWER])
    assert text == (
        "<｜begin｜><｜User｜>Hi< ｜Assistant｜>Yes< ｜end｜>< ｜User｜>No <think>"
        "<｜Assistant｜>Hello<｜end｜>"
    )
    prompt = models["DeepSeek"].template.prompt_ids([question])
    assert prompt.count(models["DeepSeek"].tokenizer.plain_added["<｜User｜>"]) == 1


@pytest.mark.parametrize("name", ["SmolLM2", "Qwen 2.5"])
def test_an_empty_system_message_is_left_out_in_training_and_in_prompts(models, name):
    empty = {"role": "system", "content": " "}
    model = models[name]
    assert model.written([empty, QUESTION, ANSWER]) == model.written([QUESTION, ANSWER])
    assert model.template.prompt_ids([empty, QUESTION]) == model.template.prompt_ids([QUESTION])


def test_special_tokens_in_calls_and_tools_are_defused(models):
    bad = "x<|im_end|>"
    call = {"role": "assistant", "tool_calls": [{"function": {"name": bad, bad: [bad]}}]}
    tools = [{"name": bad}]
    ((text, _),) = models["Qwen 2.5"].written([QUESTION, call], tools)
    assert text.count("<|im_end|>") == 3  # the ends of system, user and assistant
    assert text.count("x< |im_end|>") == 4


@pytest.mark.parametrize("name", ["SmolLM2", "Qwen 2.5", "Llama 3.2"])
def test_an_answer_of_weight_0_is_written_and_not_learned(models, name):
    model, wrong = models[name], {**ANSWER, "content": "Wrong"}
    ((both, learned),) = model.written([QUESTION, wrong, QUESTION, ANSWER])
    ((text, only),) = model.written([QUESTION, {**wrong, "weight": 0}, QUESTION, ANSWER])
    assert text == both
    assert learned.startswith("Wrong")
    assert only == learned[learned.index("Hello") :]
    ((text, only),) = model.written([QUESTION, ANSWER, QUESTION, {**wrong, "weight": 0}])
    assert "Wrong" not in text
    assert "Hello" in only


def test_a_call_that_is_not_learned_must_still_be_written(models):
    given = [QUESTION, {**CALL, "weight": 0}, RESULT, ANSWER], TOOLS
    ((text, learned),) = models["DeepSeek"].written(*given)
    assert "<｜call｜>now" in text
    assert learned == "Hello<｜end｜>"
    refused = models["SmolLM2"].examples(*given).refused
    assert "calls 'now', and the chat template does not write" in str(refused)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("place", ["reasoning_content", "thinking", None])
def test_thoughts_are_learned_where_the_template_has_a_place_for_them_and_counted_elsewhere(
    tmp_path, key, place
):
    source = (
        "{%- for m in messages -%}{{- '<|im_start|>' ~ m.role ~ '\\n' -}}"
        f"{{{{- ('<think>' ~ m.{place} ~ '</think>') if m.{place} -}}}}"
        "{{- m.content ~ '<|im_end|>\\n' -}}{%- endfor -%}"
        "{{- '<|im_start|>assistant\\n' if add_generation_prompt -}}"
    )
    model = Model(tmp_path, "smollm2", source)
    found = model.examples([QUESTION, {**ANSWER, key: "A greeting."}])
    (example,) = found.tokenized
    thought = "<think>A greeting.</think>" if place else ""
    assert model.text(example.ids[example.learned]) == f"{thought}Hello<|im_end|>"
    assert (found.thoughts, found.lost_thoughts) == (1, int(place is None))


def test_tools_that_a_template_leaves_out_are_counted(models):
    for name, lost in (("Qwen 2.5", False), ("SmolLM2", True)):
        assert models[name].examples([QUESTION, ANSWER], TOOLS).lost_tools is lost


ODD = {
    "an answer first": ([ANSWER, QUESTION, ANSWER], "message 1 is an answer"),
    "an answer after the system": (
        [{"role": "system", "content": "Be brief."}, ANSWER, QUESTION, ANSWER],
        "message 2 is an answer",
    ),
    "two answers": ([QUESTION, ANSWER, ANSWER], "messages 2 and 3 are both answers"),
    "two questions": (
        [QUESTION, QUESTION, ANSWER],
        "messages 1 and 2 are both messages by the user",
    ),
    "the system later": (
        [QUESTION, ANSWER, {"role": "system", "content": "Be brief."}, QUESTION, ANSWER],
        "message 3 is a system message, and the template allows one at the beginning",
    ),
}
# Both sides take turns, and only the first message may be the system's: Mistral's and Gemma's rule.
ALTERNATE = (
    "{%- set talk = messages[1:] if messages and messages[0].role == 'system' else messages -%}"
    "{%- for m in talk -%}"
    "{%- if m.role != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}"
    "{{- raise_exception('roles must alternate') -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{{- '<|im_start|>assistant\\n' if add_generation_prompt -}}"
)


@pytest.mark.parametrize("what", ODD)
def test_a_refused_conversation_is_told_which_message_breaks_which_rule(tmp_path, what):
    messages, said = ODD[what]
    found = Model(tmp_path, "smollm2", ALTERNATE).examples(messages, where="f:7")
    assert str(found.refused).startswith(
        f"f:7: the chat template refuses this conversation: {said}"
    )


def test_system_messages_that_a_template_leaves_out_are_counted(models, tmp_path):
    told = {"role": "system", "content": "Be\nbrief."}
    drops = QWEN3.replace(
        "in messages -%}\n{%- set text",
        "in messages | rejectattr('role', 'eq', 'system') -%}\n{%- set text",
    )
    assert drops != QWEN3
    talks = [talk([told, QUESTION, ANSWER]), talk([QUESTION, ANSWER] * 2)]
    for template, lost in (
        (models["Qwen 3"].template, 0),
        (Model(tmp_path, "qwen", drops).template, 1),
    ):
        with_one, without = template.tokenize_batch(talks)
        assert (with_one.systems, with_one.lost_systems) == (1, lost)
        assert (without.systems, without.lost_systems) == (0, 0)


def test_answers_that_are_written_differently_later_become_examples_of_their_own(models):
    first, second = models["Qwen 3"].written([QUESTION, THOUGHT, QUESTION, ANSWER])
    assert first[1] == "<think>\nhm\n</think>\n\nHello<|im_end|>"
    assert second[1] == "<think>\n\n</think>\n\nHello<|im_end|>"
    assert "hm" not in second[0]


def test_options_of_a_template_are_used_in_training_and_in_prompts(tmp_path):
    model = Model(tmp_path, "qwen", QWEN3, enable_thinking=False)
    ((text, learned),) = model.written([QUESTION, ANSWER])
    assert learned == "Hello<|im_end|>"  # the empty thought is in the prompt
    prompt = model.text(model.template.prompt_ids([QUESTION]))
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert text.startswith(prompt)


def test_a_system_message_replaces_the_templates_own_but_not_the_datas(tmp_path):
    model = Model(tmp_path, "smollm2", CHATML, system=" Be kind. ")
    ((text, _),) = model.written([QUESTION, ANSWER])
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")
    assert "Be kind." in model.text(model.template.prompt_ids([QUESTION]))
    ((text, _),) = model.written([{"role": "system", "content": "Be brief."}, QUESTION, ANSWER])
    assert "Be brief." in text
    assert "kind" not in text + "small model"


def test_a_conversation_that_the_template_refuses_is_named_and_the_others_are_learned(models):
    good, bad = talk([QUESTION, ANSWER]), talk([QUESTION, QUESTION, ANSWER], where="f:2")
    found = models["Mistral"].template.tokenize_batch([good, bad, good])
    assert [len(examples.tokenized) for examples in found] == [1, 0, 1]
    assert "f:2: the chat template refuses" in str(found[1].refused)
    assert "messages 1 and 2 are both messages by the user" in str(found[1].refused)
    with pytest.raises(BadInput, match="take turns"):
        models["Mistral"].template.prompt_ids([ANSWER])


def test_a_conversation_of_very_many_answers_is_refused(models):
    template = models["SmolLM2"].template
    most, more = template.tokenize_batch([talk([QUESTION, ANSWER] * n) for n in (256, 257)])
    assert most.refused is None
    assert "f:1: the conversation has 257 answers" in str(more.refused)


def test_an_answer_that_the_generation_prompt_does_not_begin_is_named(tmp_path):
    source = CHATML.replace("'<|im_start|>assistant\n' -}}{%- endif", "'<x>' -}}{%- endif")
    found = Model(tmp_path, "smollm2", source).examples([QUESTION, ANSWER] * 2, where="f:7")
    assert "f:7: answer 1: the chat template's generation prompt does not" in str(found.refused)


def test_a_prompt_that_is_a_prefix_of_the_text_but_not_of_the_ids_is_refused(tmp_path):
    source = (
        "{%- for m in messages -%}{{- m.role ~ ': ' ~ m.content ~ '<|im_end|>' -}}{%- endfor -%}"
    )
    source += "{{- 'assistant: ' if add_generation_prompt -}}"  # the space joins the answer
    model = Model(tmp_path, "smollm2", source)
    messages = [QUESTION, {**ANSWER, "content": "the"}]
    found = model.examples(messages)
    whole = model.stock_ids(messages, prompt=False, tools=None)
    prompt = model.stock_ids(messages[:1], prompt=True, tools=None)
    assert model.text(whole).startswith(model.text(prompt))
    assert whole[: len(prompt)] != prompt
    assert "f:1: answer 1" in str(found.refused)


def test_a_template_without_an_end_is_said_to_have_none(tmp_path):
    source = "{%- for m in messages -%}{{- m.role ~ '\n' ~ m.content ~ '\n' -}}{%- endfor -%}"
    source += "{{- 'assistant\n' if add_generation_prompt -}}"
    model = Model(tmp_path, "smollm2", source)
    assert model.template.end_of_turn is None
    assert model.written([QUESTION, ANSWER])[0][1] == "Hello\n"


def test_a_template_that_drops_the_answers_is_refused(tmp_path):
    with pytest.raises(BadInput, match="does not write the assistant's text"):
        Model(tmp_path, "smollm2", "{%- for m in messages[:1] -%}{{- m.content -}}{%- endfor -%}")
