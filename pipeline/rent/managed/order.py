"""Prepare, check and submit what `pion launch` and `pion hop` rent: a job and its machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.base.read_job import read_job
from pipeline.console.out import saying_if_slow
from pipeline.job import Job
from pipeline.rent.check.candidates import fitting
from pipeline.rent.credentials import secrets_for, wanted_secrets
from pipeline.rent.deadline.of_run import held_back
from pipeline.rent.managed.cheapest_first import with_candidates
from pipeline.rent.managed.markets import MACHINES, machines_in_words
from pipeline.rent.managed.names import rental_name
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.say import say_now
from pipeline.rent.managed.task import make_task, task_config, task_variables
from pipeline.rent.recorded_secrets import refuse_recorded_secrets
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.rent.until import trains
from pipeline.state.run_state import RunState


@dataclass(frozen=True)
class JobFile:
    """A job, and the file and overrides that it was read from."""

    path: str
    overrides: Sequence[str]
    job: Job

    @classmethod
    def load(cls, path: str, overrides: Sequence[str]) -> JobFile:
        """Read a job file. Raises BadInput for a job with mistakes."""
        return cls(path, overrides, read_job(path, overrides))


@dataclass(frozen=True)
class Order:
    """A run and the machines to rent for it.

    `config` is SkyPilot's task, complete except for the values of its secrets. Of the machines in
    `sky_yaml`, it only allows those that will do for the job, if there are any.
    """

    state: RunState
    name: str
    launch_id: str
    job_file: JobFile
    sky_yaml: SkyYaml
    config: Mapping[str, Any] = field(repr=False)

    def secrets(self) -> dict[str, str]:
        """Return the values of the task's secrets. Raises BadInput if one is not set here."""
        wanted = wanted_secrets(self.job_file.job)
        return secrets_for(self.sky_yaml.secrets, wanted=wanted)


def make_order(
    state: RunState,
    job_file: JobFile,
    sky_yaml: SkyYaml,
    *,
    force: bool,
    deadline: bool,
    variables: Mapping[str, str] | None = None,
) -> Order:
    """Return the order to run a job on the machines of `sky_yaml`.

    `force` accepts spot prices above the on-demand price. With a `deadline`, machines on demand are
    held back: the task only names them, for the watcher. `variables` are added to the task's.
    Raises BadInput if the job file would not be copied to the machine, or if SkyPilot's record of
    the task would show a secret.
    """
    job = job_file.job
    with saying_if_slow("asking SkyPilot which of these machines fit, and what they cost"):
        accepted = with_candidates(sky_yaml, fitting(job, sky_yaml, force=force))
    more = dict(variables or {})
    if deadline and trains(sky_yaml, job):
        wanted, kept = held_back(accepted)
        if kept:
            more[MACHINES] = machines_in_words(accepted.candidates)
        accepted = with_candidates(accepted, wanted)
    envs = task_variables(accepted, job, job_file.path, job_file.overrides)
    envs.update(more)
    name = rental_name(state.store.url, state.name)
    config = task_config(accepted, name, envs, job.prices)
    refuse_recorded_secrets(config, "the task")
    return Order(state, name, envs["PION_LAUNCH_ID"], job_file, sky_yaml, config)


def require_checks(order: Order, *, force: bool) -> None:
    """Print what `pion check` finds. Raises BadInput if the run would fail on those machines."""
    from pipeline.rent.check.command import asked_by_checks, print_rows, run_checks

    job_file = order.job_file
    with saying_if_slow(asked_by_checks(job_file.job, order.sky_yaml)):
        rows = run_checks(job_file.job, order.sky_yaml, path=job_file.path, force=force)
    print_rows(rows)
    failed = [row.name for row in rows if row.ok is False]
    if failed:
        raise BadInput(f"{', '.join(failed)}: see above. Nothing was rented.")


def submit_order(order: Order, secrets: Mapping[str, str], provider: Provider) -> int:
    """Submit the task; return the number of its managed job.

    Raises BadInput if SkyPilot refuses the task, and PionError if SkyPilot may have accepted it.
    """
    say_now("submitting the job; SkyPilot copies the checkout")
    task = make_task(order.config, secrets)
    with _warning_who_leaves(order):
        return provider.submit(task, order.name)


@contextlib.contextmanager
def _warning_who_leaves(order: Order) -> Iterator[None]:
    """Warn that a machine may still be rented after Ctrl-C, or if SkyPilot's answer was lost."""
    try:
        yield
    except BadInput:
        raise  # SkyPilot refused the job, so nothing will be rented
    except (KeyboardInterrupt, PionError) as error:
        run = order.state.url
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else "something failed"
        say_now(
            f"\n{what} while submitting {order.name}: SkyPilot may continue, and rent a machine. "
            f"Wait a minute, then:\n"
            f"  follow it:    pion watch {run}\n"
            f"  is it rented: pion rentals {run}\n"
            "  cancel it:    sky jobs queue, then sky jobs cancel NUMBER"
        )
        raise
