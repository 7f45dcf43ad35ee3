"""What is wrong with a rented run: SkyPilot's belief, RunPod's list and the run's own heartbeat.

Nothing here asks or changes anything, and no clock is read: the same views always give the same
findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.console.formats import duration
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.pods import Pod
from pipeline.state.run_state import COMMIT_SILENCE_SECONDS, SILENCE_SECONDS

BOOT_SECONDS = 1200.0
"""From a machine that is asked for to one that has claimed the run: pulling an image of 10 GB and
installing take minutes, and a host that takes longer is paid for nothing. Where only commits are a
sign of life, a machine that is up may wait COMMIT_SILENCE_SECONDS more before it takes over."""
HANG_SECONDS = 900.0
"""Without a step though the heartbeat goes on. The run's own watchdog comes first."""
SILENT_SECONDS = 2700.0
"""Without a heartbeat though the machine lives: longer than a run goes on trying to reach its
store before it gives up, since what it has not stored yet would be lost with it."""
UNNOTICED_SECONDS = 300.0
"""SkyPilot sees within 60 to 70 s that a machine has gone."""
LOST_BOOT_SECONDS = 600.0
"""A pod that is lost while it boots SkyPilot waits for without end; a next one it finds sooner."""
SHORT_LIFE_SECONDS = 900.0
SHORT_LIVES = 3
"""So many machines in a row that lived so briefly in one place: it is the place."""
VAIN_LIVES = 5
"""So many in a row that never came to own the run, wherever they were: it is the job."""

Action = Literal["note", "terminate", "relaunch", "cancel"]


@dataclass(frozen=True)
class Place:
    """Where machines of one kind come from, in SkyPilot's words."""

    cloud: str | None
    region: str | None
    gpu: str | None
    spot: bool

    def __str__(self) -> str:
        machine = f"{self.gpu or 'CPU'} {'spot' if self.spot else 'on demand'}"
        return f"{machine} on {'/'.join(filter(None, (self.cloud, self.region))) or 'any cloud'}"


@dataclass(frozen=True)
class Attempt:
    """A machine that was rented at `began` (Unix seconds)."""

    place: Place
    began: float


@dataclass(frozen=True)
class SkyView:
    """What SkyPilot and the provider say.

    Attributes:
        job: the newest managed job of the run; None if SkyPilot knows none.
        pods: RunPod's pods of that job; None if RunPod is not its cloud, or can't be asked.
        gone_since: since when no pod is listed of a job that is RUNNING, or that has had one
            in the status it has now.
        pod_since: when the watcher first saw the newest of those pods that lives.
        attempts: the machines that this job had so far, oldest first.
        place: where its machine is, or was last; None before SkyPilot has said so.
    """

    job: ManagedJob | None
    pods: tuple[Pod, ...] | None = None
    gone_since: float | None = None
    pod_since: float | None = None
    attempts: tuple[Attempt, ...] = ()
    place: Place | None = None


@dataclass(frozen=True)
class RunView:
    """What the run's store says. Times are Unix seconds, by the clock of who wrote them.

    Attributes:
        finished: whether every stage of its job is done.
        stop: why this job was asked to stop, if it was.
        claimed_at: when its owner claimed it; None if nobody owns it.
        beat_at: the owner's last heartbeat.
        stalled_since: since when, by the watcher's clock, heartbeats have come without a new
            step; None while steps come, before the first, and while there is no heartbeat.
        last_sign: the newest time at which any owner showed life.
        heartbeats: False on a store where only commits are a sign of life.
    """

    finished: bool = False
    stop: str | None = None
    claimed_at: float | None = None
    beat_at: float | None = None
    stalled_since: float | None = None
    last_sign: float | None = None
    heartbeats: bool = True


@dataclass(frozen=True)
class Finding:
    """Something wrong: what, why it is thought so, and what is to be done.

    `pods` are to be terminated first; `avoid` is a place not to rent from again.
    """

    what: str
    why: str
    action: Action
    pods: tuple[str, ...] = ()
    avoid: Place | None = None

    @property
    def why_key(self) -> str:
        """The same while the same thing is wrong, though `why` counts the minutes."""
        return " ".join((self.what, *self.pods))


