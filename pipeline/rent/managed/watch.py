"""`pion watch`: show a rented run, and mend what SkyPilot does not see is wrong with it."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Sequence

from pion.errors import BadInput, PionError, Stopped
from pipeline.console.formats import printable
from pipeline.rent.managed import managed_jobs as sky
from pipeline.rent.managed.diagnose import Finding, diagnose
from pipeline.rent.managed.lock import alone
from pipeline.rent.managed.lookout import Look, Lookout
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.names import rental_name
from pipeline.rent.managed.progress import (
    Progress,
    changes,
    how_it_ended,
    how_to_come_back,
    say_now,
)
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.restart import CANCEL_SECONDS, Anew
from pipeline.rent.managed.task import launch_id_of
from pipeline.state.find_run import read_run
from pipeline.state.rental_note import withdraw_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError, open_store, split_run

POLL_SECONDS = 10.0

Say = Callable[[str], None]


def watch(run: str, *, once: bool) -> int:
    """Show the rental of `run` and keep it going until it ends; with `once`, look once.

    Returns the run's exit code; 0 after Ctrl-C, and with `once` if nothing is wrong, else 1.
    """
    url, run_name = split_run(run)
    state = RunState(open_store(url), run_name)
    name = rental_name(state.store.url, state.name)
    sky.start_api_server(say_now)
    jobs = sky.managed_jobs(name)
    if not jobs:
        read_run(run)  # there is none at all?
        raise BadInput(
            f"`pion launch` has rented nothing for {run} from this machine; only what it rents is "
            f"watched. To see a run that works elsewhere, or under a bare `sky jobs launch`: "
            f"`pion status {run}`."
        )
    return follow_or_leave(state, name, jobs[0].id, once=once)


def follow_or_leave(state: RunState, name: str, job_id: int, *, once: bool = False) -> int:
    """Watch a rental until it ends, or until the person leaves with Ctrl-C.

    Returns the run's exit code; 0 after Ctrl-C, or 130 if the run was then being submitted anew.
    """
    watcher: Watcher | None = None
    try:
        watcher = Watcher(state, name, job_id, say_now)
        with alone(name) as watcher.alone:
            watcher.acting = watcher.alone()
            if not watcher.acting:
                say_now("another window keeps this run going; this one only shows it")
            return watcher.look_once() if once else watcher.follow()
    except KeyboardInterrupt:
        owed = watcher.owed() if watcher is not None else ""
        if owed:
            say_now(f"\n{owed}")
            return 130
        if watcher is not None:
            job_id = watcher.lookout.job_id  # another one, if the run was submitted anew
        say_now(f"\nmanaged job {job_id} goes on\n{how_to_come_back(state, job_id)}")
        return 0


class Watcher:
    """Shows one rental and keeps it going.

    Without `acting` it only says what it has found, until `alone` says that nobody else acts.
    """

    def __init__(
        self,
        state: RunState,
        name: str,
        job_id: int,
        say: Say,
        *,
        acting: bool = True,
        provider: Provider | None = None,
    ) -> None:
        self.state, self.name, self.clock = state, name, state.clock
        self.provider = provider or Provider.real()
        self.lookout = Lookout(
            state, name, job_id, self.provider.managed_jobs, self.provider.list_pods
        )
        self._say, self.acting = say, acting
        self.alone: Callable[[], bool] = lambda: False
        self._told: Progress | None = None
        self._found: dict[str, str] = {}  # what is wrong, and what was said to be done about it
        self._trouble = ""
        self._anew = Anew(name, self.lookout, self.clock)

    def follow(self) -> int:
        """Until the job has ended; its exit code."""
        while True:
            try:
                code = self._look_and_act()
                self._trouble = ""
                if code is not None:
                    return code
            except PionError as error:  # what can't be asked now is asked again
                if str(error) != self._trouble:
                    self.say(f"can't tell at the moment: {error}")
                self._trouble = str(error)
            self.clock.sleep(POLL_SECONDS)

    def look_once(self) -> int:
        """Show, and mend, what one look can see; 1 if anything is wrong, or the job has failed.

        A run that is being submitted anew gets CANCEL_SECONDS for it: nobody looks again. Raises
        PionError.
        """
        end, wrong = self.clock.monotonic() + CANCEL_SECONDS, False
        while True:
            try:
                code = self._look_and_act()
            except PionError as error:
                owed = self.owed()
                if not owed:
                    raise
                if self.clock.monotonic() >= end:
                    raise PionError(f"{error} {owed}") from error
                wrong = True
                self.clock.sleep(POLL_SECONDS)
            else:
                return code if code is not None else int(wrong or bool(self._found))

    def owed(self) -> str:
        """What is left half done, for a person; empty if nothing is."""
        if self._anew.owed is None:
            return ""
        run, old = self.state.url, self._anew.owed.old.id
        return (
            f"managed job {old} was being cancelled to be submitted anew; whether that was done is "
            f"not known. What is committed is safe. See `pion rentals {run}`: if a newer job "
            f"lives, `pion watch {run}` goes on with it; if none does, `pion launch JOB --on SKY`."
        )

    def say(self, text: str) -> None:
        at = time.strftime("%H:%M:%S", time.gmtime(self.clock.now()))
        self._say(printable(f"{at} {text}"))

    def _look_and_act(self) -> int | None:
        if not self.acting and self.alone():
            self.acting = True
            self.say("the other window has gone: from here on this one keeps the run going")
        if self._anew.owed is not None:
            self.say(self._anew.submit(self.provider, self._anew.owed))
        look = self.lookout.look()
        lines = changes(self._told, look.progress)
        for line in lines:
            self.say(line)
        if lines:
            self._told = look.progress
        job = look.sky.job
        if job is None:
            raise PionError(f"SkyPilot no longer knows managed job {self.lookout.job_id}.")
        findings = diagnose(look.sky, look.run, self.clock.now())
        for finding in findings:
            self._handle(finding, job, look)
            if self.lookout.job_id != job.id:
                break  # what else is wrong was wrong with the job that it replaced
        keys = {finding.why_key for finding in findings}
        self._found = {key: done for key, done in self._found.items() if key in keys}
        at_work = any((f.what, f.action) == ("controller lost", "note") for f in findings)
        if job.live or self.lookout.job_id != job.id or at_work:
            return None
        if self.acting:  # another window may be submitting the run anew at this moment
            with contextlib.suppress(PionError):  # the store is down, and has known worse
                withdraw_rental_note(self.state, launch_id_of(job))
        code, words = how_it_ended(job, look.progress.dollars)
        self.say(words)
        if job.status in ("CANCELLED", "FAILED_CONTROLLER"):  # which say nothing of the run
            code = 0 if look.run.finished else Stopped.exit_code if look.run.stop else code
        return code

    def _handle(self, finding: Finding, job: ManagedJob, look: Look) -> None:
        """Say what was found, once, and do what is to be done about it."""
        key = finding.why_key
        if key not in self._found:
            self.say(f"{finding.what}: {finding.why}")
        said = self._found.setdefault(key, "")
        if finding.action == "note" or not self.acting:
            return
        if finding.action == "relaunch":
            done = self._anew.start(self.provider, finding, job, look.head)
        else:
            done = self.provider.terminate(finding.pods)
        if finding.action == "cancel":
            self.provider.cancel([job.id])
            done.append(f"cancelled managed job {job.id}")
        self._found[key] = "; ".join(done)
        if self._found[key] != said:  # what does not help is done at each look, and said once
            self.say(self._found[key])
            log_finding(self.state, look, finding, done)


def log_finding(state: RunState, look: Look, finding: Finding, done: Sequence[str]) -> None:
    """Keep in the run's events what was done and why; a store that is down keeps nothing."""
    if look.head is None:
        return
    event = {
        "event": "watch",
        "epoch": look.head.epoch,
        "at": look.progress.at,
        "what": finding.what,
        "why": finding.why,
        "done": list(done),
    }
    # A name of its own: the owner of that epoch numbers the others.
    key = state.key(f"events/{look.head.epoch}/watch-{uuid.uuid4().hex}.jsonl")
    with contextlib.suppress(StoreError):
        state.store.write(key, (json.dumps(event) + "\n").encode())
        state.store.flush()
