"""Write the built-in instructions: 12 kinds of 20 prompts, each with the check of its answers.

The prompts are the same on every machine and in every version of Python. They decide what a score
means, so if a prompt or a check changes, `RULE` must change, too.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pion.evaluation.instructions import checks
from pion.evaluation.instructions.topics import (
    COMMON,
    DID,
    ENDS,
    KEYS,
    OPTIONS,
    STARTS,
    TOPICS,
    WHEN,
    WHO,
)

RULE = "instructions/pion-1"
SEED = 20
PER_KIND = 20
# With 1, there would be no other prompt of the kind.
LEAST_PER_KIND = 2


@dataclass(frozen=True)
class Instruction:
    """A user's message whose answer code can check.

    Attributes:
        kind: one of KINDS.
        prompt: the message.
        check: a function of pion/evaluation/instructions/checks.py.
        asked: what the check is given after the answer.
    """

    kind: str
    prompt: str
    check: Callable[..., bool]
    asked: tuple[str | int, ...] = ()

    def met(self, answer: str) -> bool:
        """Return whether the answer does what the prompt asks."""
        return self.check(answer, *self.asked)

    def same_rule(self, other: Instruction) -> bool:
        """Return whether the same answers meet both."""
        return (self.check, self.asked) == (other.check, other.asked)


@dataclass(frozen=True)
class _Draft:
    """What a prompt is written from: its number among those of its kind, its topic, and chance."""

    number: int
    topic: str
    chance: random.Random

    def pick(self, choices: Sequence[str], count: int = 1) -> list[str]:
        """Return `count` different ones of the choices."""
        # Python promises the same numbers in all versions for `random` only.
        return sorted(choices, key=lambda _: self.chance.random())[:count]

    @property
    def half(self) -> int:
        """The number among those of the same half: a kind with two sides takes them by turns."""
        return self.number // 2

    @property
    def other_half(self) -> bool:
        return self.number % 2 == 1

    def write(self) -> str:
        """Return the beginning of a prompt for prose."""
        return f"{self.pick(('Write about', 'Tell me about', 'Describe'))[0]} {self.topic}"

    def prose(self) -> str:
        """Return a sentence that asks for prose, short enough to be finished."""
        return f"{self.write()} in two sentences."


Written = tuple[str, Callable[..., bool], tuple[str | int, ...]]


def _words(draft: _Draft) -> Written:
    if draft.other_half:
        least = 15 + 5 * draft.half
        return f"{draft.write()} in at least {least} words.", checks.at_least_words, (least,)
    most = 5 + 3 * draft.half
    return f"{draft.write()} in at most {most} words.", checks.at_most_words, (most,)


def _sentences(draft: _Draft) -> Written:
    count = (2, 4, 1, 5, 3)[draft.number % 5]
    asked = "one sentence" if count == 1 else f"{count} sentences"
    return f"{draft.write()} in exactly {asked}.", checks.exact_sentences, (count,)


def _bullets(draft: _Draft) -> Written:
    count = (3, 5, 2, 6, 4)[draft.number % 5]
    prompt = f'{draft.write()} in exactly {count} bullet points. Begin each of them with "- ".'
    return prompt, checks.exact_bullets, (count,)


def _json(draft: _Draft) -> Written:
    keys = draft.pick(KEYS, 2 + draft.number % 3)
    named = ", ".join(f'"{key}"' for key in keys)
    prompt = f"Describe {draft.topic} as a JSON object with exactly these keys: {named}. "
    return prompt + "Write only the JSON.", checks.json_keys, tuple(sorted(keys))


def _lower_case(draft: _Draft) -> Written:
    return f"{draft.prose()} Use only small letters and no capitals.", checks.lower_case, ()


def _capitals(draft: _Draft) -> Written:
    return f"{draft.prose()} Use only capital letters.", checks.capitals, ()


def _contains(draft: _Draft) -> Written:
    word = draft.pick([topic for topic in TOPICS if topic != draft.topic])[0]
    prompt = f'{draft.prose()} Use the word "{word}" exactly two times.'
    return prompt, checks.word_times, (word, 2)


def _avoids(draft: _Draft) -> Written:
    word = COMMON[draft.number % len(COMMON)]
    prompt = f'{draft.prose()} Do not use the word "{word}".'
    return prompt, checks.without_word, (word,)


def _starts_ends(draft: _Draft) -> Written:
    if draft.other_half:
        phrase = ENDS[draft.half]
        prompt = f'{draft.prose()} End your answer with the words "{phrase}".'
        return prompt, checks.ends_with, (phrase,)
    phrase = STARTS[draft.half]
    prompt = f'{draft.prose()} Begin your answer with the words "{phrase}".'
    return prompt, checks.starts_with, (phrase,)


def _no_comma(draft: _Draft) -> Written:
    return f"{draft.prose()} Do not use any commas.", checks.no_comma, ()


def _options(draft: _Draft) -> Written:
    options = OPTIONS[draft.number].split()
    prompt = f"What fits {draft.topic} best? Answer with one of these words and nothing else: "
    return f"{prompt}{', '.join(options)}.", checks.one_option, tuple(options)


def _repeat(draft: _Draft) -> Written:
    who, did, when = (draft.pick(parts)[0] for parts in (WHO, DID, WHEN))
    text = f"{who} {did} {draft.topic} {when}."
    return f"Repeat this text and write nothing else: {text}", checks.repeats, (text,)


KINDS: dict[str, Callable[[_Draft], Written]] = {
    "number of words": _words,
    "number of sentences": _sentences,
    "number of bullets": _bullets,
    "JSON with given keys": _json,
    "only small letters": _lower_case,
    "only capitals": _capitals,
    "a word twice": _contains,
    "without a word": _avoids,
    "given start or end": _starts_ends,
    "no comma": _no_comma,
    "one of the options": _options,
    "repeat a text": _repeat,
}
MOST = PER_KIND * len(KINDS)
LEAST = LEAST_PER_KIND * len(KINDS)
# All prompts of some kinds ask for the same. The answers to this kind are free prose, and show what
# is met without being asked for.
PROSE = "without a word"


def instructions(count: int = MOST) -> list[Instruction]:
    """Return `count` prompts, the same number of each kind: always the first ones.

    Raises BadInput if `count` is not a multiple of 12 from 24 to 240.
    """
    per_kind, rest = divmod(count, len(KINDS))
    if rest or not LEAST <= count <= MOST:
        raise BadInput(
            f"the number of instructions is {count}; it must be a multiple of {len(KINDS)} "
            f"(the kinds) from {LEAST} to {MOST}"
        )
    return [one for kind in KINDS for one in _of_kind(kind)[:per_kind]]


def _of_kind(kind: str) -> list[Instruction]:
    chance = random.Random(f"{SEED} {kind}")
    topics = sorted(TOPICS, key=lambda _: chance.random())[:PER_KIND]
    drafts = (_Draft(number, topic, chance) for number, topic in enumerate(topics))
    return [Instruction(kind, *KINDS[kind](draft)) for draft in drafts]


def digest(asked: Sequence[Instruction]) -> str:
    """Return the SHA-256 of the prompts: two models that were asked the same can be paired."""
    return hashlib.sha256("\0".join([RULE, *(one.prompt for one in asked)]).encode()).hexdigest()


def donors(asked: Sequence[Instruction]) -> list[int]:
    """Return for each prompt the place of another prompt, which asks for something else.

    The answer to the other prompt shows whether the prompt is met by accident. It is of the same
    kind, or free prose where all prompts of a kind ask for the same.
    """
    places: dict[str, list[int]] = {}
    for place, one in enumerate(asked):
        places.setdefault(one.kind, []).append(place)
    found = list(range(len(asked)))
    for of_kind in places.values():
        others = _others(asked, of_kind) or places[PROSE]
        for place, other in zip(of_kind, others, strict=True):
            found[place] = other
    return found


def _others(asked: Sequence[Instruction], places: Sequence[int]) -> list[int] | None:
    """Return `places` shifted so that each is with another rule; None: there is no such shift."""
    for shift in range(1, len(places)):
        others = [*places[shift:], *places[:shift]]
        if not any(asked[one].same_rule(asked[other]) for one, other in zip(places, others)):
            return others
    return None
