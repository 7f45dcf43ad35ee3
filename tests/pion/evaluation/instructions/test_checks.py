"""Each check, with answers that it must take and answers that it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pion.evaluation.instructions import checks
from pion.evaluation.instructions.checks import loose_forms
from pion.evaluation.instructions.prompts import instructions


@dataclass(frozen=True)
class Case:
    check: Callable[..., bool]
    asked: tuple[str | int, ...]
    right: tuple[str, ...]
    wrong: tuple[str, ...]


CASES = (
    Case(
        checks.at_most_words,
        (3,),
        ("One.", "It is old", "a-b c-d e-f", "Öl ist gut", "- a\r\n- b", "1 2 3", "a — b — c"),
        ("", "…", "one two three four", "a\r\nb\r\nc\r\nd", "- 1\n- 2\n- 3\n- 4", "a—b—c—d", "—"),
    ),
    Case(
        checks.at_least_words,
        (3,),
        ("It is old", "a b c d", "Öl ist gut", "- 1\r\n- 2\r\n- 3", "don't stop it", "a—b—c"),
        ("", "one", "It's old", "- a\n- b", "well-known words", "* * * *", "```\r\na b\r\n```"),
    ),
    Case(
        checks.exact_sentences,
        (2,),
        (
            "It rains. It snows.",
            "it rains. it snows",
            "Rain?\r\n\r\nSnow!",
            "Mr. A. Bee is old. He is 3.5 m tall.",
            "1. Rain falls.\n2. Snow falls.",
            "雨が降る。雪も降る。",
        ),
        (
            "",
            "It rains.",
            "Öl. Salz? Tee!",
            "It is 3.5 m. ",
            "Dr. No knows",
            "a b c",
            "1. It rains.",
        ),
    ),
    Case(
        checks.exact_bullets,
        (2,),
        (
            "- a\n- b",
            "* a\r\n* b\r\n",
            "Here:\n\n• ä\n• ö\n\nDone.",
            "- 1. one\n- 2. two",
            "```\n- a\n- b\n```",
            "  - a\n  - 3.5 km",
        ),
        ("", "- a", "- a\n- b\n- c", "1. a\n2. b", "-a\n-b", "a - b - c", "- a\r\n  - b\r\n- c"),
    ),
    Case(
        checks.json_keys,
        ("age", "size"),
        (
            '{"age": 1, "size": "big"}',
            '{"size": null, "age": null}\r\n',
            '```json\n{"age": 1, "size": 2}\n```',
            '```\r\n{"age": 1,\r\n "size": 2}\r\n```',
            '{"age": {"years": [1, {"of": "what"}]}, "size": []}',
            '{"age": "sehr früh", "size": "grö\\u00dfer"}',
        ),
        (
            "",
            '{"age": 1}',
            '{"age": 1, "size": 2, "use": 3}',
            '{"of": {"age": 1, "size": 2}}',
            '[{"age": 1, "size": 2}]',
            'Sure: {"age": 1, "size": 2}',
            '{"age": 1, "size": 2,}',
            "{'age': 1, 'size': 2}",
            '{"age": NaN, "size": 2}',
            '{"age": 1, "age": 2, "size": 3}',
            '{"Age": 1, "Size": 2}',
            '{"age": 1, "size": ' + "[" * 5000,
            '{"age": 1, "size": ' + "9" * 5000 + "}",
            '```json\n{"age": 1, "size": 2}\n```\n```json\n{}\n```',
        ),
    ),
    Case(
        checks.lower_case,
        (),
        (
            "a",
            "it is old.",
            "öl, ß and é",
            "1. first\r\n2. second",
            "nº 5 is ok",
            "```\nx = 1\n```",
        ),
        ("", "1 2 3", "It is old.", "it is Öl", "雨", "i like Paris", "ǅ is ok", "a\r\nB"),
    ),
    Case(
        checks.capitals,
        (),
        ("A", "IT IS OLD.", "ÖL, É", "1. FIRST\r\n2. SECOND", "Nº 5".upper(), "```\nX = 1\n```"),
        ("", "1 2 3", "It is old.", "IT IS öl", "雨", "STRAßE", "ﬁN", "A\r\nb"),
    ),
    Case(
        checks.word_times,
        ("river", 2),
        (
            "river, river",
            "The River is a RIVER.",
            "river\r\nriver",
            "**river** and _river_",
            "river's river-bank",
            "rivers: river and “river”",
            "- 1. river\n- 2. river",
        ),
        ("", "river", "rivers rivers", "river river river", "rive r river", "driver river", "Fluß"),
    ),
    Case(
        checks.without_word,
        ("the",),
        ("a", "They bathe there.", "thé", "Öl\r\nist gut", "- 1. a", "the1 is no word of ours"),
        ("", "...", "the", "THE", "in the\r\nend", "**the**", "a (the) b", "_the_"),
    ),
    Case(
        checks.starts_with,
        ("To begin with",),
        (
            "To begin with, it is old.",
            "to begin with it",
            "TO BEGIN WITH",
            '"To begin with": yes',
            "“To begin with” — yes",
            "  \r\nTo begin with\r\nit is",
        ),
        (
            "",
            "To begin",
            "It is, to begin with",
            "To begin within",
            "To begin  with",
            "To\r\nbegin with",
            "**To begin with**, yes",
            "```\nTo begin with\n```",
        ),
    ),
    Case(
        checks.ends_with,
        ("Now you know",),
        (
            "It is old. Now you know",
            "It is old. Now you know.",
            "now you know!\r\n",
            "“Now you know.”",
            "Now you know...",
            "- 1. a\n- Now you know",
        ),
        (
            "",
            "Now you know it",
            "Now you know. Bye",
            "Snow you know".replace("Snow", "snow"),
            "Now  you know",
            "Now you know?",
            "**Now you know**",
            "Now you know\r\n```",
        ),
    ),
    Case(
        checks.no_comma,
        (),
        ("a", "It is old. It is.", "Öl; Salz", "- 1. a\r\n- 2. b", "3.5", "it’s ‚quoted‘"),
        ("", "...", "a, b", "1,000", "雨、雪", "雨，雪", "واحد، اثنان", "a\r\n,b"),
    ),
    Case(
        checks.one_option,
        ("red", "green"),
        ("red", "Green", "RED.", '"red"', "“green.”", "red\r\n", "'Red'."),
        ("", "blue", "red, green", "It is red.", "redgreen", "réd", "- red", "red!", "**red**"),
    ),
    Case(
        checks.repeats,
        ("My sister lost cafe\u0301s at seven o'clock.",),
        (
            "My sister lost cafe\u0301s at seven o'clock.",
            "My sister lost cafés at seven o'clock.",
            "\r\nMy sister lost cafés at seven o'clock.\r\n",
            '"My sister lost cafés at seven o\'clock."',
            "“My sister lost cafés at seven o'clock.”",
            "'My sister lost cafés at seven o'clock.'",
        ),
        (
            "",
            "my sister lost cafés at seven o'clock.",
            "My sister lost cafés at seven o'clock",
            "My sister lost cafes at seven o'clock.",
            "My sister lost cafés at\nseven o'clock.",
            "Sure! My sister lost cafés at seven o'clock.",
            "My sister lost cafés at seven o'clock. My sister",
            "```\nMy sister lost cafés at seven o'clock.\n```",
        ),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.check.__name__)
def test_a_check_takes_what_was_asked_for_and_nothing_else(case: Case) -> None:
    assert len(set(case.right)) >= 6
    assert len(set(case.wrong)) >= 6
    assert [answer for answer in case.right if not case.check(answer, *case.asked)] == []
    assert [answer for answer in case.wrong if case.check(answer, *case.asked)] == []


def test_every_check_of_a_prompt_has_cases() -> None:
    assert {case.check for case in CASES} == {one.check for one in instructions()}


@given(answer=st.text())
def test_no_answer_breaks_a_check(answer: str) -> None:
    for case in CASES:
        for form in (answer, *loose_forms(answer)):
            assert case.check(form, *case.asked) in (True, False)


@pytest.mark.parametrize(
    ("answer", "forms"),
    [
        ("", []),
        ("* …", []),
        ("one", ["one"]),
        ("**one**", ["**one**", "one"]),
        ("Sure:\r\none", ["Sure:\none", "one", "Sure:"]),
        ("Sure:\n*one*\nBye", ["Sure:\n*one*\nBye", "*one*\nBye", "Sure:\n*one*", "*one*"]),
    ],
)
def test_a_loose_score_looks_past_first_and_last_lines_and_stars(
    answer: str, forms: list[str]
) -> None:
    assert loose_forms(answer)[: len(forms)] == forms
    assert all("*" not in form for form in loose_forms(answer)[len(forms) :])
