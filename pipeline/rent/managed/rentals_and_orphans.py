"""`pion rentals`: every machine ever rented for a run, its cost, and whether it is really gone.

The run's store knows which machines worked on the run and for how long, and which machines were
lost before that. SkyPilot knows what it has rented, and RunPod knows what it bills now.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.console.formats import duration, moment, money, show
from pipeline.cost.costs import LOST, MachineCost, costs_of, read_log
from pipeline.machine.rented import RENTED
from pipeline.rent.managed.names import cluster_name, rental_name
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.pods import Pod
from pipeline.rent.managed.provider.provider import Provider
from pipeline.state.find_run import open_run, read_run
from pipeline.state.head import Head
from pipeline.state.liveness import owner_of
from pipeline.state.notes.rental_note import never_rented
from pipeline.state.rows.metrics import Row
from pipeline.state.run_state import RunState

# Every rental's name begins with this.
NAMED = "pion-"
# SkyPilot ends the machine of an ended job within this time.
CLEAN_UP_SECONDS = 300.0


class Verdict(NamedTuple):
    """`running`, `ending`, `gone`, `orphan` or `unknown`, and how that is known."""

    state: str
    words: str


@dataclass(frozen=True)
class Facts:
    """What the run's store, SkyPilot and RunPod say at one moment.

    Attributes:
        now: Unix seconds.
        machines: the rented machines that the run's store knows.
        events: the most detailed event of each of them.
        at_work: whether the run's owner has shown life recently; None if the run is not known.
        jobs: the managed jobs that SkyPilot knows.
        my_hash: the hash with which SkyPilot marks machines that are rented from here.
        pods: all pods that RunPod lists, None if it was not asked.
        our_pods: the pods that `pion launch` rented: for the run, or for any run if none was named.
        clusters: the status of SkyPilot's clusters, as their clouds say; None if the clouds can't
            be asked. Clusters of managed jobs are not included.
        recorded: the status of clusters in SkyPilot's records, None for an ended cluster. Clusters
            of managed jobs are included, but all machines of a job share one name.
    """

    now: float
    machines: Sequence[MachineCost]
    events: Mapping[str, Mapping[str, Any]]
    at_work: bool | None
    jobs: Sequence[ManagedJob]
    my_hash: str
    pods: Sequence[Pod] | None
    our_pods: Sequence[Pod]
    clusters: Mapping[str, str] | None
    recorded: Mapping[str, str | None]

    def has_just_ended(self, job: ManagedJob) -> bool:
        """Return whether SkyPilot may still be ending the job's machine."""
        return job.ended_at is not None and self.now - job.ended_at < CLEAN_UP_SECONDS


def show_rentals(
    run: str | None, *, reap: bool, as_json: bool, provider: Provider | None = None
) -> int:
    """Print every machine ever rented for `run`, or all present rentals. `reap` ends orphans.

    Return 1 if an orphan could not be ended, else 0.
    """
    provider = provider or Provider()
    if run is not None:
        # No rental can reach a folder of this machine. SkyPilot's server isn't started for it.
        state = open_run(run)
        if state.store.local_path("") is not None and never_rented(state):
            read_run(run)
    provider.start(show if not as_json else lambda text: None)
    facts = fetch(run, provider)
    machines = judge(facts)
    failed: list[str] = []
    if reap:
        machines = [end_orphan(machine, provider, failed.append) for machine in machines]
    jobs, runpod_asked = facts.jobs, facts.pods is not None
    if as_json:
        print_json(machines, jobs, runpod_asked=runpod_asked)
    else:
        print_table(machines, jobs, run, runpod_asked=runpod_asked)
        for pod in facts.pods or () if run is None else ():
            if pod.job_id is None:
                show(f"pod {pod.id} ({pod.name}){_per_hour(pod)} is {_not_ours(pod)}")
        for words in failed:
            show(words)
    return int(bool(failed))


def fetch(run: str | None, provider: Provider) -> Facts:
    """Ask the run's store, SkyPilot and RunPod.

    Raises BadInput for a run that does not exist, and PionError if SkyPilot or RunPod can't be
    asked.
    """
    state = None if run is None else open_run(run)
    head = None if state is None else state.read()
    name = None if state is None else rental_name(state.store.url, state.name)
    # Pods before jobs: SkyPilot then knows the job of every listed pod.
    pods = provider.list_pods(of_everybody=True)
    jobs = [job for job in provider.managed_jobs(name) if job.name.startswith(NAMED)]
    now = time.time()
    machines, events = _read_machines(state, head or Head(), now) if state is not None else ([], {})
    ours = [pod for pod in pods or () if pod.job_id is not None]  # of any rental
    our_pods = ours if name is None else [pod for pod in ours if pod.is_of(name)]
    if run is not None and head is None and not (jobs or machines or our_pods):
        read_run(run)  # raises BadInput, and says which runs there are
    elsewhere = [m.id for m in machines if not _is_on_runpod(m)]
    clusters = {str(events[id].get("cluster")) for id in elsewhere if id in events}
    return Facts(
        now,
        machines,
        events,
        at_work=owner_of(state, head).life == "alive" if state is not None else None,
        jobs=jobs,
        my_hash=provider.my_hash(),
        pods=pods,
        our_pods=our_pods,
        clusters=provider.clusters_now() if elsewhere else None,
        recorded=provider.clusters_recorded(clusters) if elsewhere else {},
    )


