"""A command in its own window: what it prints while it runs, and how it ends."""

import re
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from tests.rental.rented import wait_until
from tests.rental.skypilot_home import REPOSITORY
from tests.support.waiting import PATIENCE_SECONDS


class Window:
    """A running command; its `process` gives the exit code."""

    def __init__(self, process, output):
        self.process, self._output = process, output

    @property
    def text(self):
        """What the command has printed so far."""
        return self._output.read_text()

    @property
    def job(self):
        """The managed job that the command submits; waits for it."""
        self.wait_for(" is submitted")
        found = re.search(r"managed job (\d+).* is submitted", self.text)
        return int(found[1])

    def wait_for(self, words):
        """Wait until the command prints `words`; fail with its output if it ends without them."""

        def said():
            over = self.process.poll() is not None
            assert words in self.text or not over, f"it never said {words!r}:\n{self.text}"
            return words in self.text

        wait_until(said, words)

    def ends_with(self, code):
        """Wait until the command ends; fail with its output if the exit code is not `code`."""
        wait_until(lambda: self.process.poll() is not None, lambda: f"its end: {self.text}")
        assert self.process.returncode == code, self.text

    def ctrl_c(self):
        self.process.send_signal(signal.SIGINT)


@contextmanager
def window(rented, *arguments, **environment):
    """Run `pion arguments…` with more `environment`, and end it with the block."""
    with running(rented, [f"{sys.prefix}/bin/pion", *arguments], **environment) as pion:
        yield pion


@contextmanager
def running(rented, command, typed="", cwd=REPOSITORY, **environment):
    """Run any command, which reads what is `typed`, and end it with the block."""
    with tempfile.TemporaryDirectory() as folder:
        output, keyboard = Path(folder, "output"), Path(folder, "keyboard")
        keyboard.write_text(typed)
        with output.open("wb") as file, keyboard.open("rb") as keys:
            process = subprocess.Popen(
                # As in a terminal, even if the tests run in the background (`… &`), which ignores
                # Ctrl-C.
                ["env", "--default-signal=INT", *command],
                cwd=cwd,
                env={
                    **rented.environment,
                    "PION_ALLOW_LOOPBACK": "1",
                    "COLUMNS": "200",
                    **environment,
                },
                stdin=keys,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Window(process, output)
        finally:
            process.kill()
            process.wait(PATIENCE_SECONDS)
