"""The display in a real terminal: no line is lost, and nothing that a person does stops the run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

# Four threads say lines and steps as fast as they can, and another says what the last one was.
PROGRAM = """
import sys, threading
from pathlib import Path
from pipeline.console.display import Display
from pipeline.console.messages import Note, PrepareProgress, Step

threads, lines = 4, int(sys.argv[1])

def talk(display, who):
    for number in range(lines):
        display.say(Note(f"<{who}:{number}>"))
        display.say(Step("pretrain", number, lines, 3.2, 0.02, 4120.4))
        display.say(PrepareProgress("read", number, "MB", lines))

Path("started").touch()
with Display() as display:
    talking = [threading.Thread(target=talk, args=(display, who)) for who in range(threads)]
    for thread in talking: thread.start()
    for thread in talking: thread.join()
    Path("said").touch()
Path("ended").touch()
print("the end")
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "talk.py").write_text(PROGRAM)
    with Terminal(tmp_path) as terminal:
        yield terminal


def talk(lines: int) -> str:
    return f"{sys.executable} talk.py {lines}"


def said(shown: str) -> dict[int, list[int]]:
    """Return the numbers of the lines that each thread said, in the order on the terminal."""
    found: dict[int, list[int]] = {}
    for who, number in re.findall(r"<(\d):(\d+)>", shown):
        found.setdefault(int(who), []).append(int(number))
    return found


@pytest.mark.parametrize("lines", [500, pytest.param(1500, marks=pytest.mark.soak)])
def test_lines_as_fast_as_they_come_are_all_shown_while_the_terminal_changes_its_size(
    terminal: Terminal, lines: int
) -> None:
    terminal.type(talk(lines))
    for rows, columns in ((24, 10), (2, 200), (60, 40), (1, 1), (24, 80)) * (lines // 375):
        terminal.resize(rows, columns)
        terminal.wait_for(">")
    shown = terminal.wait_for("the end")
    assert said(shown.replace("\r\n", "")) == {who: list(range(lines)) for who in range(4)}
    assert terminal.code() == 0


def test_a_terminal_that_is_held_stops_only_what_is_shown(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.press("Ctrl-S")
    terminal.type(talk(400))
    wait_until((tmp_path / "said").exists, "the threads to have said everything")
    assert not (tmp_path / "ended").exists()
    terminal.press("Ctrl-Q")
    shown = terminal.wait_for("the end")
    assert said(shown) == {who: list(range(400)) for who in range(4)}


def test_a_program_goes_on_when_its_terminal_is_gone(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type(f"trap '' HUP; {talk(400)}")
    wait_until((tmp_path / "started").exists, "the program to start")
    terminal.vanish()
    wait_until((tmp_path / "ended").exists, "the program to end")


def test_a_program_that_was_suspended_goes_on_and_the_shell_has_a_cursor(
    terminal: Terminal,
) -> None:
    terminal.type(talk(400))
    terminal.wait_for("<0:")
    terminal.press("Ctrl-Z")
    terminal.wait_for("Stopped")
    assert terminal.seen.rfind("\x1b[?25h") > terminal.seen.rfind("\x1b[?25l")
    terminal.resume()
    terminal.wait_for("the end")
    assert terminal.code() == 0
