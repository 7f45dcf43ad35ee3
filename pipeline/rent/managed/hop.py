"""`pion hop`: move a run to another rented machine. The new machine is up before the old one stops.

The new machine itself asks the old owner to save and hand over (pipeline/run/handover.py). This
module rents the new machine, waits until it has taken over the run, and then ends the old rental.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pion.errors import BadInput, PionError
from pipeline.base.job_with_base import read_job
from pipeline.console.formats import duration, show
from pipeline.rent.deadline.at_launch import deadline_of, refuse_past
from pipeline.rent.managed.look.progress import how_to_come_back
from pipeline.rent.managed.names import cluster_name
from pipeline.rent.managed.provider.jobs import ManagedJob, arrive_seconds
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.provider.recorded_task import BY_HOP, market_of
from pipeline.rent.managed.request import (
    JobFile,
    Order,
    make_order,
    require_checks,
    submit_order,
    submitting_alone,
)
from pipeline.rent.sky_yaml import UNTIL, SkyYaml, read_sky_yaml, until_of, with_until
from pipeline.run.handover import FROM_EPOCH
from pipeline.state.find_run import read_run
from pipeline.state.head import Head
from pipeline.state.notes.rental_note import RentalNote, withdraw_rental_note
from pipeline.state.notes.stop_requests import clear_handovers
from pipeline.state.rows.metrics import read_events
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import find_job_file
from pipeline.state.status.run_status import is_finished
from pipeline.state.stores import StoreError, open_store
from pipeline.state.stores.errors import before_work

POLL_SECONDS = 5.0
RECEIPT_SECONDS = 600.0
# SkyPilot notices within this time that the old job has ended, and ends its machine.
SAVE_SECONDS = 120.0


@dataclass(frozen=True)
class Move:
    """A hop whose new machine was requested.

    Attributes:
        name: the name of both rentals.
        launch_id: the id of the new launch.
        new: the managed job of the new launch.
        old: the managed jobs that were live when `new` was submitted.
        before: the note of the rental that is replaced.
    """

    state: RunState
    name: str
    launch_id: str
    new: int
    old: Sequence[ManagedJob]
    before: RentalNote | None
    provider: Provider

    def has_arrived(self, head: Head) -> bool:
        """Return whether a process of the new launch owns the run."""
        return head.owner is not None and head.owner.launch_id == self.launch_id


def hop(
    run: str,
    *,
    on: str,
    overrides: Sequence[str],
    job: str | None = None,
    force: bool = False,
    provider: Provider | None = None,
) -> None:
    """Move `run` to a machine from the SkyPilot YAML `on`; return once the run is there.

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
            show(f"{state.name} is finished: there is nothing to move.")
            return
        path, recorded = (job, []) if job is not None else find_job_file(state, head)
        all_overrides = [*recorded, *overrides]
        job_file = JobFile(path, all_overrides, read_job(path, all_overrides))
        _require_same_run(job_file, state)
        sky_yaml = with_until(read_sky_yaml(on), job_file.job, None)
        _require_work_left(sky_yaml, state, head)
        refuse_past(path, job_file.overrides, job_file.job)
        order = make_order(
            state,
            job_file,
            sky_yaml,
            force=force,
            deadline=deadline_of(state, job_file.job) is not None,
            variables={FROM_EPOCH: str(head.epoch), BY_HOP: "1"},
        )
        move = _rent(order, head, provider, force=force)
    owner = f"{head.owner.describe()} continues" if head.owner else "the run waits"
    old = f"managed job {move.old[0].id} continues" if move.old else owner
    show(f"managed job {move.new} is submitted; {old} until the new machine is up")
    if _see_it_through(move):
        show(how_to_come_back(state, move.new))


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
    provider.start(show)
    with submitting_alone(order.name):
        old = [job for job in provider.managed_jobs(order.name, with_task=True) if job.live]
        if _is_moved_already(old):
            raise BadInput(
                f"{state.name} is already being moved: managed jobs {old[1].id} and {old[0].id}. "
                f"To follow the move: `pion watch {state.url}`. To cancel the move: `sky jobs "
                f"cancel {old[0].id}`. Nothing was rented."
            )
        new, before = submit_order(order, secrets, head, provider, moving=True, force=force)
    return Move(state, order.name, order.launch_id, new, old, before, provider)


def _is_moved_already(live: Sequence[ManagedJob]) -> bool:
    """Return whether two jobs ask one market. With a deadline, each market may have a job."""
    markets = [market_of(job) for job in live]
    return len(live) > 1 and (None in markets or len(set(markets)) < len(live))


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
        _leave_old(move)
        for line in read_receipt(move):
            show(line)
    except KeyboardInterrupt:
        show(
            "\nthe hop continues without this window; to cancel it before its machine is up: "
            f"sky jobs cancel {move.new}\n"
            f"to list the machines: pion rentals {move.state.url}"
        )
    except StoreError as error:
        show(f"the run has moved, but its receipt can't be read at the moment: {error}")
    return True


def _leave_old(move: Move) -> None:
    """End the old rental, and say what was done. Raises PionError if it may still cost money."""
    try:
        for line in itertools.chain(end_old(move), others_left(move)):
            show(line)
    except PionError as error:
        raise PionError(
            f"The run has moved to managed job {move.new}, but its old machine may still cost "
            f"money: {error} To see what costs: pion rentals {move.state.url}. To end what no run "
            "needs: pion rentals --reap"
        ) from error


