"""Describe the rented machine of this process: what it is, what it costs, how long it took to boot.

Everything comes from variables that SkyPilot, the provider and the rental's run script set:

    SKYPILOT_TASK_ID, SKYPILOT_MANAGED_JOB_ID, SKYPILOT_CLUSTER_INFO, RUNPOD_POD_ID
                                        if any is set, this machine is rented
    PION_DOLLARS_PER_HOUR, PION_PRICES  the price, or a JSON object with the price of each GPU
    PION_MAX_HOURLY_COST                the limit of the SkyPilot file, in dollars per hour
    PION_SPOT                           1 if the machine may be taken away, 0 if not
    PION_BOOT_STARTED, PION_BOOT_CHECKED, PION_BOOT_SYNCED
                                        Unix seconds: at the run script's first line, after its
                                        checks, after installing
    PION_PAID_SINCE                     Unix seconds: until then, another run paid for this machine
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from pion.errors import BadInput

PROC = Path("/proc")
SIGNS = ("SKYPILOT_TASK_ID", "SKYPILOT_MANAGED_JOB_ID", "SKYPILOT_CLUSTER_INFO", "RUNPOD_POD_ID")
PRICE_VARIABLE = "PION_DOLLARS_PER_HOUR"
PRICES_VARIABLE = "PION_PRICES"
LIMIT_VARIABLE = "PION_MAX_HOURLY_COST"
_AT = " on "
# What a machine without a GPU is called among prices.
CPU = "CPU"
# A search sets it for its runs: each pays from the end of the one before.
PAID_SINCE = "PION_PAID_SINCE"
# The phases of a boot, in order. Each ends at the time in its variable.
BOOT_PHASES = (
    ("machine up", "PION_BOOT_STARTED"),
    ("checks", "PION_BOOT_CHECKED"),
    ("install", "PION_BOOT_SYNCED"),
)
# The phase of a start from when the machine was rented to the first step.
PAID_TO_FIRST_STEP = "paid to first step"
# The kinds of the event that a process appends after it has claimed a run (see `claim_event`), and
# of the event with the error with which it ends.
RENTED, AT_HOME, END = "machine", "process", "end"
# Seconds. If a machine was up for longer before the run script began, it was rented for something
# else.
LONGEST_BOOT = 3600.0


@dataclass(frozen=True)
class RentedMachine:
    """A rented machine.

    `gpu` is SkyPilot's name of its GPUs (None without GPUs, or if not known), and `count` is their
    number per node. The run pays for the machine from `rented_at` (Unix seconds). `phases`
    maps each part of the time from then until `pion run` began to its seconds.
    """

    id: str
    cloud: str | None
    region: str | None
    zone: str | None
    cluster: str | None
    gpu: str | None
    count: int
    nodes: int
    spot: bool | None
    host: str
    rented_at: float
    managed_job: str | None
    phases: Mapping[str, float]


def this_machine(
    started: float, environment: Mapping[str, str] = os.environ, proc: Path = PROC
) -> RentedMachine | None:
    """Return the rented machine of a `pion run` that began at `started`; None at home."""
    if not is_rented(environment):
        return None
    environment = with_providers(environment, proc)
    info = _cluster_info(environment)
    pod = environment.get("RUNPOD_POD_ID")
    host, cluster = socket.gethostname(), info.get("cluster_name")
    since = rented_since(started, environment, proc)
    return RentedMachine(
        id=pod or ":".join(filter(None, (cluster or host, boot_id(proc)[:8]))),
        cloud=info.get("cloud") or ("RunPod" if pod else None),
        region=info.get("region") or environment.get("RUNPOD_DC_ID"),
        zone=info.get("zone"),
        cluster=cluster,
        gpu=_gpu(environment),
        count=_gpu_count(environment),
        nodes=_nodes(environment),
        spot={"1": True, "0": False}.get(environment.get("PION_SPOT", "")),
        host=host,
        rented_at=since,
        managed_job=environment.get("SKYPILOT_MANAGED_JOB_ID") or None,
        phases=_phases(since, started, environment),
    )


def claim_event(
    machine: RentedMachine | None, price: float | None, *, session: str, started: float, reason: str
) -> dict[str, Any]:
    """Return the event, for counting costs, that a process appends after it has claimed a run.

    `event` is "machine" on a rental and "process" at home. `price` is in dollars per hour, None if
    unknown. `session` is the owner's, and `started` (Unix seconds) is when it began to cost.
    `reason` is why it could claim the run: whether the previous owner had released it.
    """
    about = {"price": price, "session": session, "started_at": started, "reason": reason}
    if machine is None:
        return {"event": AT_HOME, "host": socket.gethostname(), **about}
    return {"event": RENTED, **dataclasses.asdict(machine), **about}


def is_rented(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a manager or provider of rented machines has set one of its variables."""
    return any(environment.get(name) for name in SIGNS)


def rented_since(
    started: float, environment: Mapping[str, str] = os.environ, proc: Path = PROC
) -> float:
    """Return since when a run that began at `started` pays for this machine, in Unix seconds.

    This is when process 1 of the container or machine started. But if the machine had been up for
    longer than LONGEST_BOOT, it was rented for something else, and the run pays from its beginning.
    PAID_SINCE overrides both.
    """
    told = _amount(environment.get(PAID_SINCE))
    if told is not None and told <= started:
        return told
    first_line = _amount(environment.get("PION_BOOT_STARTED"))
    begun = started if first_line is None else min(first_line, started)
    up = _start_of_process_1(proc)
    return begun if up is None or not begun - LONGEST_BOOT <= up <= begun else up


