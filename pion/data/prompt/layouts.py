"""Prompts, and what the record gives as the right answer, from records of any layout.

GSM8K            question, problem, …: a text; answer
TRL, verifiers   prompt: a text or messages; answer, solution or ground_truth
verl             prompt: messages; reward_model.ground_truth
open-instruct    messages or conversations, of which answers at the end are cut; ground_truth

The table of `pion.data.records.layouts` says which keys are questions, answers and system messages.
What is under other keys is for rewards that read the whole record.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pion.data.chat.messages import Conversation, said_in
from pion.data.records.fields import Fields, is_blank
from pion.data.records.layouts import (
    ANSWERS,
    QUESTIONS,
    TURNS,
    prompt_of,
    seen_in,
    tools_of,
    turns_under,
    with_system,
)
from pion.errors import BadInput
from pion.later_fields import shown

# The first of these that is filled counts. Next to a short answer, there may be a whole solution.
RIGHT = dict.fromkeys(
    ("ground_truth", "expected_answer", "final_answer", "answer", "solution", *ANSWERS)
)


@dataclass(frozen=True)
class Question:
    """A prompt whose answers are sampled.

    Attributes:
        conversation: the messages of the prompt, and the tools that an answer may call.
        prompt: the prompt as rewards get it: the text of a question, or else the messages.
        answer: the right answer: a text, or a list, an object or a truth value, as the record has
            it; None if the record has none.
        record: the whole record.
        begun: how the answer begins. What is sampled continues it.
    """

    conversation: Conversation
    prompt: str | list[dict[str, Any]]
    answer: Any
    record: dict[str, Any]
    begun: str = ""


def parse_question(record: Any, where: str) -> Question:
    """Return the prompt of a record, without messages that say nothing.

    Args:
        where: the record's file and line, for errors.

    Raises:
        BadInput: there is no prompt, the prompt ends with two answers, the right answer is null or
            NaN, or a key could mean two things. The message names the key.
    """
    if not isinstance(record, dict):
        raise BadInput(f"{where}: not a prompt: found {shown(record)} instead of an object")
    fields = Fields(record, where)
    turns = fields.one_of(TURNS, "conversation")
    key = turns or next(iter(fields.there(*QUESTIONS)), None)
    if key is None:
        raise _no_prompt(fields)
    location = f"{where}: key {key!r}"
    messages_read, layout = (
        prompt_of(fields)
        if turns is None
        else (turns_under(fields, fields.take(turns), location), "")
    )
    with_system_prompt = with_system(fields, messages_read)
    spoken = [with_system_prompt[i] for i in said_in(with_system_prompt)]
    ends = [n for n, message in enumerate(spoken, 1) if message["role"] != "assistant"]
    messages, cut = spoken[: max(ends, default=0)], spoken[max(ends, default=0) :]
    begun = cut[0]["content"] if cut and turns is None else ""
    if begun and len(cut) > 1:
        raise BadInput(
            f"{location} ends with two answers, and one can be continued. Remove the first"
        )
    if not any(message["role"] == "user" for message in messages):
        raise BadInput(f"{location}: there is no prompt: the user says nothing before the answer")
    answer, found_in = _right_answer(record, where, cut[-1]["content"] if turns and cut else None)
    if cut:
        layout = f"the prompt is what is before the last answer in {key}"
        layout = f"the prompt in {key} begins the answer, which is continued" if begun else layout
    seen = seen_in(fields, ", ".join(filter(None, [layout, found_in])))
    # Rewards may read all keys.
    asked_for = Conversation(messages, tools_of(fields), where, seen=replace(seen, unread=()))
    alone = turns is None and isinstance(record[key], str) and len(messages) == 1
    prompt = messages[0]["content"] if alone else messages
    return Question(asked_for, prompt, answer, record, begun)


def _right_answer(record: dict[str, Any], where: str, cut: str | None) -> tuple[Any, str]:
    """Return the right answer, and in words which key has it; None and "" if there is none.

    `cut` is the text of the answer after the prompt. It counts if no key is filled.
    """
    model = record.get("reward_model")
    answers = {key: record[key] for key in RIGHT if key in record}
    if isinstance(model, dict) and "ground_truth" in model:
        answers = {"reward_model.ground_truth": model["ground_truth"], **answers}
    filled = [key for key in answers if not is_blank(answers[key])]
    if not filled and (cut or not answers):
        return cut, ""
    key = (filled or list(answers))[0]
    value = answers[key]
    if not filled or value != value:  # NaN
        raise BadInput(f"{where}: key {key!r}: the right answer can't be {shown(value)}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else value, f"the answer in {key}"


def _no_prompt(fields: Fields) -> BadInput:
    empty = [key for key in fields.names if key in (*TURNS, *QUESTIONS)]
    if empty:
        return BadInput(f"{fields.where}: not a prompt: key {empty[0]!r} is empty")
    names = ", ".join(map(shown, fields.names)) or "no key"
    return BadInput(
        f"{fields.where}: not a prompt: expected a text or messages under 'prompt' or 'question', "
        f"or a list of turns under 'messages', found {names}"
    )
