"""`pion hop`: move a run to another rented machine. The new machine is up before the old one stops.

The new machine itself asks the old owner to save and hand over (pipeline/run/handover.py). This
module rents the new machine, waits until it has taken over the run, and then ends the old rental.
"""

from __future__ import annotations

from collections.abc import Sequence

from pion.errors import BadInput, PionError
from pipeline.rent.deadline.of_run import deadline_of, keeping_deadline, refuse_past
from pipeline.rent.managed.arrival import Move, call_off, read_receipt, wait_for_arrival
from pipeline.rent.managed.end_old import end_old, others_left
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.markets import BY_HOP, market_of
from pipeline.rent.managed.order import JobFile, Order, make_order, require_checks, submit_order
from pipeline.rent.managed.progress import how_to_come_back
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.say import say_now
from pipeline.rent.managed.submission import announced, note_of, submitting_alone
from pipeline.rent.sky_yaml import SkyYaml, read_sky_yaml
from pipeline.rent.until import UNTIL, until_of, with_until
from pipeline.run.handover import FROM_EPOCH
from pipeline.state.find_run import read_run
from pipeline.state.recorded_job import find_job_file
from pipeline.state.records import Head
from pipeline.state.rental_note import withdraw_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.run_status import is_finished
from pipeline.state.stop_requests import clear_stops
from pipeline.state.stores import StoreError, open_store
from pipeline.state.stores.verdict import before_work


def hop(
    run: str,
    *,
    on: str,
    overrides: Sequence[str],
    job: str | None = None,
    force: bool = False,
    provider: Provider | None = None,
) -> int:
    """Move `run` to a machine from the SkyPilot YAML `on`; return 0 once the run is there.

    The job file is `job`, or else the file that the store records, which must still be below the
    working directory. `overrides` are added. `force` rents in spite of warnings.

    Raises:
        BadInput: something would fail; nothing was rented.
        PionError: the new machine did not take over the run. The old machine continues, unless it
            had already been asked to stop.
    """
    provider = provider or Provider()
    with before_work("Nothing was rented."):
        state, head = read_run(run)
        if is_finished(state, head):
            say_now(f"{state.name} is finished: there is nothing to move.")
            return 0
        path, recorded = (job, []) if job is not None else find_job_file(state, head)
        job_file = JobFile.load(path, [*recorded, *overrides])
        _require_same_run(job_file, state)
        sky_yaml = with_until(read_sky_yaml(on), job_file.job, None)
        _require_work_left(sky_yaml, state, head)
        variables = {FROM_EPOCH: str(head.epoch), BY_HOP: "1"}
        refuse_past(path, job_file.overrides, job_file.job)
        order = make_order(
            state,
            job_file,
            sky_yaml,
            force=force,
            deadline=deadline_of(state, job_file.job) is not None,
            variables=variables,
        )
        move = _rent(order, head, provider, force=force)
    old = _old_owner(head, move)
    say_now(f"managed job {move.new} is submitted; {old} until the new machine is up")
    if _see_it_through(move):
        say_now(how_to_come_back(state, move.new))
    return 0


def _require_same_run(job_file: JobFile, state: RunState) -> None:
    """Raise BadInput if the job does not belong to the run that is moved."""
    store, name = open_store(job_file.job.store).url, job_file.job.name
    if (store, name) != (state.store.url, state.name):
        raise BadInput(f"that job is the run {store}/{name}, not {state.url}. Nothing was rented.")


def _require_work_left(sky_yaml: SkyYaml, state: RunState, head: Head) -> None:
    """Raise BadInput if the new machine would end at once: its stages are done."""
    until = until_of(sky_yaml)
    if until is not None and until in head.stages:
        raise BadInput(
            f"machines of {sky_yaml.path} end after {until} ({UNTIL}), and {state.name} has done "
            f"{until}. Nothing was rented. Name another file: pion hop {state.url} --on SKY"
        )


def _rent(order: Order, head: Head, provider: Provider, *, force: bool) -> Move:
    """Check the order and submit it, unless the run is already being moved."""
    state, secrets = order.state, order.secrets()
    require_checks(order, force=force)
    provider.start(say_now)
    with submitting_alone(order.name):
        old = [job for job in provider.managed_jobs(order.name, with_task=True) if job.live]
        if _is_moved_already(old):
            raise BadInput(
                f"{state.name} is already being moved: managed jobs {old[1].id} and {old[0].id}. "
                f"To follow the move: `pion watch {state.url}`. To cancel the move: `sky jobs "
                f"cancel {old[0].id}`. Nothing was rented."
            )
        me = provider.my_hash()
        note = note_of(state, head, launch_id=order.launch_id, rented_from=me)
        with (
            announced(state, note, moving=True, force=force) as before,
            keeping_deadline(state, order.job_file.job, "pion hop", say_now),
        ):
            clear_stops(state)
            new = submit_order(order, secrets, provider)
    return Move(state, order.name, order.launch_id, new, old, before, provider)


def _is_moved_already(live: Sequence[ManagedJob]) -> bool:
    """Return whether two jobs ask one market. With a deadline, each market may have a job."""
    markets = [market_of(job) for job in live]
    return len(live) > 1 and (None in markets or len(set(markets)) < len(live))


def _old_owner(head: Head, move: Move) -> str:
    """Return, in words, what continues until the new machine takes over."""
    if move.old:
        return f"managed job {move.old[0].id} continues"
    return f"{head.owner.describe()} continues" if head.owner else "the run waits"


def _see_it_through(move: Move) -> bool:
    """Wait for the new machine, and end the old rental; False if the run needed no new machine.

    Raises PionError if the new machine does not take over the run.
    """
    try:
        try:
            if not wait_for_arrival(move):
                withdraw_rental_note(move.state, move.launch_id)
                return False
        except PionError as error:
            raise PionError(f"{error} {call_off(move)}") from error
        for line in (*end_old(move), *others_left(move)):
            say_now(line)
        for line in read_receipt(move):
            say_now(line)
    except KeyboardInterrupt:
        say_now(
            "\nthe hop continues without this window; to cancel it before its machine is up: "
            f"sky jobs cancel {move.new}\n"
            f"to list the machines: pion rentals {move.state.url}"
        )
    except StoreError as error:
        say_now(f"the run has moved, but its receipt can't be read at the moment: {error}")
    return True
