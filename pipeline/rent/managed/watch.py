"""`pion watch`: show a rented run, and mend what SkyPilot does not see is wrong with it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.find_model import read_run
from pipeline.formats import printable
from pipeline.rent.managed import managed_jobs as sky
from pipeline.rent.managed import pods as runpod
from pipeline.rent.managed.diagnose import Finding, Place, diagnose
from pipeline.rent.managed.follow import Progress, changes, how_it_ended
from pipeline.rent.managed.launch import how_to_come_back, say_now
from pipeline.rent.managed.look import Look, Lookout
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.pods import Pod
from pipeline.rent.managed.task import make_again
from pipeline.rent.rental import rental_name
from pipeline.state.head import RunState
from pipeline.state.stores import StoreError, open_store, split_run
from pipeline.state.workspace import default_root

POLL_SECONDS = 10.0
CANCEL_SECONDS = 300.0
"""How long SkyPilot may take to cancel a job and give its machine back."""

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
    """Watch a rental until it ends, or until the person leaves with Ctrl-C."""
    watcher = Watcher(state, name, job_id, say_now)
    try:
        with alone(name) as watcher.acting:
            if not watcher.acting:
                say_now("another window keeps this run going; this one only shows it")
            return watcher.look_once() if once else watcher.follow()
    except KeyboardInterrupt:
        job_id = watcher.lookout.job_id  # another one, if the run was submitted anew
        say_now(f"\nmanaged job {job_id} goes on\n{how_to_come_back(state, job_id)}")
        return 0


@contextlib.contextmanager
def alone(name: str) -> Iterator[bool]:
    """Whether no other process of this machine keeps that rental going; none will meanwhile."""
    path = default_root().parent / f"watch-{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@dataclass(frozen=True)
class Provider:
    """What is asked of SkyPilot and RunPod, and ordered from them.

    `list_pods` is None where RunPod can't be asked; `make_again` gives a job's task once more, for
    any place but those it is given, and `submit` takes it.
    """

    managed_jobs: Callable[[str], Sequence[ManagedJob]]
    list_pods: Callable[[], Sequence[Pod]] | None
    terminate_pod: Callable[[str], None]
    cancel: Callable[[Sequence[int]], None]
    make_again: Callable[[ManagedJob, Collection[Place]], Any]
    submit: Callable[[Any, str], int]

    @classmethod
    def real(cls) -> Provider:
        """SkyPilot's API server, and RunPod if this machine has a key for it."""
        return cls(
            managed_jobs=partial(sky.managed_jobs, with_task=True),
            list_pods=runpod.list_pods if runpod.runpod_configured() else None,
            terminate_pod=runpod.terminate_pod,
            cancel=sky.cancel,
            make_again=make_again,
            submit=sky.submit,
        )


class Watcher:
    """Shows one rental and keeps it going. Without `acting` it only says what it has found."""

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
        self._told: Progress | None = None
        self._found: set[str] = set()
        self._trouble = ""
        self._avoid: set[Place] = set()
        self._owed: Any = None  # a task to be submitted, as its job was cancelled

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
        """Show, and mend, what one look can see; 1 if anything is wrong, or the job has failed."""
        code = self._look_and_act()
        return code if code is not None else int(bool(self._found))

    def say(self, text: str) -> None:
        at = time.strftime("%H:%M:%S", time.gmtime(self.clock.now()))
        self._say(printable(f"{at} {text}"))

    def _look_and_act(self) -> int | None:
        if self._owed is not None:
            self.say(f"submitted as managed job {self._submit_owed(self.lookout.job_id)}")
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
        self._found &= {finding.why_key for finding in findings}
        if job.live or self.lookout.job_id != job.id:
            return None
        code, words = how_it_ended(job, look.progress.status)
        self.say(words)
        return code

    def _handle(self, finding: Finding, job: ManagedJob, look: Look) -> None:
        """Say what was found, once, and do what is to be done about it."""
        if finding.why_key not in self._found:
            self.say(f"{finding.what}: {finding.why}")
        self._found.add(finding.why_key)
        if finding.action == "note" or not self.acting:
            return
        done = []
        for pod in finding.pods:
            self.provider.terminate_pod(pod)
            done.append(f"terminated pod {pod}")
        if finding.action == "relaunch":
            done.append(self._relaunch(job, finding.avoid))
        self.say("; ".join(done))
        log_finding(self.state, look, finding, done)

    def _relaunch(self, job: ManagedJob, avoid: Place | None) -> str:
        """End the job and submit it anew; what was done. Not ended if it can't be submitted."""
        places = self._avoid | ({avoid} if avoid else set())
        try:
            task = self.provider.make_again(job, places)
        except BadInput as error:
            self.lookout.forget_machines()  # ask again after as many more
            return f"left as it is, as it can't be submitted anew: {error}"
        if job.live:
            self.provider.cancel([job.id])
            self._wait_until_ended(job)
        self._avoid = places
        self._owed = task
        new = self._submit_owed(job.id)
        elsewhere = f", not on {' or '.join(sorted(map(str, places)))}" if places else ""
        return f"submitted the run anew as managed job {new}{elsewhere}"

    def _submit_owed(self, old: int) -> int:
        """Submit what was ended in order to be submitted anew, however often that takes."""
        jobs = self.provider.managed_jobs(self.name)
        # A submission given up as failed may have been taken after all.
        taken = next((job.id for job in jobs if job.live and job.id > old), None)
        self.lookout.job_id = taken or self.provider.submit(self._owed, self.name)
        self.lookout.forget_machines()
        self._owed = None
        return self.lookout.job_id

    def _wait_until_ended(self, job: ManagedJob) -> None:
        end = self.clock.monotonic() + CANCEL_SECONDS
        while any(j.id == job.id and j.live for j in self.provider.managed_jobs(self.name)):
            if self.clock.monotonic() >= end:
                raise PionError(
                    f"SkyPilot has not cancelled managed job {job.id} in {CANCEL_SECONDS:.0f} s."
                )
            self.clock.sleep(POLL_SECONDS / 2)


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
