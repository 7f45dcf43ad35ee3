"""An orderly stop, and a process that ends in time: real processes, real signals.

The processes are forks, so that none imports the program again. A call that holds the GIL forever
can't be tested: only SIGKILL ends it. A call that releases the GIL after a while is tested below.
"""

import fcntl
import mmap
import multiprocessing
import os
import signal
import struct
import sys
import termios
import threading
import time

import pytest

from pion.errors import Fenced, Interrupted, Stopped
from pipeline.run.signals import DOUBLED, StoppingOnSignals, early_sigterm
from tests.support.jobs import SilentDisplay
from tests.support.waiting import PATIENCE_SECONDS, join, wait_until

# Seconds a busy machine may take to schedule threads and reap a process. The work below lasts for
# minutes or forever, so a process that ends sooner was ended by its deadline.
SLACK = 30.0

FORKS = multiprocessing.get_context("fork")

HEAD = """
import hashlib, os, signal, sys, threading, time
from pion.errors import Fenced, PionError, Stopped
from pipeline.console.display import Display
from pipeline.run import signals
from pipeline.run.signals import StoppingOnSignals, early_sigterm

signals.LAST_WORDS = 30.0  # a busy machine prints late

def ready():
    print("ready", flush=True)

def hash_for_minutes():  # in C, without the GIL, deaf to signals
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

def orderly(work, **options):
    try:
        with Display() as display, StoppingOnSignals(display, **options) as stopping:
            ready()
            work(stopping)
    except PionError as error:
        print(f"error: {error}", flush=True)
        sys.exit(error.exit_code)
"""


