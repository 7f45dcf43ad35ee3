"""Multiple-choice questions from held-out text: which of four continuations follows a context?

The wrong choices are continuations from other documents of the same data. They are cut the same way
and have about the same length, so only the context tells which choice is true. Chance is one in
four.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

import numpy as np

from pion.data.shards import Rows
from pion.data.tokens.tokenizer import Tokenizer

CONTEXT_CHARS = 120
CHOICE_CHARS = 60
CHOICES = 4
MAX_QUESTIONS = 1000
MAX_PASSAGES = 4000


@dataclass(frozen=True)
class Passage:
    """A piece of a held-out document, cut in two between words."""

    document: int
    context: str
    continuation: str


def continuation_questions(
    held_out: list[Rows], tokenizer: Tokenizer, seed: int
) -> list[dict[str, object]]:
    """Return up to 1,000 questions {"context", "choices", "answer"} from the rows of all sources.

    The same rows give the same questions. The list is empty if fewer than four documents are long
    enough.
    """
    passages = list(_passages(held_out, tokenizer))
    if len({passage.document for passage in passages}) < CHOICES:
        return []
    rng = random.Random(seed)
    rng.shuffle(passages)
    questions = []
    for passage in passages[:MAX_QUESTIONS]:
        others = [
            other
            for other in rng.sample(passages, min(40, len(passages)))
            if other.document != passage.document and other.continuation != passage.continuation
        ]
        length = len(passage.continuation)
        others.sort(key=lambda p: abs(len(p.continuation) - length))
        distinct = dict.fromkeys(other.continuation for other in reversed(others))
        choices = list(distinct)[::-1][: CHOICES - 1]
        if len(choices) < CHOICES - 1:
            continue
        answer = rng.randrange(CHOICES)
        choices.insert(answer, passage.continuation)
        questions.append({"context": passage.context, "choices": choices, "answer": answer})
    return questions


def _passages(held_out: list[Rows], tokenizer: Tokenizer) -> Iterator[Passage]:
    """Return the first passage of every document, then the second of every document, and so on."""
    cut_documents = [_cut(number, text) for number, text in enumerate(_texts(held_out, tokenizer))]
    turns = chain.from_iterable(zip_longest(*cut_documents))
    return islice((passage for passage in turns if passage is not None), MAX_PASSAGES)


def _texts(held_out: list[Rows], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the documents in the held-out rows. The rows may cut the first and the last one."""
    for rows in held_out:
        document: list[int] = []
        every = (
            rows.row(shard, row).tokens
            for shard, count in enumerate(rows.manifest.shard_rows)
            for row in range(count)
        )
        for tokens in every:
            pieces = np.split(tokens, np.flatnonzero(tokens == tokenizer.end_of_text) + 1)
            for number, piece in enumerate(pieces):
                if number:
                    yield tokenizer.decode(document)
                    document = []
                document += piece.tolist()
        yield tokenizer.decode(document)


def _cut(document: int, text: str) -> list[Passage]:
    """Return the passages of a document, in order: a context and what follows it."""
    passages = []
    position = 0
    while position + CONTEXT_CHARS + CHOICE_CHARS <= len(text):
        middle = _word_end(text, position + CONTEXT_CHARS)
        end = _word_end(text, middle + CHOICE_CHARS)
        context, continuation = text[position:middle].strip(), text[middle:end]
        if "\n" in continuation:  # lists and tables: look further
            position = _word_end(text, position + 1)
            continue
        # A continuation begins with the space after the context's last word.
        if re.search(r"[A-Za-z]{3}", continuation):
            passages.append(Passage(document, context, continuation))
        position = end
    return passages


def _word_end(text: str, position: int) -> int:
    """Return where the word at `position` ends."""
    match = re.compile(r"\s").search(text, position)
    return match.start() if match else len(text)
