"""`pion hop`: move a run to another rented machine, which is up before the old one stops.

The new machine itself asks the old owner to save and hand over (pipeline/run/handover.py). Here
it is rented, seen to take the run over, and then the old rental is seen to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pion.errors import BadInput, PionError
from pipeline.console.formats import duration
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.rent.credentials import secrets_for, wanted_secrets
from pipeline.rent.managed import pods
from pipeline.rent.managed.cheapest_first import only
from pipeline.rent.managed.launch import (
    SUBMITTING,
    check,
    telling_who_leaves,
)
from pipeline.rent.managed.managed_jobs import (
    ManagedJob,
    cancel,
    managed_jobs,
    start_api_server,
    submit,
)
from pipeline.rent.managed.names import cluster_name, my_hash, rental_name
from pipeline.rent.managed.progress import how_to_come_back, say_now
from pipeline.rent.managed.submission import announced, submitting_alone
from pipeline.rent.managed.task import make_task, task_config, task_variables
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.run.handover import FROM_EPOCH
from pipeline.state.find_run import read_run
from pipeline.state.metrics import read_events
from pipeline.state.recorded_job import find_job_file
from pipeline.state.records import Head
from pipeline.state.rental_note import RentalNote, withdraw_rental_note
from pipeline.state.run_state import COMMIT_SILENCE_SECONDS, RunState
from pipeline.state.run_status import is_finished
from pipeline.state.stop_requests import clear_stops, withdraw_handover
from pipeline.state.stores import StoreError, open_store
from pipeline.state.stores.verdict import before_work

POLL_SECONDS = 5.0
ARRIVE_SECONDS = 1800.0
"""From renting to owning the run; after that the new machine is given up. Where only commits are a
sign of life it may have to wait COMMIT_SILENCE_SECONDS more for an owner that is silent."""
SAVE_SECONDS = 120.0
"""In which SkyPilot sees that the old job has ended, and gives its machine back."""
RECEIPT_SECONDS = 600.0


def hop(
    run: str, *, on: str, overrides: Sequence[str], job: str | None = None, force: bool = False
) -> int:
    """Move `run` to a machine that the SkyPilot YAML `on` asks for; returns 0 once it is there.

    The job is the one the store records, found again below the working directory, with
    `overrides` added; or the file `job`. `force` rents in spite of warnings.

    Raises:
        BadInput: something would fail; nothing was rented.
        PionError: the new machine did not come to take the run over. The old one works on, as far
            as it was not asked yet.
    """
    with before_work("Nothing was rented."):
        move = _begin(run, on=on, overrides=overrides, job=job, force=force)
    return _see_through(move, run) if move is not None else 0


@dataclass(frozen=True)
class _Move:
    """A hop whose new machine is rented: managed job `new`, started as `launch_id`.

    `head` is the run before it, `old` the managed jobs that live then, and `before` the word of
    another rental that was replaced.
    """

    state: RunState
    head: Head
    name: str
    old: Sequence[ManagedJob]
    new: int
    launch_id: str
    before: RentalNote | None


def _begin(
    run: str, *, on: str, overrides: Sequence[str], job: str | None, force: bool
) -> _Move | None:
    """Rent the new machine; None if the run is finished."""
    from pipeline.rent.check.candidates import fitting

    state, head = read_run(run)
    if is_finished(state, head):
        say_now(f"{state.name} is finished: there is nothing to move.")
        return None
    sky_yaml = read_sky_yaml(on)
    name = rental_name(state.store.url, state.name)
    path, recorded = (job, []) if job is not None else find_job_file(state, head)
    changed = [*recorded, *overrides]
    parsed = _the_same_run(load_job(path, changed), state)
    rented = only(sky_yaml, fitting(parsed, sky_yaml, force=force))
    secrets = secrets_for(sky_yaml.secrets, wanted=wanted_secrets(parsed))
    check(parsed, sky_yaml, path=path, force=force)
    start_api_server(say_now)
    with submitting_alone(name):
        old = [known for known in managed_jobs(name) if known.live]
        if len(old) > 1:
            raise BadInput(
                f"{state.name} is on its way already: managed jobs {old[1].id} and {old[0].id}. "
                f"To follow it: `pion watch {run}`. To call it off: `sky jobs cancel {old[0].id}`. "
                "Nothing was rented."
            )
        envs = task_variables(rented, parsed, path, changed, **{FROM_EPOCH: str(head.epoch)})
        launch_id = envs["PION_LAUNCH_ID"]
        with announced(state, head, launch_id, moving=True, force=force) as before:
            clear_stops(state)
            say_now(SUBMITTING)
            task = make_task(task_config(rented, name, envs, parsed.prices), secrets)
            with telling_who_leaves(state, name):
                new = submit(task, name)
    return _Move(state, head, name, old, new, launch_id, before)


def _see_through(move: _Move, run: str) -> int:
    """See the new machine take the run over and the old rental end; return 0."""
    state, launch_id = move.state, move.launch_id
    words = _old_words(move.head, move.old)
    say_now(f"managed job {move.new} is submitted; {words} until its machine is up")
    try:
        try:
            if not _wait_for_arrival(state, move.name, move.new, launch_id):
                withdraw_rental_note(state, launch_id)
                return 0
        except PionError as error:
            raise PionError(f"{error} {_call_off(state, launch_id, move.before)}") from error
        for line in (*end_old(state, move.name, move.old), *others_left(move.name)):
            say_now(line)
        for line in _receipt(state, launch_id):
            say_now(line)
    except KeyboardInterrupt:
        say_now(
            f"\nthe hop goes on without this window; to call it off before its machine is up: "
            f"sky jobs cancel {move.new}\n"
            f"see which machines there are: pion rentals {run}"
        )
    except StoreError as error:
        say_now(f"the run has moved; its receipt can't be read at the moment: {error}")
    say_now(how_to_come_back(state, move.new))
    return 0


def _the_same_run(job: Job, state: RunState) -> Job:
    there = (open_store(job.store).url, job.name)
    if there != (state.store.url, state.name):
        raise BadInput(
            f"that job is the run {'/'.join(there)}, not {state.url}. Nothing was rented."
        )
    return job


# ---------------------------------------------------------------- the hop


def _old_words(head: Head, old: Sequence[ManagedJob]) -> str:
    if head.owner is None and not old:
        return "nobody works on the run"
    who = f"managed job {old[0].id}" if old else head.owner.describe() if head.owner else "nobody"
    return f"{who} works on"


def _wait_for_arrival(state: RunState, name: str, job_id: int, launch_id: str) -> bool:
    """Until a process of the new launch owns the run; False if the run was finished before.

    Raises PionError if none will.
    """
    clock = state.clock
    patience = ARRIVE_SECONDS + (COMMIT_SILENCE_SECONDS if state.store.commits else 0.0)
    end = clock.monotonic() + patience
    told = ""
    while True:
        words = told
        try:
            head = state.read()
            jobs = managed_jobs(name)
        except PionError as error:  # asked again
            words = f"can't tell at the moment: {error}"
        else:
            job = next((known for known in jobs if known.id == job_id), None)
            if head is not None and _arrived(head, launch_id):
                assert head.owner is not None
                say_now(f"{head.owner.describe()} has taken the run over (epoch {head.epoch})")
                return True
            if head is not None and head.owner is None and is_finished(state, head):
                cancel([job_id])
                say_now(f"{state.name} was finished before; managed job {job_id} is cancelled")
                return False
            if job is None or not job.live:
                status = f"{job.status}: {job.failure}" if job else "unknown to SkyPilot"
                raise PionError(
                    f"managed job {job_id} ended before it had taken the run over ({status}). "
                    f"Its output: sky jobs logs {job_id}."
                )
            words = f"managed job {job_id}: {job.status}" + (
                f" on {job.place}" if job.place else ""
            )
        if words != told:
            say_now(words)
        told = words
        if clock.monotonic() >= end:
            cancel([job_id])
            raise PionError(
                f"managed job {job_id} has not taken the run over in {duration(patience)} "
                f"({words}), and is cancelled."
            )
        clock.sleep(POLL_SECONDS)


def _arrived(head: Head, launch_id: str) -> bool:
    return head.owner is not None and head.owner.launch_id == launch_id


def _call_off(state: RunState, launch_id: str, before: RentalNote | None) -> str:
    """Take back what the new machine has asked of the old one; what became of that one."""
    again = (
        f"what is committed is safe: see pion status {state.url}, and pion "
        "launch it again (with --force, if that is refused)"
    )
    try:
        asked = withdraw_handover(state, launch_id)
        withdraw_rental_note(state, launch_id, before)
        head = state.read()
    except StoreError as error:
        return f"Whether the old machine works on can't be told ({error}); {again}."
    if head is None or head.owner is None:
        return f"Nobody owns {state.name} now; {again}."
    if asked:
        return (
            f"{head.owner.describe()} had been asked already to hand {state.name} over. That was "
            f"taken back, but if it has seen it, it stops in a minute; {again}."
        )
    return f"{state.name} is still {head.owner.describe()}'s, which was left alone."


def end_old(state: RunState, name: str, old: Sequence[ManagedJob]) -> Iterator[str]:
    """See the old rentals end, or end them, and say whether their machines are gone."""
    still = _wait_until_ended(state, name, [job.id for job in old])
    if still:
        cancel(still)
        yield f"cancelled managed job {', '.join(map(str, still))}, which had not ended by itself"
        still = _wait_until_ended(state, name, still)
    for job in old:
        if job.id in still:
            yield f"managed job {job.id} has not ended yet: see `pion rentals --reap`"
        else:
            yield f"managed job {job.id} has ended{_pods_left(name, job)}"


def others_left(name: str) -> Iterator[str]:
    """What to know of machines for the run that another computer has rented, and must end."""
    if not pods.runpod_configured():
        return
    try:
        listed = pods.list_pods()
    except PionError:
        return
    for pod in listed:
        if pod.job_id is None or pod.rented_from == my_hash():
            continue
        if pod.alive and pod.belongs_to(cluster_name(name, pod.job_id)):
            yield (
                f"pod {pod.id} was rented from another computer, whose SkyPilot ends it now that "
                "its work is handed over; if that computer is asleep or lost, end it yourself in "
                "RunPod's console: https://console.runpod.io/pods"
            )


def _wait_until_ended(state: RunState, name: str, job_ids: Sequence[int]) -> list[int]:
    """Those of the jobs that SkyPilot still has after SAVE_SECONDS."""
    end = state.clock.monotonic() + SAVE_SECONDS
    while True:
        left = [job.id for job in managed_jobs(name) if job.live and job.id in job_ids]
        if not left or state.clock.monotonic() >= end:
            return left
        state.clock.sleep(POLL_SECONDS)


def _pods_left(name: str, job: ManagedJob) -> str:
    if not pods.runpod_configured() or (job.cloud or "RunPod").lower() != "runpod":
        return ""
    try:
        ours = pods.list_pods(rented_from=my_hash())
        left = [pod.id for pod in ours if pod.belongs_to(cluster_name(name, job.id))]
    except PionError as error:
        return f"; whether its pod is gone can't be told ({error})"
    for pod in left:
        pods.terminate_pod(pod)
    return f", and its pod {', '.join(left)} was terminated" if left else ", and its pod is gone"


def _receipt(state: RunState, launch_id: str) -> list[str]:
    """What the new machine wrote when it began to train; empty if that takes too long.

    Raises StoreError.
    """
    clock = state.clock
    end = clock.monotonic() + RECEIPT_SECONDS
    while clock.monotonic() < end:
        head = state.read()
        if head is None or not _arrived(head, launch_id):
            return []  # done, or taken over again
        mine = {claim.epoch for claim in head.claims if claim.owner.launch_id == launch_id}
        for event in read_events(state.store, state.name):
            if event["event"] == "hop" and event["epoch"] in mine:
                return [str(line) for line in event["receipt"]]
        clock.sleep(POLL_SECONDS)
    return []
