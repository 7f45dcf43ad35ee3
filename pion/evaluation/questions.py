"""Multiple-choice questions of a file: what they are, and how they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pion.data.documents.file_to_documents import json_lines, whole_characters
from pion.errors import BadInput


@dataclass(frozen=True)
class Question:
    """A question. Each of the `choices` directly continues `context`."""

    context: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a JSON Lines file.

    Each line is {"context": str, "choices": [str, …], "answer": index}. Raises BadInput for a line
    that is not a question, naming the file and line, and for a file without questions.
    """
    questions = []
    try:
        for where, value in json_lines(path):
            try:
                questions.append(_question(value))
            except ValueError as error:
                raise BadInput(f"{where}: not a question: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: can't read these questions ({error.strerror})") from None
    if not questions:
        raise BadInput(f"{path}: the file has no question")
    return questions


def digest_of_questions(questions: Sequence[Question]) -> str:
    """Return the sha256 of questions, with their choices and answers, in their order."""
    texts = [[each.context, *each.choices, each.answer] for each in questions]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _question(raw: object) -> Question:
    """Return `raw` as a question. Raises ValueError saying what is wrong."""
    if not isinstance(raw, dict):
        raise ValueError('expected {"context", "choices", "answer"}')
    missing = [key for key in ("context", "choices", "answer") if key not in raw]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    context, choices, answer = raw["context"], raw["choices"], raw["answer"]
    if not isinstance(context, str):
        raise ValueError(f"context is {context!r:.200}; expected text")
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"choices is {choices!r:.200}; expected a list of two or more texts")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError(f"choices is {choices!r:.200}; every choice must be a non-empty text")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(
            f"answer is {answer!r:.200}; expected an index from 0 to {len(choices) - 1}"
        )
    return Question(whole_characters(context), tuple(map(whole_characters, choices)), answer)
