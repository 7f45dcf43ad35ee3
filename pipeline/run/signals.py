"""An orderly stop: on SIGINT and SIGTERM, a cloud's notice, a stop request, a spent budget, or when
another process has taken the run over.

SIGTERM is what clouds send before they take a machine, so from then on the process has a deadline,
whatever its main thread does. Python's own signal handlers run in the main thread between two
bytecodes, not while it sits in a long call into C or Rust. So the signals are read by a thread of
their own, from a pipe that the handler in C writes to at once (signal.set_wakeup_fd), and that
thread ends the process.

Not covered: a call that keeps the GIL all the while stops every thread of Python, this one too. The
process then ends as soon as the call gives the GIL back.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from pion.errors import Fenced, Interrupted, PionError, Stopped
from pipeline.console.messages import Note

if TYPE_CHECKING:
    from pipeline.console.display import Display

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GO_ON = "Run the same command again to go on."
# The errors that a stop is raised as. If two stops were asked for, the later in this list wins.
GRAVITY: tuple[type[PionError], ...] = (Interrupted, Stopped, Fenced)
# Seconds before the deadline that are kept for saying why, and for ending other processes.
LAST_WORDS = 0.3
# Within these seconds, the same signal again is an echo of the first: `uv run` and `timeout` pass
# on a signal that the whole process group has already received.
DOUBLED = 0.5


class StoppingOnSignals:
    """SIGINT, SIGTERM or `ask` ask for an orderly stop; a second signal ends the process at once.

    A context manager. SIGINT, a person's, has no deadline; SIGTERM's is `grace` seconds away. When
    one passes the process is gone, after `on_deadline` was called (from another thread, while the
    main one may be anywhere): what a caller wants ended with it. Only the main thread can hear
    signals; entered in another one, `ask` alone stops it.
    """

    def __init__(
        self,
        display: Display,
        *,
        grace: float = 4.0,
        on_deadline: Callable[[], None] | None = None,
    ) -> None:
        self.on_deadline = on_deadline
        self.reason = ""
        self.deadline: float | None = None  # by time.monotonic()
        self._display, self._grace = display, grace
        self._asked = threading.Event()
        self._error: type[PionError] = Interrupted
        self._go_on = GO_ON
        self._hurry = ""  # who set the deadline
        self._last_words_at = 0.0
        self._lock = threading.Lock()
        self._signals: _Signals | None = None
        self._over = False

    @property
    def asked(self) -> bool:
        """Whether a stop was asked."""
        return self._asked.is_set()

    @property
    def exit_code(self) -> int:
        """What the process ends with if the deadline passes: 75, 4 if it is to stay stopped, or 3
        if the run has another owner."""
        return self._error.exit_code

    def ask(
        self,
        reason: str,
        seconds: float | None = None,
        *,
        error: type[PionError] = Interrupted,
        go_on: str = GO_ON,
    ) -> None:
        """Ask for a stop, from any thread; the process is gone in `seconds` if given.

        `error` is what `check` raises: Interrupted; Stopped for a run that nothing but a person
        should start again, which wins over any Interrupted; or Fenced, with `reason` as its whole
        message, for a run that another process owns by now, which wins over both. The earliest
        deadline holds.
        """
        with self._lock:
            if not self.asked or GRAVITY.index(error) > GRAVITY.index(self._error):
                self.reason, self._error, self._go_on = reason, error, go_on
            if seconds is not None:
                deadline = time.monotonic() + seconds
                if self.deadline is None or deadline < self.deadline:
                    self._last_words_at = deadline - min(LAST_WORDS, seconds / 2)
                    self._hurry, self.deadline = reason, deadline
            self._asked.set()
            if self._signals is not None:
                self._signals.wake()

    def error(self, saved: str = "everything finished so far is saved") -> PionError:
        """The error to raise for the stop that was asked, saying what is `saved`."""
        with self._lock:
            if self._error is Fenced:
                return Fenced(self.reason)
            what = "Stopped" if self._error is Stopped else "Interrupted"
            return self._error(f"{what} ({self.reason}); {saved}. {self._go_on}")

    def check(self) -> None:
        """Raise Interrupted, Stopped or Fenced if a stop was asked."""
        if self.asked:
            raise self.error()

    def sleep(self, seconds: float) -> None:
        """Sleep, but not past a request to stop. Raises what `check` raises."""
        self._asked.wait(seconds)
        self.check()

    def __enter__(self) -> StoppingOnSignals:
        self._over = False
        signals = self._signals = _Signals()
        self._watcher = threading.Thread(
            target=self._watch, args=(signals,), name="stopping", daemon=True
        )
        self._watcher.start()
        signals.listen()
        return self

    def __exit__(self, *_: object) -> None:
        if self.deadline is not None and _early is not None:
            return  # the deadline holds for ending the interpreter too: threads, libraries
        with self._lock:
            signals, self._signals = self._signals, None
        assert signals is not None
        signals.restore()
        self._over = True
        signals.wake()
        self._watcher.join()
        signals.close()

    def _watch(self, signals: _Signals) -> None:
        first: tuple[int, float] | None = None
        while not self._over:
            for number in signals.wait(self._seconds_left()):
                now = time.monotonic()
                if first is None:
                    first = (number, now)
                    self._hear(number)
                elif number != first[0] or now - first[1] > DOUBLED:
                    _aside(self._display.__exit__).join(0.1)  # a terminal gets its cursor back
                    os._exit(128 + number)  # Ray's processes are ended by the reaper
            if self._seconds_left() == 0.0:
                self._time_is_up()

    def _seconds_left(self) -> float | None:
        with self._lock:
            if self.deadline is None:
                return None
            return max(0.0, self._last_words_at - time.monotonic())

    def _hear(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGTERM:
            self.ask(name, self._grace)
            text = f"{name}: saving what is finished, and gone in {self._grace:g} s at the latest"
        else:
            self.ask(name)
            text = f"{name}: stopping, with what is finished saved"
        note = Note(f"{text}; again ends at once without saving")
        _aside(self._display.say, note)

    def _time_is_up(self) -> None:
        with self._lock:
            assert self.deadline is not None
            deadline = self.deadline
        threads = [_aside(self._say_last_words)]
        if self.on_deadline is not None:
            threads.append(_aside(self.on_deadline))
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        os._exit(self.exit_code)

    def _say_last_words(self) -> None:
        text = (
            f"{self._hurry}: time is up, and what was going on is cut off. Everything committed "
            f"is safe. {self._go_on}"
        )
        if self._error is Fenced:
            text = self.reason
        self._display.say(Note(text))
        self._display.__exit__()
        sys.stdout.flush()


def early_sigterm() -> None:
    """End at once, without a traceback, on SIGTERM (75) and SIGINT (130).

    The first thing `pion run` calls, before its imports: while no StoppingOnSignals listens there
    is nothing to save. Holds until the process ends, and lets a deadline that passes while the
    interpreter is shutting down end the process too.
    """
    global _early
    if _early is not None or threading.current_thread() is not threading.main_thread():
        return
    _early = _Signals()
    threading.Thread(target=_leave_at_once, args=(_early,), name="stopping", daemon=True).start()
    _early.listen()


def _leave_at_once(signals: _Signals) -> None:
    while not (heard := signals.wait(None)):
        continue
    if heard[0] == signal.SIGINT:
        os._exit(128 + signal.SIGINT)
    text = "SIGTERM: ended at once, as there was nothing to save. Run the same command again."
    _aside(lambda: print(text, file=sys.stderr, flush=True)).join(LAST_WORDS)
    os._exit(Interrupted.exit_code)


class _Signals:
    """SIGINT and SIGTERM as bytes in a pipe, which any thread can wait for."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # required of a wakeup fd
        self._before: dict[int, Any] = {}
        self._fd_before = -1

    def listen(self) -> None:
        """Take the signals over, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give them back to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._fd_before)

    def wait(self, seconds: float | None) -> list[int]:
        """The signals that came, after waiting at most `seconds` (None: for ever) for one."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        # An hour at most, as poll counts milliseconds in a C int; waiting again does no harm.
        if not poll.poll(None if seconds is None else 1000 * min(seconds, 3600.0)):
            return []
        return [number for number in os.read(self._read, 512) if number in SIGNALS]

    def wake(self) -> None:
        """Let `wait` return."""
        with contextlib.suppress(BlockingIOError):  # full: it will return anyway
            os.write(self._write, b"\0")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Nothing is left to do, unless a library has set a wakeup fd of its own since."""
        if signal.set_wakeup_fd(self._write, warn_on_full_buffer=False) != self._write:
            os.write(self._write, bytes([number]))


_early: _Signals | None = None


# A forked child shares the pipe, and its signals must not look like its parent's: it gets the
# default handlers, and no signal reaches it before.
_forking = threading.local()


def _ours(number: int) -> bool:
    return isinstance(getattr(signal.getsignal(number), "__self__", None), _Signals)


def _before_fork() -> None:
    hold = [number for number in SIGNALS if _ours(number)]
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, hold)


def _after_fork_in_child() -> None:
    for number in filter(_ours, SIGNALS):
        signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
    _after_fork()


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(
    before=_before_fork, after_in_child=_after_fork_in_child, after_in_parent=_after_fork
)


def _aside(function: Callable[..., object], *arguments: object) -> threading.Thread:
    """Call it in another thread, whatever it raises: it may wait for a reader that never comes."""

    def call() -> None:
        with contextlib.suppress(Exception):
            function(*arguments)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread
