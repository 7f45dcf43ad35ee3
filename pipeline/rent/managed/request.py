"""Prepare, check and submit what `pion launch` and `pion hop` rent: a job and its machines.

Two rentals of one run are prevented, from this machine or from another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pion.errors import BadInput, PionError
from pion.files import private_cache_folder
from pipeline.console.formats import duration, moment, show
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job import Job
from pipeline.machine.folders import open_private
from pipeline.rent.credentials import refuse_recorded_secrets, secrets_for, wanted_secrets
from pipeline.rent.deadline.at_launch import held_back, keeping_deadline
from pipeline.rent.managed.names import rental_name
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.provider.recorded_task import MACHINES, machines_in_words
from pipeline.rent.managed.provider.task import (
    make_task,
    task_config,
    task_variables,
    with_candidates,
)
from pipeline.rent.sky_yaml import SkyYaml, trains
from pipeline.state.head import Head
from pipeline.state.notes.rental_note import (
    RentalNote,
    read_rental_note,
    withdraw_rental_note,
    write_rental_note,
)
from pipeline.state.notes.stop_requests import clear_stops
from pipeline.state.run_state import RunState
from pipeline.state.stores import Conflict, StoreError
from pipeline.state.stores.errors import before_work


@dataclass(frozen=True)
class JobFile:
    """A job, and the file and overrides that it was read from."""

    path: str
    overrides: Sequence[str]
    job: Job


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
        return secrets_for(self.sky_yaml.secrets, wanted=wanted_secrets(self.job_file.job))


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
        from pipeline.rent.check.machines import fitting

        accepted = with_candidates(sky_yaml, fitting(job, sky_yaml, force=force))
    more: dict[str, str] = {}
    if deadline and trains(sky_yaml, job):
        wanted, kept = held_back(accepted)
        if kept:
            more[MACHINES] = machines_in_words(accepted.candidates)
        accepted = with_candidates(accepted, wanted)
    about_job = task_variables(accepted, job, job_file.path, job_file.overrides)
    envs = {**about_job, **more, **(variables or {})}
    name = rental_name(state.store.url, state.name)
    config = task_config(accepted, name, envs, job.prices)
    refuse_recorded_secrets(config, "the task")
    return Order(state, name, envs["PION_LAUNCH_ID"], job_file, sky_yaml, config)


def require_checks(order: Order, *, force: bool) -> None:
    """Print what `pion check` finds. Raises BadInput if the run would fail on those machines, or
    the checks could not begin."""
    from pipeline.rent.check.command import CHECKS, asked_by_checks, print_rows, run_checks

    job_file = order.job_file
    with saying_if_slow(asked_by_checks(job_file.job, order.sky_yaml)):
        rows = run_checks(job_file.job, order.sky_yaml, path=job_file.path, force=force)
    print_rows(rows)
    failed = [row.name for row in rows if row.ok is False or row.name == CHECKS]
    if failed:
        raise BadInput(f"{', '.join(failed)}: see above. Nothing was rented.")


def submit_order(
    order: Order,
    secrets: Mapping[str, str],
    head: Head | None,
    provider: Provider,
    *,
    moving: bool = False,
    force: bool = False,
) -> tuple[int, RentalNote | None]:
    """Announce the rental and its deadline, and submit the task. Return the number of its managed
    job, and the note of the rental that it replaces, if that is not over.

    A machine may still be rented after Ctrl-C, or if SkyPilot's answer was lost: then say so.
    Raises BadInput if nothing was rented, and PionError if SkyPilot may have accepted the task.
    """
    state, me = order.state, provider.my_hash()
    note = note_of(state, head, launch_id=order.launch_id, rented_from=me)
    how = "pion hop" if moving else "pion launch"
    with (
        announced(state, note, moving=moving, force=force) as before,
        keeping_deadline(state, order.job_file.job, how, show),
    ):
        if clear_stops(state) and not moving:
            show("cleared an earlier request to stop this run")
        show("submitting the job; SkyPilot copies the folder")
        task = make_task(order.config, secrets)
        try:
            return provider.submit(task, order.name), before
        except BadInput:
            raise  # SkyPilot refused the job, so nothing will be rented
        except (KeyboardInterrupt, PionError) as error:
            what = "interrupted" if isinstance(error, KeyboardInterrupt) else "something failed"
            show(
                f"\n{what} while submitting {order.name}: SkyPilot may continue, and rent a "
                "machine. Wait a minute, then:\n"
                f"  follow it:    pion watch {state.url}\n"
                f"  is it rented: pion rentals {state.url}\n"
                "  cancel it:    sky jobs queue, then sky jobs cancel NUMBER"
            )
            raise


@contextlib.contextmanager
def rental_lock(name: str, purpose: str = "watch") -> Iterator[Callable[[], bool]]:
    """Yield a function that tries to lock the rental `name` for `purpose`, until the block ends.

    The function returns False while another process of this machine holds the lock. Call it again
    to try again. Raises BadInput if the lock's folder can't be made for this user alone.
    """
    path = private_cache_folder() / f"{purpose}-{name}.lock"
    with open(path, "ab", opener=open_private) as file:

        def try_lock() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield try_lock


@contextlib.contextmanager
def submitting_alone(name: str) -> Iterator[None]:
    """Raise BadInput if another process of this machine is submitting the rental `name`.

    Otherwise neither process would see the other's job yet, and both would rent a machine.
    """
    with rental_lock(name, "submit") as try_lock:
        if not try_lock():
            raise BadInput(
                f"another process on this machine is submitting {name}, so nothing was rented. "
                "Check again in a minute: pion rentals"
            )
        yield


def note_of(state: RunState, head: Head | None, *, launch_id: str, rented_from: str) -> RentalNote:
    """Return a note that this machine now rents for the run, as `launch_id`."""
    return RentalNote(
        at=state.clock.now(),
        host=socket.gethostname(),
        rented_from=rented_from,
        launch_id=launch_id,
        epoch=head.epoch if head is not None else 0,
    )


@contextlib.contextmanager
def announced(
    state: RunState, note: RentalNote, *, moving: bool = False, force: bool = False
) -> Iterator[RentalNote | None]:
    """Announce a rental, and withdraw the note if the block raises BadInput or StoreError.

    These two errors mean that nothing was rented. Yields what `announce_rental` returns, and raises
    the same errors.
    """
    before = announce_rental(state, note, moving=moving, force=force)
    try:
        yield before
    except (BadInput, StoreError):
        with contextlib.suppress(StoreError):
            withdraw_rental_note(state, note.launch_id, before)
        raise


def announce_rental(
    state: RunState, note: RentalNote, *, moving: bool = False, force: bool = False
) -> RentalNote | None:
    """Write `note` to the store; return the note that it replaces, if that rental is not over.

    Rentals from this machine don't count here: its SkyPilot knows them.

    Raises:
        BadInput: another machine has rented for the run, and `force` is not set. A run that is
            `moving` may replace the other rental once one of its machines has claimed the run, or
            after BOOT_SECONDS.
    """
    try:
        with before_work("Nothing was rented."):
            before, version = read_rental_note(state)
            if not force and before is not None and before.rented_from != note.rented_from:
                _refuse_second(state, before, note, moving=moving)
            write_rental_note(state, note, version)
            return before
    except Conflict as error:
        raise BadInput(
            f"another process is renting a machine for {state.name} at this moment, so nothing "
            f"was rented. Check again in a few minutes: pion status {state.url}"
        ) from error


def _refuse_second(state: RunState, before: RentalNote, note: RentalNote, *, moving: bool) -> None:
    """Raise BadInput if a machine that was rented elsewhere may still start or be replaced."""
    ago = f"{duration(note.at - before.at)} ago"
    if before.epoch == note.epoch and note.at < before.at + BOOT_SECONDS:
        raise BadInput(
            f"a machine for {state.name} was rented from {before.host} {ago}, and has not claimed "
            "the run yet. You would pay for both machines, so nothing was rented. Check again in a "
            f"few minutes: pion status {state.url}. If you have cancelled that rental on "
            f"{before.host}, add --force"
            f"{f', or wait until {moment(before.at + BOOT_SECONDS)}' if moving else ''}."
        )
    if not moving:
        raise BadInput(
            f"{state.name} was rented from {before.host} {ago}, and that rental is not over. "
            "SkyPilot there is waiting for a machine, or replacing a lost machine. You would pay "
            "for both machines, so nothing was rented. To move the run to a machine rented from "
            f"here: pion hop {state.url} --on SKY. If you have cancelled that rental on "
            f"{before.host} (sky jobs cancel), add --force"
        )
