"""`pion rentals`: every machine ever rented for a run, what it cost, and whether it is truly gone.

The run's store says which machines worked on it and for how long, and which were seen to come to
nothing; SkyPilot says what it has rented, and RunPod what it bills for now. A machine that nobody
needs and somebody bills for is an orphan.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import PionError
from pipeline.console.formats import duration, moment
from pipeline.cost.by_cause import costs_of, read_log
from pipeline.cost.costs import MachineCost
from pipeline.cost.lost import LOST
from pipeline.machine.rented import RENTED
from pipeline.rent.managed import pods as runpod
from pipeline.rent.managed.managed_jobs import ManagedJob, managed_jobs, start_api_server
from pipeline.rent.managed.names import cluster_name, rental_name
from pipeline.rent.managed.orphans import (
    cluster_standing,
    clusters_now,
    clusters_recorded,
    is_at_work,
    pod_standing,
)
from pipeline.rent.managed.pods import Pod
from pipeline.rent.managed.progress import say_now
from pipeline.state.find_run import read_run
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store, split_run

NAMED = "pion-"


@dataclass(frozen=True)
class ListedMachine:
    """One machine. Times are Unix seconds; None for what is not known.

    `state` is `running`, `gone`, `ending`, `orphan` (nobody needs it, and it is paid for) or
    `unknown`, and `words` says how that is known. `dollars` are what it cost while it worked on the
    run, or while it was seen to be rented for it.
    """

    id: str
    job: int | None
    machine: str
    begin: float | None
    end: float | None
    dollars: float | None
    state: str
    words: str


def show_rentals(run: str | None, *, reap: bool, as_json: bool) -> int:
    """Print every machine rented for `run`, or what is rented now for any; `reap` ends orphans."""
    state, head = _run(run)
    name = rental_name(state.store.url, state.name) if state is not None else None
    start_api_server(say_now if not as_json else lambda text: None)
    # Pods before jobs: the job of a pod that is listed is known by then.
    pods = runpod.list_pods() if runpod.runpod_configured() else None
    jobs = [job for job in managed_jobs(name) if job.name.startswith(NAMED)]
    now = time.time()
    at_work = is_at_work(state, head) if state is not None else None
    rentals = _machines(state, head or Head(), pods, jobs, now, at_work) if state else []
    ours = [pod for pod in pods or () if _is_ours(pod, name)]
    if run is not None and head is None and not (jobs or rentals or ours):
        read_run(run)  # says which runs there are
    known = {rental.id for rental in rentals}
    rentals += [_of_pod(pod, jobs, now, at_work) for pod in ours if pod.id not in known]
    failed: list[str] = []
    if reap:
        rentals = [_reap(rental, failed.append) for rental in rentals]
    orphans = [rental for rental in rentals if rental.state == "orphan"]
    if as_json:
        about = {
            "rentals": [dataclasses.asdict(rental) for rental in rentals],
            "jobs": [
                {"id": job.id, "name": job.name, "status": job.status, "place": job.place}
                for job in jobs
            ],
            "dollars": sum(rental.dollars or 0.0 for rental in rentals),
            "runpod_asked": pods is not None,
        }
        print(json.dumps(about, indent=1))
        return int(bool(failed))
    _print(rentals, jobs, run)
    if pods is None:
        say_now("RunPod was not asked: this machine has no key for it (runpod config)")
    if orphans:
        say_now(
            f"{len(orphans)} orphan{'s' if len(orphans) > 1 else ''} paid for by nobody's wish: "
            f"pion rentals {f'{run} ' if run else ''}--reap"
        )
    for words in failed:
        say_now(words)
    return int(bool(failed))


# ---------------------------------------------------------------- what is where


def _run(run: str | None) -> tuple[RunState | None, Head | None]:
    """The run that is asked about, and its HEAD if any machine has claimed it yet."""
    if run is None:
        return None, None
    url, name = split_run(run)
    state = RunState(open_store(url), name)
    return state, state.read()


def _machines(
    state: RunState,
    head: Head,
    pods: Sequence[Pod] | None,
    jobs: Sequence[ManagedJob],
    now: float,
    at_work: bool | None,
) -> list[ListedMachine]:
    """The rented machines that have claimed the run, or come to nothing, from its store."""
    log = read_log(state)
    about = {str(e["id"]): e for e in log.events if e["event"] == LOST}
    about |= {str(e["id"]): e for e in log.events if e["event"] == RENTED}
    costs = costs_of(state, head, now, log)
    rented = [machine for machine in costs.machines if machine.rented]
    elsewhere = {m.id for m in rented if (m.cloud or "").lower() != "runpod"}
    clusters = clusters_now() if elsewhere else None
    names = {str(about[id].get("cluster")) for id in elsewhere if id in about}
    recorded = clusters_recorded(names) if elsewhere else {}
    listed = {pod.id: pod for pod in pods or ()}
    # A managed job has one machine at a time: of several, the newest may still be there.
    last = {about.get(m.id, {}).get("managed_job"): m.id for m in rented}
    found = []
    for machine in rented:
        event = about.get(machine.id, {})
        if (machine.cloud or "").lower() == "runpod":
            pod = listed.get(machine.id)
            if pods is None:
                standing = ("unknown", "RunPod was not asked")
            elif pod is None:
                standing = ("gone", "RunPod lists it no more")
            else:
                standing = pod_standing(pod, jobs, now, at_work)
        else:
            newest = last.get(event.get("managed_job")) == machine.id
            standing = cluster_standing(event, clusters, recorded, jobs, now, newest=newest)
        found.append(_rental(machine, event, *standing))
    return found


def _rental(
    machine: MachineCost, event: Mapping[str, Any], state: str, words: str
) -> ListedMachine:
    job = str(event.get("managed_job") or "")
    return ListedMachine(
        id=machine.id,
        job=int(job) if job.isdigit() else None,
        machine=machine.describe(),
        begin=machine.begin,
        end=machine.end,
        dollars=machine.dollars,
        state=state,
        words=words,
    )


def _of_pod(
    pod: Pod, jobs: Sequence[ManagedJob], now: float, at_work: bool | None
) -> ListedMachine:
    """A pod of which no store was read, or that has not got as far as claiming the run."""
    price = f", ${pod.price:.2f} an hour" if pod.price else ""
    state, words = pod_standing(pod, jobs, now, at_work)
    machine = f"{pod.gpu or 'pod'} on RunPod{price}"
    if pod.created is None or not pod.alive:
        return ListedMachine(pod.id, pod.job_id, machine, None, None, None, state, words)
    dollars = None if pod.price is None else pod.price * max(0.0, now - pod.created) / 3600
    return ListedMachine(pod.id, pod.job_id, machine, pod.created, now, dollars, state, words)


def _is_ours(pod: Pod, name: str | None) -> bool:
    """Whether a pod was rented by `pion launch`: for the run with that rental's name, or any."""
    if pod.job_id is None:
        return False
    return name is None or pod.belongs_to(cluster_name(name, pod.job_id))


