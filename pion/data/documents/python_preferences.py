"""Pairs of answers to questions about the Python standard library, of which one is better.

There are two kinds. In `short`, the chosen answer is the first sentence of a docstring, and the
rejected one its first paragraphs. In `right`, the rejected answer is the first sentence of another
docstring of the same module, of about the same length. The same Python gives the same pairs.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from pion.data.chat.messages import Conversation
from pion.data.documents.python_docs import definitions, prose
from pion.data.documents.python_qa import (
    DOCSTRING_CHARS,
    named_once,
    question_about,
    whole_paragraphs,
)
from pion.data.documents.python_qa_wording import Topic, topic_of
from pion.data.preference.layouts import Pair

Better = Literal["short", "right"]
# A rejected answer of `short` is at least so many times as long as the chosen one.
RAMBLING = 2.0
# The lengths of both answers of `right` differ by at most this share of the chosen one's, so that
# no rule of lengths tells which one is right.
LENGTHS = 0.2


def docs_pairs(better: Better) -> Iterator[Pair]:
    """Yield all pairs of a kind, file by file. `where` they are is the file."""
    topics = [topic for definition in definitions() if (topic := topic_of(definition))]
    of_module: dict[str, list[str]] = defaultdict(list)
    for topic in topics:
        of_module[topic.module].append(topic.summary)
    for topic in named_once(topics):
        rng = random.Random(f"{topic.full} {better}")
        question = question_about(topic, rng)
        if better == "short":
            rejected = whole_paragraphs(prose(topic.definition.docstring), DOCSTRING_CHARS)
            if len(rejected) < RAMBLING * len(topic.summary):
                continue
        else:
            alike = _alike(topic, of_module[topic.module])
            if not alike:
                continue
            rejected = rng.choice(alike)
        origin = topic.definition.origin
        yield Pair(_said(origin, question, topic.summary), _said(origin, question, rejected))


def _alike(topic: Topic, summaries: list[str]) -> list[str]:
    """Return other first sentences of about the same length, each once, in their order."""
    most = LENGTHS * len(topic.summary)
    others = dict.fromkeys(other for other in summaries if other != topic.summary)
    return [other for other in others if abs(len(other) - len(topic.summary)) <= most]


def _said(origin: str, question: str, answer: str) -> Conversation:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return Conversation(messages, None, origin, context=1)
