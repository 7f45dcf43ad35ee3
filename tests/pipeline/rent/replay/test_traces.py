"""A trace says when a machine was available. A file that is not a trace is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pion.errors import BadInput
from pipeline.rent.replay.traces import Trace, read_trace

SPOT = Path(__file__).with_name("spot.json")


def trace(ticks: str, gap: float = 10.0) -> Trace:
    """Make a trace from `1` for a tick with a machine and `0` for a tick without."""
    return Trace("invented", gap, tuple(tick == "1" for tick in ticks))


def test_a_machine_that_is_there_stays_until_the_first_tick_without_one() -> None:
    assert trace("011100").next_machine(10.0) == (10.0, 40.0)
    assert trace("011100").next_machine(30.0) == (30.0, 40.0)


def test_in_the_middle_of_a_tick_the_machine_of_that_tick_is_there() -> None:
    assert trace("0110").next_machine(3.0) == (10.0, 30.0)
    assert trace("0110").next_machine(15.0) == (15.0, 30.0)


def test_where_there_is_none_the_next_one_is_waited_for() -> None:
    assert trace("001101").next_machine(0.0) == (20.0, 40.0)
    assert trace("0110").next_machine(30.0) == (50.0, 70.0)


def test_the_end_of_a_trace_is_followed_by_its_beginning() -> None:
    assert trace("011100").next_machine(40.0) == (70.0, 100.0)
    assert trace("110011").next_machine(40.0) == (40.0, 80.0)
    assert trace("110011").next_machine(100.0) == (100.0, 140.0)


def test_a_spell_over_the_end_of_the_trace_is_one_spell() -> None:
    found = trace("1011")
    assert found.next_machine(0.0) == (0.0, 10.0)
    assert found.next_machine(25.0) == (25.0, 50.0)
    assert found.next_machine(45.0) == (45.0, 50.0)
    assert found.next_machine(50.0) == (60.0, 90.0)


def test_a_machine_that_is_always_there_is_never_lost() -> None:
    assert trace("111").next_machine(7.0) == (7.0, math.inf)
    assert trace("111").spells(7.0, 99.0) == [92.0]
    assert trace("111").preemptions == 0


def test_a_trace_without_machines_has_no_next_machine() -> None:
    assert trace("000").next_machine(0.0)[0] == math.inf


@pytest.mark.parametrize("gap", [0.1, 1 / 3, 33.3])
def test_a_machine_that_was_just_lost_is_not_found_again(gap: float) -> None:
    found, at = trace("110100111", gap), 0.0
    for _ in range(1000):
        there, at = found.next_machine(at)
        assert at - there > 0.9 * gap


def test_spells_are_cut_off_at_both_ends() -> None:
    assert trace("0110").spells(15.0, 95.0) == [15.0, 20.0, 5.0]
    assert trace("0110").spells(30.0, 50.0) == []


def test_losses_are_counted_once_round() -> None:
    assert trace("110101").preemptions == 2
    assert trace("0110").preemptions == 1


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 30))
def test_it_is_what_walking_through_the_ticks_finds(ticks: list[bool], start: int) -> None:
    there = ticks * 60
    found, lost = Trace("any", 32.0, tuple(ticks)).next_machine(32.0 * start)
    if not any(ticks):
        assert found == math.inf
        return
    first = there.index(True, start)
    assert found == 32.0 * first
    assert lost == (math.inf if all(ticks) else 32.0 * there.index(False, first))


def test_a_file_is_read_and_named_for_it() -> None:
    spot = read_trace(SPOT)
    assert (spot.name, spot.gap_seconds, spot.seconds) == ("spot", 60.0, 3600.0)
    assert spot.preemptions == 4
    assert spot.next_machine(0.0) == (120.0, 120.0 + 19 * 60.0)  # a count of 2 is a machine too


def good(**changes: Any) -> dict[str, Any]:
    return {"metadata": {"gap_seconds": 32}, "data": [0, 1], **changes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("spot prices", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"data": [1], "data": [0]}', "the key 'data' is given twice"),
        ([0, 1], "metadata.gap_seconds is missing"),
        ({"data": [0, 1]}, "metadata.gap_seconds is missing"),
        (good(metadata=32), "metadata.gap_seconds is missing"),
        (good(metadata={"gap_seconds": 0}), "metadata.gap_seconds is 0"),
        (good(metadata={"gap_seconds": -32}), "metadata.gap_seconds is -32"),
        (good(metadata={"gap_seconds": "32"}), "metadata.gap_seconds is '32'"),
        (good(metadata={"gap_seconds": math.nan}), "metadata.gap_seconds is nan"),
        ({"metadata": {"gap_seconds": 32}}, "data is missing"),
        (good(data=[]), "data is empty"),
        (good(data="0101"), "data is not a list"),
        (good(data=[1, 0, -1]), r"data\[2\] is -1"),
        (good(data=[1, None]), r"data\[1\] is None"),
        (good(data=[True]), r"data\[0\] is True"),
        (good(data=[0, 0, 0.5]), "never has a machine"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_its_name_and_what_is_wrong(
    tmp_path: Path, content: Any, words: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BadInput, match=words) as refused:
        read_trace(path)
    assert str(path) in str(refused.value)


def test_a_file_that_can_t_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="can't read the trace"):
        read_trace(tmp_path / "nowhere.json")
    with pytest.raises(BadInput, match="not a regular file"):
        read_trace(tmp_path)
    path = tmp_path / "latin.json"
    path.write_bytes(b'{"data": "\xff"}')
    with pytest.raises(BadInput, match="is not valid JSON"):
        read_trace(path)


def test_a_pipe_is_no_trace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="not a regular file"):
        read_trace(tmp_path / "pipe")
