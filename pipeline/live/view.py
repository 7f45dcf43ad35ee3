"""Which curves a page draws: what it asks the server for, in the query of its address.

    data?stage=pretrain&names=loss,held_out_loss&steps=100-2000,

`steps` has a range for each run, in the order of the runs. An empty one asks for the whole curve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.report.curves import LONGEST_NAME, MOST_NAMES
from pipeline.state.rows.metrics import LAST_STEP

_NAME = re.compile(rf"\w{{1,{LONGEST_NAME}}}(\.\w+)?", re.ASCII)
_RANGE = re.compile(r"(\d{1,19})-(\d{1,19})", re.ASCII)


@dataclass(frozen=True)
class View:
    """The curves of one stage, and of each run the steps, or None for all of them."""

    stage: str = ""
    names: tuple[str, ...] = ()
    steps: tuple[range | None, ...] = ()


def view_of(query: Mapping[str, str], runs: int) -> View:
    """Return what a page of so many runs asks for. Raises BadInput for what no page sends."""
    names = tuple(filter(None, query.get("names", "").split(",")))
    if len(names) > MOST_NAMES or not all(map(_NAME.fullmatch, names)):
        raise BadInput(f"names has at most {MOST_NAMES} names of curves, with commas between them")
    asked = query.get("steps", "," * (runs - 1)).split(",")
    if len(asked) != runs:
        raise BadInput(f"steps has {len(asked)} ranges, and the page has {runs} runs")
    return View(query.get("stage", ""), names, tuple(map(_range, asked)))


def _range(text: str) -> range | None:
    if not text:
        return None
    found = _RANGE.fullmatch(text)
    if found is None or int(found[2]) > LAST_STEP:
        raise BadInput("a range of steps is two numbers: 100-2000")
    return range(int(found[1]), int(found[2]) + 1)
