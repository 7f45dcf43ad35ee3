"""A page asks for the curves that it draws. What no page asks for is refused by name."""

from __future__ import annotations

import pytest

from pion.errors import BadInput
from pipeline.live.view import View, view_of


def test_a_page_asks_for_names_and_for_each_run_for_steps() -> None:
    asked = {"stage": "sft", "names": "loss,expert_load.lowest", "steps": "100-2000,"}
    names = ("loss", "expert_load.lowest")
    assert view_of(asked, 2) == View("sft", names, (range(100, 2001), None))


def test_a_page_that_knows_nothing_yet_asks_for_no_curves() -> None:
    assert view_of({}, 3) == View("", (), (None, None, None))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"names": "../HEAD"}, "names of curves"),
        ({"names": "x" * 41}, "names of curves"),
        ({"names": ",".join(f"a{n}" for n in range(41))}, "at most 40 names"),
        ({"steps": "1-2,3-4"}, "2 ranges, and the page has 1 runs"),
        ({"steps": "-5-2"}, "two numbers"),
        ({"steps": "1-"}, "two numbers"),
        ({"steps": f"1-{10**19 - 1}"}, "two numbers"),
        ({"steps": "١-٢"}, "two numbers"),
    ],
)
def test_other_views_are_refused(query: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        view_of(query, 1)
