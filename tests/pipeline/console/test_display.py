"""The display says the same things on a terminal and in a log, and never stops a run."""

import io
import os
import pty
import re
import sys
import threading
from dataclasses import replace

import pytest

from pipeline.console import display as display_module
from pipeline.console.display import Display
from pipeline.console.messages import (
    CheckpointSaved,
    Evaluation,
    Note,
    Phase,
    PrepareProgress,
    Sample,
    StageState,
    Step,
    Summary,
)
from tests.support.terminal import Terminal
from tests.support.waiting import PATIENCE_SECONDS, join, wait_until

STEP = Step(
    "pretrain", 120, 480, 3.21, 0.02, 4120.4, 0.5, mfu=0.123, memory=1_200_000_000, eta=200.0
)


class Clock:
    def __init__(self):
        self.at = 1_800_000_000.0

    def __call__(self):
        return self.at


def log_of(*messages, clock=None):
    file = io.StringIO()
    with Display(file, now=clock or Clock()) as display:
        for message in messages:
            display.say(message)
    return file.getvalue().splitlines()


@pytest.fixture(autouse=True)
def _a_terminal_that_can_move_its_cursor(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")


def terminal_of(*messages):
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
    (line,) = log_of(replace(STEP, mfu=None, memory=None, eta=None, grad_norm=None))
    assert not re.search(r"MFU|GB|ETA|grad|None", line)


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


SAVED = CheckpointSaved("pretrain", 100, saved=1, interval=90.0)
BOOT = Phase("boot", 60.5, parts={"machine up": 40.0, "install": 20.5})
# Messages, and how the lines of a log end, without their times.
LOGS = [
    (
        [BOOT, Phase("imports", 2.14), Phase("ray started", 7.0), Phase("first step", 31.5, True)],
        [
            "boot: 60.5 s (machine up 40.0 s, install 20.5 s)",
            *("imports: 2.1 s", "ray started: 7.0 s"),
            "first step after 31.5 s (imports 2.1 s, ray started 7.0 s)",
        ],
    ),
    (
        [Phase("first step", 31.5, total=True), Phase("paid", 92.0, parts={"run": 92.0})],
        ["first step after 31.5 s", "paid: 92.0 s (run 92.0 s)"],
    ),
    (
        [
            StageState("prepare", "done", "same digest 1f2e"),
            StageState("sft", "started", "continues after step 20"),
        ],
        ["prepare: done (same digest 1f2e)", "sft: starts (continues after step 20)"],
    ),
    (
        [Evaluation("sft", 40, loss=2.5, loss_sem=0.012)],
        ["sft step 40: held-out loss 2.5000 ± 0.0120"],
    ),
    (
        [SAVED, replace(SAVED, interval=None)],
        ["step 100: saved (saving every 1 min 30 s)", "step 100: saved"],
    ),
    (
        [SAVED, StageState("sft", "started", steps=60), replace(STEP, stage="sft")],
        ["saved (saving every 1 min 30 s)", "sft: starts", "not saved yet"],
    ),
    ([PrepareProgress("read", 0.012, "MB", total=0.012)], ["prepare: read 0.012/0.012 MB"]),
    (
        [PrepareProgress("reference pass", 30, "rows", total=90, stage="prefer", eta=125.0)],
        ["prefer: reference pass 30/90 rows, ETA 2 min 05 s"],
    ),
]


@pytest.mark.parametrize(("messages", "ends"), LOGS, ids=range(len(LOGS)))
def test_a_log_says_each_message(messages, ends):
    lines = log_of(*messages)
    assert len(lines) == len(ends)
    assert all(line.endswith(end) for line, end in zip(lines, ends)), lines


def test_the_text_of_a_model_and_the_summary_have_no_time():
    sample, *lines = log_of(
        Sample("sft", 40, prompt="Once", text="upon\na time"),
        Summary([["model", "models/demo"], ["report", "runs/demo/report.html"]]),
    )
    assert sample.endswith("sft step 40: sample for 'Once'")
    assert lines[:2] == ["    | upon", "    | a time"]
    assert lines[2:] == ["model   models/demo", "report  runs/demo/report.html"]


def test_prepare_gets_a_line_every_few_seconds_and_one_when_done():
    clock, file = Clock(), io.StringIO()
    with Display(file, now=clock) as display:
        for done in range(0, 101):
            display.say(PrepareProgress("tokenising", done, "MB", total=100))
            clock.at += 0.1
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1].endswith("prepare: tokenising 100/100 MB")


