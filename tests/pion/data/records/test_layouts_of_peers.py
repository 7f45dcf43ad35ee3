"""Records in the layouts that peers document are read as these peers mean them, or refused."""

from pathlib import Path

import pytest

from pion.data.chat.conversation import tokenize
from pion.data.chat.messages import Conversation, turns_of
from pion.data.preference.layouts import Pair, parse_preference
from pion.data.records.layouts import MEANINGFUL, read_chat, read_conversation
from pion.errors import BadInput
from tests.pion.data.chat.test_template import Model
from tests.pion.data.chat.test_template_real import FOLDER, RealModel
from tests.support.chat_templates import QWEN25
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.peer_layouts import as_in_a_table, as_messages, conversation_said, examples

EXAMPLES = examples()
# Templates of chats have no place for an answer without a question.
ASKED = [
    one for one in EXAMPLES if "assistant" not in one.means.get("messages", [{"assistant": ""}])[0]
]


def of_stage(*stages):
    chosen = [example for example in EXAMPLES if example.stage in stages]
    return pytest.mark.parametrize("example", chosen, ids=[one.name for one in chosen])


def chat_of(example):
    return read_conversation(example.value, example.where)


def read_of(value, example):
    read = read_chat if example.stage == "sft" else parse_preference
    return read(value, example.where)


def refuses(value, example):
    try:
        read_of(value, example)
    except BadInput:
        return True
    return False


def seen_of(read):
    return (read if isinstance(read, Conversation) else read.conversations[0]).seen


def requires_refusal(error, example):
    said = str(error.value)
    assert example.where in said
    assert [word for word in example.means["refused"] if word not in said] == [], said


@of_stage("sft")
def test_a_conversation_is_what_the_peer_makes_of_it(example):
    if "refused" in example.means:
        with pytest.raises(BadInput) as error:
            chat_of(example)
        requires_refusal(error, example)
        return
    found = chat_of(example)
    unread, said = {*found.seen.unread}, conversation_said(found)
    if "unread" in example.means:
        said["unread"] = sorted(unread)
    if "warned" in example.means:
        said["warned"] = sorted(unread.intersection(MEANINGFUL))
    assert said == example.means


@of_stage("prefer")
def test_a_preference_is_what_the_peer_makes_of_it(example):
    if "refused" in example.means:
        with pytest.raises(BadInput) as error:
            parse_preference(example.value, example.where)
        requires_refusal(error, example)
        return
    found = parse_preference(example.value, example.where)
    sides = [conversation_said(side)["messages"] for side in found.conversations]
    context = found.conversations[0].context
    names = ("chosen", "rejected") if isinstance(found, Pair) else ("answer",)
    said = {"prompt": sides[0][:context]} | {
        name: side[context:] for name, side in zip(names, sides, strict=True)
    }
    assert said | ({} if isinstance(found, Pair) else {"desired": found.desired}) == example.means


def test_in_a_table_the_nulls_under_keys_of_other_rows_change_nothing():
    rows = as_in_a_table([example.value for example in EXAMPLES])
    assert len({frozenset(row) for row in rows}) == 1
    for example, row in zip(EXAMPLES, rows, strict=True):
        if "refused" not in example.means and example.stage != "text":
            assert read_of(row, example) == read_of(example.value, example), example.name


def test_every_key_is_either_read_or_said_to_be_unread():
    for example in EXAMPLES:
        if "refused" in example.means or example.stage == "text":
            continue
        whole = read_of(example.value, example)
        for key, value in example.value.items():
            if key in seen_of(whole).unread or value in (None, "", []):
                continue
            rest = {name: value for name, value in example.value.items() if name != key}
            others = (rest, rest | {key: "Something else."})
            assert any(refuses(one, example) or read_of(one, example) != whole for one in others), (
                f"{example.name}: {key}"
            )


