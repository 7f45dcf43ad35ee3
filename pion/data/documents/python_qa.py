"""Ask questions about the Python standard library, and answer them from its docstrings.

Every documented function, method, class and module gets one or two dialogues: what it does, what it
returns and takes, which definition does a given thing, its docstring, and follow-up questions. The
wording depends only on the definition's name, so it is the same each time.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from pion.data.chat.conversation import Turn
from pion.data.documents import python_qa_wording as wording
from pion.data.documents.file_to_documents import Document
from pion.data.documents.python_docs import definitions, prose
from pion.data.documents.python_qa_wording import Topic, goal_of, topic_of

# The longest docstring of a dialogue, in characters.
DOCSTRING_CHARS = 480


@dataclass(frozen=True)
class Dialogue:
    """A conversation about a definition in the file `origin`."""

    origin: str
    turns: tuple[Turn, ...]


def dialogues() -> Iterator[Dialogue]:
    """Yield all dialogues, file by file; no question is asked twice."""
    topics = [topic for definition in definitions() if (topic := topic_of(definition))]
    described = Counter((topic.module, topic.summary) for topic in topics)
    questions: set[str] = set()
    for topic in named_once(topics):
        rng = random.Random(topic.full)
        candidates = [_about(topic, rng)]
        unique = described[topic.module, topic.summary] == 1
        others = [kind for kind in OTHER_KINDS if unique or kind is not _which]
        rng.shuffle(others)
        candidates.append(next((turns for kind in others if (turns := kind(topic, rng))), []))
        for turns in filter(None, candidates):
            if turns[0].text not in questions:
                questions.add(turns[0].text)
                yield Dialogue(topic.definition.origin, _introduced(turns, rng))
    yield from _methods(topics)


def documents() -> Iterator[Document]:
    """Yield the dialogues of each file as one text."""
    for origin, origin_dialogues in groupby(dialogues(), attrgetter("origin")):
        texts = ["\n".join(turn.text for turn in dialogue.turns) for dialogue in origin_dialogues]
        yield Document("\n\n".join(texts), origin)


def named_once(topics: list[Topic]) -> list[Topic]:
    """Return the topics whose name no other topic has."""
    named = Counter(topic.full for topic in topics)
    return [topic for topic in topics if named[topic.full] == 1]


def question_about(topic: Topic, rng: random.Random) -> str:
    """Return a question of what the topic is or does."""
    return topic.ask(rng, wording.ABOUT.get(topic.kind, wording.ABOUT["callable"]))


# ---------------------------------------------------------------- what is asked


def _about(topic: Topic, rng: random.Random) -> list[Turn]:
    """Ask what the topic is, and sometimes ask a second question about it."""
    question = question_about(topic, rng)
    turns = _pair(question, topic.answer)
    if rng.random() < 0.25:
        follow_ups = []
        if topic.parameters is not None and topic.call not in question:
            follow_ups.append(
                _pair(rng.choice(wording.AND["parameters"]), _parameters_answer(topic))
            )
            follow_ups.append(
                _pair(rng.choice(wording.AND["signature"]), f"Call it as `{topic.call}`.")
            )
        if topic.kind != "module" and topic.module != "builtins":
            follow_ups.append(
                _pair(rng.choice(wording.AND["module"]), f"It is in the {topic.module} module.")
            )
        if topic.summary != topic.answer:
            follow_ups.append(_pair(rng.choice(wording.AND["summary"]), topic.summary))
        if follow_ups:
            turns += rng.choice(follow_ups)
    return turns


def _brief(topic: Topic, rng: random.Random) -> list[Turn]:
    if topic.summary == topic.answer:
        return []
    if topic.kind in ("function", "method") and rng.random() < 0.5:
        question = topic.ask(rng, wording.ABOUT["callable"])
        return [Turn("system", rng.choice(wording.SYSTEM_BRIEF)), *_pair(question, topic.summary)]
    return _pair(topic.ask(rng, wording.ASK["brief"]), topic.summary)


def _docstring(topic: Topic, rng: random.Random) -> list[Turn]:
    if topic.kind not in ("function", "method") or not topic.definition.signature:
        return []
    text = whole_paragraphs(prose(topic.definition.docstring), DOCSTRING_CHARS)
    return _pair(topic.ask(rng, wording.ASK["docstring"]), text) if text else []


def _which(topic: Topic, rng: random.Random) -> list[Turn]:
    length = len(topic.summary.split())
    if topic.kind == "module" or topic.module == "builtins" or not 4 <= length <= 25:
        return []
    question = topic.ask(rng, wording.ASK["which"], summary=topic.summary)
    turns = _pair(question, rng.choice((f"That is {topic.full}.", f"It is `{topic.full}`.")))
    if rng.random() < 0.3 and topic.answer != topic.summary:
        turns += _pair(rng.choice(wording.AND["about"]), topic.answer)
    return turns


def _how_to(topic: Topic, rng: random.Random) -> list[Turn]:
    """Ask how to do what a summary says: "Convert x to y." gives "How do I convert x to y?"."""
    goal = goal_of(topic.summary)
    if topic.kind not in ("function", "method") or not goal:
        return []
    where = "" if topic.module == "builtins" else f" with the {topic.module} module"
    question = rng.choice((f"How do I {goal}{where}?", f"How can I {goal} in Python{where}?"))
    answer = rng.choice((f"Use `{topic.full}`.", f"Call {topic.full}."))
    return _pair(question, f"{answer} {topic.answer}" if rng.random() < 0.5 else answer)


def _returns(topic: Topic, rng: random.Random) -> list[Turn]:
    match = re.match(r"Returns? (?!an? iterator over$)(.+)", topic.summary)
    if topic.kind not in ("function", "method") or match is None:
        return []
    return _pair(topic.ask(rng, wording.ASK["returns"]), f"It returns {match[1]}")


def _parameters(topic: Topic, rng: random.Random) -> list[Turn]:
    if topic.parameters is None or topic.kind not in ("function", "method"):
        return []
    defaults = [(name, default) for name, default in topic.parameters if default]
    if defaults and rng.random() < 0.4:
        name, default = rng.choice(defaults)
        answer = f"The default of {name} is {default}."
        return _pair(topic.ask(rng, wording.ASK["default"], parameter=name), answer)
    if rng.random() < 0.4:
        return _pair(topic.ask(rng, wording.ASK["signature"]), f"Call it as `{topic.call}`.")
    return _pair(topic.ask(rng, wording.ASK["parameters"]), _parameters_answer(topic))


OTHER_KINDS: tuple[Callable[[Topic, random.Random], list[Turn]], ...] = (
    _brief,
    _docstring,
    _which,
    _how_to,
    _returns,
    _parameters,
)


def _methods(topics: list[Topic]) -> Iterator[Dialogue]:
    """Yield dialogues that ask for the methods of a class."""
    names: dict[str, list[str]] = {}
    for topic in topics:
        if topic.kind == "method":
            names.setdefault(topic.full.rpartition(".")[0], []).append(topic.short)
    for topic in topics:
        methods = names.pop(topic.full, [])[:8]
        if len(methods) > 1:
            rng = random.Random(f"{topic.full} methods")
            turns = _pair(
                topic.ask(rng, wording.ASK["methods"]), f"Its methods include {_listed(methods)}."
            )
            yield Dialogue(topic.definition.origin, _introduced(turns, rng))


def _introduced(turns: list[Turn], rng: random.Random) -> tuple[Turn, ...]:
    system = rng.random() < 0.15 and turns[0].role != "system"
    return (*([Turn("system", rng.choice(wording.SYSTEM))] if system else []), *turns)


def _pair(question: str, answer: str) -> list[Turn]:
    return [Turn("user", question), Turn("assistant", answer)]


# ---------------------------------------------------------------- answers in words


def _parameters_answer(topic: Topic) -> str:
    assert topic.parameters is not None
    if not topic.parameters:
        return "It takes no arguments."
    names = [name for name, _ in topic.parameters]
    optional = [name for name, default in topic.parameters if default is not None]
    answer = f"It takes {_listed(names)}."
    if optional and len(optional) < len(names):
        answer += f" {_listed(optional)} may be left out."
    elif optional and len(optional) > 1:
        answer += " All of them may be left out."
    elif optional:
        answer += " It may be left out."
    return answer


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def whole_paragraphs(text: str, limit: int) -> str:
    """Return as many whole paragraphs as fit into `limit` characters."""
    paragraphs_so_far = ""
    for paragraph in text.split("\n\n"):
        longer = f"{paragraphs_so_far}\n\n{paragraph}" if paragraphs_so_far else paragraph
        if len(longer) > limit or paragraph.rstrip().endswith(":"):
            break
        paragraphs_so_far = longer
    return paragraphs_so_far
