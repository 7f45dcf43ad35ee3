"""Find what is wrong with a rented run, from SkyPilot's status, RunPod's list and the heartbeat.

Nothing here asks or changes anything, or reads a clock: the same views always give the same
findings.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.console.formats import duration, money
from pipeline.cost.budget import SAID_ABOVE
from pipeline.machine.gpus import sky_names
from pipeline.machine.rented import CPU, PRICES_VARIABLE, planned_prices
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS, ManagedJob, Place
from pipeline.rent.managed.provider.pods import Pod
from pipeline.rent.managed.provider.recorded_task import variable_of
from pipeline.state.liveness import is_silent
from pipeline.state.run_state import COMMIT_SILENCE_SECONDS, SILENCE_SECONDS

# Without a step although the heartbeat continues. The run's own watchdog acts earlier.
HANG_SECONDS = 900.0
# Without a heartbeat although the machine is up. A run that can't reach its store gives up earlier.
# Until then, ending the machine would lose work that is not stored yet.
SILENT_SECONDS = 2700.0
# SkyPilot normally notices within 60 to 70 s that a machine is gone.
UNNOTICED_SECONDS = 300.0
# If a pod is lost while it boots, SkyPilot waits for it forever.
LOST_BOOT_SECONDS = 600.0
# If SHORT_LIVES machines in a row in one place live shorter than this, the place is to blame.
SHORT_LIFE_SECONDS = 900.0
SHORT_LIVES = 3
# If this many machines in a row, in any place, never claim the run, the job is to blame.
FUTILE_LIVES = 5

Action = Literal["note", "terminate", "relaunch", "cancel"]


@dataclass(frozen=True)
class Attempt:
    """A machine that was rented at `began` (Unix seconds)."""

    place: Place
    began: float


@dataclass(frozen=True)
class SkyView:
    """What SkyPilot and the provider say.

    Attributes:
        job: a managed job of the run.
        pods: the job's pods at RunPod; None if the job is on another cloud, or RunPod can't be
            asked.
        gone_since: since when the job lacks a pod, although it is RUNNING or had a pod before in
            its present status.
        pod_since: when the watcher first saw the newest live pod.
        attempts: the machines that this job has had so far, oldest first.
        place: the place of the job's present or last machine; None if SkyPilot has not said yet.
    """

    job: ManagedJob
    pods: tuple[Pod, ...] | None = None
    gone_since: float | None = None
    pod_since: float | None = None
    attempts: tuple[Attempt, ...] = ()
    place: Place | None = None


@dataclass(frozen=True)
class RunView:
    """What the run's store says. Times are Unix seconds, by the clock of their writer.

    Attributes:
        finished: whether the rental has no more to do: every stage of the run's job is done, or
            those up to `until`.
        until: the stage after which the rental ends; None: the last.
        stop: the reason of a request to stop this job; None without a request.
        claimed_at: when the owner claimed the run; None if nobody owns it.
        beat_at: when the owner's last heartbeat was written.
        stalled_since: since when, by the watcher's clock, there were heartbeats without a new
            step; None while steps continue, before the first step, and without heartbeats.
        last_sign: when any owner last showed life.
        heartbeats: False on a store where only commits are a sign of life.
    """

    finished: bool = False
    until: str | None = None
    stop: str | None = None
    claimed_at: float | None = None
    beat_at: float | None = None
    stalled_since: float | None = None
    last_sign: float | None = None
    heartbeats: bool = True


@dataclass(frozen=True)
class Finding:
    """A problem: what is wrong, the evidence, and what to do about it.

    `pods` are terminated first. `avoid` is a place not to rent from again.
    """

    what: str
    why: str
    action: Action
    pods: tuple[str, ...] = ()
    avoid: Place | None = None

    @property
    def key(self) -> str:
        """A key that stays the same while the problem lasts; the minutes in `why` change."""
        return " ".join((self.what, *self.pods))


def diagnose(sky: SkyView, run: RunView, now: float) -> list[Finding]:
    """Return what is wrong at Unix time `now`, the most certain finding first.

    A run that is finished, or was asked to stop, ends by itself. A machine that can't end by itself
    is terminated with its job and not replaced.
    """
    job, ending = sky.job, run.finished or run.stop is not None
    if job.status == "CANCELLING":
        return []
    alive = tuple(pod.id for pod in sky.pods or () if pod.alive)
    if not job.live:
        lost = job.status == "FAILED_CONTROLLER"
        return _lost_controller(job, run, alive, now, ending=ending) if lost else []
    waits, gone = job.status in _WAITING, sky.pods == ()
    # After a while without its server, SkyPilot finds the machine gone, and rents another. A run
    # that was asked to stop may still save, and RunPod's list may be wrong.
    if (run.finished and (waits or gone)) or (ending and waits and gone):
        but = "" if waits else ", but its machine is gone"
        futile = Finding("not needed", f"SkyPilot says {job.status}{but}", "cancel", alive)
        return [_end_instead(futile, run)]
    booting = _is_booting(run, job)
    here = _slow_boot(sky, run, job, alive, now) if booting else _stuck(run, alive, now)
    if ending:
        return [_end_instead(here, run)] if here is not None and here.what in _NEVER_ENDS else []
    between = job.status in ("RECOVERING", "STARTING")
    found = [
        _dead_pods(sky, job),
        _unnoticed_loss(sky, job, now),
        (_never_starts(sky, run) or _bad_place(sky, now)) if between else None,
        here,
    ]
    return [finding for finding in found if finding is not None]


_WAITING = ("PENDING", "STARTING", "RECOVERING")
# Findings whose machine will never notice that it should end.
_NEVER_ENDS = ("boot not finished", "silent")


def _end_instead(finding: Finding, run: RunView) -> Finding:
    """Return the finding for a run that needs no other machine."""
    done = "The run is finished" if run.until is None else f"The run has done {run.until}"
    reason = done if run.finished else f"The run was asked to stop ({run.stop})"
    why = f"{finding.why}. {reason}, so Pion will not rent a new machine"
    return replace(finding, why=why, action="cancel", avoid=None)


def _dead_pods(sky: SkyView, job: ManagedJob) -> Finding | None:
    """Find stopped pods in the list. SkyPilot can't read their status, and retries for minutes."""
    dead = tuple(pod for pod in sky.pods or () if not pod.alive)
    if not dead:
        return None
    words = " and ".join(f"pod {pod.id} is {pod.status}" for pod in dead)
    why = f"{words} in RunPod's list while SkyPilot says {job.status}"
    return Finding("dead pod", why, "terminate", tuple(pod.id for pod in dead))


