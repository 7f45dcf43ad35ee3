"""Checks of a job on a rented machine: store, credentials, disk, recovery, and where SkyPilot's
controller runs."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pion.errors import BadInput
from pion.untrusted import FarFile
from pipeline.console.masking import refuse_endpoint
from pipeline.job import HubDataset, HubNpyShards, Job
from pipeline.job.section import made
from pipeline.rent.check import CheckRow
from pipeline.rent.check.inputs import local_inputs
from pipeline.rent.check.job import count_parameters, is_prepared
from pipeline.rent.credentials import SESSION_TOKEN, hub_inputs, needed_secrets
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.rent.skypilot import quiet, sky_module
from pipeline.run.preflight import checkpoint_bytes
from pipeline.state.stores import FileStore, open_store

# Tests set this to 1, because they "rent" this same machine.
LOOPBACK_VARIABLE = "PION_ALLOW_LOOPBACK"
# Disk for packages, their cache, and logs.
BASE_GB = 15.0
# How many checkpoints are on the machine's disk at a time: two that are kept, one being written.
CHECKPOINTS = 3
# A model to start from: in float32 at most, as it was downloaded and as the run's store has it.
BYTES_OF_BASE = 2 * 4
RECOVER_CODE = 75
# What keeps the controller on this machine.
CONTROLLER_SETTING = "jobs: {controller: {consolidation_mode: true}}"


# ---------------------------------------------------------------- what the machine can reach


def check_reach(job: Job) -> list[CheckRow]:
    """Check that the store outlives the machine, and that the machine can reach it, and the buckets
    of sources."""
    store = open_store(job.store)
    if isinstance(store, FileStore):
        raise BadInput(
            f"{store.url} is a folder, which would be lost with the rented machine. Use "
            "store=s3://bucket/prefix or store=hf://user/repo."
        )
    for url in (*job.bucket_inputs.values(), job.store):
        endpoint = _endpoint(url)
        refuse_endpoint(f"the endpoint of {url}", endpoint)
        host = urlsplit(endpoint).hostname or ""
        if _is_local(host) and os.environ.get(LOOPBACK_VARIABLE) != "1":
            raise BadInput(
                f"{endpoint} is an address of this machine or its network. A rented machine can't "
                "reach it. Use a store with a public address."
            )
        variable = "HF_ENDPOINT" if url.startswith("hf://") else "AWS_ENDPOINT_URL"
        standard = host.endswith(("amazonaws.com", "huggingface.co"))
        if not standard and os.environ.get(variable, "").rstrip("/") != endpoint.rstrip("/"):
            raise BadInput(
                f"only this machine is configured to use {endpoint}. Pass it on: export "
                f"{variable}={endpoint}"
            )
    return [CheckRow("store from there", True, f"{host} can be reached from anywhere")]


def _endpoint(store: str) -> str:
    """Return the URL at which this machine reaches a remote store."""
    if store.startswith("hf://"):
        from huggingface_hub import HfApi

        return HfApi().endpoint
    import boto3

    return str(boto3.client("s3").meta.endpoint_url)


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:  # a name, or no host at all
        return "." not in host


def check_credentials(
    job: Job, sky_yaml: SkyYaml, environment: Mapping[str, str] = os.environ
) -> Iterator[CheckRow]:
    """Check that every credential the run needs is set here, and that the YAML passes it on."""
    needed = needed_secrets(job, environment)
    mistakes = []
    for name, why in needed.items():
        if name not in sky_yaml.secrets:
            # SkyPilot shows `envs:` in its records, and does not fill them in from this machine.
            add = "move it from `envs:`" if name in sky_yaml.envs else "add it"
            mistakes.append(f"{sky_yaml.path} does not pass {name} on ({why}): {add} to `secrets:`")
        if not environment.get(name):
            mistakes.append(f"{name} is not set here ({why}): export {name}=…")
    mistakes += [
        f"{sky_yaml.path} requires {name}, which is not set here: export {name}=…"
        for name, value in sky_yaml.secrets.items()
        if value is None and name not in needed and not environment.get(name)
    ]
    if mistakes:
        raise BadInput("\n".join(mistakes))
    sentence = f"{', '.join(needed)}: set and passed on" if needed else "none needed"
    yield CheckRow("credentials", True, sentence)
    if SESSION_TOKEN in needed:
        sentence = (
            f"{SESSION_TOKEN} is set, so these keys expire. If they expire during the run, the run "
            "can't save, and stops. Use permanent keys, and unset AWS_SESSION_TOKEN"
        )
        yield CheckRow("temporary keys", None, sentence)
    if "HF_TOKEN" not in needed:
        yield from _hub_login(job, sky_yaml, environment)


def _hub_login(job: Job, sky_yaml: SkyYaml, environment: Mapping[str, str]) -> Iterator[CheckRow]:
    """Warn if this machine may read the job's inputs from the Hub, but the rental may not."""
    from huggingface_hub import get_token

    inputs = hub_inputs(job)
    missing = made(
        {
            "export HF_TOKEN=…": not environment.get("HF_TOKEN"),
            f"add HF_TOKEN to `secrets:` in {sky_yaml.path}": "HF_TOKEN" not in sky_yaml.secrets,
        }
    )
    if inputs and missing and get_token() is not None:
        yield CheckRow(
            "Hub login",
            None,
            "this machine is logged in to the Hub, but the rental may not be (SkyPilot copies the "
            f"login, other tools do not). If {' or '.join(inputs)} is private or gated: "
            f"{' and '.join(missing)}",
        )


