"""The display says the same things on a terminal and in a log, and never stops a run."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.console import display as display_module
from pipeline.console.display import Display
from pipeline.console.formats import amount, duration, minutes_or_hours, money, printable, size
from pipeline.console.messages import (
    CheckpointSaved,
    Evaluation,
    Note,
    Phase,
    PrepareProgress,
    Sample,
    Shown,
    StageState,
    Step,
    Summary,
)
from tests.support.terminal import Terminal
from tests.support.waiting import PATIENCE_SECONDS, join, wait_until

STEP = Step(
    stage="pretrain",
    step=120,
    steps=480,
    loss=3.21,
    lr=0.02,
    grad_norm=0.5,
    tokens_per_second=4120.4,
    mfu=0.123,
    memory=1_200_000_000,
    eta=200.0,
)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


def log_of(*messages: Shown, clock: Clock | None = None) -> list[str]:
    """Return the lines that a log gets for these messages."""
    file = io.StringIO()
    with Display(file, now=clock or Clock()) as display:
        for message in messages:
            display.say(message)
    return file.getvalue().splitlines()


@pytest.fixture(autouse=True)
def _a_terminal_that_can_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def terminal_of(*messages: Shown) -> str:
    """Return what a terminal gets for these messages."""
    file = io.StringIO()
    with Display(file, live=True) as display:
        for message in messages:
            display.say(message)
        # A panel is drawn with each line.
        display.say(Note("the end"))
    return file.getvalue()


def test_a_log_gets_one_timestamped_line_per_step_message():
    (line,) = log_of(STEP)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  pretrain step 120/480  ", line)
    for fact in ("loss 3.2100", "lr 2.00e-02", "4,120 tokens/s", "MFU 12.3 %", "1.2 GB"):
        assert fact in line
    assert line.endswith("ETA 3 min 20 s  not saved yet")


def test_a_step_line_says_what_the_run_has_cost_where_that_is_known():
    (line,) = log_of(replace(STEP, dollars=1.234))
    assert "ETA 3 min 20 s  $1.23  " in line
    (line,) = log_of(replace(STEP, dollars=1.234, dollars_per_hour=0.2))
    assert "ETA 3 min 20 s  $1.23 at $0.20/h  " in line
    assert "$" not in log_of(replace(STEP, dollars=0.0, dollars_per_hour=0.0))[0]


def test_a_step_line_says_how_old_the_last_durable_checkpoint_is():
    clock, file = Clock(), io.StringIO()
    with Display(file, now=clock) as display:
        display.say(CheckpointSaved("pretrain", 100, saved=1, stall=0.25))
        clock.at += 12
        display.say(STEP)
    saved, step = file.getvalue().splitlines()
    assert "pretrain step 100: saved (training stood still for 0.25 s)" in saved
    assert step.endswith("saved step 100 (12 s ago)")


def test_a_save_says_how_long_after_it_the_next_one_comes_where_time_decides():
    saved = CheckpointSaved("pretrain", 100, saved=1, interval=90.0)
    assert "step 100: saved (saving every 1 min 30 s)" in log_of(saved)[0]
    assert log_of(replace(saved, interval=None))[0].endswith("step 100: saved")
    assert "saving every 1 min 30 s" in terminal_of(saved, STEP)


def test_a_new_stage_does_not_count_the_old_ones_checkpoint():
    lines = log_of(
        CheckpointSaved("pretrain", 480, saved=3),
        StageState("sft", "started", steps=60),
        replace(STEP, stage="sft"),
    )
    assert lines[-1].endswith("not saved yet")


def test_numbers_that_are_not_known_are_left_out():
    (line,) = log_of(replace(STEP, mfu=None, memory=None, eta=None, grad_norm=None))
    assert not re.search(r"MFU|GB|ETA|grad|None", line)


def test_seconds_to_the_first_step_are_given_by_phase():
    lines = log_of(
        Phase("imports", 2.14),
        Phase("ray started", 7.0),
        Phase("first step", 31.5, total=True),
    )
    assert lines[-1].endswith("first step after 31.5 s (imports 2.1 s, ray started 7.0 s)")


def test_what_a_rental_took_before_stays_out_of_what_the_command_took():
    boot = {"machine up": 40.0, "install": 20.5}
    lines = log_of(
        Phase("boot", 60.5, parts=boot),
        Phase("imports", 2.0),
        Phase("first step", 31.5, total=True),
        Phase("paid to first step", 92.0, parts={"run": 92.0}),
    )
    assert lines[0].endswith("boot: 60.5 s (machine up 40.0 s, install 20.5 s)")
    assert lines[2].endswith("first step after 31.5 s (imports 2.0 s)")
    assert lines[3].endswith("paid to first step: 92.0 s (run 92.0 s)")


def test_stage_outcomes_say_why():
    lines = log_of(
        StageState("prepare", "done", "same digest 1f2e"),
        StageState("sft", "started", "continues after step 20"),
    )
    assert lines[0].endswith("prepare: done (same digest 1f2e)")
    assert lines[1].endswith("sft: starts (continues after step 20)")


def test_evaluations_carry_their_error_and_samples_stand_on_lines_of_their_own():
    lines = log_of(
        Evaluation("sft", 40, loss=2.5, loss_sem=0.012),
        Sample("sft", 40, prompt="Once", text="upon\na time"),
    )
    assert lines[0].endswith("sft step 40: held-out loss 2.5000 ± 0.0120")
    assert lines[1].endswith("sft step 40: sample for 'Once'")
    assert lines[2:] == ["    | upon", "    | a time"]


def test_prepare_gets_a_line_every_few_seconds_and_one_when_done():
    clock, file = Clock(), io.StringIO()
    with Display(file, now=clock) as display:
        for done in range(0, 101):
            display.say(PrepareProgress("tokenising", done, "MB", total=100))
            clock.at += 0.1
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1].endswith("prepare: tokenising 100/100 MB")


def test_little_text_is_not_shown_as_none():
    file = io.StringIO()
    with Display(file) as display:
        display.say(PrepareProgress("read", 0.012, "MB", total=0.012))
    assert file.getvalue().endswith("prepare: read 0.012/0.012 MB\n")


def test_another_stage_names_what_it_prepares_and_how_long_that_takes():
    progress = PrepareProgress("reference pass", 30, "rows", total=90, stage="prefer", eta=125.0)
    assert log_of(progress)[0].endswith("prefer: reference pass 30/90 rows, ETA 2 min 05 s")


def test_the_summary_lines_up():
    rows = [["model", "models/demo"], ["report", "runs/demo/report.html"]]
    assert log_of(Summary(rows)) == [
        "model   models/demo",
        "report  runs/demo/report.html",
    ]


def test_a_model_can_not_drive_the_terminal():
    hostile = Sample("sft", 1, prompt="x", text="a\x1b[2Jb\x9bc\r")
    text = terminal_of(hostile)
    assert "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c" in text
    assert "\x1b[2J" not in text


def test_markup_in_messages_is_shown_as_it_is():
    assert "[bold]x[/bold] [/]" in terminal_of(Note("[bold]x[/bold] [/]"))


def test_a_terminal_shows_a_bar_with_the_same_numbers():
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal_of(STEP))
    assert "pretrain" in text
    assert "120/480" in text
    assert "━" in text
    assert "loss 3.2100" in text
    assert "MFU 12.3 %" in text


def test_a_terminal_that_wants_no_color_gets_none(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    evaluation = Evaluation("sft", 4, loss=2.5, loss_sem=0.1)
    assert not re.search(r"\x1b\[[0-9;]*3\dm", terminal_of(STEP, evaluation))
    monkeypatch.delenv("NO_COLOR")
    assert re.search(r"\x1b\[[0-9;]*3\dm", terminal_of(STEP, evaluation))


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False)])
def test_only_a_capable_terminal_gets_the_live_panel(monkeypatch, term, live):
    monkeypatch.setenv("TERM", term)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as file, Display(file) as display:
        assert (display._live is not None) == live
    os.close(master)


def test_a_closed_pipe_silences_the_display_and_nothing_else():
    reader, writer = os.pipe()
    os.close(reader)
    file = os.fdopen(writer, "w", buffering=1)
    with Display(file) as display:
        for _ in range(3):
            display.say(Note("anybody there?"))
    with pytest.raises(BrokenPipeError):
        file.close()


def test_a_slow_terminal_can_follow_who_says_more_than_it_shows(monkeypatch):
    """Without a pause, 15 s of lines kept a run from its end for minutes."""
    waited, held = [], threading.Event()
    monkeypatch.setattr(display_module, "MOST_WAITING", 3)
    monkeypatch.setattr(display_module.time, "sleep", waited.append)

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            held.wait(PATIENCE_SECONDS)
            return super().write(text)

    file = Slow()
    with Display(file) as display:
        for number in range(10):
            display.say(Note(f"line {number}"))
            display.say(STEP)
        held.set()
    assert 5 <= len(waited) <= 8
    assert set(waited) == {display_module.LATER_SECONDS}
    lines = file.getvalue().splitlines()
    assert [line[-6:] for line in lines if "line" in line] == [f"line {n}" for n in range(10)]
    assert sum("pretrain step" in line for line in lines) < 4


def test_messages_from_many_threads_never_mix_within_a_line():
    file = io.StringIO()
    with Display(file) as display:

        def talk(who: int) -> None:
            for i in range(50):
                display.say(Note(f"thread {who} says {i}."))

        threads = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            join(thread)
    lines = file.getvalue().splitlines()
    assert len(lines) == 200
    assert all(re.fullmatch(r"\S+ \S+  thread \d says \d+\.", line) for line in lines)


def test_durations_and_sizes_read_like_speech():
    shown = [duration(s) for s in (-1, 0.42, 12, 59.6, 200, 18_120, 273_600)]
    assert shown == ["0.0 s", "0.4 s", "12 s", "1 min 00 s", "3 min 20 s", "5 h 02 min", "3 d 4 h"]
    assert [size(b) for b in (812, 3.1e6, 1.24e9)] == ["812 B", "3.1 MB", "1.24 GB"]
    assert [amount(n) for n in (999_700, 999.7e6, 1.5e13)] == (
        ["999,700", "1,000 million", "15,000 billion"]
    )
    # What is less than the least that would be shown says so.
    assert [duration(s) for s in (0, 1e-9, 0.004, 0.049, 0.05)] == (
        ["0.0 s", "1 ms", "4 ms", "49 ms", "0.1 s"]
    )
    assert [money(d) for d in (0, 1e-9, 0.0099, 0.01, 1234.5)] == (
        ["$0.00", "<$0.01", "<$0.01", "$0.01", "$1,234.50"]
    )
    assert [minutes_or_hours(h) for h in (0, 0.001, 0.5, 1.25)] == (
        ["0 min", "<1 min", "30 min", "1.2 h"]
    )
    assert printable("tab\tand\nnewline stay") == "tab\tand\nnewline stay"


# ---------------------------------------------------------------- in a real terminal

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