def _unnoticed_loss(sky: SkyView, job: ManagedJob, now: float) -> Finding | None:
    """Find a pod that is gone while SkyPilot still counts on it."""
    if sky.gone_since is None or sky.pods:
        return None
    gone = now - sky.gone_since
    if gone < (UNNOTICED_SECONDS if job.status == "RUNNING" else LOST_BOOT_SECONDS):
        return None
    why = f"its pod has been gone for {duration(gone)}, but SkyPilot still says {job.status}"
    return Finding("loss not noticed", why, "relaunch")


def _never_starts(sky: SkyView, run: RunView) -> Finding | None:
    """Find machines, in any place, that all end before they own the run."""
    claimed = run.last_sign or 0.0
    places = [attempt.place for attempt in sky.attempts if attempt.began > claimed]
    # SkyPilot also counts those that ended between two looks, or before the first.
    count = len(places) if claimed else max(len(places), sky.job.recoveries + 1)
    if count < FUTILE_LIVES:
        return None
    where = ", ".join(sorted({str(place) for place in (*places, sky.place) if place is not None}))
    why = (
        f"the last {count} machines ({where}) stopped before they owned the run, and "
        f"each machine cost money. To see why, run: sky jobs logs {sky.job.id}"
    )
    return Finding("it never starts", why, "cancel")


def _bad_place(sky: SkyView, now: float) -> Finding | None:
    """Find machines that died early in one place, one after the other, including the newest."""
    last = sky.attempts[-SHORT_LIVES:]
    if len(last) < SHORT_LIVES or len({attempt.place for attempt in last}) > 1:
        return None
    begins = [*(attempt.began for attempt in last), now]
    lives = [end - begin for begin, end in itertools.pairwise(begins)]
    if max(lives) >= SHORT_LIFE_SECONDS:
        return None
    place = last[-1].place
    why = (
        f"the last {SHORT_LIVES} machines were {place} and lived {', '.join(map(duration, lives))}"
    )
    return Finding("bad place", why, "relaunch", avoid=place)


def _is_booting(run: RunView, job: ManagedJob) -> bool:
    """Return whether the machine that the job has or waits for has not claimed the run yet."""
    if job.status != "RUNNING":
        return True
    running_since = job.recovered_at or job.started_at or job.submitted_at or 0.0
    return run.claimed_at is None or max(run.claimed_at, run.beat_at or 0.0) < running_since


