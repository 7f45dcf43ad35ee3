"""`pion replay --deadline`: which deadlines are taken, and what is compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.rent.replay.command import show_replay
from pipeline.rent.replay.options import Given
from tests.pipeline.rent.replay.test_command import GIVEN, SPOT, write_job


def replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: Given, *, as_json: bool = False
) -> str:
    show_replay(write_job(tmp_path), [], traces=[SPOT], given=given, as_json=as_json)
    return capsys.readouterr().out


PRICED = replace(GIVEN, price=0.2, on_demand_price=0.4)


@pytest.mark.parametrize("given", ["", "42", "1.5", "x", "h", "soon", "1.5 weeks", "nanh", "infx"])
def test_a_deadline_in_an_unknown_form_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(BadInput, match=r"is no deadline. Pass hours from the start \(42h\), or a"):
        show_replay(write_job(tmp_path), [], traces=[SPOT], given=replace(PRICED, deadline=given))


@pytest.mark.parametrize("given", ["0x", "-1h"])
def test_a_deadline_in_the_past_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(BadInput, match="is no deadline"):
        show_replay(write_job(tmp_path), [], traces=[SPOT], given=replace(PRICED, deadline=given))


def test_a_deadline_shorter_than_the_work_and_the_margin_is_refused_with_the_shortest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadInput, match="30 min are kept as a margin") as refused:
        show_replay(write_job(tmp_path), [], traces=[SPOT], given=replace(PRICED, deadline="1x"))
    assert capsys.readouterr().out == ""
    advised = str(refused.value).split("Pass --deadline ")[1].split()[:2]
    for deadline in (advised[0], advised[1].strip("()")):
        replayed(tmp_path, capsys, replace(PRICED, deadline=deadline))


def test_spot_that_is_not_cheaper_is_refused(tmp_path: Path) -> None:
    dear = replace(PRICED, price=0.4, deadline="9x")
    with pytest.raises(BadInput, match="Spot is not cheaper"):
        show_replay(write_job(tmp_path), [], traces=[SPOT], given=dear)


def test_each_way_is_compared_on_each_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = json.loads(replayed(tmp_path, capsys, replace(PRICED, deadline="9x"), as_json=True))[
        "deadline"
    ]
    (trace,) = said["traces"]
    ways = trace["ways"]
    assert list(ways) == ["pion", "greedy", "spot alone", "on demand alone"]
    assert ways["pion"]["late"] == ways["on demand alone"]["late"] == 0.0
    assert trace["bound_dollars"] <= ways["pion"]["dollars"]
    assert ways["pion"]["done_hours"]["p90"] <= (said["seconds"] - said["margin"]) / 3600
    text = replayed(tmp_path, capsys, replace(PRICED, deadline="9x"))
    assert "(9x the training), margin 30 min" in text
    assert "of on demand" in text
    assert "  at best" in text


def test_without_prices_it_says_hours_and_no_dollars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = Given(step_seconds=20.0, deadline="48h")
    text = replayed(tmp_path, capsys, given)
    (pion,) = [line for line in text.splitlines() if line.startswith("  pion ")]
    assert pion.split()[-4:] == ["?", "?", "0.0", "%"]
    assert "at best" not in text


def test_without_a_deadline_nothing_is_said_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "deadline" not in replayed(tmp_path, capsys, PRICED)
    assert "deadline" not in json.loads(replayed(tmp_path, capsys, PRICED, as_json=True))