def diagnose(sky: SkyView, run: RunView, now: float) -> list[Finding]:
    """What is wrong at Unix time `now`, the most certain first.

    A run that is finished, or was asked to stop, is left to end, as long as it can: a machine that
    never comes so far is ended with its job, and none is rented for it.
    """
    job, ending = sky.job, run.finished or run.stop is not None
    if job is None or job.status == "CANCELLING":
        return []
    alive = tuple(pod.id for pod in sky.pods or () if pod.alive)
    if not job.live:
        lost = job.status == "FAILED_CONTROLLER"
        return _lost_controller(job, run, alive, now, ending=ending) if lost else []
    if ending and job.status in _WAITING and sky.pods == ():
        waits = Finding("not needed", f"SkyPilot says {job.status}", "cancel")
        return [_end_instead(waits, run)]
    here = _boot(sky, run, job, alive, now) if _is_booting(run, job) else _stuck(run, alive, now)
    if ending:
        return [_end_instead(here, run)] if here is not None and here.what in _NEVER_ENDS else []
    found = [
        _dead_pods(sky, job),
        _unnoticed(sky, job, now),
        _never_starts(sky, run, job) or _bad_place(sky, job, now),
        here,
    ]
    return [finding for finding in found if finding is not None]


_WAITING = ("PENDING", "STARTING", "RECOVERING")
_NEVER_ENDS = ("boot not finished", "silent")
"""What keeps a machine from ever seeing that it is to end."""


def _end_instead(finding: Finding, run: RunView) -> Finding:
    """The same, of a run that needs no other machine."""
    reason = "the run is finished" if run.finished else f"the run was asked to stop ({run.stop})"
    why = f"{finding.why}; {reason}, so no other machine is needed"
    return replace(finding, why=why, action="cancel", avoid=None)


def _dead_pods(sky: SkyView, job: ManagedJob) -> Finding | None:
    """A stopped pod left in the list: SkyPilot fails to read its status, and tries for minutes."""
    dead = tuple(pod for pod in sky.pods or () if not pod.alive)
    if not dead:
        return None
    words = " and ".join(f"pod {pod.id} is {pod.status}" for pod in dead)
    why = f"{words} in RunPod's list while SkyPilot says {job.status}"
    return Finding("dead pod", why, "terminate", tuple(pod.id for pod in dead))


def _unnoticed(sky: SkyView, job: ManagedJob, now: float) -> Finding | None:
    if sky.gone_since is None or sky.pods:
        return None
    gone = now - sky.gone_since
    if gone < (UNNOTICED_SECONDS if job.status == "RUNNING" else LOST_BOOT_SECONDS):
        return None
    why = f"its pod has been gone for {duration(gone)}, and SkyPilot still says {job.status}"
    return Finding("loss not noticed", why, "relaunch")


def _never_starts(sky: SkyView, run: RunView, job: ManagedJob) -> Finding | None:
    """Machines that all go before they own the run, wherever they are: it is not the place."""
    if job.status not in ("RECOVERING", "STARTING"):
        return None
    claimed = run.last_sign or 0.0
    vain = [attempt for attempt in sky.attempts if attempt.began > claimed]
    if len(vain) < VAIN_LIVES:
        return None
    why = (
        f"the last {len(vain)} machines, {', '.join(sorted({str(a.place) for a in vain}))}, went "
        "before they owned the run, which all of them are paid for; why is in the job's output"
    )
    return Finding("it starts nowhere", why, "cancel")


def _bad_place(sky: SkyView, job: ManagedJob, now: float) -> Finding | None:
    """Machines that die young, one after the other, in one place; not while the newest works."""
    if job.status not in ("RECOVERING", "STARTING"):
        return None
    attempts = sky.attempts
    ends = [*(attempt.began for attempt in attempts[1:]), now]
    lives = [
        (attempt.place, end - attempt.began) for attempt, end in zip(attempts, ends, strict=False)
    ]
    last = lives[-SHORT_LIVES:]
    place = attempts[-1].place if attempts else None
    if len(last) < SHORT_LIVES or any(
        where != place or life >= SHORT_LIFE_SECONDS for where, life in last
    ):
        return None
    why = (
        f"the last {SHORT_LIVES} machines were {place} and lived "
        f"{', '.join(duration(life) for _, life in last)}"
    )
    return Finding("bad place", why, "relaunch", avoid=place)


