"""Which credentials a run on a rented machine needs, and which are sent there."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from pion.errors import BadInput
from pion.secret_names import names_secret
from pipeline.console.masking import (
    LEAST_CHARACTERS,
    holds_userinfo,
    known_secrets,
    refuse_endpoints,
    secret_in,
    texts_in,
    userinfo_refused,
)
from pipeline.job import HubDataset, HubNpyShards, Job

# Only temporary keys have this token.
SESSION_TOKEN = "AWS_SESSION_TOKEN"


def needed_secrets(job: Job, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that a run on another machine needs, and what each is for."""
    needed: dict[str, str] = {}
    urls = {f"for {key}": address for key, address in job.bucket_inputs.items()}
    urls |= {"for model.from": job.model.base or "", "for the store": job.store}
    for why, url in urls.items():
        if url.startswith("s3://"):
            needed.update(AWS_ACCESS_KEY_ID=why, AWS_SECRET_ACCESS_KEY=why)
            if environment.get(SESSION_TOKEN):
                needed[SESSION_TOKEN] = "the keys don't work without it"
    if job.store.startswith("hf://"):
        needed["HF_TOKEN"] = "for the store"
    elif job.publish is not None and job.publish.to.startswith("hf://"):
        needed["HF_TOKEN"] = "to publish"
    if job.log.wandb:
        needed["WANDB_API_KEY"] = "for log.wandb"
    if job.log.trackio_space:
        needed.setdefault("HF_TOKEN", "for log.trackio_space")
    return needed


def wanted_secrets(job: Job, environment: Mapping[str, str] = os.environ) -> set[str]:
    """Return the variables that the run can use. A Hub token helps even with public inputs: the
    Hub limits anonymous requests."""
    reads_hub = bool(hub_inputs(job)) or job.evaluate.lm_eval.tasks
    return {*needed_secrets(job, environment), *(["HF_TOKEN"] if reads_hub else [])}


def hub_inputs(job: Job) -> list[str]:
    """Return the repositories that the job reads from the Hub."""
    from pipeline.models.find import HUB_REPO

    repositories = [s.repo for _, s in job.sources() if isinstance(s, HubDataset | HubNpyShards)]
    if job.tokenizer is not None and job.tokenizer.hub is not None:
        repositories.append(job.tokenizer.hub)
    base = job.model.base or ""
    is_repo = HUB_REPO.fullmatch(base) is not None and not job.input_path(base).exists()
    if is_repo or base.startswith("hf://"):
        repositories.append(base)
    return list(dict.fromkeys(repositories))


def names_given(
    declared: Mapping[str, str | None],
    wanted: Collection[str],
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """Return the names of a YAML's secrets that will have a value, from the YAML or from here."""
    return [
        name
        for name, value in declared.items()
        if value or (environment.get(name) and (value is None or name in wanted))
    ]


def secrets_for(
    declared: Mapping[str, str | None],
    environment: Mapping[str, str] = os.environ,
    *,
    wanted: Collection[str] | None = None,
) -> dict[str, str]:
    """Return the values of a YAML's secrets, from this process's environment.

    Of the optional secrets, return only the `wanted` ones (None: all), because the rented
    machine's host can read them. Raises BadInput if a required secret is not set.
    """
    missing = [k for k, value in declared.items() if value is None and not environment.get(k)]
    if missing:
        raise BadInput(
            f"{', '.join(missing)} must be set in the environment, to be passed on as a secret: "
            f"export {missing[0]}=…. Nothing was rented."
        )
    return {
        name: environment[name]
        for name, value in declared.items()
        if environment.get(name) and (wanted is None or value is None or name in wanted)
    }


_SECRETS = "secrets"
# `NAME=value` in a script, where the value is neither a variable nor a path. A name with small
# letters counts only where a command begins, because options and code have such names, too; there,
# `NAME: value` counts as well, as in a file that the script writes.
_VALUE = r"""["']?[^\s"'$/~<]"""
_ASSIGNED = re.compile(
    rf"""(?m)(?<![\w$-])([A-Z][A-Z0-9_]*)={_VALUE}"""
    rf"""|(?:^|[;&|]|\bexport\b|\benv\b)[ \t]*["']?([A-Za-z]\w*)["']?(?:=|:[ \t]+){_VALUE}"""
)


def refuse_recorded_secrets(
    config: Mapping[str, Any], where: str, environment: Mapping[str, str] = os.environ
) -> None:
    """Raise BadInput if a task shows a secret outside of `secrets:`. The message does not show it.

    `config` is the task's YAML, and `where` names it. A secret is a variable under `envs` whose
    name says so, a password in a URL, a value of the environment or of `secrets:`, and a token of
    a known form.
    """
    envs = config.get("envs")
    variables = envs if isinstance(envs, Mapping) else {}
    for name, value in variables.items():
        if value and names_secret(str(name)):
            raise BadInput(_move(where, f"envs.{name} is a secret", str(name)))
    refuse_endpoints({str(name): str(value) for name, value in variables.items()})
    written = {k: v for k, v in secrets_written(config).items() if len(v) >= LEAST_CHARACTERS}
    secrets = known_secrets(environment) | written
    for key, text in texts_in({k: v for k, v in config.items() if k != _SECRETS}):
        if holds_userinfo(text):
            raise userinfo_refused(f"{where}: {key}", text)
        if secret := secret_in(text, secrets):
            raise BadInput(_move(where, f"{key} has {secret}", "the variable"))
        for assigned in _ASSIGNED.finditer(text) if key in ("run", "setup") else ():
            if names_secret(name := assigned[1] or assigned[2]):
                raise BadInput(_move(where, f"{key} has a value of {name}", name))


def secrets_written(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that a task's YAML gives its secrets, by name, however short."""
    return {key: text for key, text in texts_in(config.get(_SECRETS) or {}) if text}


def _move(where: str, what: str, variable: str) -> str:
    return (
        f"{where}: {what}, and SkyPilot shows it in its records. Nothing was rented. Put "
        f"{variable} under `secrets:` instead, without a value, and set it in the environment."
    )
