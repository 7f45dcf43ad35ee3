"""Rentals that end after a stage: `pion launch --until`, or PION_UNTIL in a SkyPilot YAML."""

from __future__ import annotations

from dataclasses import replace

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.run.stage_plan import check_until, stages_until

# The machine's boot script passes it to `pion run --until`.
UNTIL = "PION_UNTIL"
BOOT = "sky/boot.sh"


def with_until(sky_yaml: SkyYaml, job: Job, until: str | None) -> SkyYaml:
    """Return a YAML whose rental of `job` ends after the stage `until`; None: as the YAML says.

    Raises BadInput if the job has no such stage, or if the YAML's `run:` would ignore it.
    """
    check_until(job, until or until_of(sky_yaml), None)
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
    check_until(job, until, None)
    return any(stage in job.train_stages for stage in stages_until(job.stages, until))