def rental_price(environment: Mapping[str, str] = os.environ, proc: Path = PROC) -> float | None:
    """Return what the rental costs in dollars per hour, for all nodes; None if it is not known.

    Raises BadInput if the variable with the price can't be read.
    """
    text = environment.get(PRICE_VARIABLE)
    if text is not None:
        price = _amount(text)
        if price is None:
            raise BadInput(
                f"{PRICE_VARIABLE} is {text!r}. It must be an amount in dollars per hour, such as "
                "0.44. Nothing was started."
            )
        return price
    prices = planned_prices(environment)
    if not prices:
        return None
    environment = with_providers(environment, proc)
    gpu, count = _gpu(environment), _gpu_count(environment)
    kinds = {key.partition(_AT)[0] for key in prices}
    if gpu is None and count > 0 and len(kinds) == 1:
        (gpu,) = kinds  # SkyPilot had one kind to choose from
    kind = gpu or (CPU if count == 0 else "")
    info = _cluster_info(environment)
    here = priced_at(kind, f"{info.get('cloud')}/{info.get('region')}")
    price = prices.get(here, prices.get(kind))
    return None if price is None else price * _nodes(environment)


def price_limit(environment: Mapping[str, str] = os.environ) -> float:
    """Return the most that the machine may cost in dollars per hour; infinity without a limit."""
    limit = _amount(environment.get(LIMIT_VARIABLE))
    return math.inf if limit is None else limit


def priced_at(gpu: str, place: str) -> str:
    """Return the key of a GPU's price in one place (`cloud/region`)."""
    return f"{gpu}{_AT}{place}"


def with_providers(environment: Mapping[str, str], proc: Path = PROC) -> Mapping[str, str]:
    """Return `environment` with RunPod's variables from process 1: an ssh shell lacks them."""
    if "RUNPOD_POD_ID" in environment or not is_rented(environment):
        return environment
    try:
        text = (proc / "1" / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return environment
    told = dict(item.split("=", 1) for item in text.split("\0") if item.startswith("RUNPOD_"))
    return {**told, **environment}


def _gpu(environment: Mapping[str, str]) -> str | None:
    """Return SkyPilot's name of this machine's GPU, as the prices have it; None without a GPU."""
    from pipeline.machine.gpus import sky_names

    told = unquote_plus(environment.get("RUNPOD_GPU_NAME", ""))
    name = told or next(iter(_gpu_names()), None)
    if name is None:
        return None
    names, prices = sky_names(name), planned_prices(environment)
    on_runpod = "RUNPOD_POD_ID" in environment
    return next((n for n in names if n in prices), names[0] if on_runpod else names[-1])


def _gpu_count(environment: Mapping[str, str]) -> int:
    for name in ("SKYPILOT_NUM_GPUS_PER_NODE", "RUNPOD_GPU_COUNT"):
        if (environment.get(name) or "").isdigit():
            return int(environment[name])
    return len(_gpu_names()) or int("RUNPOD_GPU_NAME" in environment)


def _nodes(environment: Mapping[str, str]) -> int:
    text = environment.get("SKYPILOT_NUM_NODES") or ""
    return int(text) if text.isdigit() and int(text) > 0 else 1


@functools.cache
def _gpu_names() -> tuple[str, ...]:
    """Return the driver's name of each GPU."""
    # Imported here: `pion status` reads what rented machines have recorded, and asks no driver.
    from pipeline.machine.gpus import nvidia_smi

    lines = nvidia_smi("--query-gpu=name", "--format=csv,noheader")
    return tuple(line.strip() for line in lines if line.strip())


def planned_prices(environment: Mapping[str, str]) -> dict[str, float]:
    """Return dollars per hour of one machine, by GPU, or by GPU and place."""
    text = environment.get(PRICES_VARIABLE)
    if not text:
        return {}
    try:
        raw = json.loads(text)
    except ValueError:
        raw = None
    prices = {k: _amount(v) for k, v in raw.items()} if isinstance(raw, dict) else {}
    if not isinstance(raw, dict) or None in prices.values():
        raise BadInput(
            f"{PRICES_VARIABLE} is {text!r}. It must be a JSON object that gives each GPU its "
            f'price in dollars per hour, such as {{"A40": 0.2}}. Nothing was started. If all '
            f"machines cost the same, set {PRICE_VARIABLE} to that price instead."
        )
    return {gpu: price for gpu, price in prices.items() if price is not None}


def _amount(value: Any) -> float | None:
    """Return the dollars or Unix seconds in text or a JSON value; None if it has none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        amount = float(value)
    except ValueError:
        return None
    return amount if amount >= 0 and math.isfinite(amount) else None


def _phases(since: float, started: float, environment: Mapping[str, str]) -> dict[str, float]:
    """Return the seconds of each part of the boot, skipping times missing or out of order."""
    phases: dict[str, float] = {}
    reached = since
    moments = [(name, _amount(environment.get(variable))) for name, variable in BOOT_PHASES]
    for name, at in [*moments, ("pion started", started)]:
        if at is not None and reached <= at <= started:
            phases[name] = round(at - reached, 3)
            reached = at
    return phases


def _cluster_info(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Return cluster_name, cloud, region and zone, as far as SkyPilot names them."""
    try:
        info = json.loads(environment.get("SKYPILOT_CLUSTER_INFO") or "{}")
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}


def _start_of_process_1(proc: Path) -> float | None:
    """Return when this container or machine started, in Unix seconds."""
    try:
        after_name = (proc / "1" / "stat").read_text("utf-8").rpartition(")")[2]
        (booted,) = re.findall(r"^btime (\d+)", (proc / "stat").read_text("utf-8"), re.MULTILINE)
        return int(booted) + int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def boot_id(proc: Path = PROC) -> str:
    """Return the id of this boot of this machine; empty if the kernel doesn't say."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text("utf-8").strip()
    except OSError:
        return ""