# ---------------------------------------------------------------- acting and showing


def _reap(
    rental: ListedMachine,
    failed: Callable[[str], None],
) -> ListedMachine:
    """End an orphan; one that can't be ended is told to `failed`."""
    if rental.state != "orphan":
        return rental
    try:
        runpod.terminate_pod(rental.id)
    except PionError as error:
        failed(str(error))
        return rental
    return dataclasses.replace(rental, state="gone", words="terminated now")


def _print(rentals: Sequence[ListedMachine], jobs: Sequence[ManagedJob], run: str | None) -> None:
    if not rentals and not jobs:
        print(f"nothing was ever rented for {run}" if run else "nothing is rented")
        return
    rows = [
        (
            rental.machine,
            rental.id,
            f"job {rental.job}" if rental.job is not None else "",
            _when(rental),
            f"${rental.dollars:.2f}" if rental.dollars is not None else "$?",
            f"{rental.state}: {rental.words}",
        )
        for rental in rentals
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    known = [rental.dollars for rental in rentals if rental.dollars is not None]
    if known:
        print(f"in all ${sum(known):.2f}, each until it was last heard of")
    for job in jobs:
        if job.live:
            place = f" on {job.place}" if job.place else ""
            print(f"managed job {job.id} ({job.name}): {job.status}{place}")


def _when(rental: ListedMachine) -> str:
    if rental.begin is None or rental.end is None:
        return "never claimed the run"
    return f"{moment(rental.begin)} for {duration(rental.end - rental.begin)}"
