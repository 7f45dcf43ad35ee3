"""A SkyPilot task YAML, which says where to run. SkyPilot's own loader reads it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pion.bounded_yaml import check_yaml, read_yaml
from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.stages import check_until, stages_until
from pipeline.machine.own_files import OWN, file_meant, is_own
from pipeline.rent.credentials import refuse_recorded_secrets, secrets_written
from pipeline.rent.own_code import BOOT, brings_code, with_code
from pipeline.rent.skypilot import did_you_mean, known_clouds, quiet, sky_module

JOB_VARIABLE = "JOB"


@dataclass(frozen=True)
class Candidate:
    """One machine that the YAML accepts. SkyPilot chooses what is None."""

    cloud: str | None
    region: str | None
    zone: str | None
    gpu: str | None
    count: int
    use_spot: bool
    disk_gb: int
    resources: Any = field(compare=False, repr=False)  # a sky.Resources

    def __str__(self) -> str:
        return machine_in_words(
            self.gpu, self.count, self.use_spot, self.cloud, self.region, self.zone
        )


def machine_in_words(gpu: str | None, count: int, use_spot: bool, *places: str | None) -> str:
    """Return `2 × A40 spot on RunPod/CA`; `places` are the cloud, its region and the region's
    zone, None if any will do."""
    machine = "CPU only" if gpu is None else f"{count} × {gpu}"
    place = "/".join(filter(None, places)) or "any cloud"
    return f"{machine} {'spot' if use_spot else 'on demand'} on {place}"


@dataclass(frozen=True)
class SkyYaml:
    """A task YAML: the machines it accepts, and its variables (None: a value is required)."""

    path: Path
    candidates: tuple[Candidate, ...]
    in_order: bool  # `ordered`: SkyPilot tries them in this order; else the cheapest first
    num_nodes: int
    envs: Mapping[str, str | None]
    secrets: Mapping[str, str | None]
    config: Mapping[str, Any] = field(repr=False)  # the YAML as written


def read_sky_yaml(path: str | Path) -> SkyYaml:
    """Read the rental that a SkyPilot task YAML describes: a file, or the name of Pion's own.

    Outside of Pion's checkout, a rental of Pion's own brings Pion to the machine.

    Raises:
        BadInput: there is no such file, SkyPilot does not accept it, it is not one task, it shows
            a secret outside of `secrets:`, or it lacks the JOB variable that tells the machine what
            to run.
    """
    file = file_meant(path, "sky")
    config = _parse(file)
    refuse_recorded_secrets(config, str(path))
    elsewhere = is_own(file) and Path.cwd() != OWN.resolve()
    if elsewhere or brings_code(config):
        config = with_code(config)
    return sky_yaml_of(config, Path(file.name) if elsewhere else file)


def sky_yaml_of(config: Mapping[str, Any], path: Path) -> SkyYaml:
    """Return the rental that the content of a task YAML describes; errors call it `path`.

    Raises as `read_sky_yaml` does.
    """
    envs = _variables(path, config, "envs")
    if JOB_VARIABLE not in envs:
        raise BadInput(
            f"{path}: envs has no {JOB_VARIABLE}, so the machine would not know what to run. Add\n"
            f"envs:\n  {JOB_VARIABLE}: null   # the job file\nand put `pion run "
            f'"${JOB_VARIABLE}"` into `run:`.'
        )
    given = {name: "unset" for name, value in envs.items() if value is None}
    task = _load(path, config, given)
    in_order = isinstance(task.resources, list)
    candidates = map(_candidate, task.resources)
    return SkyYaml(
        path=path,
        # SkyPilot keeps alternatives as a set; show them in the same order every time.
        candidates=tuple(candidates if in_order else sorted(candidates, key=str)),
        in_order=in_order,
        num_nodes=task.num_nodes,
        envs=envs,
        secrets=_variables(path, config, "secrets"),
        config=config,
    )


def _parse(path: Path) -> dict[str, Any]:
    sky_module()
    from sky.utils import yaml_utils

    text = read_yaml(path, "SkyPilot YAML")
    check_yaml(text, str(path))
    try:
        yaml_utils.check_no_duplicate_keys(text)
        documents = [d for d in yaml_utils.safe_load_all(text) if d is not None]
    except yaml.MarkedYAMLError as error:  # as text, it would quote lines, perhaps with a secret
        mark = error.problem_mark or error.context_mark
        at = f" line {mark.line + 1}" if mark else ""
        raise BadInput(f"{path}{at}: not YAML: {error.problem or error.context}") from None
    except Exception as error:  # another YAML error, or SkyPilot's error for a duplicate key
        raise BadInput(f"{path}: not YAML: {error}") from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise BadInput(
            f"{path} must be one SkyPilot task, a mapping with resources, envs and run; "
            f"this file has {len(documents)} documents"
            + ("." if len(documents) != 1 else f", a {type(documents[0]).__name__}.")
        )
    return documents[0]


def _variables(path: Path, config: Mapping[str, Any], key: str) -> dict[str, str | None]:
    """Return `envs` or `secrets`: name → default, None if a value is required."""
    section = config.get(key)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise BadInput(f"{path}: {key} is a {type(section).__name__}; write `NAME: value` lines.")
    return {str(name): None if value is None else str(value) for name, value in section.items()}


def _load(path: Path, config: Mapping[str, Any], given: Mapping[str, str]) -> Any:
    sky = sky_module()
    import requests

    try:
        with quiet():
            return sky.Task.from_yaml_config(
                copy.deepcopy(dict(config)), env_overrides=list(given.items())
            )
    except requests.RequestException as error:
        raise BadInput(
            f"{path}: SkyPilot needs its list of GPUs to read this file, and could not fetch the "
            f"list ({type(error).__name__}). Check the network, or name GPUs instead of sizes."
        ) from None
    except Exception as error:  # SkyPilot raises ValueError, AssertionError and many others
        words = _unknown_cloud(config) or str(error)
        for value in secrets_written(config).values():
            words = words.replace(value, "<secret>")
        raise BadInput(f"{path}: {words}") from None


def _unknown_cloud(config: Mapping[str, Any]) -> str | None:
    """Return a clear message for a misspelt cloud. SkyPilot's would quote a regular expression."""
    known = known_clouds()
    spelt = {cloud.lower() for cloud in known} | {"k8s", "*"}
    resources = config.get("resources")
    if not isinstance(resources, dict):
        return None
    for section in (resources, *(resources.get("any_of") or []), *(resources.get("ordered") or [])):
        where = section.get("infra") or section.get("cloud") if isinstance(section, dict) else None
        cloud = str(where or "*").split("/")[0]
        if cloud.lower() not in spelt:
            hint = did_you_mean(cloud, known, f"known: {', '.join(known)}")
            return f"SkyPilot has no cloud {cloud!r}; {hint}"
    return None


