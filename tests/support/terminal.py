"""A terminal with a shell, in which tests type, press keys, resize and look away, as people do."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading

from tests.support.waiting import PATIENCE_SECONDS, wait_until

PROMPT = "ready> "
KEYS = {"Ctrl-C": "\x03", "Ctrl-D": "\x04", "Ctrl-Q": "\x11", "Ctrl-S": "\x13", "Ctrl-Z": "\x1a"}


class Terminal:
    """A pseudo-terminal in which bash runs, with job control. A context manager.

    Attributes:
        seen: everything that the terminal has shown, with its control sequences.
    """

    def __init__(self, folder, env=None):
        self._master, slave = pty.openpty()
        self.seen = ""
        self._marked = 0
        self._closed = threading.Event()
        self.resize(24, 80)
        environment = {**os.environ, **(env or {}), "PS1": PROMPT, "TERM": "xterm-256color"}
        self.shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "--noediting", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=_own_the_terminal,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for(PROMPT)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.vanish()
        for number in (signal.SIGHUP, signal.SIGKILL):
            if self.shell.poll() is None:
                self.shell.send_signal(number)
                try:
                    self.shell.wait(5 if number == signal.SIGHUP else PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    continue

    def type(self, line):
        """Type a line and press Enter. `wait_for` looks at what is shown from now on."""
        self._marked = len(self.seen)
        os.write(self._master, f"{line}\n".encode())

    def press(self, key):
        """Press a key of KEYS. `wait_for` looks at what is shown from now on."""
        self._marked = len(self.seen)
        os.write(self._master, KEYS[key].encode())

    def resume(self):
        """Bring what was suspended back, and wait until the keys go to it and not to the shell."""
        self.type("fg")
        wait_until(
            lambda: os.tcgetpgrp(self._master) != self.shell.pid,
            lambda: f"a program in the foreground, of a terminal that shows:\n{self.seen[-3000:]}",
        )

    def resize(self, rows, columns):
        """Change the size of the terminal, which sends SIGWINCH to what runs in it."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def vanish(self):
        """Close the terminal, as a lost connection does."""
        if not self._closed.is_set():
            self._closed.set()
            self._reader.join()
            os.close(self._master)

    def wait_for(self, text):
        """Wait until `text` is shown after the last key; return what was shown since then."""
        wait_until(
            lambda: text in self.seen[self._marked :],
            lambda: f"{text!r} in the terminal, which showed:\n{self.seen[-3000:]}",
        )
        return self.seen[self._marked :]

    def code(self):
        """Wait for the shell's prompt; return the exit code of the last command."""
        self.wait_for(PROMPT)
        self.type("echo code=$?.")
        self.wait_for("\ncode=")
        said = self.wait_for(f".\r\n{PROMPT}").split("\ncode=")[1]
        return int(said.split(".")[0])

    def _read(self):
        while not self._closed.is_set():
            if not select.select([self._master], [], [], 0.05)[0]:
                continue
            try:
                self.seen += os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # everything that used the terminal has ended
                return


def _own_the_terminal():
    """Make the terminal that of this session. Ctrl-C works also if the tests run in the background
    of a script, where a shell lets processes ignore it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
