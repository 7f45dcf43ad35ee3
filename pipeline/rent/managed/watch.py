"""`pion watch`: show a rented run, and fix problems that SkyPilot does not notice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from pion.errors import PionError, Stopped
from pipeline.console.formats import money, printable, show
from pipeline.rent.managed.keep.keeper import PATIENT_CANCEL_SECONDS, RentalKeeper
from pipeline.rent.managed.look.diagnose import Finding
from pipeline.rent.managed.look.look import Look, Lookout, log_finding
from pipeline.rent.managed.look.progress import (
    changes,
    how_it_ended,
    how_to_come_back,
    what_comes_next,
)
from pipeline.rent.managed.names import nothing_to_watch, rental_name
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.provider.recorded_task import launch_id_of
from pipeline.rent.managed.request import rental_lock
from pipeline.state.find_run import open_run
from pipeline.state.head import Head
from pipeline.state.notes.rental_note import withdraw_rental_note
from pipeline.state.rows.metrics import read_events
from pipeline.state.run_state import RunState
from pipeline.state.status.run_status import last_end, last_end_in_words
from pipeline.web.address import Address

POLL_SECONDS, LONGEST_POLL_SECONDS = 10.0, 60.0
# What still fails is said again after so long, because machines cost money meanwhile.
SAY_AGAIN_SECONDS = 600.0


def watch(
    run: str, *, once: bool, page: Address | None = None, provider: Provider | None = None
) -> int:
    """Show the rental of `run` and keep it running until it ends; with `once`, look once.

    With `page`, a page that only reads the store shows the run there meanwhile. Return the run's
    exit code, or 0 after Ctrl-C. With `once`, return 0 if nothing is wrong, else 1.
    """
    provider = provider or Provider()
    state = open_run(run)
    name = rental_name(state.store.url, state.name)
    provider.start(show)
    jobs = provider.managed_jobs(name)
    if not jobs:
        raise nothing_to_watch(run)
    if page is None:
        return follow_or_leave(state, name, jobs[0].id, provider, once=once)
    from pipeline.live.server import page_of

    with page_of(open_run(run), page) as address:
        show(f"{address}  the page of this run. It closes when this command ends")
        return follow_or_leave(state, name, jobs[0].id, provider)


def follow_or_leave(
    state: RunState, name: str, job_id: int, provider: Provider, *, once: bool = False
) -> int:
    """Watch the rental `name` until it ends, or until Ctrl-C.

    Return the run's exit code; after Ctrl-C, return 0, or 130 if the run was being restarted.
    """
    watcher = Watcher(state, name, job_id, show, provider)
    try:
        with rental_lock(name) as watcher.try_lock:
            watcher.acting = watcher.try_lock()
            if not watcher.acting:
                show("another window restarts this run if it fails. This window only shows the run")
            return watcher.look_once() if once else watcher.follow()
    except KeyboardInterrupt:
        if half_done := watcher.half_done():
            show(f"\n{half_done}")
            return 130
        job_id = watcher.lookout.job_id  # another job, if the run was restarted
        show(f"\nmanaged job {job_id} continues\n{how_to_come_back(state, job_id)}")
        if again := watcher.keeper.when_to_watch_again():
            show(again)
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
        say: Callable[[str], None],
        provider: Provider,
        *,
        acting: bool = True,
    ) -> None:
        self.state, self.clock = state, state.clock
        self.provider, self.acting = provider, acting
        self.try_lock: Callable[[], bool] = lambda: False
        self.lookout = Lookout(state, name, job_id, provider)
        self._say = say
        self.keeper = RentalKeeper(self.lookout, provider, self.say)
        self._told: Look | None = None
        self._ended_epoch: int | None = None  # the released epoch whose end was said
        # For each problem, by its key: what was last said to be done about it.
        self._found: dict[str, str] = {}
        # What failed at the last look, and when that was said, by the monotonic clock.
        self._trouble, self._said_at = "", 0.0

    def follow(self) -> int:
        """Look until the job has ended; return its exit code."""
        while True:
            began = self.clock.monotonic()
            try:
                code = self._look_and_act()
                self._trouble = ""
                if code is not None:
                    return code
            except PionError as error:  # ask again at the next look
                if str(error) != self._trouble or began >= self._said_at + SAY_AGAIN_SECONDS:
                    self.say(f"something failed, and is tried again: {error}{self._costs()}")
                    self._trouble, self._said_at = str(error), began
            # SkyPilot imports itself for each answer. A slow machine would do nothing else.
            self.clock.sleep(
                max(POLL_SECONDS, min(3 * (self.clock.monotonic() - began), LONGEST_POLL_SECONDS))
            )

    def look_once(self) -> int:
        """Look once, show and act; return 1 if anything is wrong, or if the job has failed.

        A restart gets PATIENT_CANCEL_SECONDS to complete, because this is the only look. With a
        deadline, the next look completes it. Raises PionError.
        """
        end, wrong = self.clock.monotonic() + PATIENT_CANCEL_SECONDS, False
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
        old = self.keeper.renter.replacing
        if old is None:
            return ""
        run = self.state.url
        return (
            f"Pion was cancelling managed job {old.id} to restart the run. It is unknown whether "
            f"both succeeded. Committed work is safe. Run `pion rentals {run}`. If a newer job is "
            f"listed, run `pion watch {run}`. If not, run `pion launch JOB --on SKY`."
        )

    def _costs(self) -> str:
        """Return in brackets what the rental's pods cost per hour; nothing if there is none."""
        pods = self.lookout.pods
        dollars, names = sum(pod.price or 0.0 for pod in pods), ", ".join(pod.id for pod in pods)
        console = "To end them yourself: https://console.runpod.io/pods"
        return f" (pods that cost {money(dollars)} per hour: {names}. {console})" if pods else ""

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
        if self.acting:  # first, because a look may fail, too
            for line in self.keeper.end_pods(list(self.keeper.unended)):
                self.say(line)
        look = self.lookout.look()
        if lines := changes(self._told, look):
            self._told = look
            for line in lines:
                self.say(line)
        self._say_end(look.head)
        # While a deadline is kept, a store that is down is no reason not to look.
        self.lookout.patient = self.keeper.has_deadline(look, acting=self.acting)
        over = self.keeper.final_job(look)
        findings = self.keeper.findings(look, over)
        acted, given_up = False, frozenset(self.keeper.renter.given_up)
        failed: list[str] = []
        for finding, job in findings:
            if job.id in self.keeper.renter.given_up - given_up:
                continue  # it was given up just now
            try:
                done = self._handle(finding, job, look)
            except PionError as error:  # the others cost money, too
                failed.append(str(error))
                continue
            acted |= bool(done) and job.id not in given_up
            over = job if self.keeper.renter.gave_up else over
        keys = {finding.key for finding, _ in findings}
        self._found = {key: done for key, done in self._found.items() if key in keys}
        # After an action, SkyPilot and the store are asked again first.
        if over is None and not (acted or failed):
            self.keeper.keep(look, acting=self.acting)
        if failed := [*failed, *self.keeper.unended.values()]:
            raise PionError(" ".join(failed))
        return None if over is None else self._end(over, look)

    def _say_end(self, head: Head | None) -> None:
        """Say once how the last attempt ended, if nobody owns the run."""
        if head is None or head.owner is not None or head.epoch == self._ended_epoch:
            return
        end = last_end(read_events(self.state.store, self.state.name))
        self._ended_epoch = head.epoch
        if end is not None:
            self.say(last_end_in_words(end))

    def _handle(self, finding: Finding, job: ManagedJob, look: Look) -> list[str]:
        """Report a finding once, and act on it; return what was done, in words."""
        key = finding.key
        if key not in self._found:
            self.say(f"{finding.what}: {finding.why}")
        said = self._found.setdefault(key, "")
        if finding.action == "note" or not self.acting:
            return []
        done = self.keeper.fix(finding, job, look)
        words = "; ".join(done)
        if words and words != said:  # an action may repeat at each look, but is reported once
            self._found[key] = words
            self.say(words)
            log_finding(self.state, look, finding, done)
        return done

    def _end(self, job: ManagedJob, look: Look) -> int:
        """Print how the job has ended; return the exit code."""
        if self.acting:  # otherwise another window may be restarting the run at this moment
            self.keeper.end(look)
            with contextlib.suppress(PionError):  # if the note stays, the next launch needs --force
                withdraw_rental_note(self.state, launch_id_of(job))
        code, words = how_it_ended(job, look.dollars)
        run, status = look.followed.run, look.status or {}
        if job.status in ("CANCELLED", "FAILED_CONTROLLER"):  # they say nothing about the run
            code = 0 if run.finished else Stopped.exit_code if run.stop else code
            words = f"the run is finished: {words}" if run.finished else words
        self.say(words)
        if code == 0 and run.until is not None and status["next"] and not status["owner"]:
            self.say(what_comes_next(status["next"]))
        return code
