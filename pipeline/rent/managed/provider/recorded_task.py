"""Read the task that SkyPilot has recorded for a managed job, and build it again.

With a deadline, a managed job asks one market only, so that the price of its machine is known. The
task still names all machines of the launch: whoever watches the rental can request the others.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pion.bounded_yaml import BoundedLoader, check_yaml
from pion.errors import BadInput
from pipeline.rent.credentials import secrets_for
from pipeline.rent.deadline.policy import Market
from pipeline.rent.managed.provider.jobs import ManagedJob, Place
from pipeline.rent.managed.provider.task import machine_variables, make_task, resources_by_price
from pipeline.rent.sky_yaml import Candidate, SkyYaml, sky_yaml_of

if TYPE_CHECKING:
    from pipeline.rent.plan.prices import Prices

MACHINES = "PION_MACHINES"
# In the task of a job of `pion hop`: "1".
BY_HOP = "PION_BY_HOP"
_MARKETS = {"1": Market.SPOT, "0": Market.ON_DEMAND}


def launch_id_of(job: ManagedJob) -> str | None:
    """Return the launch that submitted a managed job; None if SkyPilot's record does not say."""
    return variable_of(job, "PION_LAUNCH_ID")


def variable_of(job: ManagedJob, name: str) -> str | None:
    """Return a variable of a managed job's task; None if it has none, or nobody knows."""
    return ((_parsed(job.task or "") or {}).get("envs") or {}).get(name)


def recorded_task(job: ManagedJob) -> dict[str, Any]:
    """Return the YAML that a managed job was submitted with. Raises BadInput if there is none.

    SkyPilot's record is two documents: a header and this YAML.
    """
    task = _parsed(job.task or "")
    if task is None:
        raise BadInput(f"SkyPilot has no record of the task of managed job {job.id}.")
    return deepcopy(task)


@functools.lru_cache(maxsize=1024)  # one watcher may look at hundreds of jobs every ten seconds
def _parsed(record: str) -> dict[str, Any] | None:
    """Return the last document of a record; None if it is no task."""
    try:
        check_yaml(record, "SkyPilot's record")
        found = yaml.load_all(record, Loader=BoundedLoader)
        documents = [document for document in found if isinstance(document, dict)]
    except (BadInput, yaml.MarkedYAMLError):
        return None
    return documents[-1] if documents and "run" in documents[-1] else None


def _elsewhere(resources: Any, avoid: Collection[Place]) -> Any:
    """Return the task's candidates without those places, as the same kind of collection."""
    left: list[Any] = []
    for candidate in resources:
        gpu = next(iter(candidate.accelerators or {}), None)
        bad = [p for p in avoid if (p.gpu, p.spot) == (gpu, candidate.use_spot)]
        if candidate.cloud is not None:
            bad = [p for p in bad if p.cloud == str(candidate.cloud)]
        if not bad:
            left.append(candidate)
        elif candidate.cloud is not None and candidate.region is None:
            feasible = candidate.cloud.get_feasible_launchable_resources(candidate, 1)
            regions = {
                region.name
                for launchable in feasible.resources_list[:1]
                for region in launchable.get_valid_regions_for_launchable()
            }
            others = sorted(regions - {place.region for place in bad})
            left += [candidate.copy(region=region) for region in others]
        elif candidate.cloud is not None and candidate.region not in {p.region for p in bad}:
            left.append(candidate)
    if not left:
        raise BadInput(
            f"the YAML only allows {' and '.join(map(str, avoid))}; add other GPUs, regions or "
            "on-demand machines"
        )
    return type(resources)(left)


@dataclass(frozen=True)
class NextRental:
    """A rental to submit: like the job `like`.

    Attributes:
        like: a managed job of the same run, whose task is submitted again.
        machines: that task, with other machines to request; None: it belongs to the same launch,
            and requests the same machines.
        market: the market that `machines` are of.
        launch_id: the id of the new launch.
        epoch: the epoch whose owner the new machine relieves; None if nobody ever owned the run.
        prices: the job's own prices.
        avoid: places not to rent from.
        task: the task for SkyPilot; None until it is built.
    """

    like: ManagedJob
    machines: SkyYaml | None = None
    market: Market | None = None
    launch_id: str | None = None
    epoch: int | None = None
    prices: Prices | None = None
    avoid: Collection[Place] = ()
    task: Any = None


def machines_in_words(candidates: Sequence[Candidate]) -> str:
    """Return these machines as the value of the variable MACHINES."""
    return json.dumps([candidate.resources.to_yaml_config() for candidate in candidates])


def market_of(job: ManagedJob) -> Market | None:
    """Return the market that a managed job asks; None if it asks both, or nobody knows."""
    return _MARKETS.get(variable_of(job, "PION_SPOT") or "")


def machines_of(job: ManagedJob) -> SkyYaml:
    """Return the task, with the machines of both markets, of a job that was launched with a
    deadline.

    Raises BadInput if SkyPilot can't read its own record any more.
    """
    config = recorded_task(job)
    listed = json.loads(config["envs"][MACHINES])
    config["resources"] = listed[0] if len(listed) == 1 else {"ordered": listed}
    return sky_yaml_of(config, Path(f"managed job {job.id}"))


def task_of(wanted: NextRental) -> Any:
    """Return the sky.Task of a wanted rental, for any place that it does not avoid.

    A task of the same launch may take over the run at once. Raises BadInput if no machine is left
    to rent, or if a secret of the job is no longer set here.
    """
    config = recorded_task(wanted.like)
    if wanted.machines is not None:
        from pipeline.run.handover import FROM_EPOCH

        config["resources"] = resources_by_price(wanted.machines, wanted.prices)
        config["envs"] = {
            **config["envs"],
            **machine_variables(wanted.machines, wanted.prices),
            "PION_LAUNCH_ID": wanted.launch_id,
            FROM_EPOCH: "" if wanted.epoch is None else str(wanted.epoch),
            BY_HOP: "",
        }
    config["secrets"] = dict.fromkeys(config.get("secrets") or {}, "")  # values are redacted
    given = str((config.get("envs") or {}).get("PION_SECRETS") or "").split(",")
    needed = {name: None if name in given else "" for name in config["secrets"]}
    task = make_task(config, secrets_for(needed, wanted=given))
    if wanted.avoid:
        task.set_resources(_elsewhere(task.resources, wanted.avoid))
    return task
