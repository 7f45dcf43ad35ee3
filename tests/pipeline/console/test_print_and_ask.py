"""What a command says on standard error while it waits."""

import io
import sys
import threading

import pytest

from pipeline.console.print_and_ask import saying_if_slow
from tests.support.waiting import PATIENCE_SECONDS


class Written(io.StringIO):
    """A standard error, perhaps a terminal, that tells when it has been written to."""

    def __init__(self, *, terminal):
        super().__init__()
        self.terminal, self.event = terminal, threading.Event()

    def isatty(self):
        return self.terminal

    def write(self, text):
        count = super().write(text)
        if "asking the Hub" in self.getvalue():
            self.event.set()
        return count


@pytest.mark.parametrize("terminal", [False, True])
def test_a_slow_block_says_what_it_waits_for(monkeypatch, terminal):
    monkeypatch.setenv("TERM", "xterm")
    file = Written(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", file)
    with saying_if_slow("asking the Hub", 0.01):
        assert file.event.wait(PATIENCE_SECONDS)
    assert ("\x1b[2K" in file.getvalue()) == terminal  # a log keeps its lines
    assert terminal or file.getvalue() == "asking the Hub\n"


def test_nothing_is_said_after_the_block_or_to_a_program(capsys):
    with saying_if_slow("asking the Hub", 0.0, quiet=True):
        assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())
    with saying_if_slow("asking the Hub", PATIENCE_SECONDS):
        pass
    assert capsys.readouterr().err == ""