@of_stage("prefer")
def test_sft_never_learns_an_answer_that_is_not_desired(example):
    undesired = example.means.get("rejected")
    if example.means.get("desired") is False:
        undesired = example.means["answer"]
    try:
        found = chat_of(example)
    except BadInput:
        return
    learned = [m for m in conversation_said(found)["messages"] if m.get("learned", True)]
    assert not [message for message in undesired or () if message in learned]


@of_stage("text", "sft")
def test_what_is_no_preference_is_not_read_as_one(example):
    with pytest.raises(BadInput) as error:
        parse_preference(example.value, example.where)
    assert example.where in str(error.value)


@of_stage("text")
def test_a_document_is_no_conversation(example):
    with pytest.raises(BadInput, match="text"):
        chat_of(example)
    assert example.value["text"] == example.means["text"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)
        yield Model(tmp_path_factory.mktemp("model"), "qwen", QWEN25)


@pytest.mark.parametrize("example", ASKED, ids=[one.name for one in ASKED])
def test_the_text_is_that_of_transformers_and_only_the_answers_that_are_meant_are_learned(
    model, example
):
    requires_text_of_transformers(model, example)


def test_the_same_answers_are_learned_in_pions_own_format(model):
    end = model.tokenizer.end_of_text_token
    for example in ASKED:
        meant = [
            m["assistant"]
            for m in example.means["messages"]
            if m.get("learned", True) and m.get("assistant")
        ]
        if not meant:  # a call alone
            with pytest.raises(BadInput, match="only call tools"):
                read_conversation(example.value, example.where, own=True)
            continue
        found = tokenize(model.tokenizer, turns_of(chat_of(example)))
        learned = model.text(found.ids[found.learned])
        assert learned == "".join(f"{text}\n{end}" for text in meant), example.name


@pytest.mark.soak
@pytest.mark.skipif(not FOLDER, reason="PION_REAL_MODELS names no folder with real models")
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen3"])
def test_so_it_is_by_the_published_templates(name, tmp_path):
    model = RealModel(Path(FOLDER) / name, tmp_path, {})
    for example in ASKED:
        if name == "qwen3" or not any("calls" in one for one in example.means["messages"]):
            requires_text_of_transformers(model, example)


def requires_text_of_transformers(model, example):
    """Compare with the text of the messages that are meant, and with the learned parts of it."""
    conversation = chat_of(example)
    (found,) = model.template.tokenize_batch([conversation])
    assert found.refused is None
    messages = as_messages(example.means["messages"])

    def text(upto, *, prompt=False):
        written = model.stock.apply_chat_template(
            messages[:upto], tools=conversation.tools, add_generation_prompt=prompt, tokenize=False
        )
        assert isinstance(written, str)
        return written

    answers = [
        number
        for number, message in enumerate(example.means["messages"])
        if "assistant" in message and message.get("learned", True)
    ]
    learned = [
        text(answer + 1).removeprefix(text(answer, prompt=True)).removesuffix("\n")
        for answer in answers
    ]
    rows = [(model.text(row.ids), model.text(row.ids[row.learned])) for row in found.tokenized]
    if found.split:  # a thought is written for the last answer alone
        assert rows == [(text(answer + 1), part) for answer, part in zip(answers, learned)]
    else:
        assert rows == [(text(len(messages)), "".join(learned))]


@pytest.mark.parametrize("key", ["label", "kto_tag"])
@pytest.mark.parametrize("no", [False, 0, 0.0, "0", "false", "False", " FALSE "])
def test_sft_refuses_turns_with_any_label_that_says_no(key, no):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    with pytest.raises(BadInput, match=r"f:1: .*prefer\.loss apo-zero.*prefer\.sources"):
        read_conversation({"messages": turns, key: no}, "f:1")


@pytest.mark.parametrize("other", [True, 1, "1", "true", 2, "joke", [0], ""])
def test_sft_learns_turns_with_other_labels(other):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    assert read_conversation({"messages": turns, "label": other}, "f:1").messages == turns
