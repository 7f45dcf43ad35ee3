"""Read the task that SkyPilot has recorded for a managed job, and build it again."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from pion.errors import BadInput
from pipeline.job.bounded_yaml import check_yaml
from pipeline.rent.credentials import secrets_for
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.place import Place
from pipeline.rent.managed.task import make_task
from pipeline.rent.until import UNTIL


def task_from(config: dict[str, Any], avoid: Collection[Place]) -> Any:
    """Return the sky.Task of a recorded task, without the places in `avoid`. Raises BadInput if no
    machine is left to rent, or if a secret of the job is no longer set here."""
    config["secrets"] = dict.fromkeys(config.get("secrets") or {}, "")  # values are redacted
    given = str((config.get("envs") or {}).get("PION_SECRETS") or "").split(",")
    needed = {name: None if name in given else "" for name in config["secrets"]}
    task = make_task(config, secrets_for(needed, wanted=given))
    if avoid:
        task.set_resources(_elsewhere(task.resources, avoid))
    return task


def launch_id_of(job: ManagedJob) -> str | None:
    """Return the launch that submitted a managed job; None if SkyPilot's record does not say."""
    return variable_of(job, "PION_LAUNCH_ID")


def until_of_job(job: ManagedJob) -> str | None:
    """Return the stage after which a managed job ends; None: the last, or nobody knows."""
    return variable_of(job, UNTIL) or None


def variable_of(job: ManagedJob, name: str) -> str | None:
    """Return a variable of a managed job's task; None if it has none, or nobody knows."""
    return _envs(job).get(name)


@functools.lru_cache(maxsize=64)
def _envs(job: ManagedJob) -> Mapping[str, str]:
    try:
        return recorded_task(job).get("envs") or {}
    except BadInput:
        return {}


def recorded_task(job: ManagedJob) -> dict[str, Any]:
    """Return the YAML that a managed job was submitted with. Raises BadInput if there is none.

    SkyPilot's record is two documents: a header and this YAML.
    """
    try:
        check_yaml(job.task or "", f"SkyPilot's record of managed job {job.id}")
        documents = [d for d in yaml.safe_load_all(job.task or "") if isinstance(d, dict)]
    except (BadInput, yaml.YAMLError, ValueError):
        documents = []
    if not documents or "run" not in documents[-1]:
        raise BadInput(f"SkyPilot has no record of the task of managed job {job.id}.")
    return documents[-1]


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
