"""The built-in prompts are the same for everybody, and each has another one to be compared with."""

from __future__ import annotations

from collections import Counter

import pytest

from pion.errors import BadInput
from pion.evaluation.instructions.prompts import (
    KINDS,
    LEAST,
    MOST,
    PER_KIND,
    PROSE,
    RULE,
    digest,
    donors,
    instructions,
)
from pion.evaluation.instructions.topics import OPTIONS, TOPICS


def test_there_are_twelve_kinds_of_twenty_different_prompts() -> None:
    asked = instructions()
    assert Counter(one.kind for one in asked) == dict.fromkeys(KINDS, PER_KIND)
    assert (len(KINDS), PER_KIND, MOST) == (12, 20, 240)
    assert len({one.prompt for one in asked}) == MOST
    assert len(set(TOPICS)) == 60
    assert len(OPTIONS) == PER_KIND


def test_the_prompts_are_the_same_in_every_version_of_python() -> None:
    # If this fails because a prompt was changed on purpose, change RULE, too.
    assert RULE == "instructions/pion-1"
    assert (
        digest(instructions()) == "e698a3eae5a7634f3bf19f99f6d908379a59caddb7877d4eb3996a23004f1ace"
    )


def test_every_vocabulary_has_the_characters_of_the_prompts() -> None:
    assert all(one.prompt.isascii() and one.prompt.isprintable() for one in instructions())


def test_fewer_prompts_are_the_first_of_each_kind() -> None:
    every, few = instructions(), instructions(60)
    assert Counter(one.kind for one in few) == dict.fromkeys(KINDS, 5)
    assert [one.prompt for one in few] == [
        one.prompt for place, one in enumerate(every) if place % PER_KIND < 5
    ]
    assert digest(few) != digest(every)


@pytest.mark.parametrize("count", [-12, 0, 12, 25, 239, 252, 10**9])
def test_a_number_of_prompts_that_can_not_be_is_refused(count: int) -> None:
    with pytest.raises(BadInput, match=f"is {count}; it must be a multiple of 12 .* from 24 to"):
        instructions(count)


@pytest.mark.parametrize("count", range(LEAST, MOST + 1, 12))
def test_the_other_prompt_asks_for_something_else(count: int) -> None:
    asked = instructions(count)
    for one, donor in zip(asked, donors(asked), strict=True):
        other = asked[donor]
        assert not one.same_rule(other)
        alike = one.kind in ("only small letters", "only capitals", "no comma")
        assert other.kind == (PROSE if alike else one.kind)
