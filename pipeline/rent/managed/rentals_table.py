"""Print the machines that `pion rentals` lists, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.console.formats import duration, moment, show
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.say import say_now


@dataclass(frozen=True)
class ListedMachine:
    """One line of the table. Times are Unix seconds; None means unknown.

    `state` is `running`, `gone`, `ending`, `orphan` (billed although not needed) or `unknown`, and
    `words` is the evidence. `dollars` is what the machine cost while it worked on the run, or was
    seen to be rented for it.
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
    if machines or any(job.live for job in jobs):
        _print_machines(machines)
        _print_jobs(jobs)
    else:
        show(f"nothing is rented for {run}" if run else "nothing is rented")
    if not runpod_asked:
        say_now("RunPod was not asked: this machine has no key for it (runpod config)")
    orphans = [machine for machine in machines if machine.state == "orphan"]
    if orphans:
        several = len(orphans) > 1
        say_now(
            f"{len(orphans)} orphaned machine{'s are' if several else ' is'} still billing. End "
            f"{'them' if several else 'it'} with: pion rentals {f'{run} ' if run else ''}--reap"
        )


def _print_machines(machines: Sequence[ListedMachine]) -> None:
    rows = [
        (
            machine.machine,
            machine.id,
            f"job {machine.job}" if machine.job is not None else "",
            _when(machine),
            f"${machine.dollars:.2f}" if machine.dollars is not None else "$?",
            f"{machine.state}: {machine.words}",
        )
        for machine in machines
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    known = [machine.dollars for machine in machines if machine.dollars is not None]
    if known:
        show(f"${sum(known):.2f} in total; each machine counts until its last sign of life")


def _print_jobs(jobs: Sequence[ManagedJob]) -> None:
    for job in jobs:
        if job.live:
            place = f" on {job.place}" if job.place else ""
            show(f"managed job {job.id} ({job.name}): {job.status}{place}")


def _when(machine: ListedMachine) -> str:
    if machine.begin is None or machine.end is None:
        return "never claimed the run"
    return f"{moment(machine.begin)} for {duration(machine.end - machine.begin)}"