def _is_booting(run: RunView, job: ManagedJob) -> bool:
    """Whether the run is still to be claimed from the machine that the job has, or waits for."""
    if job.status != "RUNNING":
        return True
    running_since = job.recovered_at or job.started_at or job.submitted_at or 0.0
    return run.claimed_at is None or max(run.claimed_at, run.beat_at or 0.0) < running_since


def _boot(
    sky: SkyView, run: RunView, job: ManagedJob, alive: tuple[str, ...], now: float
) -> Finding | None:
    running = job.status == "RUNNING"
    # A pod may come long after it was asked for. Once it runs, SkyPilot says since when.
    pod_since = None if running else sky.pod_since
    times = (
        *(job.submitted_at, job.started_at, job.recovered_at),
        *(pod_since, run.last_sign, run.beat_at),
    )
    waited = now - max((at for at in times if at is not None), default=now)
    waits_for_owner = running and not run.heartbeats
    if waited < BOOT_SECONDS + (COMMIT_SILENCE_SECONDS if waits_for_owner else 0.0):
        return None
    since = f"for {duration(waited)} nothing was heard of the run"
    if running:
        why = f"{since}, and SkyPilot says RUNNING: the machine does not come to start it"
        return _give_up_machine("boot not finished", why, alive)
    if alive:
        # SkyPilot waits for this very pod, and would for ever, even if it were terminated.
        why = f"{since}, and pod {alive[0]} is up but not reachable: its boot has not finished"
        return Finding("boot not finished", why, "relaunch", alive, avoid=sky.place)
    why = (
        f"{since}: SkyPilot says {job.status} and has found no machine. Nothing is paid meanwhile; "
        "more kinds of GPU, or on-demand ones, are found sooner (`pion hop RUN --on SKY`)"
    )
    return Finding("no machine to be had", why, "note")


def _stuck(run: RunView, alive: tuple[str, ...], now: float) -> Finding | None:
    """A machine that runs, and a run on it that does not."""
    if run.beat_at is None or not run.heartbeats:
        return None  # nothing but commits can be seen, and those may be an hour apart
    silent = now - run.beat_at
    if silent >= SILENT_SECONDS:
        why = f"no heartbeat for {duration(silent)} though the machine lives"
        return _give_up_machine("silent", why, alive)
    if run.stalled_since is not None and now - run.stalled_since >= HANG_SECONDS:
        stalled = duration(now - run.stalled_since)
        why = f"the heartbeat goes on, but there was no step for {stalled}"
        return _give_up_machine("hang", why, alive)
    return None


def _give_up_machine(what: str, why: str, alive: Sequence[str]) -> Finding:
    """Without its pod SkyPilot recovers the job by itself; elsewhere it is started anew."""
    action: Action = "terminate" if alive else "relaunch"
    return Finding(what, why, action, tuple(alive))


def _lost_controller(
    job: ManagedJob, run: RunView, alive: tuple[str, ...], now: float, *, ending: bool
) -> list[Finding]:
    """Nobody looks after the job, though the run may go on: on its machine, or on another's."""
    if "Failed to clean up" in (job.failure or ""):
        # So SkyPilot calls any job whose machine it could not end, one that was cancelled too.
        why = f"SkyPilot could not end the machine of a job that is over ({job.failure})"
        return [Finding("left behind", why, "terminate" if alive else "note", alive)]
    why = f"SkyPilot's controller failed, so nobody recovers the run ({job.failure or 'unsaid'})"
    if _at_work(run, alive, now):
        return [Finding("controller lost", f"{why}; it is at work still", "note")]
    if not ending:
        return [Finding("controller lost", why, "relaunch", alive)]
    return [Finding("left behind", f"{why}, nor ends its machine", "terminate", alive)] * bool(
        alive
    )


def _at_work(run: RunView, alive: tuple[str, ...], now: float) -> bool:
    """Whether the run's owner may have work to lose."""
    if not run.heartbeats:
        recent = run.last_sign is not None and now - run.last_sign < COMMIT_SILENCE_SECONDS
        return run.claimed_at is not None and recent
    silence = SILENT_SECONDS if alive else SILENCE_SECONDS
    return run.beat_at is not None and now - run.beat_at < silence