def _read_machines(
    state: RunState, head: Head, now: float
) -> tuple[list[MachineCost], dict[str, Row]]:
    log = read_log(state)
    # A machine's own event has more details than a watcher's event about it.
    events = {str(e["id"]): e for e in log.events if e["event"] == LOST}
    events |= {str(e["id"]): e for e in log.events if e["event"] == RENTED}
    costs = costs_of(state, head, now, log)
    return [machine for machine in costs.machines if machine.rented], events


def _is_on_runpod(machine: MachineCost) -> bool:
    return (machine.cloud or "").lower() == "runpod"


# ---------------------------------------------------------------- judging


def judge(facts: Facts) -> list[ListedMachine]:
    """Return every machine that the run's store or RunPod knows, with the verdict on it."""
    known = {machine.id for machine in facts.machines}
    return [
        *_judge_machines(facts),
        *(_list_pod(pod, facts) for pod in facts.our_pods if pod.id not in known),
    ]


def _judge_machines(facts: Facts) -> Iterator[ListedMachine]:
    """Judge the machines that the store knows."""
    pods = None if facts.pods is None else {pod.id: pod for pod in facts.pods}
    events, machines = facts.events, facts.machines
    # A managed job has one machine at a time, so only its newest machine may still exist.
    last = {events.get(m.id, {}).get("managed_job"): m.id for m in machines}
    for machine in machines:
        event = events.get(machine.id, {})
        if not _is_on_runpod(machine):
            newest = last[event.get("managed_job")] == machine.id
            verdict = judge_cluster(event, facts, newest=newest)
        elif pods is None:
            verdict = Verdict("unknown", "RunPod was not asked")
        elif machine.id in pods:
            verdict = judge_pod(pods[machine.id], facts)
        else:
            verdict = Verdict("gone", "RunPod no longer lists it")
        job = str(event.get("managed_job") or "")
        yield ListedMachine(
            id=machine.id,
            job=int(job) if job.isdigit() else None,
            machine=machine.describe(),
            begin=machine.begin,
            end=machine.end,
            dollars=machine.dollars,
            state=verdict.state,
            words=verdict.words,
        )


def _list_pod(pod: Pod, facts: Facts) -> ListedMachine:
    """Judge a pod that has not claimed the run yet, or whose run's store was not read."""
    machine = f"{pod.gpu or 'pod'} on RunPod{_per_hour(pod)}"
    verdict = judge_pod(pod, facts)
    listed = ListedMachine(pod.id, pod.job_id, machine, None, None, None, *verdict)
    if pod.created is None or not pod.alive:
        return listed
    hours = max(0.0, facts.now - pod.created) / 3600
    dollars = None if pod.price is None else pod.price * hours
    return dataclasses.replace(listed, begin=pod.created, end=facts.now, dollars=dollars)


def _per_hour(pod: Pod) -> str:
    return f", {money(pod.price)}/h" if pod.price else ""


def _not_ours(pod: Pod) -> str:
    return (
        f"{pod.status} at RunPod, and `pion launch` did not rent it. If `sky` did, `sky status` or "
        "`sky jobs queue` lists it"
    )


# Judge whether a machine is needed, gone, or an orphan (billed although not needed).


def judge_pod(pod: Pod, facts: Facts) -> Verdict:
    """Judge a pod that RunPod lists.

    SkyPilot may have forgotten the pod's job, for example because `consolidation_mode` was changed.
    Such a pod continues to train.
    """
    job = next((known for known in facts.jobs if known.id == pod.job_id), None)
    if pod.job_id is None:
        return Verdict("unknown", _not_ours(pod))
    if pod.rented_from != facts.my_hash:
        return Verdict("unknown", "rented from another machine; check there")
    if job is not None and pod.belongs_to(cluster_name(job.name, job.id)):
        if job.live and pod.alive:
            return Verdict("running", f"managed job {job.id} is {job.status}")
        if job.live:
            return Verdict("ending", f"{pod.status}; managed job {job.id} is {job.status}")
        if facts.has_just_ended(job):
            return Verdict("ending", f"managed job {job.id} has just stopped ({job.status})")
        return Verdict("orphan", f"{pod.status}, although managed job {job.id} is {job.status}")
    forgotten = f"{pod.status}, and SkyPilot lists no managed job {pod.job_id} with that name"
    if pod.alive and facts.at_work is not False:
        at_work = "The run is running, on this machine or another machine"
        doubt = at_work if facts.at_work else "To find out, run: pion rentals RUN"
        return Verdict("unknown", f"{forgotten}. {doubt}")
    return Verdict("orphan", forgotten)


