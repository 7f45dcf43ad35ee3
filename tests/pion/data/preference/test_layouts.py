"""Each layout, as the data sets that have it write it."""

import pytest

from pion.data.preference.layouts import differs_early, parse_preference

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