def _slow_boot(
    sky: SkyView, run: RunView, job: ManagedJob, alive: tuple[str, ...], now: float
) -> Finding | None:
    """Find a machine that takes too long to start the run, or a search that finds no machine."""
    running = job.status == "RUNNING"
    times = [job.submitted_at, job.started_at, job.recovered_at, run.last_sign, run.beat_at]
    if not running:
        times.append(sky.pod_since)  # it may come long after the request
    waited = now - max((at for at in times if at is not None), default=now)
    waits_for_owner = running and not run.heartbeats
    if waited < BOOT_SECONDS + (COMMIT_SILENCE_SECONDS if waits_for_owner else 0.0):
        return None
    since = f"no sign of the run for {duration(waited)}"
    if running:
        why = f"SkyPilot says RUNNING, but there has been {since}. The run has not started there"
        return _give_up_machine("boot not finished", why, alive)
    if alive:
        # SkyPilot waits for this pod, and would keep waiting even if the pod were terminated.
        why = f"{since}, and pod {alive[0]} is up but can't be reached. The boot has not finished"
        return Finding("boot not finished", why, "relaunch", alive, avoid=sky.place)
    why = (
        f"{since}: SkyPilot says {job.status} and has found no machine. Waiting costs nothing. "
        "Allow more kinds of GPU, or on-demand machines, to find one sooner (`pion hop RUN --on "
        "SKY`)"
    )
    return Finding("no machine available", why, "note")


def _stuck(run: RunView, alive: tuple[str, ...], now: float) -> Finding | None:
    """Find a run that does not advance although its machine runs."""
    if run.beat_at is None or not run.heartbeats:
        return None  # only commits are visible, and they may be an hour apart
    silent = now - run.beat_at
    if silent >= SILENT_SECONDS:
        why = f"the machine is up, but there has been no heartbeat for {duration(silent)}"
        return _give_up_machine("silent", why, alive)
    if run.stalled_since is not None and now - run.stalled_since >= HANG_SECONDS:
        stalled = duration(now - run.stalled_since)
        why = f"the heartbeat continues, but there has been no step for {stalled}"
        return _give_up_machine("hang", why, alive)
    return None


def _give_up_machine(what: str, why: str, alive: tuple[str, ...]) -> Finding:
    """Return a finding that ends the machine, or restarts the job if there is no pod to end."""
    # SkyPilot recovers a job by itself once its pod is gone.
    return Finding(what, why, "terminate" if alive else "relaunch", alive)


def _lost_controller(
    job: ManagedJob, run: RunView, alive: tuple[str, ...], now: float, *, ending: bool
) -> list[Finding]:
    """Find what to do if the job's controller failed. The run may still be at work."""
    if "Failed to clean up" in (job.failure or ""):
        # SkyPilot says this of any job whose machine it could not end, even a cancelled job.
        why = f"the job is over, but SkyPilot could not terminate its machine ({job.failure})"
        return [Finding("left behind", why, "terminate" if alive else "note", alive)]
    reason = job.failure or "no reason given"
    why = f"SkyPilot's controller failed ({reason}), so nothing recovers the run"
    if may_be_at_work(run, alive, now):
        return [Finding("controller lost", f"{why}. The run is still running", "note")]
    if not ending:
        return [Finding("controller lost", why, "relaunch", alive)]
    if not alive:
        return []
    return [Finding("left behind", f"{why} or terminates its machine", "terminate", alive)]


def may_be_at_work(run: RunView, alive: tuple[str, ...], now: float) -> bool:
    """Return whether the run's owner may have unsaved work."""
    if not run.heartbeats:
        recent = not is_silent(run.last_sign, now, COMMIT_SILENCE_SECONDS)
        return run.claimed_at is not None and recent
    return not is_silent(run.beat_at, now, SILENT_SECONDS if alive else SILENCE_SECONDS)


def dear_pods(sky: SkyView) -> list[Finding]:
    """Return a finding for each pod that costs more than planned.

    Nothing is to be done: a machine asks RunPod itself, also while nobody watches, and refuses to
    start a run for which it is too expensive.
    """
    if not sky.job.live:
        return []
    prices = planned_prices({PRICES_VARIABLE: variable_of(sky.job, PRICES_VARIABLE) or ""})
    return [
        Finding(
            "higher price",
            f"pod {pod.id} costs {money(pod.price)} per hour, {pod.price / planned:.2f} times the "
            f"planned {money(planned)}. Costs are counted with the higher price. Above "
            "budget.price_tolerance or max_hourly_cost, the run does not start there",
            "note",
            (pod.id,),
        )
        for pod in sky.pods or ()
        if pod.alive
        and pod.price is not None
        and (planned := _planned(pod, prices))
        and pod.price > SAID_ABOVE * planned
    ]


def _planned(pod: Pod, prices: dict[str, float]) -> float | None:
    names = [CPU] if pod.gpu is None else [pod.gpu, *sky_names(pod.gpu)]
    return next((prices[name] for name in names if name in prices), None)
