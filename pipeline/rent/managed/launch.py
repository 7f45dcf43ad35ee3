"""`pion launch`: check, rent a machine as a SkyPilot managed job, and follow the run on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.console.formats import duration
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.rent.credentials import secrets_for, wanted_secrets
from pipeline.rent.managed.cheapest_first import only
from pipeline.rent.managed.managed_jobs import (
    ManagedJob,
    controller_is_here,
    managed_jobs,
    start_api_server,
    submit,
)
from pipeline.rent.managed.names import rental_name
from pipeline.rent.managed.progress import how_to_come_back, say_now
from pipeline.rent.managed.submission import announced, submitting_alone
from pipeline.rent.managed.task import make_task, task_config, task_variables, task_yaml
from pipeline.rent.sky_yaml import SkyYaml, read_sky_yaml
from pipeline.state.owner import Owner, is_running
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.run_status import is_finished, last_change
from pipeline.state.stop_requests import clear_stops
from pipeline.state.stores import open_store
from pipeline.state.stores.verdict import before_work

SUBMITTING = "submitting the job; SkyPilot gets a copy of the checkout"


def launch(job: str, overrides: Sequence[str], *, on: str, dry_run: bool, force: bool) -> int:
    """Rent what the SkyPilot YAML `on` asks for, run `job` there until it is done, and show it.

    Of its candidates only those that will do for the job are left to SkyPilot, if there are any.
    Returns the run's exit code; 0 if the person leaves with Ctrl-C, as the rental goes on. With
    `dry_run` prints the task that SkyPilot would get. `force` rents in spite of warnings.

    Raises:
        BadInput: something would fail, or the run is already running; nothing was rented.
    """
    from pipeline.rent.check.candidates import fitting
    from pipeline.rent.managed.watch import follow_or_leave

    sky_yaml = read_sky_yaml(on)
    parsed = load_job(job, overrides)
    rented = only(sky_yaml, fitting(parsed, sky_yaml, force=force))
    state = RunState(open_store(parsed.store), parsed.name)
    name = rental_name(state.store.url, state.name)
    envs = task_variables(rented, parsed, job, overrides)
    config = task_config(rented, name, envs, parsed.prices)
    if dry_run:
        print(task_yaml(config))
        return 0
    check(parsed, sky_yaml, path=job, force=force)
    with before_work("Nothing was rented."):
        head = state.read()
        if head is not None and _is_done(state, head, parsed):
            say_now(f"{state.name} is finished: nothing was rented. See: pion status {state.url}")
            return 0
        secrets = secrets_for(sky_yaml.secrets, wanted=wanted_secrets(parsed))
        start_api_server(say_now)
        job_id = _submit(state, config, secrets, force=force)
    announce(state, name, job_id)
    return follow_or_leave(state, name, job_id)


def _submit(
    state: RunState, config: Mapping[str, Any], secrets: Mapping[str, str], *, force: bool
) -> int:
    """Rent a machine for the run with the task of `config`; return the managed job's number."""
    name = config["name"]
    with submitting_alone(name):
        head = state.read()  # the server may have taken its time to start
        refuse_second(state, head, managed_jobs(name))
        with announced(state, head, config["envs"]["PION_LAUNCH_ID"], force=force):
            if clear_stops(state):
                say_now("cleared a request to stop this run")
            say_now(SUBMITTING)
            task = make_task(config, secrets)
            with telling_who_leaves(state, name):
                return submit(task, name)


def check(job: Job, sky_yaml: SkyYaml, *, path: str, force: bool) -> None:
    """Print what `pion check` finds of the job in the file `path`.

    Raises BadInput if the run would fail on that rental.
    """
    from pipeline.rent.check.command import print_rows, run_checks

    rows = run_checks(job, sky_yaml, path=path, force=force)
    print_rows(rows)
    failed = [row.name for row in rows if row.ok is False]
    if failed:
        raise BadInput(f"{', '.join(failed)}: see above. Nothing was rented.")


# ---------------------------------------------------------------- one run, one rental


def refuse_second(state: RunState, head: Head | None, jobs: Sequence[ManagedJob]) -> None:
    """Raise BadInput if the run is being worked on already, on a rental or elsewhere."""
    run = state.url
    living = [job for job in jobs if job.live]
    if living:
        raise BadInput(
            f"{state.name} is rented already: managed job {living[0].id} is {living[0].status}"
            f"{f' on {living[0].place}' if living[0].place else ''}. Follow it: `pion watch {run}`."
            f" Move it to another machine: `pion hop {run} --on SKY`. Nothing was rented."
        )
    age = owner_age(state, head)
    if age is not None and age < state.silence:
        raise BadInput(
            f"{state.name} is being run by {_owner(head)}, whose last sign of life is "
            f"{duration(age)} old; a rental would cost money waiting for it. Move it there: "
            f"`pion hop {run} --on SKY`, or stop it first: `pion stop {run} --wait`. "
            "Nothing was rented."
        )


def owner_age(state: RunState, head: Head | None) -> float | None:
    """Seconds since the owner's last sign of life; None if nobody owns the run, or it is dead."""
    if head is None or head.owner is None or is_running(head.owner, Owner.me()) is False:
        return None
    beat = state.heartbeat(head.epoch)
    at = beat["at"] if beat else last_change(head)
    return max(0.0, state.clock.now() - at)


@contextlib.contextmanager
def telling_who_leaves(state: RunState, name: str) -> Iterator[None]:
    """Say what may come of a job that was being submitted when a person pressed Ctrl-C, or
    SkyPilot's answer was lost."""
    try:
        yield
    except BadInput:
        raise  # it was refused
    except (KeyboardInterrupt, PionError) as error:
        run = state.url
        left = "left" if isinstance(error, KeyboardInterrupt) else "something failed"
        say_now(
            f"\n{left} while submitting {name}: SkyPilot may go on, and rent a machine\n"
            f"  in a minute:  pion watch {run}\n"
            f"  is it rented: pion rentals {run}\n"
            "  call it off:  sky jobs queue, then sky jobs cancel NUMBER"
        )
        raise


def announce(state: RunState, name: str, job_id: int) -> None:
    """Say what was rented, how to look at it and to end it, and which machine must stay awake."""
    say_now(f"managed job {job_id} ({name}) is submitted; from here on it runs without this window")
    say_now(how_to_come_back(state, job_id))
    if controller_is_here():
        say_now(
            "this machine must stay awake and online: SkyPilot's controller, which recovers the "
            "run after a preemption and ends its machines, runs here"
        )


def _owner(head: Head | None) -> str:
    return head.owner.describe() if head is not None and head.owner is not None else "nobody"


def _is_done(state: RunState, head: Head, job: Job) -> bool:
    from pipeline.job.digest import digest_job

    digests = digest_job(job).stages
    done = all(s in head.stages and head.stages[s].digest == digests[s] for s in job.stages)
    return done and is_finished(state, head)
