"""The SkyPilot task that runs a job on a rented machine: its YAML, variables and secrets."""

from __future__ import annotations

import json
import os
import shlex
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.machine.rented import CPU, priced_at
from pipeline.rent.credentials import names_given, secrets_for, wanted_secrets
from pipeline.rent.managed.cheapest_first import resources_by_price
from pipeline.rent.managed.diagnose import Place
from pipeline.rent.managed.managed_jobs import ManagedJob, asking_skypilot
from pipeline.rent.plan.prices import Offer, Prices, offers_for
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.rent.skypilot import sky_module
from pipeline.state.owner import code_version

PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "HF_ENDPOINT")
"""Variables that say where a store or the Hub is, and are no secrets."""


def task_variables(
    sky_yaml: SkyYaml, job: Job, job_path: str, overrides: Sequence[str], **more: str
) -> dict[str, str]:
    """The environment of the task, secrets apart."""
    code = code_version()
    spot = {candidate.use_spot for candidate in sky_yaml.candidates}
    found = {
        "JOB": _travelling_path(job_path, sky_yaml),
        "OVERRIDES": shlex.join(overrides),
        "PION_LAUNCH_ID": uuid.uuid4().hex,
        "PION_SECRETS": ",".join(names_given(sky_yaml.secrets, wanted_secrets(job))),
        "PION_PRICES": json.dumps(_prices(offers_for(sky_yaml, job.prices))),
        "PION_COMMIT": code.commit or "",
        "PION_DIRTY": code.dirty or "",
        "PION_DISK_GB": str(min(candidate.disk_gb for candidate in sky_yaml.candidates)),
    }
    if len(spot) == 1:
        found["PION_SPOT"] = "1" if spot.pop() else "0"
    return {**found, **{k: os.environ[k] for k in PASSED_ON if os.environ.get(k)}, **more}


def _prices(offers: Iterable[Offer]) -> dict[str, float]:
    """Dollars per hour by GPU, where it is cheapest, and by GPU and place where it costs more.

    What is spot and what is on demand can't be told apart there: never too cheap.
    """
    prices: dict[str, float] = {}
    for offer in offers:
        if offer.price is None:
            continue
        gpu = offer.gpu or CPU
        prices[gpu] = max(prices.get(gpu, 0.0), offer.price)
        for place, price in offer.elsewhere.items():
            if price > offer.price:
                at = priced_at(gpu, place)
                prices[at] = max(prices.get(at, 0.0), price)
    return prices


def task_config(
    sky_yaml: SkyYaml, name: str, envs: Mapping[str, str], prices: Prices | None = None
) -> dict[str, Any]:
    """The rental's YAML with everything filled in but the secrets: enough to submit it again.

    `prices` are the job's own, for the order its machines are tried in.
    """
    config = deepcopy(dict(sky_yaml.config))
    config["resources"] = deepcopy(resources_by_price(sky_yaml, prices))
    config["name"] = name
    config["envs"] = {**sky_yaml.envs, **envs}
    if isinstance(config.get("workdir"), str):
        config["workdir"] = str(Path(config["workdir"]).expanduser().resolve())
    return config


def make_task(config: Mapping[str, Any], secrets: Mapping[str, str]) -> Any:
    """A sky.Task. Secrets are given apart, so that SkyPilot's record of the YAML lacks them."""
    sky = sky_module()
    with asking_skypilot("read the task"):
        return sky.Task.from_yaml_config(
            deepcopy(dict(config)), secrets_overrides=list(secrets.items())
        )


def task_yaml(config: Mapping[str, Any]) -> str:
    """The task as text, secrets left out."""
    shown = deepcopy(dict(config))
    shown["secrets"] = {
        name: "<from the environment>" if os.environ.get(name) else value
        for name, value in (config.get("secrets") or {}).items()
    }
    if not shown["secrets"]:
        del shown["secrets"]
    return yaml.dump(shown, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=1000)


class _Readable(yaml.SafeDumper):
    """Writes a script as the lines it has."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def make_again(job: ManagedJob, avoid: Collection[Place]) -> Any:
    """The sky.Task of a managed job once more, to be run on none of the places in `avoid`.

    It belongs to the same launch, so it may take the run over at once. Raises BadInput if no
    machine is left to rent, or a secret that it was given then is not set here.
    """
    config = _recorded(job)
    config["secrets"] = dict.fromkeys(config.get("secrets") or {}, "")  # values are redacted
    given = str((config.get("envs") or {}).get("PION_SECRETS") or "").split(",")
    needed = {name: None if name in given else "" for name in config["secrets"]}
    task = make_task(config, secrets_for(needed, wanted=given))
    if avoid:
        task.set_resources(_elsewhere(task.resources, avoid))
    return task


def launch_id_of(job: ManagedJob) -> str | None:
    """The launch that a managed job was submitted by; None if SkyPilot's record does not say."""
    try:
        config = _recorded(job)
    except BadInput:
        return None
    return (config.get("envs") or {}).get("PION_LAUNCH_ID")


def _recorded(job: ManagedJob) -> dict[str, Any]:
    """The YAML that a managed job was submitted with: SkyPilot's record has a head before it.

    Raises BadInput if SkyPilot has none."""
    try:
        documents = [d for d in yaml.safe_load_all(job.task or "") if isinstance(d, dict)]
    except yaml.YAMLError:
        documents = []
    if not documents or "run" not in documents[-1]:
        raise BadInput(f"SkyPilot has no record of the task of managed job {job.id}.")
    return documents[-1]


def _elsewhere(resources: Any, avoid: Collection[Place]) -> Any:
    """The task's candidates without those places, as the same kind of collection."""
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
            f"the YAML allows nothing but {' and '.join(map(str, avoid))}; add other GPUs, regions "
            "or on-demand machines to it"
        )
    return type(resources)(left)


def _travelling_path(job_path: str, sky_yaml: SkyYaml) -> str:
    """The job file's path on the machine, below the working directory that travels there."""
    workdir = sky_yaml.config.get("workdir")
    if not isinstance(workdir, str):
        return job_path
    root, path = Path(workdir).expanduser().resolve(), Path(job_path).expanduser().resolve()
    if not path.is_relative_to(root):
        raise BadInput(
            f"{job_path} is not below {root}, the `workdir` of {sky_yaml.path} that is copied to "
            "the machine. Put the job file there. Nothing was rented."
        )
    return path.relative_to(root).as_posix()