def _candidate(resources: Any) -> Candidate:
    gpu, count = next(iter((resources.accelerators or {}).items()), (None, 0))
    return Candidate(
        cloud=None if resources.cloud is None else str(resources.cloud),
        region=resources.region,
        zone=resources.zone,
        gpu=gpu,
        count=math.ceil(count),
        use_spot=resources.use_spot,
        disk_gb=resources.disk_size,
        resources=resources,
    )


# The machine's boot script passes it to `pion run --until`.
UNTIL = "PION_UNTIL"


def with_until(sky_yaml: SkyYaml, job: Job, until: str | None) -> SkyYaml:
    """Return a YAML whose rental of `job` ends after the stage `until`; None: as the YAML says.

    Raises BadInput if the job has no such stage, or if the YAML's `run:` would ignore it.
    """
    check_until(job.stages, until or until_of(sky_yaml), None)
    if until is None:
        return sky_yaml
    run = str(sky_yaml.config.get("run") or "")
    if BOOT not in run and UNTIL not in run:
        raise BadInput(
            f"--until {until}: {sky_yaml.path} would do all stages, because its `run:` neither "
            f"starts {BOOT} nor passes ${UNTIL} on. Nothing was rented. Write `run: exec bash "
            f'{BOOT}`, or add `--until "${UNTIL}"` to its `pion run`.'
        )
    return replace(sky_yaml, envs={**sky_yaml.envs, UNTIL: until})


def until_of(sky_yaml: SkyYaml) -> str | None:
    """Return the stage after which a rental with this YAML ends; None: after the last."""
    return sky_yaml.envs.get(UNTIL) or None


def trains(sky_yaml: SkyYaml, job: Job) -> bool:
    """Return whether a rental with this YAML trains the job's model. Raises as `with_until`."""
    until = until_of(sky_yaml)
    check_until(job.stages, until, None)
    return any(stage in job.train_stages for stage in stages_until(job.stages, until))
