"""Build the SkyPilot task that runs a job on a rented machine: its YAML, variables and secrets."""

from __future__ import annotations

import json
import os
import secrets as random
import shlex
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from pion.errors import BadInput
from pion.files import expand
from pipeline.job import Job
from pipeline.machine.own_files import file_meant, is_own
from pipeline.machine.rented import CPU, LIMIT_VARIABLE, priced_at
from pipeline.rent.credentials import names_given, needed_secrets, wanted_secrets
from pipeline.rent.managed.provider.jobs import asking_skypilot
from pipeline.rent.sky_yaml import Candidate, SkyYaml
from pipeline.rent.skypilot import sky_module
from pipeline.state.owner import code_version

if TYPE_CHECKING:
    from pipeline.rent.plan.prices import Offer, Prices

# Variables that say where a store or the Hub is. They are not secrets.
PASSED_ON = ("AWS_ENDPOINT_URL", "HF_ENDPOINT")


def task_variables(
    sky_yaml: SkyYaml, job: Job, job_path: str, overrides: Sequence[str]
) -> dict[str, str]:
    """Return the environment of the task, without its secrets."""
    code = code_version()
    found = {
        **machine_variables(sky_yaml, job.prices),
        "JOB": _travelling_path(job_path, sky_yaml),
        "OVERRIDES": shlex.join(overrides),
        "PION_LAUNCH_ID": uuid.uuid4().hex,
        "PION_SECRETS": ",".join(names_given(sky_yaml.secrets, wanted_secrets(job))),
        "PION_COMMIT": code.commit or "",
        "PION_DIRTY": code.dirty or "",
    }
    if "AWS_ACCESS_KEY_ID" in needed_secrets(job):
        from pipeline.state.stores.s3.bucket import region_name  # the SDK takes a while to import

        # The rented machine has no AWS profile, so otherwise it would use boot.sh's default region.
        if region := region_name():
            found["AWS_DEFAULT_REGION"] = region
    return {**found, **{k: os.environ[k] for k in PASSED_ON if os.environ.get(k)}}


def machine_variables(sky_yaml: SkyYaml, prices: Prices | None) -> dict[str, str]:
    """Return the variables that say what the machines of a YAML cost and have.

    `prices` are the job's own.
    """
    from pipeline.rent.plan.prices import look_up

    offers = [look_up(each, sky_yaml.num_nodes, prices) for each in sky_yaml.candidates]
    spot = {candidate.use_spot for candidate in sky_yaml.candidates}
    found = {
        "PION_PRICES": json.dumps(_prices(offers)),
        "PION_DISK_GB": str(min(candidate.disk_gb for candidate in sky_yaml.candidates)),
    }
    limits = [candidate.resources.max_hourly_cost for candidate in sky_yaml.candidates]
    if None not in limits:
        found[LIMIT_VARIABLE] = str(max(limits))
    if len(spot) == 1:
        found["PION_SPOT"] = "1" if spot.pop() else "0"
    return found


def _prices(offers: Iterable[Offer]) -> dict[str, float]:
    """Return dollars per hour by GPU, and by GPU and place where the GPU costs more.

    A machine can't find out whether it is spot or on demand, so the higher price counts.
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
    """Return the YAML with everything filled in except the secrets: enough to submit it again.

    `prices` are the job's own prices, by which the machines are sorted.
    """
    config = deepcopy(dict(sky_yaml.config))
    config["resources"] = deepcopy(resources_by_price(sky_yaml, prices))
    config["name"] = name
    config["envs"] = {**sky_yaml.envs, **envs}
    if isinstance(config.get("workdir"), str):
        config["workdir"] = str(expand(config["workdir"]).resolve())
    return config


def make_task(config: Mapping[str, Any], secrets: Mapping[str, str]) -> Any:
    """Return a sky.Task. Secrets are passed separately, to keep them out of SkyPilot's record.

    With several nodes, the task gets a new token for their Ray. So make a task at each submission.
    """
    sky = sky_module()
    secrets = with_ray_token(config, secrets)
    with asking_skypilot("read the task"):
        return sky.Task.from_yaml_config(
            deepcopy(dict(config)), secrets_overrides=list(secrets.items())
        )


def task_yaml(config: Mapping[str, Any], wanted: Collection[str]) -> str:
    """Return the task as text. Of its secrets, the text says only where they come from, and it
    leaves out optional ones that are not among the `wanted`: they are not sent."""
    shown = deepcopy(dict(config))
    declared = config.get("secrets") or {}
    shown["secrets"] = {
        name: "<from the environment>"
        if os.environ.get(name) and (value is None or name in wanted)
        else (value and "<given in the YAML>")
        for name, value in declared.items()
        if value or value is None or name in wanted
    }
    if not shown["secrets"]:
        del shown["secrets"]
    return yaml.dump(shown, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=1000)


class _Readable(yaml.SafeDumper):
    """Writes a script line by line."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def _travelling_path(job_path: str, sky_yaml: SkyYaml) -> str:
    """Return the job file's path on the machine, below the `workdir` that is copied there."""
    workdir = sky_yaml.config.get("workdir")
    if not isinstance(workdir, str):
        return job_path
    root, path = expand(workdir).resolve(), file_meant(expand(job_path), "jobs").resolve()
    if is_own(path) and not path.is_relative_to(root):
        return path.stem  # the Pion there has it, too
    if not path.is_relative_to(root):
        raise BadInput(
            f"{job_path} is not inside {root}, the `workdir` of {sky_yaml.path} that is copied to "
            "the machine. Put the job file there. Nothing was rented."
        )
    return path.relative_to(root).as_posix()


# sky/ray_token.sh gives it to Ray.
RAY_TOKEN = "PION_RAY_TOKEN"


def with_ray_token(config: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets of a task with a new random token, if the task has several nodes."""
    # SkyPilot takes `num_nodes: null` as 1, and a number in quotes as the number.
    if int(config.get("num_nodes") or 1) <= 1:
        return dict(secrets)
    return {**secrets, RAY_TOKEN: random.token_hex(32)}


# If a YAML sets this variable to 1 in `envs`, its list may be sorted by price.
WANTED = "PION_CHEAPEST_FIRST"


def with_candidates(sky_yaml: SkyYaml, candidates: Sequence[Candidate]) -> SkyYaml:
    """Return a YAML that accepts only these candidates, in their order."""
    if len(candidates) == len(sky_yaml.candidates):
        return sky_yaml
    left = [candidate.resources.to_yaml_config() for candidate in candidates]
    listed = {"ordered" if sky_yaml.in_order else "any_of": left}
    config = {**sky_yaml.config, "resources": left[0] if len(left) == 1 else listed}
    return replace(sky_yaml, candidates=tuple(candidates), config=config)


def resources_by_price(sky_yaml: SkyYaml, prices: Prices | None) -> Any:
    """Return the YAML's `resources`: as written, or with spot first and then by price.

    A list is the user's order of preference and stays as it is, unless the YAML says otherwise.
    """
    listed = sky_yaml.in_order and sky_yaml.envs.get(WANTED) != "1"
    if listed or len(sky_yaml.candidates) == 1:
        return sky_yaml.config.get("resources")
    from pipeline.rent.plan.prices import look_up

    def turn(candidate: Candidate) -> tuple[bool, bool, float]:
        price = look_up(candidate, sky_yaml.num_nodes, prices).price
        return candidate.use_spot is False, price is None, price or 0.0

    candidates = sorted(sky_yaml.candidates, key=turn)
    return {"ordered": [candidate.resources.to_yaml_config() for candidate in candidates]}
