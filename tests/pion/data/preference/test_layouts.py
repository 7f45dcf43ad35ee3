"""Each layout, as the data sets that have it write it."""

import pytest

from pion.data.preference.layouts import differs_early, parse_preference
from pion.errors import BadInput

ASKED = "Which planet is the largest?"
GOOD, BAD = "Jupiter.", "It depends on what you mean by large."
USER = {"role": "user", "content": ASKED}
SYSTEM = {"role": "system", "content": "Be brief."}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def pair(record):
    found = parse_preference(record, "prefs.jsonl:7")
    assert found.chosen.context == found.rejected.context
    context = found.chosen.context
    said = [
        [(m["role"], (m["content"] or "").strip()) for m in side.messages[:context]]
        for side in found.conversations
    ]
    assert said[0] == said[1]
    return found


def texts(found) -> tuple[list[str], list[str], list[str]]:
    """Return the shared messages, the chosen answer and the rejected one, as "role: text"."""
    context = found.chosen.context
    sides = [[f"{m['role']}: {m['content']}" for m in c.messages] for c in found.conversations]
    return sides[0][:context], sides[0][context:], sides[1][context:]


PLAIN = ([f"user: {ASKED}"], [f"assistant: {GOOD}"], [f"assistant: {BAD}"])
# tests/pion/data/records/test_layouts_of_peers.py has the layouts of published data sets.
LAYOUTS = {
    "explicit, answers as messages": {
        "prompt": [USER],
        "chosen": answer(GOOD),
        "rejected": answer(BAD),
    },
    "transcripts with a prompt": {
        "prompt": f"\n\nHuman: {ASKED}\n\nAssistant:",
        "chosen": GOOD,
        "rejected": BAD,
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_gives_the_same_pair(name):
    assert texts(pair(LAYOUTS[name])) == PLAIN


@pytest.mark.parametrize(
    ("label", "said"), [(True, True), (0, False), ("1", True), ("False", False)]
)
@pytest.mark.parametrize(
    "record",
    [
        {"prompt": ASKED, "completion": GOOD},
        {"prompt": [USER], "completion": [answer(GOOD)]},
        {"prompt": [USER], "completion": answer(GOOD)},
        {"prompt": ASKED, "completion": [USER, answer(GOOD)]},
        {"completion": [USER, answer(GOOD)]},
    ],
    ids=["texts", "lists", "a message", "a list with the prompt", "only a list"],
)
def test_an_unpaired_answer_has_a_label(record, label, said):
    found = parse_preference({**record, "label": label}, "kto.jsonl:1")
    assert found.desired is said
    assert found.answer.context == 1
    assert [m["content"] for m in found.answer.messages] == [ASKED, GOOD]


def test_lists_win_over_the_prompt_because_they_may_have_a_system_message():
    lists = {"chosen": [SYSTEM, USER, answer(GOOD)], "rejected": [SYSTEM, USER, answer(BAD)]}
    for prompt in (ASKED, [USER], f"  {ASKED}\n"):
        found = pair({"prompt": prompt, **lists})
        assert texts(found)[0] == ["system: Be brief.", f"user: {ASKED}"]
    # A system key does not add a second one.
    assert len(texts(pair({"system": "Be long.", **lists}))[0]) == 2


def test_earlier_answers_that_both_sides_share_belong_to_the_prompt():
    shared = [USER, answer(GOOD), {"role": "user", "content": "And the smallest?"}]
    chosen, rejected = [*shared, answer("Mercury.")], [*shared, answer("Pluto.")]
    for prompt in (None, ASKED, "And the smallest?", shared, [USER]):
        found = pair({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        assert found.chosen.context == 3
        assert not differs_early(found)


def test_calls_and_results_of_tools_stay_with_the_tools():
    tools = [{"type": "function", "function": {"name": "now"}}]
    call = answer(None, tool_calls=[{"function": {"name": "now", "arguments": {}}}])
    result = {"role": "tool", "content": "12:00"}
    found = pair(
        {
            "input": {"messages": [USER, call, result], "tools": tools},
            "preferred_output": [answer("Noon.")],
            "non_preferred_output": [call, result, answer("Night.")],
        }
    )
    assert found.chosen.context == 3
    assert found.chosen.tools == found.rejected.tools == tools
    assert found.chosen.messages[1]["tool_calls"] == call["tool_calls"]
    assert not differs_early(found)
    labelled = parse_preference(
        {"prompt": [USER, call, result], "completion": "Noon.", "label": True}, "f:1"
    )
    assert labelled.answer.context == 3  # the call is not learned


def test_space_around_messages_does_not_make_prompts_differ():
    spaced = {"role": "user", "content": f"{ASKED}\n"}
    found = pair({"chosen": [USER, answer(GOOD)], "rejected": [spaced, answer(BAD)]})
    assert found.chosen.context == 1


def test_messages_after_the_answer_and_empty_ones_before_it_are_left_out():
    nothing = {"role": "system", "content": " "}
    thanks = {"role": "user", "content": "Thanks"}
    chosen, rejected = [nothing, USER, answer(GOOD), thanks], [USER, answer(BAD)]
    assert texts(pair({"chosen": chosen, "rejected": rejected})) == PLAIN


@pytest.mark.parametrize(
    ("more", "scores", "tie"),
    [
        ({}, None, False),
        ({"score_chosen": 8, "score_rejected": 6.5}, (8, 6.5), False),
        ({"score_chosen": 8, "score_rejected": 8.0}, (8, 8.0), True),
        ({"chosen_score": 3, "rejected_score": 4}, (3, 4), False),
        ({"chosen_score": 3, "rejected_score": None}, None, False),
        ({"status": "tie"}, None, True),
        ({"status": "swapped"}, None, False),
    ],
)
def test_scores_and_ties_are_read(more, scores, tie):
    found = pair({"prompt": ASKED, "chosen": GOOD, "rejected": BAD, **more})
    assert (found.scores, found.tie) == (scores, tie)


TWO = {"chosen": [USER, answer(GOOD)], "rejected": [USER, answer(BAD)]}
EXPLICIT = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
LABELLED = {"prompt": ASKED, "completion": GOOD, "label": True}
ELSE = {"role": "user", "content": "Something else?"}
REFUSED = {
    "no object": ([1], "not a preference: found [1] instead of an object"),
    "other keys": ({"messages": []}, "not a preference: expected the keys 'chosen' and 'rejected'"),
    "nothing": ({}, "found no key"),
    "no rejected": ({"prompt": ASKED, "chosen": GOOD}, "key 'rejected' is missing; it belongs"),
    "null": ({**EXPLICIT, "chosen": None}, "key 'chosen' is missing; it belongs to 'rejected'"),
    "a number": ({**EXPLICIT, "chosen": 3}, "key 'chosen' must be text, a message or a list"),
    "a nested list": ({**EXPLICIT, "chosen": [[answer(GOOD)]]}, "key 'chosen': turn 1 must be"),
    "an empty list": ({**EXPLICIT, "chosen": []}, "key 'chosen' is an empty list"),
    "no prompt": ({"chosen": GOOD, "rejected": BAD}, "key 'chosen' begins with the answer"),
    "an empty prompt": ({**EXPLICIT, "prompt": " "}, "and there is no prompt"),
    "a prompt of another type": ({**EXPLICIT, "prompt": 5}, "key 'prompt' must be text or a list"),
    "a system of another type": ({**EXPLICIT, "system": 5}, "key 'system' must be text"),
    "only the user": ({**TWO, "chosen": [USER]}, "key 'chosen' has no message by the assistant"),
    "another prompt in one side": (
        {**TWO, "rejected": [ELSE, answer(BAD)]},
        "must first differ in an answer, but message 1 of 'chosen' differs and is by user",
    ),
    "a side that goes on": (
        {**TWO, "rejected": [USER, answer(GOOD), ELSE, answer(BAD)]},
        "key 'rejected' has all messages of the other side and goes on",
    ),
    "no common message": (
        {"chosen": [answer(GOOD), USER, answer(GOOD)], "rejected": [answer(BAD)]},
        "key 'chosen' begins with the answer, and there is no prompt",
    ),
    "a prompt that disagrees": (
        {"prompt": "Who is it?", **TWO},
        "key 'prompt' and the messages before the answers disagree: the prompt is 'Who is it?'",
    ),
    "a longer prompt": (
        {"prompt": [USER, answer(GOOD), ELSE], **TWO},
        "key 'prompt' and the messages before the answers disagree",
    ),
    "OpenAI without one output": (
        {"input": {"messages": [USER]}, "preferred_output": [answer(GOOD)]},
        "key 'non_preferred_output' is missing",
    ),
    "OpenAI without messages": (
        {"input": "Hi", "preferred_output": [1], "non_preferred_output": [1]},
        "key 'input' must be an object with a list of messages",
    ),
    "a transcript without Assistant": (
        {"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi"},
        "key 'chosen' ends with a turn of Human, without an answer of Assistant",
    ),
    "a transcript with two turns of Human": (
        {"chosen": "\n\nHuman: Hi\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi"},
        "key 'chosen': turn 2 is by Human again",
    ),
    "an answer in the prompt's transcript": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Yes", "chosen": GOOD, "rejected": BAD},
        "key 'prompt' must end with \"Assistant:\"",
    ),
    "a score of true": (
        {**EXPLICIT, "score_chosen": True, "score_rejected": 1},
        "key 'score_chosen' must be a number, not True",
    ),
    "a label of text": ({**LABELLED, "label": "good"}, "key 'label' must be true or false"),
    "a label of 2": (
        {**LABELLED, "label": 2},
        "key 'label' must be true or false, or 1 or 0, not 2",
    ),
    "two prompts": (
        {**EXPLICIT, "question": "Why?"},
        "the keys 'prompt' and 'question' could all be the question",
    ),
    "an answer that is not learned": (
        {**LABELLED, "completion": [answer(GOOD, weight=0)]},
        "key 'completion': the answer must not have weight 0",
    ),
    "an answer before the answers": (
        {"messages": [USER, answer(GOOD)], "chosen": GOOD, "rejected": BAD},
        "key 'messages' ends with an answer already",
    ),
    "a worse answer to a question": (
        {"messages": [USER], "rejected_response": BAD},
        "key 'messages' does not end with an answer, the chosen one",
    ),
    "pictures": ({**EXPLICIT, "images": ["a.png"]}, "key 'images' has what a model of texts"),
    "no label": ({"prompt": ASKED, "completion": GOOD}, "key 'label' is missing"),
    "no completion": ({"prompt": ASKED, "label": True}, "key 'completion' is missing"),
    "an unpaired answer to nobody": (
        {"prompt": [SYSTEM], "completion": GOOD, "label": True},
        "there is no prompt: no message by the user",
    ),
    "an unpaired prompt that disagrees": (
        {**LABELLED, "prompt": "Who?", "completion": [USER, answer(GOOD)]},
        "key 'prompt' and the messages before the answers disagree",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_preference_is_refused_with_its_place_and_key(name):
    record, why = REFUSED[name]
    with pytest.raises(BadInput) as error:
        parse_preference(record, "prefs.jsonl:7")
    assert str(error.value).startswith("prefs.jsonl:7")
    assert why in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
