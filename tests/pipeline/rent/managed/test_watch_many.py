"""`pion watch RUN RUN …`: many rentals in one process, each by itself."""

from __future__ import annotations

import dataclasses
import io
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pion.errors import BadInput, PionError
from pipeline.cli import main
from pipeline.console.formats import show
from pipeline.machine.time_limit import left_behind
from pipeline.rent.managed import watch, watch_many
from pipeline.rent.managed.names import rental_name
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.pods import Pod
from pipeline.rent.managed.provider.recorded_task import MACHINES, machines_in_words
from pipeline.rent.managed.watch_many import SharedSays
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.claim import claim_run
from pipeline.state.notes.deadline import RunDeadline, change_deadline
from pipeline.state.owner import Author
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.pipeline.rent.conftest import SkyHome
from tests.pipeline.rent.managed.keep.day import MIXED
from tests.support import waiting
from tests.support.clock import FakeClock
from tests.support.fake_provider import JOB, FakeProvider
from tests.support.jobs import TINY
from tests.support.states import someone
from tests.support.waiting import PATIENCE_SECONDS

TOO_LONG = PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (watch, watch_many):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(watch_many, "JOIN_SECONDS", 0.01)


def task(run: RunState, **envs: str) -> str:
    return "name: pion\n---\n" + yaml.safe_dump({"envs": {"PION_RUN": run.url, **envs}, "run": "x"})


class Rentals:
    """Runs in a store, each with a managed job that a fake SkyPilot knows."""

    def __init__(self, store: FileStore) -> None:
        self.store = store
        self.provider = FakeProvider()
        self.calls = 0
        self.each_call: Callable[[], None] = lambda: None
        listed = self.provider.managed_jobs

        def count(name: str | None = None, *, with_task: bool = False) -> Sequence[ManagedJob]:
            self.calls += 1
            self.each_call()
            return listed(name, with_task=with_task)

        self.provider.managed_jobs = count  # type: ignore[method-assign]

    def rent(self, name: str, **changes: Any) -> RunState:
        run = RunState(self.store, name)
        claim_run(run, someone()).heartbeat.stop()
        about = {"id": len(self.provider.jobs) + 1, "task": task(run)} | changes
        self.provider.jobs.append(
            dataclasses.replace(JOB, name=rental_name(self.store.url, name), **about)
        )
        return run

    def end(self, run: RunState, status: str = "SUCCEEDED", failure: str | None = None) -> None:
        name = rental_name(self.store.url, run.name)
        for job in self.provider.jobs:
            if job.name == name:
                self.provider.change(job.id, status=status, failure=failure)

    def watch(self, *runs: RunState, once: bool = False) -> int:
        urls = [run.url for run in runs]
        return watch_many.watch_many(urls, once=once, provider=self.provider)


@pytest.fixture
def rentals(tmp_path: Path) -> Rentals:
    return Rentals(FileStore(tmp_path / "runs"))


