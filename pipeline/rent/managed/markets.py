"""The machines of a rental with a deadline, on both markets, as the task of each job records them.

With a deadline, a managed job asks one market only, so that the price of its machine is known. The
task still names all machines of the launch: whoever watches the rental can request the others.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.rent.deadline.policy import Market
from pipeline.rent.managed.cheapest_first import resources_by_price
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.place import Place
from pipeline.rent.managed.recorded_task import recorded_task, task_from, variable_of
from pipeline.rent.managed.task import machine_variables
from pipeline.rent.plan.prices import Prices
from pipeline.rent.sky_yaml import Candidate, SkyYaml, sky_yaml_of
from pipeline.run.handover import FROM_EPOCH

MACHINES = "PION_MACHINES"
# In the task of a job of `pion hop`: "1".
BY_HOP = "PION_BY_HOP"
_MARKETS = {"1": Market.SPOT, "0": Market.ON_DEMAND}


@dataclass(frozen=True)
class NextRental:
    """A rental to submit: like the job `like`.

    Attributes:
        like: a managed job of the same run, whose task is submitted again.
        machines: that task, with other machines to request; None: it belongs to the same launch,
            and requests the same machines.
        launch_id: the id of the new launch.
        epoch: the epoch whose owner the new machine relieves; None if nobody ever owned the run.
        prices: the job's own prices.
        avoid: places not to rent from.
    """

    like: ManagedJob
    machines: SkyYaml | None = None
    launch_id: str | None = None
    epoch: int | None = None
    prices: Prices | None = None
    avoid: Collection[Place] = ()


def machines_in_words(candidates: Sequence[Candidate]) -> str:
    """Return these machines as the value of the variable MACHINES."""
    return json.dumps([candidate.resources.to_yaml_config() for candidate in candidates])


def market_of(job: ManagedJob) -> Market | None:
    """Return the market that a managed job asks; None if it asks both, or nobody knows."""
    return _MARKETS.get(variable_of(job, "PION_SPOT") or "")


def machines_of(job: ManagedJob) -> SkyYaml | None:
    """Return a job's task with the machines of both markets; None if it was not launched with a
    deadline.

    Raises BadInput if SkyPilot can't read its own record any more.
    """
    text = variable_of(job, MACHINES)
    if not text:
        return None
    config = recorded_task(job)
    listed = json.loads(text)
    config["resources"] = listed[0] if len(listed) == 1 else {"ordered": listed}
    return sky_yaml_of(config, Path(f"managed job {job.id}"))


def new_launch_id() -> str:
    """Return an id for a new launch."""
    return uuid.uuid4().hex


def task_of(wanted: NextRental) -> Any:
    """Return the sky.Task of a wanted rental, for any place that it does not avoid.

    A task of the same launch may take over the run at once. Raises BadInput if no machine is left
    to rent, or if a secret of the job is no longer set here.
    """
    config = recorded_task(wanted.like)
    if wanted.machines is not None:
        config["resources"] = resources_by_price(wanted.machines, wanted.prices)
        config["envs"] = {
            **config["envs"],
            **machine_variables(wanted.machines, wanted.prices),
            "PION_LAUNCH_ID": wanted.launch_id,
            FROM_EPOCH: "" if wanted.epoch is None else str(wanted.epoch),
            BY_HOP: "",
        }
    return task_from(config, wanted.avoid)
