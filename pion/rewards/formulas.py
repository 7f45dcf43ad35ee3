"""The reward `math`, which compares values of formulas. It is a file as a person's own function is.

Pion's process of rewards runs it: sympy may compute without end, and math-verify's own limits are
alarms, which that process needs for itself (huggingface/Math-Verify issues 63 and 65).
"""

from __future__ import annotations

import logging
import re
from typing import Any

from math_verify import parse, verify
from sympy import Basic, N

from pion.rewards.answered import right_answers
from pion.rewards.builtin import number_in

logging.getLogger("math_verify").setLevel(logging.ERROR)
# math-verify compares at six decimals. Numbers below SMALL are also compared with each other.
SMALL, APART = 1e-4, 0.01
_POWER = re.compile(r"(?<=\d)[eE]\+?(-?\d+)")
# How formulas are typed, and the same in LaTeX.
_TYPED = {
    re.compile(r"\*\*"): "^",
    re.compile(r"(?:(?<![\\A-Za-z])sqrt|√)\s*(?:\(([^()]*)\)|(\w+))"): r"\\sqrt{\1\2}",
    re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"): r"\\pi ",
    re.compile("½"): r"\\frac{1}{2}",
    re.compile("²"): "^2",
    re.compile("³"): "^3",
}
_MARKED = re.compile(r"\\boxed|\$|\\\(|\\\[")
# What shows that a text is no formula, once commands of LaTeX are removed.
_COMMAND = re.compile(r"\\[A-Za-z]+(?:\{[^{}\\]*\})?")
_WORD = re.compile(r"[A-Za-z]{3,}|\b(?:[iI][tsfn]|[oO][fr]|[tTsS]o|[wWbBmM]e|[aA][tnsm]|by)\b")
# Formulas among words.
_FORMULA = re.compile(
    r"(?:\\(?:text|mathrm)\{[^{}]*\}|\\(?:[A-Za-z]+|[,!;: %])|[-+*/^_=(){}\[\]|\d.,!:\s]"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+"
)


def math(text: str, answer: Any) -> bool:
    """Return whether the value of an answer is that of the right answer, or of any of several.

    Raises ValueError for a right answer that is no formula.
    """
    found = [_same(text, right) for right in right_answers(answer)]
    if found and all(same is None for same in found):
        raise ValueError(f"math-verify finds no formula in the right answer {str(answer)[-80:]!r}")
    return any(found)


def _same(text: str, answer: str) -> bool | None:
    """Return whether two values are the same; None if the right answer is no formula.

    If the right answer is a number, with a unit at most, a number is compared as `number` does.
    """
    final = answer.rpartition("####")[2]
    right = number_in(final if "\\boxed{" in final else f"\\boxed{{{final}}}")
    said = number_in(text)
    if right is not None and said is not None:
        return right == said
    known, found = _parsed(answer if right is None else str(right)), _parsed(text)
    if not known:
        return None
    return verify(known, found, timeout_seconds=None) and not _apart(known[0], found[0])


def _parsed(text: str) -> list[Any]:
    """Return the formula after the last ####, else in \\boxed{} or $$, else the last one, as
    math-verify reads it."""
    text = _POWER.sub(r"*10^{\1}", text.replace("\u2212", "-")).rpartition("####")[2]
    for typed, latex in _TYPED.items():
        text = typed.sub(latex, text)
    if not _MARKED.search(text):
        one_word = text.strip().isalpha()
        if one_word or not _WORD.search(_COMMAND.sub(" ", text)):
            text = f"${text.strip(' .')}$"
        else:
            text = _FORMULA.sub(
                lambda part: f" ${part[0].strip(' .,:')}$ " if "\\" in part[0] else part[0], text
            )
    return list(parse(text, parsing_timeout=None))


def _apart(right: Any, said: Any) -> bool:
    """Return whether two numbers are only the same as far as both are nearly 0."""
    if not all(isinstance(one, Basic) and one.is_number for one in (right, said)):
        return False
    values = [complex(N(one.doit())) for one in (right, said)]  # `50%` is kept as it is written
    most = max(map(abs, values))
    return most < SMALL and abs(values[0] - values[1]) > APART * most
