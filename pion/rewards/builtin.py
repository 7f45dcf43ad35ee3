"""The rewards that Pion brings. Each is 1 or 0."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pion.later_fields import shown
from pion.rewards.answered import Answered, right_answers
from pion.rewards.function import Function, FunctionReward, read_function
from pion.untrusted import parse_json

# What looks like a number. 3/4, 10^6, 12:30 and 1,2 are found whole, so that no part of them is
# taken for one. A minus between two numbers is no sign.
_FOUND = (
    r"(?:(?<![A-Za-z\d_)])-|(?<![A-Za-z\d_]))\.?\d(?:[\d,./^:]*[\d^])?(?:[eE][-+]?\d(?:[\d.]*\d)?)?"
)
_ANY = re.compile(_FOUND)
# A number in \boxed{}, with a unit at most. A fraction or a formula is none.
_BOXED = re.compile(rf"[\s\\]*({_FOUND})[\s\\%,;.]*(?:\s[A-Za-z ]*)?\}}")
# A number is looked for in so many characters, and has at most so many.
_MOST_CHARS, _MOST_DIGITS = 300, 200
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d+)?(?:[eE][-+]?\d{1,5})?")
# How numbers are written: words and exponents of units, and what is between thousands.
_PLAINER = {
    re.compile(r"\\?\$"): "",
    re.compile("\u2212"): "-",
    re.compile(r"\\(?:text|math|mbox)[a-z]*\s*\{([^{}]*)\}"): r" \1",
    re.compile(r"(?<![A-Za-z\\])([kcdm]?m|ft|in|s|units?)\s*\^(?:-?\d|\{-?\d\})"): r"\1",
    re.compile(r"\^(?:\\circ|\{\\circ\})"): "",
    re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\,)(?=\d{3}(?!\d))"): ",",
    re.compile(r"(?<=\d)\s*thousand\b"): "e3",
    re.compile(r"(?<=\d)\s*million\b"): "e6",
    re.compile(r"(?<=\d)\s*billion\b"): "e9",
    re.compile(r"\\([%()\[\],;: ])"): r" \1",
}
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)")
# What makes a number part of a formula, before the number and after it.
_BEFORE = re.compile(
    r"(?:[\\^_{}√≤≥]|\s[<>]=?|\\(?:times|cdot|div|pm|[dt]?frac|sqrt|[lg]eq?|log|ln|sin|cos|tan)"
    r"|(?:[\dπ)}\]]|(?<![A-Za-z])[A-Za-z])\s*[-+*/×·])\s*$"
)
_AFTER = re.compile(
    r"\s?(?:[π√^_{½¼¾]|(?:[xyz]+|[ni])(?![A-Za-z])|\\(?:times|cdot|div|pm|[dt]?frac|sqrt|pi|left))"
    r"|\s*[-+*/×·]\s*(?:[\d\\(√π]|[xyzn](?![A-Za-z]))|\(|\s\d+/\d"
)

_REGEX = """
import re
PATTERN = re.compile({pattern})
def regex(text):
    return PATTERN.fullmatch(text.strip()) is not None
"""
# How long a regular expression may take for an answer, and a formula, in seconds of a core.
REGEX_SECONDS, MATH_SECONDS = 1.0, 5.0


@dataclass(frozen=True)
class BuiltinReward:
    """A reward that is computed in this process. It has no errors."""

    name: str
    reward: Callable[[Answered], float]
    errors: Counter[str] = field(default_factory=Counter)
    unjudged: Counter[str] = field(default_factory=Counter)

    def judge(self, answers: Sequence[Answered], most_errors: float) -> list[float]:
        """Return the reward of each answer, however many `most_errors` may be."""
        return [self.reward(answer) for answer in answers]

    def close(self) -> None:
        """Do nothing: there is no process."""


def number(answered: Answered) -> float:
    """Return 1 if the answer's number is that of the record's answer."""
    said = number_in(answered.text)
    return float(said is not None and said in map(number_in, right_answers(answered.answer)))


def number_in(text: str) -> Decimal | None:
    """Return the number after the last ####, else in the last \\boxed{}, else the last one at all.

    Commas and spaces between thousands, units, % and $ do not matter. None if there is no number at
    this place, or the number is part of a formula.
    """
    _, marked, text = text.rpartition("####")
    _, boxed, inside = text.rpartition("\\boxed{")
    digit = re.search(r"\d", text[::-1])
    last = len(text) - digit.start() if digit else 0
    if boxed and not marked:
        part = inside[:_MOST_CHARS]
    else:
        part = text[:_MOST_CHARS] if marked else text[max(0, last - _MOST_CHARS) : last + 50]
    for written, plainer in _PLAINER.items():
        part = written.sub(plainer, part)
    part = _SPACED.sub(lambda number: re.sub(r"\s", ",", number[0]), part)
    if boxed and not marked:
        found = _BOXED.match(part)
        return _decimal(found[1] if found else "")
    numbers = [*_ANY.finditer(part)]
    if not numbers:
        return None
    found = numbers[0 if marked else -1]
    if _AFTER.match(part, found.end()) or _BEFORE.search(part[: found.start()]):
        return None
    return _decimal(found[0])


def _decimal(text: str) -> Decimal | None:
    known = _NUMBER.fullmatch(text) and 0 < len(text) <= _MOST_DIGITS
    return Decimal(text.replace(",", "")) if known else None


def exact(answered: Answered) -> float:
    """Return 1 if the answer is the record's answer, but for white space around it."""
    return float(answered.text.strip() in map(str.strip, right_answers(answered.answer)))


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


def math_reward(hash_seed: int = 0) -> FunctionReward:
    """Return the reward that is 1 if the answer's formula has the value of the record's."""
    source = read_function(Path(__file__).with_name("formulas.py"), "math")
    return FunctionReward(source, hash_seed, seconds=MATH_SECONDS, forgiving=True)


def is_formula(answer: Any) -> bool:
    """Return whether a right answer looks like what `math_reward` can compare."""
    return any(
        re.search(r"\\[A-Za-z]|[\dπ√^]|^\W*[A-Za-z]\W*$", right) for right in right_answers(answer)
    )


def unjudgeable(kind: str, answer: Any) -> str | None:
    """Return why a reward of this kind can't judge answers to a record with this answer; None: it
    can."""
    if kind not in ("number", "math", "exact"):
        return None
    rights = right_answers(answer)
    if not rights:
        has = (
            ""
            if answer is None or isinstance(answer, str)
            else f": a text or a list of texts, not {shown(answer)}"
        )
        return f"there is no answer to compare with (the reward {kind}){has}"
    if kind == "number" and not any(number_in(right) is not None for right in rights):
        return (
            f"its answer has no number to compare with (the reward number): {rights[0][-80:]!r}. "
            "The reward math compares formulas"
        )
    if kind == "math" and not is_formula(answer):
        return (
            f"its answer has no formula to compare with (the reward math): {rights[0][-80:]!r}. "
            "The reward exact compares texts"
        )
    return None