def test_a_model_can_not_drive_the_terminal_and_markup_is_shown_as_it_is():
    text = terminal_of(Sample("sft", 1, prompt="x", text="a\x1b[2Jb\x9bc\r"))
    assert "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c" in text
    assert "\x1b[2J" not in text
    assert "[bold]x[/bold] [/]" in terminal_of(Note("[bold]x[/bold] [/]"))


def test_a_terminal_shows_the_beginnings_of_three_lines_of_a_sample_and_breaks_no_word(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    words = "a warning of many words, none of which is broken at the edge"
    said = "\n".join(["x" * 50, *(f"line {n}" for n in range(14))])
    text = terminal_of(Sample("sft", 40, prompt="Once", text=said), Note(words))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    shown = [line.strip() for line in text.split("\n") if "|" in line]
    assert shown == [f"| {'x' * 33}…", "| line 0", "| line 1…"]
    assert set(words.split()) <= set(text.split())


def test_what_a_narrower_terminal_has_wrapped_is_erased(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = io.StringIO()
    with Display(file, live=True) as display:
        display.say(STEP)
        wait_until(lambda: "tokens/s" in file.getvalue(), "the panel")
        display._live.console.width = 50
        wide = len(file.getvalue())
        wait_until(lambda: "tokens/s" in file.getvalue()[wide:], "the narrow panel")
        drawn = file.getvalue()[wide:]
    # Of three lines, the bar and the first line of facts had more than 50 columns.
    assert drawn[: drawn.index("pretrain")].count("\x1b[1A") == 2 + 2


def test_a_terminal_shows_a_bar_with_the_same_numbers():
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal_of(SAVED, STEP))
    text = " ".join(text.split())  # a narrow terminal breaks the line
    shown = ("pretrain", "120/480", "━", "loss 3.2100", "MFU 12.3 %", "saving every 1 min 30 s")
    assert all(fact in text for fact in shown)


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
        def write(self, text):
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

        def talk(who):
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
def terminal(tmp_path):
    (tmp_path / "talk.py").write_text(PROGRAM)
    with Terminal(tmp_path) as terminal:
        yield terminal


def talk(lines):
    return f"{sys.executable} talk.py {lines}"


def said(shown):
    """Return the numbers of the lines that each thread said, in the order on the terminal."""
    found = {}
    for who, number in re.findall(r"<(\d):(\d+)>", shown):
        found.setdefault(int(who), []).append(int(number))
    return found


@pytest.mark.parametrize("lines", [500, pytest.param(1500, marks=pytest.mark.soak)])
def test_lines_as_fast_as_they_come_are_all_shown_while_the_terminal_changes_its_size(
    terminal, lines
):
    terminal.type(talk(lines))
    for rows, columns in ((24, 10), (2, 200), (60, 40), (1, 1), (24, 80)) * (lines // 375):
        terminal.resize(rows, columns)
        terminal.wait_for(">")
    shown = terminal.wait_for("the end")
    assert said(shown.replace("\r\n", "")) == {who: list(range(lines)) for who in range(4)}
    assert terminal.code() == 0


def test_a_terminal_that_is_held_stops_only_what_is_shown(terminal, tmp_path):
    terminal.press("Ctrl-S")
    terminal.type(talk(400))
    wait_until((tmp_path / "said").exists, "the threads to have said everything")
    assert not (tmp_path / "ended").exists()
    terminal.press("Ctrl-Q")
    shown = terminal.wait_for("the end")
    assert said(shown) == {who: list(range(400)) for who in range(4)}


def test_a_program_goes_on_when_its_terminal_is_gone(terminal, tmp_path):
    terminal.type(f"trap '' HUP; {talk(400)}")
    wait_until((tmp_path / "started").exists, "the program to start")
    terminal.vanish()
    wait_until((tmp_path / "ended").exists, "the program to end")


def test_a_program_that_was_suspended_goes_on_and_the_shell_has_a_cursor(terminal):
    terminal.type(talk(400))
    terminal.wait_for("<0:")
    terminal.press("Ctrl-Z")
    terminal.wait_for("Stopped")
    assert terminal.seen.rfind("\x1b[?25h") > terminal.seen.rfind("\x1b[?25l")
    terminal.resume()
    terminal.wait_for("the end")
    assert terminal.code() == 0
