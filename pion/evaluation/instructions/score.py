"""Score answers to the built-in instructions, and compare the score with what chance yields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pion.errors import BadInput
from pion.evaluation.instructions.checks import loose_forms
from pion.evaluation.instructions.prompts import RULE, Instruction, digest, donors
from pion.evaluation.instructions.units import has_words, one_line_ends
from pion.evaluation.shares import share_sem


@dataclass(frozen=True)
class Answer:
    """What a model wrote. `finished`: it ended by itself, not because it had no tokens left."""

    text: str
    finished: bool

    @property
    def counts(self) -> bool:
        """Whether the answer can meet anything: it is finished, and has a letter or a digit."""
        return self.finished and has_words(self.text)


@dataclass(frozen=True)
class ShareOfPrompts:
    """A share of prompts, with its standard error."""

    share: float
    sem: float


@dataclass(frozen=True)
class Item:
    """A prompt and its answer.

    Attributes:
        strict: whether the answer does what the prompt asks.
        loose: whether one of its loose forms does.
        accident: whether the answer to another prompt, which asks for something else, does it, too.
    """

    kind: str
    prompt: str
    answer: str
    finished: bool
    strict: bool
    loose: bool
    accident: bool


@dataclass(frozen=True)
class Met:
    """The shares of some prompts that are met, and the share of unfinished answers."""

    prompts: int
    strict: ShareOfPrompts
    loose: ShareOfPrompts
    accident: ShareOfPrompts
    unfinished: float


@dataclass(frozen=True)
class Score:
    """How well a model follows instructions.

    Attributes:
        rule: the version of prompts and checks. Only scores of the same rule can be compared.
        digest: the SHA-256 of the prompts. Items of scores with the same digest can be paired.
        most_tokens: the most tokens that an answer could have.
        met: of all prompts.
        at_chance: whether `strict` is within two standard errors of `accident`, or below: then the
            score says nothing about the model.
        kinds: by the kind of the prompts.
        items: by prompt, in the order of the prompts.
    """

    rule: str
    digest: str
    most_tokens: int
    met: Met
    at_chance: bool
    kinds: dict[str, Met]
    items: tuple[Item, ...]


def score(asked: Sequence[Instruction], answers: Sequence[Answer], most_tokens: int) -> Score:
    """Check the answer to each prompt. An empty or unfinished answer is wrong.

    The standard errors are over prompts. `most_tokens` is kept in the score.

    Raises BadInput if there is not one answer for each prompt.
    """
    if not asked or len(asked) != len(answers):
        raise BadInput(f"{len(answers)} answers can't be scored on {len(asked)} instructions")
    items = tuple(
        _item(one, answer, answers[donor])
        for one, answer, donor in zip(asked, answers, donors(asked), strict=True)
    )
    kinds = {
        kind: _met([item for item in items if item.kind == kind])
        for kind in dict.fromkeys(item.kind for item in items)
    }
    return Score(
        rule=RULE,
        digest=digest(asked),
        most_tokens=most_tokens,
        met=_met(items),
        at_chance=at_chance(items),
        kinds=kinds,
        items=items,
    )


def at_chance(items: Sequence[Item]) -> bool:
    """Return whether prompts are met no more often than by accident, up to two standard errors.

    The error is of the paired differences: both shares are of the same prompts.
    """
    differences = np.array([item.strict - item.accident for item in items], float)
    error = differences.std(ddof=1) / math.sqrt(len(items)) if len(items) > 1 else math.inf
    return bool(differences.mean() <= 2 * error)


def _item(one: Instruction, answer: Answer, other: Answer) -> Item:
    return Item(
        kind=one.kind,
        prompt=one.prompt,
        answer=answer.text,
        finished=answer.finished,
        strict=_strict(one, answer),
        loose=answer.finished and any(map(one.met, loose_forms(answer.text))),
        accident=_strict(one, other),
    )


def _strict(one: Instruction, answer: Answer) -> bool:
    return answer.counts and one.met(one_line_ends(answer.text))


def _met(items: Sequence[Item]) -> Met:
    return Met(
        prompts=len(items),
        strict=_share([item.strict for item in items]),
        loose=_share([item.loose for item in items]),
        accident=_share([item.accident for item in items]),
        unfinished=sum(not item.finished for item in items) / len(items),
    )


def _share(cases: Sequence[bool]) -> ShareOfPrompts:
    share = sum(cases) / len(cases)
    return ShareOfPrompts(share, share_sem(share, len(cases)))
