"""Which keys of a record say what: the one table of layouts, for jobs and for `pion new`.

chat    turns                        messages, conversations: a list, or JSON that says one
chat    turns marked in one text     text: "<|im_start|>user", "[INST]", "### Instruction:", …
chat    a question and its answer    instruction, prompt, question, …; output, completion, answer, …
pair    a prompt, and two answers    chosen and rejected (also texts of "\\n\\nHuman:")
pair    OpenAI's                     input.messages, preferred_output, non_preferred_output
pair    turns, and a worse answer    messages, rejected_response
label   an answer that is good or not    prompt and completion, or turns, and label

Next to all of them: `system`, `tools` and `history`, and what belongs below a question (`input`,
`context`). What is under other keys is not read, and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pion.data.chat.messages import (
    Conversation,
    Message,
    Seen,
    learnable,
    nothing_to_learn,
    says_something,
    tidied,
    turns_of,
)
from pion.data.records.fields import NOT_READ, Fields, json_in, yes_or_no
from pion.data.records.transcripts import marked, transcript
from pion.data.records.turns import other_names, read_tools, read_turns, text_of
from pion.errors import BadInput
from pion.later_fields import shown

Kind = Literal["chat", "pair", "label"]

TURNS = ("messages", "conversations", "conversation")
# A text in which turns are marked.
TEXT = "text"
# Columns of a question and its answer. `input` is Alpaca's, below its instruction, or a question.
QUESTIONS = (
    *("instruction", "prompt", "question", "query", "problem", "user", "human", "prompter", "q"),
    *("inputs", "input"),
)
ANSWERS = (
    *("output", "completion", "answer", "response", "assistant", "bot", "gpt", "reply", "a"),
    *("solution", "target", "targets", "generation"),
)
CONTEXTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
HISTORY = "history"
TOOLS = ("tools", "functions")
SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)
REJECTED = ("rejected_response", "rejected_messages")
LABELS = ("label", "kto_tag")
# What a model of texts does not see.
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
# Of tables, only these columns are read.
COLUMNS = tuple(
    dict.fromkeys(
        (
            *(*TURNS, TEXT, *QUESTIONS, *ANSWERS, *CONTEXTS, *SYSTEMS, HISTORY, *TOOLS, *REJECTED),
            *(*LABELS, "status", *(key for keys in (*SIDES, *SCORES) for key in keys)),
        )
    )
)
# If one of these is not read, that is worth a warning: what it has was meant for somebody.
MEANINGFUL = dict.fromkeys(
    (
        *(*SYSTEMS, *CONTEXTS, HISTORY, *TOOLS, *REJECTED, *LABELS, *MEDIA, "instruction"),
        *(key for keys in SIDES for key in keys),
        *("weight", "train", "trainable", "reasoning_content", "thinking", "reasoning"),
        *("tool_defs", "article", "corrected", "reflection", "revision", "choices"),
    )
)


def kind_of(record: Mapping[str, Any]) -> Kind | None:
    """Return what the keys of a record say that it is; None if they say nothing."""
    return _kind(Fields(record, ""))


def _kind(fields: Fields) -> Kind | None:
    turns, answers = fields.there(*TURNS), fields.there(*ANSWERS)
    if any(map(fields.values.get, SIDES[0] + SIDES[2])) or fields.there(*REJECTED):
        return "pair"
    if (turns or answers) and any(_means(fields, label, True, False) for label in LABELS):
        return "label"
    is_chat = turns or (answers and fields.there(*QUESTIONS)) or _marked(fields)
    return "chat" if is_chat else None


def _marked(fields: Fields) -> bool:
    """Return whether a record is a text in which turns are marked, and nothing else."""
    return not fields.there(*ANSWERS) and bool(marked(fields.values.get(TEXT)))


def _means(fields: Fields, label: str, *answers: bool) -> bool:
    """Return whether a label says one of the answers in any spelling, and is no other label."""
    try:
        return label in fields.values and yes_or_no(fields.values[label], "") in answers
    except BadInput:
        return False


def read_chat(record: Any, where: str) -> Conversation:
    """Return the conversation of a record, with messages that say nothing.

    Of a prompt that is a list, nothing is learned; other answers are, unless the data say no.

    Args:
        where: the record's file and line, for errors.

    Raises:
        BadInput: the record has another layout, an unknown role, or could mean two things.
    """
    if not isinstance(record, dict):
        raise BadInput(f"{where}: not a conversation: found {shown(record)} instead of an object")
    fields, context, layout = Fields(record, where), 0, ""
    key = fields.one_of(TURNS, "conversation") or (TEXT if _marked(fields) else None)
    if key is not None:
        if any(_means(fields, label, False) for label in LABELS):
            raise _no_chat(fields, "label")
        messages = turns_under(fields, fields.take(key), f"{where}: key {key!r}")
        layout = "turns are read from the marks of a chat template in text" if key == TEXT else ""
    else:
        if (kind := _kind(fields)) != "chat":
            raise _no_chat(fields, kind)
        prompt, layout = prompt_of(fields)
        key = fields.one_of(ANSWERS, "answer")
        value = fields.take(key)
        value = str(value) if isinstance(value, int | float) else value
        messages = side(fields, value, prompt, f"{where}: key {key!r}")
        context = 0 if layout else len(prompt)
        layout = layout and f"{layout}, the answer in {key}"
    with_prompt = with_system(fields, messages)
    context += len(with_prompt) - len(messages) if context else 0
    return Conversation(with_prompt, tools_of(fields), where, context, seen_in(fields, layout))


def read_conversation(record: Any, where: str, *, own: bool = False) -> Conversation:
    """Return the conversation of a record as a template gets it, or Pion's `own` chat format.

    Raises:
        BadInput: as `read_chat`, and if nothing is learned.
    """
    conversation = read_chat(record, where)
    if not own:
        return learnable(conversation)
    tidy = tidied(conversation)
    if not any(turn.role == "assistant" and turn.learned for turn in turns_of(tidy)):
        raise nothing_to_learn(conversation)
    return tidy


def _no_chat(fields: Fields, kind: Kind | None) -> BadInput:
    keys = ", ".join(map(shown, fields.names)) or "no key"
    if kind is not None:
        content = (
            "two answers, of which one is better" if kind == "pair" else "an answer with a label"
        )
        how = " with prefer.loss apo-zero" if kind == "label" else ""
        return BadInput(
            f"{fields.where}: not a conversation: the record has {content} ({keys}). The stage "
            f"prefer learns from these{how}: name the file under prefer.sources"
        )
    wanted = (names for names in (TURNS, ANSWERS, QUESTIONS) if not fields.there(*names))
    empty = [name for names in wanted for name in names if name in fields.names]
    if empty:
        return BadInput(f"{fields.where}: not a conversation: key {empty[0]!r} is empty")
    return BadInput(
        f"{fields.where}: not a conversation: expected a list of turns under 'messages' or "
        f"'conversations', or a question and its answer under keys such as 'prompt' and "
        f"'completion', found {keys}"
    )


def seen_in(fields: Fields, layout: str = "") -> Seen:
    """Return what else the record has. All keys that are read must have been taken.

    Raises BadInput for pictures and sounds, which the answers may be about.
    """
    media = [key for key in fields.there(*MEDIA) if fields.values[key] is not NOT_READ]
    if media:
        raise BadInput(f"{fields.where}: key {media[0]!r} has what a model of texts does not see")
    return Seen(layout, fields.unread, tuple(fields.roles.items()))


def turns_under(fields: Fields, value: Any, place: str) -> list[Message]:
    """Return the messages of a list of turns, and note names of roles. Raises BadInput."""
    if marked(value):
        return transcript(value, place)
    turns = json_in(value, place)
    fields.roles |= other_names(turns if isinstance(turns, list) else [turns])
    return read_turns(turns, place)


def tools_of(fields: Fields, beside: Any = None) -> list[dict[str, Any]] | None:
    """Return the tools of a record, which may be `beside` its messages. Raises BadInput."""
    key = fields.one_of(TOOLS, "tools")
    tools = beside if key is None else fields.take(key)
    return read_tools(tools, f"{fields.where}: {key or 'tools'!r}")


def with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """Return the messages with the record's system message first, if none is there.

    Raises:
        BadInput: it is no text.
    """
    key = fields.one_of(SYSTEMS, "system message")
    system = fields.values.get(key or "")
    system_texts = [m["content"] for m in messages if m["role"] == "system" and says_something(m)]
    if key is None or (system_texts and system_texts != [system]):
        return messages
    system = text_of(fields.take(key), f"{fields.where}: key {key!r}")
    return messages if system_texts else [{"role": "system", "content": system}, *messages]


# ---------------------------------------------------------------- prompts and answers


def prompt_of(fields: Fields) -> tuple[list[Message], str]:
    """Return the messages of a record's prompt, none if it has no key for it; and in words which
    columns have it, "" unless the question is a text.

    Raises:
        BadInput: it is neither a text nor a list of messages, or could be under several keys.
    """
    where, history = fields.where, history_of(fields)
    questions = fields.there(*QUESTIONS)
    if len(questions) > 1:  # Alpaca's input belongs to its instruction
        questions = [key for key in questions if key not in CONTEXTS]
    key = fields.one_of(questions, "question")
    if key is None:
        return history, ""
    value, location = fields.take(key), f"{where}: key {key!r}"
    if isinstance(value, str) and marked(value):
        return [*history, *transcript(value, location, ends_open=True)], ""
    if isinstance(value, int | float) or not isinstance(value, str | list | dict):
        raise BadInput(f"{location} must be text or a list of messages, not {shown(value)}")
    if not isinstance(value, str):
        return [*history, *turns_under(fields, value, location)], ""
    layout = f"the question is in {key}{f' after {HISTORY}' if history else ''}"
    below = next((c for c in fields.there(*CONTEXTS) if c != key), None)
    if below is not None and isinstance(fields.values[below], str):
        value = f"{value.strip()}\n\n{fields.take(below).strip()}"
        layout = f"{layout} with {below} below it"
    return [*history, {"role": "user", "content": value}], layout


def history_of(fields: Fields) -> list[Message]:
    """Return Alpaca's earlier turns: [question, answer] each, or messages. Raises BadInput."""
    if not fields.there(HISTORY):
        return []
    location = f"{fields.where}: key {HISTORY!r}"
    turns_before = json_in(fields.take(HISTORY), location)
    turns: list[Any] = []
    for turn in turns_before if isinstance(turns_before, list) else [turns_before]:
        if isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn):
            turns += map(_message, ("user", "assistant"), turn)
        else:
            turns.append(turn)
    return turns_under(fields, turns, location)


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def side(fields: Fields, value: Any, prompt: Sequence[Message], place: str) -> list[Message]:
    """Return the messages of the prompt and the answer `value`.

    A list that does not begin with an answer has the prompt itself, maybe with a system message
    that the data set's prompt lacks. So has a transcript.

    Raises:
        BadInput: the answer is none, or it is without a prompt.
    """
    if isinstance(value, str):
        # One space joins a completion with its prompt. More of them are how a text is indented.
        text = value.removeprefix(" ") if value[1:2].strip() else value
        answer = [_message("assistant", text)]
        messages = transcript(value, place) if marked(value) else answer
    elif isinstance(value, dict | list):
        messages = turns_under(fields, value, place)
    else:
        raise BadInput(f"{place} must be text, a message or a list of messages, not {shown(value)}")
    if not messages:
        raise BadInput(f"{place} is an empty list")
    if messages[0]["role"] != "assistant":
        return messages
    if not any(map(says_something, prompt)):
        raise BadInput(
            f"{place} begins with the answer, and there is no prompt: expected a prompt under "
            "'prompt', as the first messages of a list, or in a text that begins with "
            r'"\n\nHuman:"'
        )
    return [*prompt, *messages]
