"""The rewards that Pion brings. Each is 1 or 0."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from pion.errors import BadInput
from pion.rewards.answered import Answered
from pion.rewards.function import Function, FunctionReward
from pion.untrusted import parse_json

# What looks like a number. 3/4, 10^6, 12:30 and 1,2 are found whole, so that no part of them is
# taken for one. A minus between two numbers is no sign.
_FOUND = r"(?:(?<![A-Za-z\d_)])-|(?<![A-Za-z\d_]))\.?\d(?:[\d,./^:]*[\d^])?"
_ANY = re.compile(_FOUND)
# A number in \boxed{}, with a unit at most. A fraction or a formula is none.
_UNIT = r"(?:[\s\\%!,;.]|\\(?:text|mathrm)\s*\{[^{}]*\})*(?:\s[A-Za-z ]*)?"
_BOXED = re.compile(rf"[\s\\]*({_FOUND}){_UNIT}\}}")
_MOST_BOXED_CHARS = 200
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d+)?")

_REGEX = """
import re
PATTERN = re.compile({pattern})
def regex(text):
    return PATTERN.fullmatch(text.strip()) is not None
"""
# How long a regular expression may take for an answer, in seconds of a core.
REGEX_SECONDS = 1.0


@dataclass(frozen=True)
class BuiltinReward:
    """A reward that is computed in this process. It has no errors."""

    name: str
    reward: Callable[[Answered], float]
    errors: Counter[str] = field(default_factory=Counter)

    def judge(self, answers: Sequence[Answered], most_errors: float) -> list[float]:
        """Return the reward of each answer, however many `most_errors` may be."""
        return [self.reward(answer) for answer in answers]

    def close(self) -> None:
        """Do nothing: there is no process."""


def number(answered: Answered) -> float:
    """Return 1 if the answer's number is that of the record's answer."""
    said = number_in(answered.text)
    return float(said is not None and said == number_in(answered.answer or ""))


def number_in(text: str) -> Decimal | None:
    """Return the number after the last ####, else in the last \\boxed{}, else the last one at all.

    Commas between thousands, % and $ do not matter. None if there is no number at this place.
    """
    text = text.replace("$", "").replace("\u2212", "-")
    _, marked, after = text.rpartition("####")
    _, boxed, inside = text.rpartition("\\boxed{")
    if marked:
        found = _ANY.search(after)
        last = found[0] if found else ""
    elif boxed:
        found = _BOXED.match(inside[:_MOST_BOXED_CHARS])
        last = found[1] if found else ""
    else:
        last = (_ANY.findall(text) or [""])[-1]
    return Decimal(last.replace(",", "")) if last and _NUMBER.fullmatch(last) else None


def exact(answered: Answered) -> float:
    """Return 1 if the answer is the record's answer, but for white space around it."""
    return float(answered.answer is not None and answered.text.strip() == answered.answer.strip())


def json_with(keys: Sequence[str], answered: Answered) -> float:
    """Return 1 if the answer is a JSON object with these keys; without keys, any JSON value."""
    try:
        value = parse_json(answered.text.strip(), "the answer")
    except BadInput:
        return 0.0
    return float(not keys or (isinstance(value, dict) and value.keys() >= set(keys)))


def regex_reward(pattern: str) -> FunctionReward:
    """Return the reward that is 1 if the pattern matches all of the answer, but for white space
    around it. A pattern can take exponential time, so it has a process with bounds.

    Raises BadInput if the pattern is wrong.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(
            f"the pattern {pattern[:80]!r} is not a regular expression of Python: {error}"
        ) from None
    source = _REGEX.format(pattern=ascii(pattern)).encode()
    return FunctionReward(Function("regex", "regex", source), seconds=REGEX_SECONDS)


def unjudgeable(kind: str, answer: str | None) -> str | None:
    """Return why a reward of this kind can't judge answers to a record with this answer; None: it
    can."""
    if kind not in ("number", "exact"):
        return None
    if answer is None or not answer.strip():
        return f"there is no answer to compare with (the reward {kind})"
    if kind == "number" and number_in(answer) is None:
        return f"its answer has no number to compare with (the reward number): {answer[-80:]!r}"
    return None