def test_each_run_ends_by_itself_and_the_worst_code_counts(
    rentals: Rentals, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, late = (rentals.rent(name) for name in ("good", "bad", "late"))
    rentals.end(good)
    rentals.end(bad, "FAILED", "Job exited with exit code 4 (user program failure).")

    def end_the_last() -> None:
        if rentals.calls > 3:
            rentals.end(late)

    rentals.each_call = end_the_last
    assert rentals.watch(good, bad, late) == 4
    said = capsys.readouterr().out
    for name, words in (("good", "is done"), ("bad", "stopped, with its state"), ("late", "done")):
        lines = [line for line in said.splitlines() if line.startswith(f"{name}  ")]
        assert words in lines[-1]


def test_what_is_wrong_with_one_run_is_fixed_for_that_run(rentals: Rentals) -> None:
    well, sick = rentals.rent("well"), rentals.rent("sick")
    provider = rentals.provider
    name = rental_name(rentals.store.url, "sick")
    pod: Pod = dataclasses.replace(provider.pod("x", "EXITED", 2), name=provider_pod_name(name, 2))
    provider.listed = [pod]
    assert rentals.watch(well, sick, once=True) == 1
    assert provider.terminated == ["x"]


def provider_pod_name(rental: str, job: int) -> str:
    from pipeline.rent.managed.names import cluster_name

    return f"{cluster_name(rental, job)}-head"


def test_a_store_that_hangs_holds_nobody_up(
    rentals: Rentals, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = rentals.rent("stuck"), rentals.rent("other")
    free = threading.Event()
    read = RunState.read

    def hang(run: RunState) -> Any:
        if run.name == "stuck":
            assert free.wait(TOO_LONG)
        return read(run)

    monkeypatch.setattr(RunState, "read", hang)
    followed = watch.Watcher.follow

    def follow(watcher: watch.Watcher) -> int:
        code = followed(watcher)
        if watcher.state.name == "other":  # it has ended while the other one hangs
            free.set()
        return code

    monkeypatch.setattr(watch.Watcher, "follow", follow)
    rentals.end(stuck)
    rentals.end(other)
    assert rentals.watch(stuck, other) == 0


def test_a_bug_about_one_run_ends_only_its_watch(
    rentals: Rentals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd, other = rentals.rent("odd"), rentals.rent("other")
    looked = watch.Watcher._look_and_act

    def look(watcher: watch.Watcher) -> int | None:
        if watcher.state.name == "odd":
            raise ZeroDivisionError
        return looked(watcher)

    monkeypatch.setattr(watch.Watcher, "_look_and_act", look)
    rentals.end(other)
    assert rentals.watch(odd, other) == 1
    said = capsys.readouterr().out
    assert "odd  " in said
    assert "managed job 2 is done" in said


def test_skypilot_is_asked_once_for_all_looks_of_ten_seconds(time: FakeClock) -> None:
    provider = FakeProvider(*(dataclasses.replace(JOB, id=n, name=f"pion-{n}") for n in range(100)))
    asked: list[float] = []
    listed = provider.managed_jobs

    def count(name: str | None = None, *, with_task: bool = False) -> Sequence[ManagedJob]:
        asked.append(time.time)
        return listed(name, with_task=with_task)

    provider.managed_jobs = count  # type: ignore[method-assign]
    says = SharedSays(provider, time.clock())
    for look in range(5):
        for n in range(100):
            _, jobs = says(f"pion-{n}")
            assert [job.id for job in jobs] == [n]
        assert len(asked) == look + 1
        provider.down = look == 3
        time.sleep(watch_many.POLL_SECONDS)
        if provider.down:
            for n in range(100):
                with pytest.raises(PionError, match="could not list"):
                    says(f"pion-{n}")
            provider.down = False
            asked.pop()
            time.sleep(watch_many.POLL_SECONDS)


@pytest.mark.parametrize("once", [False, True])
def test_an_error_of_skypilot_is_said_once_for_all_runs(
    rentals: Rentals, capsys: pytest.CaptureFixture[str], once: bool
) -> None:
    runs = [rentals.rent(name) for name in ("first", "second", "third")]

    def fail_for_a_while() -> None:
        rentals.provider.down = 1 < rentals.calls < 5 or rentals.calls == 6
        if rentals.calls == 7:
            for run in runs:
                rentals.end(run)

    rentals.each_call = fail_for_a_while
    assert rentals.watch(*runs, once=once) == int(once)
    said = [line for line in capsys.readouterr().out.splitlines() if "could not list" in line]
    assert len(said) == (1 if once else 2), "and again after it was over"
    assert "can't tell the state of any run at the moment: SkyPilot could not list" in said[0]


def test_a_line_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of several rentals write lines at the same time."""
    written: list[str] = []

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Terminal())
    show("first  is done")
    assert [text for text in written if text] == ["first  is done\n"]


def test_a_run_that_is_not_rented_is_refused_before_any_is_watched(
    rentals: Rentals, capsys: pytest.CaptureFixture[str]
) -> None:
    rented = rentals.rent("rented")
    other = RunState(rentals.store, "other")
    claim_run(other, someone()).heartbeat.stop()
    with pytest.raises(BadInput, match=r"rented nothing for .*/other"):
        rentals.watch(rented, other)
    assert capsys.readouterr().out == ""


def test_a_run_that_is_named_twice_is_watched_once(
    rentals: Rentals, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rentals.rent("demo")
    rentals.end(run)
    assert rentals.watch(run, run) == 0
    assert capsys.readouterr().out.count("is done") == 1


def test_all_is_every_live_rental_whose_run_is_known(
    rentals: Rentals, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ended = rentals.rent("first"), rentals.rent("ended", status="SUCCEEDED")
    rentals.rent("old", task="name: pion\n---\nrun: x\n")
    rentals.provider.jobs.append(dataclasses.replace(JOB, id=9, name="somebody-elses"))

    def end() -> None:
        if rentals.calls > 2:
            rentals.end(first)

    rentals.each_call = end
    assert rentals.watch() == 0
    said = capsys.readouterr().out
    assert "first  " in said
    assert "ended  " not in said
    assert "managed job 3 (pion-old-" in said
    assert "Name its run: pion watch RUN" in said
    assert "somebody" not in said


def test_all_of_nothing_says_so(rentals: Rentals, capsys: pytest.CaptureFixture[str]) -> None:
    assert rentals.watch() == 0
    assert capsys.readouterr().out == "nothing is rented from this machine\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name the runs to watch, or give --all"),
        (["--all", "demo"], "Name the runs to watch, or give --all"),
        (["a", "b", "--web"], "--web shows the page of one run"),
        (["--all", "--web"], "--web shows the page of one run"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_ctrl_c_names_all_that_continues(
    rentals: Rentals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, first, second = (rentals.rent(name) for name in ("ended", "first", "second"))
    rentals.end(ended)
    join = threading.Thread.join

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        join(thread, timeout)
        if thread.name.startswith("pion-second") and rentals.calls > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    assert rentals.watch(ended, first, second) == 0
    said = capsys.readouterr().out
    assert "managed jobs 2, 3 continue" in said
    assert f"pion watch {first.url} {second.url}" in said
    assert left_behind(), "the process does not wait for them when it exits"
    for run in (first, second):
        rentals.end(run)
    monkeypatch.setattr(threading.Thread, "join", join)
    for thread in threading.enumerate():  # they would write into the output of other tests
        if thread.name.startswith("pion-"):
            waiting.join(thread)


MEMORY = """
import sys
from pathlib import Path
from pipeline.rent.managed import watch, watch_many
from pipeline.rent.managed.keep import decision
from pipeline.rent.skypilot import sky_module
from pipeline.state.stores import FileStore
from tests.pipeline.rent.managed.test_watch_many import Rentals, set_deadline, task_with_deadline

sky_module()  # as the real provider does
rentals = Rentals(FileStore(Path(sys.argv[1])))
runs = [rentals.rent(f"run-{n}") for n in range(100)]
for run in runs:
    rentals.provider.change(int(run.name[4:]) + 1, task=task_with_deadline(run, *sys.argv[2:]))
    set_deadline(run)
watch.POLL_SECONDS = watch_many.POLL_SECONDS = 0.5
decision.MEASURE_SECONDS = 0.1  # so each look finds out whether there is something to time
decision.PRICE_SECONDS = 1e12  # no look is the first of a new period
asked = []
def count(*values):
    asked.append(values)
    return in_child(*values)
in_child, decision.in_child = decision.in_child, count
def end():
    if rentals.calls > 3 and len(asked) >= len(runs) or rentals.calls > 99:
        for run in runs:
            rentals.end(run)
rentals.each_call = end
code = rentals.watch(*runs)
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(code, len(asked), int(peak.split()[1]) // 2**10, "torch" in sys.modules)
"""


def set_deadline(run: RunState) -> None:
    """Set a deadline so far away that spot is waited for."""
    now = run.clock.now()
    record = RunDeadline(now + 1e6, 1800.0, now, Author.me(), "pion deadline")
    change_deadline(run, lambda old: record)


def task_with_deadline(run: RunState, machines: str, job: str) -> str:
    """Return the task of a rental that keeps a deadline with the machines of that YAML."""
    envs = {"JOB": job, "PION_SPOT": "1", "PION_LAUNCH_ID": "first"}
    envs[MACHINES] = machines_in_words(read_sky_yaml(machines).candidates)
    return task(run, **envs)


@pytest.mark.soak
def test_a_hundred_deadlines_take_less_than_300_mb_and_each_is_timed_once(
    sky_home: SkyHome, tmp_path: Path
) -> None:
    machines, job = sky_home.yaml(MIXED), tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(TINY))
    paths = map(str, (tmp_path / "runs", machines, job))
    said = waiting.run_to_end([sys.executable, "-c", MEMORY, *paths], check=True).stdout
    code, asked, megabytes, torch = said.splitlines()[-1].split()
    assert (code, torch) == ("0", "False"), "torch is only in the child"
    assert asked == "100"
    assert int(megabytes) < 300
