"""The lines that a user sees of a rented run: what changes, how it ended, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pion.errors import Stopped
from pipeline.console.formats import duration, money, printable
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.state.run_state import RunState

if TYPE_CHECKING:  # `pion launch` shows no look, and needs what a look needs only afterwards
    from pipeline.rent.managed.look.look import Look

# Seconds between two lines that only differ in the step.
STEP_LINE_SECONDS = 60.0


def changes(before: Look | None, now: Look) -> list[str]:
    """Return a line for each difference from `before`: job, owner, stages, steps, requests.

    `before` is the look for which the caller last printed a line.
    """
    told = [] if before is None else _job_lines(before)
    lines = [line for line in _job_lines(now) if line not in told]
    old, new = (before.status if before else None) or {}, now.status or {}
    if new.get("owner") and _host(new) != _host(old):
        lines.append(f"{_host(new)} owns the run (epoch {new['epoch']})")
    done = [s for s, about in old.get("stages", {}).items() if about["state"] == "done"]
    lines += [
        f"{stage}: done"
        for stage, about in new.get("stages", {}).items()
        if about["state"] == "done" and stage not in done
    ]
    if new.get("stop") and not old.get("stop"):
        lines.append(f"asked to stop: {new['stop']['reason']} by {new['stop']['user']}")
    step = _step_line(new)
    if step and step != _step_line(old):
        step += _cost(now.dollars)
        recent = before is not None and now.at - before.at < STEP_LINE_SECONDS
        if lines or not recent or _stage(new) != _stage(old):
            lines.append(step)
    return [printable(line) for line in lines]


def how_it_ended(job: ManagedJob, dollars: float | None) -> tuple[int, str]:
    """Return the exit code for a managed job that has ended, and a message for the user."""
    cost = _cost(dollars)
    logs = f"Its output: sky jobs logs {job.id}"
    if job.status == "SUCCEEDED":
        return 0, f"managed job {job.id} is done{cost}"
    code = job.exit_code
    if code == Stopped.exit_code:
        return code, f"stopped, with its state saved{cost}. {logs}"
    if code is not None and code != 0:
        return code, f"managed job {job.id} failed with exit code {code}{cost}. {logs}"
    why = f": {job.failure}" if job.failure else ""
    return 1, printable(f"managed job {job.id} stopped with status {job.status}{cost}{why}. {logs}")


def _job_lines(look: Look) -> list[str]:
    """Return a line for each job, with its number. The one that is followed comes last."""
    return [job_line(each.job) for each in (*look.of_jobs[1:], look.followed)]


def job_line(job: ManagedJob) -> str:
    """Return `managed job 7: RUNNING on RunPod CA, 1x(A40:1, …), recovered 2 times`."""
    words = f"managed job {job.id}: {job.status}"
    if job.place and job.live:
        words += f", last on {job.place}" if job.status == "RECOVERING" else f" on {job.place}"
    if job.recoveries:
        words += f", recovered {job.recoveries} time{'s' if job.recoveries > 1 else ''}"
    return words


def what_comes_next(stage: str) -> str:
    """Return which stage of a run is next, and the command that rents for it."""
    return f"next: {stage}. Rent a machine for it: pion launch JOB --on SKY"


def how_to_come_back(state: RunState, job_id: int) -> str:
    """Return the three commands that a user needs after closing the window."""
    run = state.url
    return (
        f"  follow it:  pion watch {run}\n"
        f"  its output: sky jobs logs {job_id}\n"
        f"  stop it:    pion stop {run}   (if no machine owns the run yet: sky jobs cancel "
        f"{job_id})"
    )


def _step_line(status: Mapping[str, Any]) -> str:
    progress = status.get("progress")
    if not status.get("owner") or not progress or "step" not in progress:
        return ""
    steps = f"/{progress['steps']:,}" if progress.get("steps") else ""
    words = [f"{progress.get('stage')} step {progress['step']:,}{steps}"]
    if progress.get("loss") is not None:
        words.append(f"loss {progress['loss']:.4f}")
    if progress.get("tokens_per_second"):
        words.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
    if progress.get("eta"):
        words.append(f"{duration(progress['eta'])} left")
    checkpoint = status.get("checkpoint")
    if checkpoint:
        words.append(f"saved: {checkpoint['stage']} step {checkpoint['step']:,}")
    return ", ".join(words)


def _cost(dollars: float | None) -> str:
    """Return ` ($0.12 so far)`; nothing if no price is known."""
    return f" ({money(dollars)} so far)" if dollars else ""


def _host(status: Mapping[str, Any]) -> str | None:
    owner = status.get("owner")
    return f"pid {owner['pid']} on {owner['host']}" if owner else None


def _stage(status: Mapping[str, Any]) -> str | None:
    return (status.get("progress") or {}).get("stage")
