"""`pion watch`: show a rented run, and fix problems that SkyPilot does not notice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pion.errors import PionError, Stopped
from pipeline.console.formats import printable
from pipeline.live.server import page_of
from pipeline.rent.managed.act import Restarts, act, log_finding
from pipeline.rent.managed.dear_pods import dear_pods
from pipeline.rent.managed.diagnose import Finding, diagnose
from pipeline.rent.managed.keep_deadline import DeadlineKeeper
from pipeline.rent.managed.lock import rental_lock
from pipeline.rent.managed.lookout import Look, Lookout
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.names import rental_name
from pipeline.rent.managed.progress import (
    Progress,
    changes,
    how_it_ended,
    how_to_come_back,
    what_comes_next,
)
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.recorded_task import launch_id_of
from pipeline.rent.managed.restart import CANCEL_SECONDS, Restarter
from pipeline.rent.managed.say import Say, say_now
from pipeline.rent.managed.unrented import nothing_to_watch
from pipeline.state.rental_note import withdraw_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store, split_run
from pipeline.web.address import Address

POLL_SECONDS = 10.0


def watch(
    run: str, *, once: bool, page: Address | None = None, provider: Provider | None = None
) -> int:
    """Show the rental of `run` and keep it running until it ends; with `once`, look once.

    With `page`, a page that only reads the store shows the run there meanwhile. Return the run's
    exit code, or 0 after Ctrl-C. With `once`, return 0 if nothing is wrong, else 1.
    """
    provider = provider or Provider()
    url, run_name = split_run(run)
    state = RunState(open_store(url), run_name)
    name = rental_name(state.store.url, state.name)
    provider.start(say_now)
    jobs = provider.managed_jobs(name)
    if not jobs:
        raise nothing_to_watch(run)
    if page is None:
        return follow_or_leave(state, name, jobs[0].id, provider, once=once)
    with page_of(RunState(open_store(url), run_name), page) as address:
        say_now(f"{address}  the page of this run. It closes when this command ends")
        return follow_or_leave(state, name, jobs[0].id, provider)


def follow_or_leave(
    state: RunState, name: str, job_id: int, provider: Provider, *, once: bool = False
) -> int:
    """Watch the rental `name` until it ends, or until Ctrl-C.

    Return the run's exit code; after Ctrl-C, return 0, or 130 if the run was being restarted.
    """
    watcher = Watcher(state, name, job_id, say_now, provider)
    try:
        with rental_lock(name) as watcher.try_lock:
            watcher.acting = watcher.try_lock()
            if not watcher.acting:
                say_now(
                    "another window restarts this run if it fails. This window only shows the run"
                )
            return watcher.look_once() if once else watcher.follow()
    except KeyboardInterrupt:
        half_done = watcher.half_done()
        if half_done:
            say_now(f"\n{half_done}")
            return 130
        job_id = watcher.lookout.job_id  # another job, if the run was restarted
        say_now(f"\nmanaged job {job_id} continues\n{how_to_come_back(state, job_id)}")
        if again := watcher.keeper.when_to_watch_again():
            say_now(again)
        return 0


class Watcher:
    """Shows one rental and keeps it running.

    Without `acting`, it only prints what it finds, until `try_lock` succeeds.
    """

    def __init__(
        self,
        state: RunState,
        name: str,
        job_id: int,
        say: Say,
        provider: Provider,
        *,
        acting: bool = True,
    ) -> None:
        self.state, self.clock = state, state.clock
        self.provider, self.acting = provider, acting
        self.try_lock: Callable[[], bool] = lambda: False
        self.lookout = Lookout(state, name, job_id, provider)
        self._restarter = Restarter(name, self.lookout, self.clock)
        self._say = say
        self.keeper = DeadlineKeeper(state, name, provider, self.say)
        self._told: Progress | None = None
        # For each problem, by its key: what was last said to be done about it.
        self._found: dict[str, str] = {}
        self._trouble = ""

    def follow(self) -> int:
        """Look until the job has ended; return its exit code."""
        while True:
            try:
                code = self._look_and_act()
                self._trouble = ""
                if code is not None:
                    return code
            except PionError as error:  # ask again at the next look
                if str(error) != self._trouble:
                    self.say(f"Pion can't tell the state at the moment: {error}")
                self._trouble = str(error)
            self.clock.sleep(POLL_SECONDS)

    def look_once(self) -> int:
        """Look once, show and act; return 1 if anything is wrong, or if the job has failed.

        A restart gets CANCEL_SECONDS to complete, because this is the only look. With a deadline,
        the next look requests the machine that replaces another. Raises PionError.
        """
        end, wrong = self.clock.monotonic() + CANCEL_SECONDS, False
        while True:
            try:
                code = self._look_and_act()
            except PionError as error:
                half_done = self.half_done()
                if not half_done:
                    raise
                if self.clock.monotonic() >= end:
                    raise PionError(f"{error} {half_done}") from error
                wrong = True
                self.clock.sleep(POLL_SECONDS)
            else:
                return code if code is not None else int(wrong or bool(self._found))

    def half_done(self) -> str:
        """Return a message about a restart that is half done; empty if there is none."""
        if self._restarter.pending is None:
            return ""
        run, old = self.state.url, self._restarter.pending.old.id
        return (
            f"Pion was cancelling managed job {old} to restart the run. It is unknown whether both "
            f"succeeded. Committed work is safe. Run `pion rentals {run}`. If a newer job is "
            f"listed, run `pion watch {run}`. If not, run `pion launch JOB --on SKY`."
        )

    def say(self, text: str) -> None:
        """Print a line, with the time of day in front."""
        at = time.strftime("%H:%M:%S", time.gmtime(self.clock.now()))
        self._say(printable(f"{at} {text}"))

    def _look_and_act(self) -> int | None:
        """Look once, and act on what is wrong; return the exit code if the job has ended."""
        if not self.acting and self.try_lock():
            self.acting = True
            self.say(
                "the other window has closed. From now on, this window restarts the run if it fails"
            )
        if self._restarter.pending is not None:
            self.say(self._restarter.complete(self.provider, self._restarter.pending))
        look = self.lookout.look()
        self._tell(look.progress)
        job = look.sky.job
        if job is None:
            raise PionError(f"SkyPilot no longer lists managed job {self.lookout.job_id}.")
        self.lookout.patient = self.keeper.holds(look, acting=self.acting)
        if self.lookout.patient:
            return self._keep_deadline(look)
        findings = [*diagnose(look.sky, look.run, self.clock.now()), *dear_pods(look.sky)]
        for finding in findings:
            self._handle(finding, job, look, self._restarter)
            if self.lookout.job_id != job.id:
                break  # the other findings are about the replaced job
        self._forget_all_but(findings)
        at_work = any((f.what, f.action) == ("controller lost", "note") for f in findings)
        if job.live or self.lookout.job_id != job.id or at_work:
            return None
        return self._end(job, look)

    def _keep_deadline(self, look: Look) -> int | None:
        """Act on what is wrong with any job, and do what the deadline needs."""
        keeper, found, acted = self.keeper, [], False
        over = keeper.final_job(look)
        if over is None and not look.stale:
            for each in look.of_jobs:
                findings = [*diagnose(each.sky, each.run, self.clock.now()), *dear_pods(each.sky)]
                # The policy decides how long to wait for a machine.
                findings = [f for f in findings if f.what != "no machine available"]
                job = each.sky.job
                for finding in findings:
                    assert job is not None
                    if finding.what == "it never starts":
                        # The other market may start the run, so this is no reason to end it.
                        finding = replace(finding, action="relaunch")
                    acted |= bool(self._handle(finding, job, look, keeper.rentals))
                    if keeper.rentals.gave_up:
                        over = job
                found += findings
            self._forget_all_but(found)
        if over is not None:
            if self.acting:
                keeper.rentals.end_all(look)
            return self._end(over, look)
        # After an action, SkyPilot and the store are asked again before anything is decided.
        if not acted and not keeper.is_stopped(look):
            keeper.keep(look, acting=self.acting)
        return None

    def _forget_all_but(self, findings: Sequence[Finding]) -> None:
        keys = {finding.key for finding in findings}
        self._found = {key: done for key, done in self._found.items() if key in keys}

    def _tell(self, progress: Progress) -> None:
        lines = changes(self._told, progress)
        for line in lines:
            self.say(line)
        if lines:
            self._told = progress

    def _handle(
        self, finding: Finding, job: ManagedJob, look: Look, restarter: Restarts
    ) -> list[str]:
        """Report a finding once, and act on it; return what was done, in words."""
        key = finding.key
        if key not in self._found:
            self.say(f"{finding.what}: {finding.why}")
        said = self._found.setdefault(key, "")
        if finding.action == "note" or not self.acting:
            return []
        done = act(finding, job, look, self.provider, restarter)
        if not done:
            return []
        self._found[key] = "; ".join(done)
        if self._found[key] != said:  # an action may repeat at each look, but is reported once
            self.say(self._found[key])
            log_finding(self.state, look, finding, done)
        return done

    def _end(self, job: ManagedJob, look: Look) -> int:
        """Print how the job has ended; return the exit code."""
        if self.acting:  # otherwise another window may be restarting the run at this moment
            with contextlib.suppress(PionError):  # if the note stays, the next launch needs --force
                withdraw_rental_note(self.state, launch_id_of(job))
        code, words = how_it_ended(job, look.progress.dollars)
        self.say(words)
        if job.status in ("CANCELLED", "FAILED_CONTROLLER"):  # they say nothing about the run
            code = 0 if look.run.finished else Stopped.exit_code if look.run.stop else code
        status = look.progress.status or {}
        if code == 0 and look.run.until is not None and status["next"] and not status["owner"]:
            self.say(what_comes_next(status["next"]))
        return code
