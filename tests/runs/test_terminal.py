"""Commands in a terminal, as people use them: resized, suspended, stopped, read by `head`."""

import functools
import sys

import pytest

from pipeline.state.notes.rental_note import RentalNote, write_rental_note
from pipeline.state.stores import FileStore
from tests.paths import REPOSITORY
from tests.support.light_run import light_run
from tests.support.meddling import Meddling
from tests.support.terminal import Terminal
from tests.support.whole_runs import rows_trained, write_job

PION = f"{sys.executable} -m pipeline.cli"


def resize_and_suspend(terminal):
    for rows, columns in ((10, 12), (3, 200), (24, 80)):
        terminal.resize(rows, columns)
    terminal.press("Ctrl-Z")
    terminal.wait_for("Stopped")


def test_run_and_chat_are_resized_suspended_and_stopped_and_a_reader_leaves(tmp_path):
    write_job(tmp_path, pretrain__steps=100, log__every=1)
    with Terminal(tmp_path) as terminal:
        terminal.type(f"{PION} run tiny.yaml")
        terminal.wait_for("pretrain step 10:")
        resize_and_suspend(terminal)
        terminal.resume()
        terminal.wait_for("held-out loss")
        terminal.press("Ctrl-C")
        terminal.wait_for("saving finished work, then stopping. Press Ctrl-C again")
        assert terminal.code() == 75
        terminal.type(f"{PION} run tiny.yaml | head -n 1; (exit ${{PIPESTATUS[0]}})")
        assert terminal.code() == 0
        terminal.type(f"{PION} run tiny.yaml")
        terminal.wait_for("evaluate: done")
        assert terminal.code() == 0
        terminal.type(f"{PION} chat tiny")
        terminal.wait_for("\n> ")
        resize_and_suspend(terminal)
        terminal.resume()
        terminal.type("hello")
        terminal.wait_for("\n> ")
        terminal.press("Ctrl-C")
        terminal.wait_for("(Ctrl-D or /quit to quit)")
        terminal.press("Ctrl-D")
        assert terminal.code() == 0
        assert "Traceback" not in terminal.seen
    assert rows_trained(tmp_path, "pretrain") == [[4 * s, 4 * s + 4] for s in range(100)]


SKY = REPOSITORY / "sky/runpod-spot.yaml"
in_soak = functools.partial(pytest.param, marks=pytest.mark.soak)


@pytest.mark.parametrize(
    ("command", "drawn", "codes"),
    [
        ("check tiny.yaml", "checking files and this machine", {130}),
        # They draw with the same code, and have to import more before.
        in_soak("plan tiny.yaml", "loading the code that knows machines", {130}),
        in_soak(f"launch tiny.yaml --on {SKY} store=runs", "loading the code", {130}),
        in_soak("bench --tiny", "losses/", {130}),
        in_soak("try tiny.yaml --vary pretrain.lr=1e-2,2e-2", "prepare: ", {75, 130}),
    ],
)
def test_a_command_that_draws_is_resized_suspended_and_stopped(tmp_path, command, drawn, codes):
    write_job(tmp_path, pretrain__steps=2000)
    at_once = Meddling(tmp_path)
    at_once.run("import pipeline.console.print_and_ask as out")
    at_once.run("out.saying_if_slow.__wrapped__.__defaults__ = (0.0,)")
    with Terminal(tmp_path, at_once.environment()) as terminal:
        terminal.type(f"{PION} {command}")
        terminal.wait_for(drawn)
        resize_and_suspend(terminal)
        assert terminal.seen.rfind("\x1b[?25h") >= terminal.seen.rfind("\x1b[?25l")
        terminal.resume()
        terminal.press("Ctrl-C")
        assert terminal.code() in codes
        assert "Traceback" not in terminal.seen


# Each look finds another state. Nothing waits between two looks.
RESTLESS = """
import dataclasses, itertools
import pipeline.rent.managed.watch as watch
from tests.support.fake_provider import JOB, FakeProvider

class Restless(FakeProvider):
    states = itertools.cycle(["RUNNING", "RECOVERING"])

    def managed_jobs(self, name=None, *, with_task=False):
        now = time.time()
        return [dataclasses.replace(
            JOB, name=name, status=next(self.states), submitted_at=now, started_at=now
        )]

watch.Provider, watch.POLL_SECONDS = Restless, 0.0
"""


@pytest.mark.soak
def test_a_window_that_watches_says_what_continues_without_it(tmp_path):
    run = light_run(FileStore(tmp_path / "runs"))
    write_rental_note(run, RentalNote(0.0, "desk", "1a2b3c4d", "0123abcd", 1), None)
    restless = Meddling(tmp_path)
    restless.run(RESTLESS)
    with Terminal(tmp_path, restless.environment()) as terminal:
        terminal.type(f"{PION} watch runs/demo")
        for rows, columns in ((10, 12), (3, 200), (24, 80)):
            terminal.wait_for("RECOVERING")
            terminal.resize(rows, columns)
        terminal.press("Ctrl-Z")
        terminal.wait_for("Stopped")
        terminal.resume()
        terminal.wait_for("RECOVERING")
        terminal.press("Ctrl-C")
        assert "managed job 7 continues" in terminal.wait_for("pion watch")
        assert terminal.code() == 0
        assert "Traceback" not in terminal.seen
