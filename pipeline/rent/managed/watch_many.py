"""`pion watch RUN RUN …`: one process that keeps many rentals running, each by itself.

Each rental has a watcher in its own thread, so that a store that hangs delays no other rental. What
SkyPilot and RunPod say is asked once for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pion.errors import PionError
from pipeline.console.bug_file import report_bug
from pipeline.console.formats import show
from pipeline.machine.time_limit import FOREVER
from pipeline.rent.managed.names import nothing_to_watch, rental_name
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.provider import Provider, Says
from pipeline.rent.managed.provider.recorded_task import variable_of
from pipeline.rent.managed.provider.task import RUN
from pipeline.rent.managed.rentals import NAMED
from pipeline.rent.managed.request import rental_lock
from pipeline.rent.managed.watch import POLL_SECONDS, Told, Watcher, time_of_day
from pipeline.state.find_run import open_runs
from pipeline.state.run_state import RunState
from pipeline.state.stores.clock import Clock

# How often the command asks whether all watchers have ended.
JOIN_SECONDS = 0.2


def watch_many(
    runs: Sequence[str], *, once: bool, provider: Provider | None = None, clock: Clock | None = None
) -> int:
    """Show the rentals of `runs`, or of all runs that are rented from here if there are none, and
    keep them running until all have ended; with `once`, look once.

    Return the largest exit code of the runs; after Ctrl-C, 0, or 130 if a run was being restarted.
    Raises BadInput, before anything is watched, if a run has no rental.
    """
    provider = provider or Provider()
    provider.start(show)
    jobs = provider.managed_jobs(with_task=True)
    rentals = _named(runs, jobs, clock) if runs else _all(jobs, clock)
    if not rentals:
        show("nothing is rented from this machine")
        return 0
    says = SharedSays(provider, clock or Clock())
    names = [rental.state.name for rental in rentals]
    watched = []
    for rental, name in zip(rentals, names):
        label = name if names.count(name) == 1 else rental.state.url
        watched.append(_Watched(rental, label, provider, says, once))
    try:
        for each in watched:
            each.thread.start()
        while any(each.thread.is_alive() for each in watched):
            for each in watched:
                each.thread.join(JOIN_SECONDS)
    except KeyboardInterrupt:
        return _leave(watched)
    return max(each.code for each in watched)


@dataclass(frozen=True)
class _Rental:
    """A run, the name of its rental, and its newest managed job."""

    state: RunState
    name: str
    job_id: int


def _named(runs: Sequence[str], jobs: Sequence[ManagedJob], clock: Clock | None) -> list[_Rental]:
    """Return the rentals of these runs, each once. Raises BadInput for a run without one."""
    newest = {job.name: job.id for job in reversed(jobs)}
    found: dict[str, _Rental] = {}
    for run, opened in zip(runs, open_runs(runs)):
        name = rental_name(opened.store.url, opened.name)
        if name not in newest:
            raise nothing_to_watch(run)
        found[name] = _Rental(RunState(opened.store, opened.name, clock), name, newest[name])
    return list(found.values())


def _all(jobs: Sequence[ManagedJob], clock: Clock | None) -> list[_Rental]:
    """Return every rental that has a live managed job. Says which run's name is not known."""
    runs = {}
    for job in jobs:
        if job.live and job.name.startswith(NAMED):
            runs[job.name] = variable_of(job, RUN)
            if runs[job.name] is None:
                show(
                    f"managed job {job.id} ({job.name}) is not watched: an older pion, or another "
                    "program, has submitted it. Name its run: pion watch RUN"
                )
    return _named([run for run in runs.values() if run is not None], jobs, clock)


class SharedSays:
    """Asks SkyPilot and RunPod once for all rentals that look within POLL_SECONDS.

    A watcher looks again POLL_SECONDS after it has acted, so what it is told is newer than its act.
    An error is raised for all of them, too, and said once.
    """

    def __init__(self, provider: Provider, clock: Clock) -> None:
        self._provider, self._clock = provider, clock
        self._lock = threading.Lock()
        self._at: float | None = None
        self._said: Says | Told = (None, ())
        self._trouble = ""

    def __call__(self, name: str) -> Says:
        """Return what was said of the rental `name`: all pods, and its managed jobs."""
        with self._lock:
            now = self._clock.monotonic()
            if self._at is None or now - self._at >= POLL_SECONDS:
                self._said = self._ask()
                self._at = now
            said = self._said
        if isinstance(said, Told):
            raise said
        pods, jobs = said
        return pods, [job for job in jobs if job.name == name]

    def _ask(self) -> Says | Told:
        before, self._trouble = self._trouble, ""
        try:
            return self._provider.says(None)
        except PionError as error:
            self._trouble = str(error)
            if self._trouble != before:
                at = time_of_day(self._clock)
                show(f"{at} Pion can't tell the state of any run at the moment: {error}")
            return Told(error)


class _Watched:
    """One rental, and the thread that watches it. `code` is its exit code, and `label` begins its
    lines."""

    def __init__(
        self,
        rental: _Rental,
        label: str,
        provider: Provider,
        says: Callable[[str], Says],
        once: bool,
    ) -> None:
        def say(text: str) -> None:
            show(f"{label}  {text}")

        self.code = 0
        self.watcher = Watcher(rental.state, rental.name, rental.job_id, say, provider)
        self.watcher.lookout.says = says
        self._rental, self._once, self._say = rental, once, say
        name = f"{rental.name}, {FOREVER}"  # its store may hang
        self.thread = threading.Thread(target=self._watch, name=name, daemon=True)

    def _watch(self) -> None:
        watcher = self.watcher
        try:
            with rental_lock(self._rental.name) as watcher.try_lock:
                watcher.acting = watcher.try_lock()
                if not watcher.acting:
                    self._say("another window restarts this run if it fails")
                self.code = watcher.look_once() if self._once else watcher.follow()
        except PionError as error:
            if not isinstance(error, Told):
                self._say(f"{error}")
            self.code = error.exit_code
        except Exception as error:  # one rental must not end the others
            self._say(report_bug(error, ["watch", self._rental.state.url]))
            self.code = 1


def _leave(watched: Sequence[_Watched]) -> int:
    """Say what continues after Ctrl-C; return the exit code."""
    half_done = [words for each in watched if (words := each.watcher.half_done())]
    going_on = [each.watcher for each in watched if each.thread.is_alive()]
    jobs = ", ".join(str(watcher.lookout.job_id) for watcher in going_on)
    urls = " ".join(watcher.state.url for watcher in going_on)
    show(f"\nmanaged jobs {jobs} continue\n  follow them: pion watch {urls}")
    for watcher in going_on:
        if again := watcher.keeper.when_to_watch_again():
            show(f"{watcher.state.name}  {again}")
    for words in half_done:
        show(words)
    return 130 if half_done else 0