def wait_for_arrival(move: Move) -> bool:
    """Block until the new launch owns the run; return False if the run was finished before that.

    Raises PionError if the new launch ends or takes too long.
    """
    state, words = move.state, ""
    patience = arrive_seconds(state.store)

    def look() -> Head | None:
        """Return HEAD if the wait is over."""
        nonlocal words
        last_progress = words
        try:
            head = state.read()
            jobs = move.provider.managed_jobs(move.name)
        except PionError as error:  # ask again later
            words = f"Pion can't tell the state at the moment: {error}"
        else:
            if head is not None and (
                move.has_arrived(head) or (head.owner is None and is_finished(state, head))
            ):
                return head
            words = _job_in_words(move, jobs)
        if words != last_progress:
            show(words)
        return None

    head = state.clock.until(look, patience, POLL_SECONDS)
    if head is not None and head.owner is not None:
        show(f"{head.owner.describe()} has taken over the run (epoch {head.epoch})")
        return True
    move.provider.cancel([move.new])
    if head is None:
        raise PionError(
            f"managed job {move.new} did not take over the run within {duration(patience)} "
            f"({words}), so Pion cancelled it."
        )
    show(f"{state.name} had already finished. Pion cancelled managed job {move.new}")
    return False


def _job_in_words(move: Move, jobs: Sequence[ManagedJob]) -> str:
    """Describe the new managed job. Raises PionError if it has ended."""
    job = next((listed for listed in jobs if listed.id == move.new), None)
    if job is None or not job.live:
        status = f"{job.status}: {job.failure}" if job else "unknown to SkyPilot"
        raise PionError(
            f"managed job {move.new} stopped before it took over the run ({status}). Its output: "
            f"sky jobs logs {move.new}."
        )
    return f"managed job {job.id}: {job.status}{f' on {job.place}' if job.place else ''}"


def call_off(move: Move) -> str:
    """Withdraw the request to hand over; return what the old owner does now, in words."""
    state = move.state
    again = (
        f"Committed work is safe. To see who owns the run, run `pion status {state.url}`. Then run "
        "`pion launch` again. If `pion launch` refuses, add --force."
    )
    try:
        cleared = clear_handovers(state, move.launch_id)
        withdraw_rental_note(state, move.launch_id, move.before)
        head = state.read()
    except StoreError as error:
        return f"It is unknown whether the old machine continues ({error}). {again}"
    if head is None or head.owner is None:
        return f"No process owns {state.name} now. {again}"
    if cleared:
        return (
            f"{head.owner.describe()} had been asked to hand over {state.name}. Pion withdrew the "
            "request. If the owner has already read the request, the owner will stop within a "
            f"minute. {again}"
        )
    return f"{head.owner.describe()} still owns {state.name}, and continues."


def read_receipt(move: Move) -> list[str]:
    """Return the receipt that the new machine wrote when it began to train; empty if it takes too
    long.

    Raises StoreError.
    """
    state = move.state

    def look() -> list[str] | None:
        head = state.read()
        if head is None or not move.has_arrived(head):
            return []  # done, or taken over again
        mine = {claim.epoch for claim in head.claims if claim.owner.launch_id == move.launch_id}
        receipts = (
            [str(line) for line in event["receipt"]]
            for event in read_events(state.store, state.name)
            if event["event"] == "hop" and event["epoch"] in mine
        )
        return next(receipts, None)

    return state.clock.until(look, RECEIPT_SECONDS, POLL_SECONDS) or []


def end_old(move: Move) -> Iterator[str]:
    """Wait for the old rentals to end, or cancel them; yield what was done, in words.

    Raises PionError if SkyPilot can't be asked, and after the last job if a pod can't be ended.
    """
    failed: dict[str, str] = {}
    still = _wait_until_ended(move, [job.id for job in move.old])
    if still:
        move.provider.cancel(still)
        jobs = ", ".join(map(str, still))
        yield f"cancelled managed job {jobs}, because it had not stopped by itself"
        still = _wait_until_ended(move, still)
    for job in move.old:
        if job.id in still:
            yield (
                f"managed job {job.id} has not stopped yet. To terminate its machine, run: "
                "pion rentals --reap"
            )
        else:
            yield f"managed job {job.id} has stopped{_end_pods(move, job, failed)}"
    if failed:
        raise PionError(" ".join(failed.values()))


def others_left(move: Move) -> Iterator[str]:
    """Yield a line for each machine that another computer rented for the run and must end."""
    try:
        listed = move.provider.list_pods(of_everybody=True)
    except PionError:
        return
    me = move.provider.my_hash() if listed else ""
    for pod in listed or ():
        if pod.alive and pod.rented_from != me and pod.is_of(move.name):
            yield (
                f"pod {pod.id} was rented from another computer. The SkyPilot there will end it, "
                "because its work was handed over. If that computer is asleep or lost, end the pod "
                "yourself in RunPod's console: https://console.runpod.io/pods"
            )


def _wait_until_ended(move: Move, job_ids: Sequence[int]) -> list[int]:
    """Wait up to SAVE_SECONDS for these jobs to end; return the jobs that have not."""
    jobs = move.provider.wait_for_end(move.name, job_ids, move.state.clock, SAVE_SECONDS)
    return [job.id for job in jobs if job.live]


def _end_pods(move: Move, job: ManagedJob, failed: dict[str, str]) -> str:
    """End the pods that a job has left behind; return the end of a sentence about them. Those that
    can't be ended are added to `failed`, with the reason."""
    if not job.may_be_on_runpod:
        return ""
    try:
        ours = move.provider.list_pods()
        if ours is None:
            return ""
        left = [pod.id for pod in ours if pod.belongs_to(cluster_name(move.name, job.id))]
    except PionError as error:
        return f", but Pion can't tell whether its pod is gone ({error})"
    failed |= (stay := move.provider.end_pods(left))
    if stay:
        return f", but its pod {', '.join(stay)} was not terminated"
    return f", and its pod {', '.join(left)} was terminated" if left else ", and its pod is gone"
