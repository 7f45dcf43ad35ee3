"""From an item to the texts and the rows of tokens that a model reads, by nanochat's rules.

The texts are a question after answered questions. They are part of the rule `core/nanochat-1`:
another space makes another benchmark. The places where nanochat's code fails or lets the first
answer win are counted: see `ItemRows`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.core.bundle import WITH_PASSAGES, Task

SHOTS_SEED = 1234
AFTER_EXAMPLE = "\n\n"
# A passage is known by so many characters, after those with which all contexts of a task begin.
PASSAGE_CHARS = 100

Ids = list[int]


def draw_examples(items: int, number: int, shots: int) -> list[int]:
    """Return the numbers of the examples for item `number` of `items`, in their order."""
    # The same draw as from the list of all numbers but this one, without making that list.
    drawn = random.Random(SHOTS_SEED + number).sample(range(items - 1), shots)
    return [other + (other >= number) for other in drawn]


def prompts_of(task: Task, number: int) -> tuple[tuple[str, ...], str]:
    """Return the texts of the task's item `number`: for each option, the whole text with the
    option's answer at its end, and the text before the answer.

    Of schema, each option has its own text before the answer, but none is needed, and this is "".
    """
    item = task.items[number]
    drawn = (task.items[i] for i in draw_examples(len(task.items), number, task.shots))
    examples = "".join(
        _text(task, *example.options[example.gold]) + AFTER_EXAMPLE for example in drawn
    )
    prompts = tuple(examples + _text(task, *option) for option in item.options)
    if task.task_type == "schema":
        return prompts, ""
    before = examples + _text(task, item.options[0][0], "")
    if task.task_type == "language_modeling":
        # Otherwise, the space before the answer would be a token that the whole text does not have.
        before = before.rstrip()
    return prompts, before


def _text(task: Task, context: str, continuation: str) -> str:
    """Return a text of the task. Only contexts of language_modeling lose their white space."""
    shown = context.strip() if task.task_type == "language_modeling" else context
    return shown + task.delimiter + continuation


# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class TokenRow:
    """A row of tokens, and what is scored in it: its tokens from `start` on.

    Where `candidates` are given, each is scored as the token after the row, and `start` is the
    row's length. `start` is 1 or more: the row's first token can't be predicted.
    """

    ids: np.ndarray
    start: int
    candidates: tuple[int, ...] = ()


@dataclass(frozen=True)
class ItemRows:
    """An item as rows.

    Attributes:
        rows: the different rows.
        place: for each option, its row and its candidate in the row.
        cropped: how many options lost the beginning of their text to the context.
        unscored: the context does not hold an answer and the token before it, or the answer has no
            tokens. The item counts as wrong.
        odd: one option's tokens begin with all tokens of another option, so no first different
            token exists for both. They are scored from the end of the context.
        joined: a token spans the border between context and answer. The answer is scored from this
            token on.
    """

    rows: tuple[TokenRow, ...]
    place: tuple[tuple[int, int], ...]
    cropped: int
    unscored: bool
    odd: bool
    joined: bool


def ask(task: Task, numbers: Sequence[int], tokenizer: Tokenizer, context: int) -> list[ItemRows]:
    """Return the rows of the items `numbers`, each of at most `context` tokens."""
    prompts = [prompts_of(task, number) for number in numbers]
    start = tokenizer.before_document
    encoded = iter(tokenizer.encode_batch([text for texts, _ in prompts for text in texts]))
    prompt_ids = [[[start, *next(encoded)] for _ in texts] for texts, _ in prompts]
    # Few items need the text before the answer as tokens.
    needing = [i for i, ids in enumerate(prompt_ids) if _needs_before(task, ids)]
    encoded = iter(tokenizer.encode_batch([prompts[i][1] for i in needing]))
    before = {i: [start, *next(encoded)] for i in needing}
    return [_asked(task, ids, before.get(i, []), context) for i, ids in enumerate(prompt_ids)]


def _needs_before(task: Task, prompts: list[Ids]) -> bool:
    if task.task_type == "multiple_choice":
        return common_prefix(prompts) == min(map(len, prompts))
    return task.task_type == "language_modeling"


def _asked(task: Task, prompts: list[Ids], before: Ids, context: int) -> ItemRows:
    """Return an item as rows, from the tokens of the whole text of each option, and of the text
    before the answer."""
    starts, odd, joined = _starts(task, prompts, before)
    crops = [max(0, len(ids) - context) for ids in prompts]
    cropped = sum(crop > 0 for crop in crops)
    spans = zip(starts, crops, map(len, prompts), strict=True)
    if not all(crop < start < length for start, crop, length in spans):
        return ItemRows((), (), cropped, unscored=True, odd=odd, joined=joined)
    one_token = all(len(ids) == starts[0] + 1 for ids in prompts)
    if task.task_type == "multiple_choice" and one_token:
        # One row gives the scores of all options: they differ in the token after it alone.
        candidates = tuple(ids[-1] for ids in prompts)
        ids = prompts[0][crops[0] : -1]
        rows = (TokenRow(np.array(ids, np.int32), len(ids), candidates),)
        places = tuple((0, option) for option in range(len(prompts)))
        return ItemRows(rows, places, cropped, unscored=False, odd=odd, joined=joined)
    # Equal options have one row, so that they tie.
    numbers: dict[tuple[int, ...], int] = {}
    different: list[TokenRow] = []
    for ids, start, crop in zip(prompts, starts, crops, strict=True):
        if numbers.setdefault(tuple(ids), len(different)) == len(different):
            different.append(TokenRow(np.array(ids[crop:], np.int32), start - crop))
    places = tuple((numbers[tuple(ids)], 0) for ids in prompts)
    return ItemRows(tuple(different), places, cropped, unscored=False, odd=odd, joined=joined)


def _starts(task: Task, prompts: list[Ids], before: Ids) -> tuple[list[int], bool, bool]:
    """Return where each option's scored tokens start, and whether the item is odd or joined."""
    shortest = min(map(len, prompts))
    if task.task_type == "language_modeling":
        start = common_prefix([prompts[0], before])
        return [_inside(start, shortest)], False, start < len(before)
    if task.task_type == "schema":
        suffix = common_prefix([ids[::-1] for ids in prompts])
        # Of equal contexts, all tokens are common, and the first can't be predicted.
        return [max(1, len(ids) - suffix) for ids in prompts], suffix == shortest, False
    start = common_prefix(prompts)
    if start < shortest:
        return [start] * len(prompts), False, False
    end = min(common_prefix([ids, before]) for ids in prompts)
    return [_inside(end, shortest)] * len(prompts), True, False


def _inside(start: int, length: int) -> int:
    """Return a start with a token before it, and at least one token to score."""
    return max(1, min(start, length - 1))


def common_prefix(sequences: Sequence[Ids] | Sequence[str]) -> int:
    """Return how many tokens, or characters, all sequences begin with."""
    # What the first and the last in order have in common, all have.
    first, last = min(sequences), max(sequences)
    differ = (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(differ, len(first))


def passages_of(task: Task, count: int) -> list[str] | None:
    """Return the passage of each of the first `count` items; None if they are independent."""
    if task.label not in WITH_PASSAGES:
        return None
    contexts = [item.options[0][0] for item in task.items]
    start = common_prefix(contexts)
    return [context[start : start + PASSAGE_CHARS] for context in contexts[:count]]
