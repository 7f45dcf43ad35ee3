"""`pion launch`: check, rent a machine as a SkyPilot managed job, and follow the run on it."""

from __future__ import annotations

from collections.abc import Sequence

from pion.errors import BadInput
from pipeline.base.job_with_base import read_job
from pipeline.console.formats import duration, show
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job.digest import digest_job
from pipeline.job.stages import stages_until
from pipeline.rent.credentials import wanted_secrets
from pipeline.rent.deadline.at_launch import deadline_of, refuse_past
from pipeline.rent.managed.look.progress import how_to_come_back, what_comes_next
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.provider.recorded_task import MACHINES
from pipeline.rent.managed.provider.task import task_yaml
from pipeline.rent.managed.request import (
    JobFile,
    Order,
    make_order,
    require_checks,
    submit_order,
    submitting_alone,
)
from pipeline.rent.sky_yaml import read_sky_yaml, until_of, with_until
from pipeline.state.head import Head
from pipeline.state.liveness import owner_of
from pipeline.state.run_state import RunState
from pipeline.state.status.run_status import is_finished
from pipeline.state.stores import open_store
from pipeline.state.stores.errors import before_work


def launch(
    job: str,
    overrides: Sequence[str],
    *,
    on: str,
    dry_run: bool,
    force: bool,
    until: str | None = None,
) -> int:
    """Rent a machine with the SkyPilot YAML `on`, run `job` there until it is done, and show it.

    Return the run's exit code, or 0 after Ctrl-C, because the rental continues. `dry_run` prints
    the task that SkyPilot would get, without reading the store: of a deadline, it knows what the
    job says. `force` rents in spite of warnings. The rental ends after the stage `until`; None: as
    the YAML says, or after the last.

    Raises:
        BadInput: something would fail, or the run is already running; nothing was rented.
    """
    provider = Provider()
    with saying_if_slow(f"reading {job}; SkyPilot reads {on} and its list of GPUs"):
        job_file = JobFile(job, overrides, read_job(job, overrides))
        sky_yaml = with_until(read_sky_yaml(on), job_file.job, until)
    state = RunState(open_store(job_file.job.store), job_file.job.name)
    refuse_past(job, overrides, job_file.job)
    has_deadline = job_file.job.deadline is not None
    if not dry_run:
        with before_work("Nothing was rented."):
            has_deadline = deadline_of(state, job_file.job) is not None
    order = make_order(state, job_file, sky_yaml, force=force, deadline=has_deadline)
    if dry_run:
        show(task_yaml(order.config, wanted_secrets(job_file.job)))
        return 0
    require_checks(order, force=force)
    from pipeline.rent.managed.watch import follow_or_leave  # before anything costs money

    with before_work("Nothing was rented."):
        head = state.read()
        if head is not None and (done := _done(state, head, order)):
            show(done)
            return 0
        job_id = rent_order(order, provider, force=force)
    say_rented(order, job_id, provider)
    return follow_or_leave(state, order.name, job_id, provider)


def rent_order(order: Order, provider: Provider, *, force: bool) -> int:
    """Submit the order and return its managed job.

    Raises BadInput if the run is already rented or running.
    """
    state, secrets = order.state, order.secrets()
    provider.start(show)
    with submitting_alone(order.name):
        head = state.read()  # again, since starting the server may have taken a while
        refuse_second(state, head, provider.managed_jobs(order.name))
        job_id, _ = submit_order(order, secrets, head, provider, force=force)
        return job_id


def refuse_second(state: RunState, head: Head | None, jobs: Sequence[ManagedJob]) -> None:
    """Raise BadInput if a rental or another process already works on the run."""
    run = state.url
    if living := next((job for job in jobs if job.live), None):
        raise BadInput(
            f"{state.name} is already rented: managed job {living.id} is {living.status}"
            f"{f' on {living.place}' if living.place else ''}. Follow it: `pion watch {run}`."
            f" Move it to another machine: `pion hop {run} --on SKY`. Nothing was rented."
        )
    owner = owner_of(state, head)
    if head is not None and head.owner is not None and owner.life == "alive":
        age = max(0.0, state.clock.now() - owner.at)
        raise BadInput(
            f"{state.name} is being run by {head.owner.describe()}, whose last sign of life was "
            f"{duration(age)} ago. A rental would cost money while it waits for that owner. Move "
            f"the run to a rental: `pion hop {run} --on SKY`, or stop it first: `pion stop {run} "
            "--wait`. Nothing was rented."
        )


def say_rented(order: Order, job_id: int, provider: Provider) -> None:
    """Print what was rented, how to follow and stop it, and whether this machine may sleep."""
    show(f"managed job {job_id} ({order.name}) is submitted; it continues if you close this window")
    show(how_to_come_back(order.state, job_id))
    envs = order.config["envs"]
    if not provider.controller_is_here():
        return
    if envs.get("PION_SPOT") == "0" and MACHINES not in envs:
        show(
            "keep this machine awake and online until a machine owns the run. After that, it may "
            "sleep: the rented machine ends itself ten minutes after the run"
        )
    else:
        show(
            "keep this machine awake and online: SkyPilot's controller runs here, and while it "
            "sleeps, nothing replaces a preempted machine"
        )


def _done(state: RunState, head: Head, order: Order) -> str:
    """Return the message that the rental has nothing to do; empty if it has.

    The job may differ from the run's recorded job.
    """
    job, until = order.job_file.job, until_of(order.sky_yaml)
    digests = digest_job(job).stages
    todo = [s for s in job.stages if s not in head.stages or head.stages[s].digest != digests[s]]
    if not todo and is_finished(state, head):
        return f"{state.name} is finished: nothing was rented. See: pion status {state.url}"
    wanted = stages_until(job.stages, until)
    if not todo or until is None or not set(wanted).isdisjoint(todo):
        return ""
    return (
        f"{state.name} has done {', '.join(wanted)}: nothing was rented. {what_comes_next(todo[0])}"
    )