def run_program(program, output):
    """Become a process that runs a program, and writes to `output`."""
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup pytest` ignores it
    exec(HEAD + program, {"__name__": "__main__"})


class Process:
    """A program under test that has said that it is ready."""

    def __init__(self, program):
        reading, writing = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=run_program, args=(program, writing))
        self._process.start()
        writing.close()
        self._limit = threading.Timer(PATIENCE_SECONDS, self._process.kill)  # a failure, not a hang
        self._limit.start()
        self.output = os.fdopen(os.dup(reading.fileno()))
        reading.close()
        assert self.output.readline() == "ready\n"

    def signal(self, number):
        self.signalled_at = time.monotonic()
        os.kill(self._process.pid, number)

    def wait_for_line(self, text):
        while text not in (line := self.output.readline()):
            assert line, f"ended without a line with {text!r}"

    def end(self):
        """Return the exit code and the rest of the output."""
        rest = self.output.read()
        return self.exit_code(), rest

    def exit_code(self):
        """Return the exit code, without reading the output."""
        self._process.join(PATIENCE_SECONDS)
        return self._process.exitcode

    @property
    def since_signal(self):
        return time.monotonic() - self.signalled_at

    def kill(self):
        self._limit.cancel()
        self._process.kill()
        self._process.join(PATIENCE_SECONDS)
        self.output.close()


@pytest.fixture
def start():
    started = []

    class Started(Process):
        def __init__(self, program):
            started.append(self)
            super().__init__(program)

    yield Started
    for process in started:
        process.kill()


# ---------------------------------------------------------------- in time

UNWILLING = {
    "a loop in Python": "while True: pass",
    "a long call into C": "hash_for_minutes()",
    "a lock that nobody gives back": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "code that catches everything": """
    while True:
        try:
            stopping.sleep(600)
        except BaseException:
            time.sleep(0.05)
""",
}


@pytest.mark.parametrize("work", UNWILLING.values(), ids=UNWILLING)
def test_sigterm_ends_the_process_within_the_grace_whatever_the_main_thread_does(start, work):
    process = start(f"def work(stopping):\n    {work.strip()}\norderly(work, grace=0.3)")
    process.signal(signal.SIGTERM)
    code, output = process.end()
    assert process.since_signal < 0.3 + SLACK
    assert code == 75
    last = output.splitlines()[-1]
    assert "SIGTERM: time is up" in last
    assert "Everything committed is safe. Run the same command again to resume." in last


def test_a_call_that_keeps_the_gil_past_the_deadline_ends_the_process_when_it_gives_it_back(start):
    process = start("""
def work(stopping):
    sum(range(50_000_000))
    while True:
        pass
orderly(work, grace=0.1)
""")
    process.signal(signal.SIGTERM)
    assert process.end()[0] == 75


def unread_bytes(pipe):
    (unread,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return unread


def test_the_deadline_holds_when_nobody_reads_the_output(start):
    process = start("""
signals.LAST_WORDS = 0.3  # nobody will hear them
def work(stopping):
    while True:
        print("x" * 100_000, flush=True)  # blocks, with the lock of standard output held
orderly(work, grace=1.0)
""")
    # The pipe counts pages, and the page that "ready" was read from may be partly free.
    full = fcntl.fcntl(process.output, fcntl.F_GETPIPE_SZ) - mmap.PAGESIZE
    wait_until(lambda: unread_bytes(process.output) > full, "its output to fill the pipe")
    process.signal(signal.SIGTERM)
    assert process.exit_code() == 75
    assert process.since_signal < 1.0 + SLACK


def test_the_deadline_holds_while_the_interpreter_waits_for_a_thread_that_never_ends(start):
    process = start("""
early_sigterm()
def work(stopping):
    threading.Thread(target=threading.Event().wait).start()
    while True:
        stopping.sleep(600)
orderly(work, grace=4.0)
""")
    process.signal(signal.SIGTERM)
    process.wait_for_line("error: Interrupted (SIGTERM)")
    code, output = process.end()
    assert code == 75
    assert "time is up" in output
    assert process.since_signal < 4.0 + SLACK


# ---------------------------------------------------------------- in order

POLLING = """
def work(stopping):
    while not stopping.asked:
        pass
    time.sleep(1)  # saves the last finished step
    print("saved", flush=True)
    stopping.check()
"""


@pytest.mark.parametrize(
    ("number", "grace"),
    # A person who presses Ctrl-C, or who is lost with the terminal, sets no deadline.
    [(signal.SIGTERM, 60.0), (signal.SIGINT, 0.2), (signal.SIGHUP, 0.2)],
)
def test_work_that_asks_ends_in_its_own_time_with_75(start, number, grace):
    process = start(POLLING + f"orderly(work, {grace=})")
    process.signal(number)
    code, output = process.end()
    assert code == 75
    assert "saved\n" in output
    assert output.splitlines()[-1] == (
        f"error: Interrupted ({number.name}); everything finished so far is saved. "
        "Run the same command again to resume."
    )


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_sigint_after_a_signal_ends_the_process_at_once_even_in_c(start, first):
    process = start("orderly(lambda stopping: hash_for_minutes(), grace=600.0)")
    process.signal(first)
    again = " again" if first == signal.SIGINT else ""
    process.wait_for_line(f"Press Ctrl-C{again} to stop at once, without saving")
    time.sleep(DOUBLED + 0.1)  # earlier, it would count as an echo of the first
    process.signal(signal.SIGINT)
    code, _ = process.end()
    assert code == 128 + signal.SIGINT
    assert process.since_signal < SLACK


def test_a_closed_terminal_is_a_signal_to_save(start):
    process = start("""
import fcntl, termios
os.setsid()
terminal, ours = os.openpty()
fcntl.ioctl(ours, termios.TIOCSCTTY, 0)
def work(stopping):
    os.close(terminal)
    stopping.sleep(600)
orderly(work)
""")
    code, output = process.end()
    assert (code, "error: Interrupted (SIGHUP)" in output) == (75, True)


def test_nohup_outlives_its_terminal(start):
    process = start("""
signal.signal(signal.SIGHUP, signal.SIG_IGN)
def work(stopping):
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.2)
    print("goes on", flush=True)
    stopping.check()
orderly(work)
""")
    assert process.end() == (0, "goes on\n")


def test_sigterm_again_takes_no_time_from_the_saving(start):
    """SkyPilot signals a job, and a second later each of its processes."""
    process = start(POLLING + "orderly(work, grace=60.0)")
    process.signal(signal.SIGTERM)
    process.wait_for_line("SIGTERM: saving finished work")
    for _ in range(2):
        time.sleep(DOUBLED / 2 + 0.1)
        process.signal(signal.SIGTERM)
    code, output = process.end()
    assert code == 75
    assert "saved\n" in output


def test_sigterm_after_sigint_sets_the_deadline(start):
    process = start("orderly(lambda stopping: hash_for_minutes(), grace=0.5)")
    process.signal(signal.SIGINT)
    process.wait_for_line("SIGINT: saving finished work")
    process.signal(signal.SIGTERM)
    code, output = process.end()
    assert code == 75
    assert "time is up" in output
    assert process.since_signal < 0.5 + SLACK


def test_one_signal_delivered_two_times_is_no_second_signal(start):
    process = start(f"""
{POLLING}
def twice(stopping):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # `uv run` passes on what its process group got too
    work(stopping)
orderly(twice, grace=60.0)
""")
    code, output = process.end()
    assert code == 75
    assert "saved\n" in output


def test_signals_are_heard_after_a_library_has_taken_the_wakeup_fd(start):
    process = start("""
def work(stopping):
    signal.set_wakeup_fd(-1)
    print("taken", flush=True)
    stopping.sleep(600)
orderly(work)
""")
    process.wait_for_line("taken")
    process.signal(signal.SIGTERM)
    assert process.end()[0] == 75


def test_a_signal_for_a_forked_child_ends_the_child_and_is_not_heard_by_its_parent(start):
    process = start("""
def work(stopping):
    for number in (signal.SIGTERM, signal.SIGINT):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(1)
        os.kill(child, number)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    time.sleep(0.3)
    print("asked:", stopping.asked, flush=True)
orderly(work)
""")
    code, output = process.end()
    assert code == 0
    assert output.splitlines() == ["child -15", "child -2", "asked: False"]


# ---------------------------------------------------------------- asked by something else


TAKEN_OVER = ("Run demo was taken over by pid 7 on gpu-2.", Fenced)
STOP, SIGTERM = ("pion stop", Stopped), ("SIGTERM", Interrupted)


@pytest.mark.parametrize(
    ("asks", "code", "words"),
    [
        ([STOP], 4, r"^Stopped \(pion stop\); everything finished so far is"),
        ([STOP, SIGTERM], 4, r"^Stopped \(pion stop\)"),
        ([SIGTERM, STOP], 4, r"^Stopped \(pion stop\)"),
        ([TAKEN_OVER, SIGTERM, STOP], 3, r"^Run demo was taken over by pid 7 on gpu-2\.$"),
        ([STOP, SIGTERM, TAKEN_OVER], 3, r"^Run demo was taken over by pid 7 on gpu-2\.$"),
    ],
)
def test_another_owner_wins_over_a_stop_request_which_wins_over_a_signal(asks, code, words):
    stopping = StoppingOnSignals(SilentDisplay())
    stopping.check()
    for reason, error in asks:
        stopping.ask(reason, error=error)
    with pytest.raises((Fenced, Stopped), match=words) as stopped:
        stopping.check()
    assert stopped.value.exit_code == stopping.asked_stop.error.exit_code == code


def test_the_earliest_deadline_holds_and_the_first_reason_stays():
    stopping = StoppingOnSignals(SilentDisplay())
    stopping.ask("AWS will take this machine in 100 s", 100)
    first = stopping.deadline
    stopping.ask("later", 1000)
    stopping.ask("no hurry")
    assert stopping.deadline == first
    stopping.ask("SIGTERM", 4)
    assert stopping.deadline.at < first.at
    assert stopping.asked_stop.reason == "AWS will take this machine in 100 s"


def test_a_deadline_asked_by_another_thread_ends_a_call_into_c(start):
    process = start("""
def work(stopping):
    notice = "AWS will take this machine in 1 s (terminate)"
    threading.Timer(0.3, stopping.ask, (notice, 1.0)).start()
    hash_for_minutes()
orderly(work)
""")
    code, output = process.end()
    assert code == 75
    assert "AWS will take this machine in 1 s (terminate): time is up" in output


@pytest.mark.parametrize("seconds", [0.5, 0.0])  # 0: the watcher learns of it too late
def test_a_stop_request_whose_time_is_up_ends_with_4(start, seconds):
    process = start(f"""
say = Display.say
Display.say = lambda self, message: (time.sleep(0.2), say(self, message))  # a busy machine
def work(stopping):
    stopping.ask("pion stop", {seconds}, error=Stopped)
    hash_for_minutes()
orderly(work)
""")
    code, output = process.end()
    assert code == 4
    assert "pion stop: time is up" in output


def test_a_run_with_another_owner_ends_with_3_and_its_name_when_time_is_up(start):
    process = start("""
def work(stopping):
    stopping.ask("SIGTERM", 0.5)
    stopping.ask("Run demo was taken over by pid 7 on gpu-2.", 60, error=Fenced)
    hash_for_minutes()
orderly(work)
""")
    code, output = process.end()
    assert code == 3
    assert output.splitlines()[-1].endswith("Run demo was taken over by pid 7 on gpu-2.")


# ---------------------------------------------------------------- before and after


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_before_anything_is_started_a_signal_ends_the_process_at_once(start, number, code):
    process = start("early_sigterm(); ready(); hash_for_minutes()")
    process.signal(number)
    ended, output = process.end()
    assert ended == code
    assert "Traceback" not in output
    assert ("Run the same command again" in output) == (number == signal.SIGTERM)


def test_the_run_takes_the_signals_over_from_the_start_and_gives_them_back(start):
    process = start("""
early_sigterm()
try:
    with Display() as display, StoppingOnSignals(display) as stopping:
        ready()
        stopping.sleep(600)
except PionError as error:
    print(error, flush=True)
hash_for_minutes()
""")
    process.signal(signal.SIGINT)
    process.wait_for_line("Interrupted (SIGINT)")
    process.signal(signal.SIGINT)
    assert process.end()[0] == 130


def test_handlers_wakeup_fd_threads_and_files_are_as_before_afterwards():
    def state():
        fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(fd)
        handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        return fd, handlers, len(os.listdir("/proc/self/fd"))

    before, threads = state(), set(threading.enumerate())
    with StoppingOnSignals(SilentDisplay()) as stopping:
        assert state() != before
        with StoppingOnSignals(SilentDisplay()):
            stopping.ask("pion stop")
    stopping.ask("too late", 0.0)  # a thread that watches for notices and has not ended yet
    assert state() == before
    assert set(threading.enumerate()) <= threads


def test_an_inner_one_hears_the_signals_and_the_outer_one_does_again_afterwards():
    with StoppingOnSignals(SilentDisplay()) as outer:
        with StoppingOnSignals(SilentDisplay()) as inner:
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(Interrupted):
                inner.sleep(60)
            assert not outer.asked
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            outer.sleep(60)


def test_in_another_thread_handlers_are_left_alone_and_ask_works():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        early_sigterm()
        with StoppingOnSignals(SilentDisplay()) as stopping:
            seen.append(signal.getsignal(signal.SIGTERM))
            threading.Timer(0.05, stopping.ask, ("pion stop",), {"error": Stopped}).start()
            try:
                stopping.sleep(60)
            except Stopped as error:
                seen.append(error.exit_code)

    thread = threading.Thread(target=work)
    thread.start()
    join(thread)
    assert seen == [before, 4]
    assert signal.getsignal(signal.SIGTERM) == before
