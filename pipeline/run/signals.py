"""Stop in time: on signals, after one or two of them, and with a deadline for what is left."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from pion.errors import Fenced, Interrupted, PionError, Stopped
from pipeline.console.messages import Note

if TYPE_CHECKING:
    from pipeline.console.display import Display


# A terminal that is closed, or an ssh that is lost, sends SIGHUP.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESUME = "Run the same command again to resume."
# The errors that a stop is raised as. If two stops were asked for, the later in this list wins.
GRAVITY: tuple[type[PionError], ...] = (Interrupted, Stopped, Fenced)
# How many seconds before the deadline to start printing the reason.
LAST_WORDS = 0.3
# Within these seconds, a second SIGINT is an echo of the first: `uv run` passes on a signal that
# the whole process group has already received.
DOUBLED = 0.5


@dataclass(frozen=True)
class AskedStop:
    """A stop that was asked for.

    Attributes:
        reason: who or what asked for the stop; with Fenced, the whole message.
        error: what to raise: Interrupted; Stopped if only a person should start the run again; or
            Fenced if another process owns the run now.
    """

    reason: str
    error: type[PionError]

    def to_raise(self, saved: str) -> PionError:
        """Return the error to raise, saying what is `saved`."""
        if self.error is Fenced:
            return Fenced(self.reason)
        what = "Stopped" if self.error is Stopped else "Interrupted"
        return self.error(f"{what} ({self.reason}); {saved}. {RESUME}")

    def last_words(self, hurry: str) -> str:
        """Return what to say when the deadline that `hurry` set has passed."""
        if self.error is Fenced:
            return self.reason
        return (
            f"{hurry}: time is up, and work that is not committed is lost. Everything committed is "
            f"safe. {RESUME}"
        )


@dataclass(frozen=True)
class Deadline:
    """When the process has to be gone, by time.monotonic(), and why."""

    at: float
    last_words_at: float
    reason: str


class StoppingOnSignals:
    """SIGINT, SIGHUP, SIGTERM or `ask` ask for an orderly stop; SIGINT after one does not save.

    A context manager. SIGINT comes from a person and SIGHUP from a closed terminal, so they set no
    deadline; SIGTERM sets one in `grace` seconds. A deadline that passes ends the process. A
    further SIGTERM changes nothing, because process managers repeat it (SkyPilot signals a job, and
    a second later its processes). If another thread than the main thread enters it, it receives no
    signals, and only `ask` asks for a stop.
    """

    def __init__(self, display: Display, *, grace: float = 4.0) -> None:
        self._display, self._grace = display, grace
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._stop: AskedStop | None = None
        self._deadline: Deadline | None = None
        # Not None while this is entered. Then the thread receives the signals and, at the deadline,
        # ends the process.
        self._signals: SignalPipe | None = None
        self._thread = threading.Thread(target=self._watch, name="stopping", daemon=True)

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked.is_set()

    @property
    def asked_stop(self) -> AskedStop:
        """The stop that was asked for, or an interruption without a reason."""
        return self._stop or AskedStop("", Interrupted)

    @property
    def deadline(self) -> Deadline | None:
        """The earliest deadline that was asked for."""
        return self._deadline

    def ask(
        self, reason: str, seconds: float | None = None, *, error: type[PionError] = Interrupted
    ) -> None:
        """Ask for a stop, from any thread. If `seconds` is given, the process is gone by then.

        `error` is what `check` raises. Stopped wins over Interrupted, and Fenced over both. The
        earliest deadline counts.
        """
        with self._lock:
            if self._stop is None or GRAVITY.index(error) > GRAVITY.index(self._stop.error):
                self._stop = AskedStop(reason, error)
            if seconds is not None:
                at = time.monotonic() + seconds
                if self._deadline is None or at < self._deadline.at:
                    self._deadline = Deadline(at, at - min(LAST_WORDS, seconds / 2), reason)
            self._asked.set()
            if self._signals is not None:
                self._signals.wake()

    def error(self, saved: str = "everything finished so far is saved") -> PionError:
        """Return the error to raise for the stop that was asked for, saying what is `saved`."""
        return self.asked_stop.to_raise(saved)

    def check(self) -> None:
        """Raise Interrupted, Stopped or Fenced if a stop was asked for."""
        if self.asked:
            raise self.error()

    def sleep(self, seconds: float) -> None:
        """Sleep until `seconds` are over or a stop is asked for; then do as `check` does."""
        self._asked.wait(seconds)
        self.check()

    def __enter__(self) -> StoppingOnSignals:
        self._signals = SignalPipe()
        self._thread.start()
        self._signals.listen()
        return self

    def __exit__(self, *_: object) -> None:
        if self._deadline is not None and _early is not None:
            return  # the deadline also covers the interpreter's shutdown: threads, libraries
        signals = self._signals
        assert signals is not None
        signals.restore()  # before the thread ends: it still hears what has arrived
        with self._lock:
            self._signals = None
        signals.wake()
        self._thread.join()
        signals.close()

    def _watch(self) -> None:
        heard: dict[int, float] = {}
        while (signals := self._signals) is not None:
            for number in signals.wait(self._seconds_left()):
                now = time.monotonic()
                impatient = number == signal.SIGINT and bool(heard)
                if impatient and now - heard.get(number, -math.inf) > DOUBLED:
                    _aside(self._display.__exit__).join(0.1)  # a terminal gets its cursor back
                    os._exit(128 + number)  # Ray's processes are ended by the reaper
                if number not in heard:
                    heard[number] = now
                    self._hear(number)
            if self._seconds_left() == 0.0:
                self._time_is_up()

    def _seconds_left(self) -> float | None:
        deadline = self._deadline
        return None if deadline is None else max(0.0, deadline.last_words_at - time.monotonic())

    def _hear(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGTERM:
            self.ask(name, self._grace)
            within, press = f", within {self._grace:g} s", "Ctrl-C"
        else:
            self.ask(name)
            within, press = "", "Ctrl-C again"
        text = (
            f"{name}: saving finished work, then stopping{within}. Press {press} to stop at once, "
            "without saving"
        )
        _aside(self._display.say, Note(text))

    def _time_is_up(self) -> None:
        deadline = self._deadline
        assert deadline is not None
        saying = _aside(self._say_last_words, self.asked_stop.last_words(deadline.reason))
        # On a busy machine this thread may wake late, and the reason still has to be said.
        saying.join(max(LAST_WORDS, deadline.at - time.monotonic()))
        os._exit(self.asked_stop.error.exit_code)

    def _say_last_words(self, text: str) -> None:
        self._display.say(Note(text))
        self._display.__exit__()
        sys.stdout.flush()


def early_sigterm() -> None:
    """End at once, without a traceback, on SIGTERM and SIGHUP (75) and SIGINT (130).

    `pion run` calls this first, before its imports. There is nothing to save while no
    StoppingOnSignals listens. The effect lasts until the process ends, so a deadline also ends a
    process whose interpreter is shutting down. Whoever has started this process may have blocked
    the signals until then.
    """
    global _early
    if _early is not None or threading.current_thread() is not threading.main_thread():
        return
    _early = SignalPipe()
    threading.Thread(target=_leave_at_once, args=(_early,), name="stopping", daemon=True).start()
    _early.listen()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _leave_at_once(signals: SignalPipe) -> None:
    while not (heard := signals.wait(None)):
        continue
    if heard[0] == signal.SIGINT:
        os._exit(128 + signal.SIGINT)
    name = signal.Signals(heard[0]).name
    text = f"{name}: stopped at once, with nothing to save. Run the same command again."
    _aside(lambda: print(text, file=sys.stderr, flush=True)).join(LAST_WORDS)
    os._exit(Interrupted.exit_code)


_early: SignalPipe | None = None


def _aside(function: Callable[..., object], *arguments: object) -> threading.Thread:
    """Call the function in another thread, because it may block forever; ignore its exceptions."""

    def call() -> None:
        with contextlib.suppress(Exception):
            function(*arguments)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


class SignalPipe:
    """The signals that arrive between `listen` and `restore`, as bytes in a pipe, so that any
    thread can wait for them.

    Python runs signal handlers in the main thread between two bytecodes, so not during a long call
    into C or Rust. With signal.set_wakeup_fd, a handler in C writes to this pipe at once.
    """

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
                # `nohup` ignores SIGHUP, so that the process outlives its terminal.
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._fd_before)

    def wait(self, seconds: float | None) -> list[int]:
        """Return the signals that arrived; wait for one at most `seconds` (None: forever)."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        # At most an hour, because poll counts milliseconds in a C int. The caller waits again.
        if not poll.poll(None if seconds is None else 1000 * min(seconds, 3600.0)):
            return []
        return [number for number in os.read(self._read, 512) if number in SIGNALS]

    def wake(self) -> None:
        """Make `wait` return."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so `wait` returns anyway
            os.write(self._write, b"\0")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Do nothing, unless a library has replaced the wakeup fd: then write to the pipe here."""
        if signal.set_wakeup_fd(self._write, warn_on_full_buffer=False) != self._write:
            os.write(self._write, bytes([number]))


# ---------------------------------------------------------------- forked children

# A forked child shares the pipe, so its signals would look like its parent's. The child gets the
# default handlers, and signals are blocked until it has them.
_forking = threading.local()


def _ours(number: int) -> bool:
    return isinstance(getattr(signal.getsignal(number), "__self__", None), SignalPipe)


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, filter(_ours, SIGNALS))


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