# ---------------------------------------------------------------- what is on the machine


def check_disk(job: Job, sky_yaml: SkyYaml) -> list[CheckRow]:
    """Check that each candidate's disk is large enough for packages, checkpoints and data."""
    sources = [source for _, source in job.sources()]
    # The copied sources, and the prepared data.
    inputs = [each for each in local_inputs(job, prepared=False) if each.key != "model.from"]
    files = (file for each in inputs for file in (each.file, *each.file.rglob("*")))
    sizes = [(file.stat().st_size, isinstance(file, FarFile)) for file in files if file.is_file()]
    data = sum(size if is_far else 2 * size for size, is_far in sizes) / 1e9
    if any(isinstance(source, HubNpyShards) for source in sources):
        data += job.hardware.shard_cache_gb
    largest = max(sum(checkpoint_bytes(job, stage)) for stage in job.train_stages)
    gigabytes = {"checkpoints": CHECKPOINTS * largest / 1e9, "data": data}
    if job.base is not None:
        gigabytes["model.from"] = BYTES_OF_BASE * count_parameters(job) / 1e9
    needed = BASE_GB + sum(gigabytes.values())
    parts = [f"{BASE_GB:.0f} packages", *(f"{each:.1f} {key}" for key, each in gigabytes.items())]
    downloads = any(isinstance(source, HubDataset) for source in sources)
    more = ", and what is downloaded from the Hub" if downloads else ""
    least = min(candidate.disk_gb for candidate in sky_yaml.candidates)
    sentence = f"{needed:.0f} GB needed ({' + '.join(parts)}{more}), disk_size is {least} GB"
    if least < needed:
        raise BadInput(f"{sentence}. Set disk_size: {needed * 1.2:.0f} in {sky_yaml.path}")
    endless = [s.repo for s in sources if isinstance(s, HubDataset) and s.max_documents is None]
    if endless and not is_prepared(job):
        sentence += (
            f". The size of {' and '.join(endless)} is unknown: all of it is prepared on that "
            "disk, at 2 to 4 bytes per token. Set max_documents to limit it"
        )
        return [CheckRow("disk", None, sentence)]
    return [CheckRow("disk", True, sentence)]


def check_recovery(sky_yaml: SkyYaml) -> list[CheckRow]:
    """Check that SkyPilot replaces a machine when the run ends with the exit code for that."""
    recoveries = [candidate.resources.job_recovery or {} for candidate in sky_yaml.candidates]
    codes = [recovery.get("recover_on_exit_codes") or [] for recovery in recoveries]
    if all(RECOVER_CODE in (each if isinstance(each, list) else [each]) for each in codes):
        return [CheckRow("recovery", True, "an interrupted run continues on another machine")]
    sentence = (
        f"{sky_yaml.path}: job_recovery.recover_on_exit_codes lacks {RECOVER_CODE}, so a bad "
        "machine or a long outage of the store stops the job instead of moving it"
    )
    return [CheckRow("recovery", None, sentence)]


# ---------------------------------------------------------------- who replaces lost machines


def check_controller() -> list[CheckRow]:
    """Check that the controller needs no extra machine, and that SkyPilot has read this setting."""
    name = "controller"
    sky_module()
    from sky import skypilot_config
    from sky.jobs import constants
    from sky.server import common

    if not common.is_api_server_local():
        return [CheckRow(name, True, f"at the SkyPilot server {common.get_server_url()}")]
    if not skypilot_config.get_nested(("jobs", "controller", "consolidation_mode"), False):
        return [
            CheckRow(
                name,
                None,
                "SkyPilot will rent an extra machine for its controller, and copy this "
                "folder to that machine through a storage bucket. To keep the controller on this "
                f"machine, put `{CONTROLLER_SETTING}` into ~/.sky/config.yaml. Then run: sky api "
                "stop",
            )
        ]
    read = Path(constants.JOBS_CONSOLIDATION_RELOADED_SIGNAL_FILE).expanduser().exists()
    if not read and _server_runs():
        return [
            CheckRow(
                name,
                False,
                "the SkyPilot server on this machine has not read consolidation_mode from "
                "~/.sky/config.yaml yet. Run: sky api stop",
            )
        ]
    return [
        CheckRow(name, True, "on this machine: while it sleeps, nothing replaces a lost machine")
    ]


def _server_runs() -> bool:
    from sky.server import common

    with contextlib.suppress(Exception), quiet():  # not running, or it does not answer
        common.check_server_healthy()
        return True
    return False