def judge_cluster(event: Mapping[str, Any], facts: Facts, *, newest: bool) -> Verdict:
    """Judge a machine of a cloud other than RunPod, from its event in the run's store.

    `newest`: no later machine of the same job has claimed the run.
    """
    cluster, job_id = str(event.get("cluster")), str(event.get("managed_job"))
    job = next((known for known in facts.jobs if str(known.id) == job_id), None)
    live = job is not None and job.live
    if job is not None and live and newest:
        return Verdict("running", f"managed job {job.id} is {job.status}")
    recorded = not live and cluster in facts.recorded
    if recorded and facts.recorded[cluster] is None:
        return Verdict("gone", f"SkyPilot says that the cluster {cluster} was terminated")
    if recorded and job is not None and facts.has_just_ended(job):
        return Verdict("ending", f"managed job {job.id} has just stopped ({job.status})")
    if facts.clusters is None:
        return Verdict("unknown", "its cloud could not be asked")
    if cluster in facts.clusters:
        return Verdict("running", f"SkyPilot's cluster {cluster} is {facts.clusters[cluster]}")
    words = "SkyPilot does not list machines of managed jobs"
    if recorded:
        words = f"SkyPilot still records its cluster as {facts.recorded[cluster]}"
    return Verdict("unknown", f"{words}; check in the cloud")


# ---------------------------------------------------------------- ending


def end_orphan(
    machine: ListedMachine, provider: Provider, failed: Callable[[str], None]
) -> ListedMachine:
    """End a machine if it is an orphan. If that fails, pass the reason to `failed`."""
    if machine.state != "orphan":
        return machine
    if why := provider.end_pods([machine.id]):
        failed(why[machine.id])
        return machine
    return dataclasses.replace(machine, state="gone", words="terminated now")


@dataclass(frozen=True)
class ListedMachine:
    """One line of the table. Times are Unix seconds; None means unknown.

    `state` is `running`, `gone`, `ending`, `orphan` (billed although not needed) or `unknown`, and
    `words` is how that is known. `dollars` is what the machine cost while it worked on the run, or
    was seen to be rented for it.
    """

    id: str
    job: int | None
    machine: str
    begin: float | None
    end: float | None
    dollars: float | None
    state: str
    words: str


def print_json(
    machines: Sequence[ListedMachine], jobs: Sequence[ManagedJob], *, runpod_asked: bool
) -> None:
    """Print everything as JSON, for programs."""
    about = {
        "rentals": [dataclasses.asdict(machine) for machine in machines],
        "jobs": [
            {"id": job.id, "name": job.name, "status": job.status, "place": job.place}
            for job in jobs
        ],
        "dollars": sum(machine.dollars or 0.0 for machine in machines),
        "runpod_asked": runpod_asked,
    }
    print(json.dumps(about, indent=1))


def print_table(
    machines: Sequence[ListedMachine],
    jobs: Sequence[ManagedJob],
    run: str | None,
    *,
    runpod_asked: bool,
) -> None:
    """Print a line for each machine, their cost, the live jobs, and how to end orphans."""
    living = [job for job in jobs if job.live]
    if not machines and not living:
        show(f"nothing is rented for {run}" if run else "nothing is rented")
    _print_machines(machines)
    for job in living:
        place = f" on {job.place}" if job.place else ""
        show(f"managed job {job.id} ({job.name}): {job.status}{place}")
    if not runpod_asked:
        show("RunPod was not asked: this machine has no key for it (runpod config)")
    orphans = sum(machine.state == "orphan" for machine in machines)
    if orphans:
        several = orphans > 1
        show(
            f"{orphans} orphaned machine{'s are' if several else ' is'} still billing. End "
            f"{'them' if several else 'it'} with: pion rentals {f'{run} ' if run else ''}--reap"
        )


def _print_machines(machines: Sequence[ListedMachine]) -> None:
    rows = [
        (
            machine.machine,
            machine.id,
            f"job {machine.job}" if machine.job is not None else "",
            _when(machine),
            money(machine.dollars) if machine.dollars is not None else "$?",
            f"{machine.state}: {machine.words}",
        )
        for machine in machines
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    known = [machine.dollars for machine in machines if machine.dollars is not None]
    if known:
        show(f"{money(sum(known))} in total; each machine counts until its last sign of life")


def _when(machine: ListedMachine) -> str:
    if machine.begin is None or machine.end is None:
        return "never claimed the run"
    return f"{moment(machine.begin)} for {duration(machine.end - machine.begin)}"
