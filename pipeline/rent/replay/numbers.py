"""The numbers that a replay needs, each with its origin: given, measured or assumed.

What is measured is read from the store of the job's run. Its metrics have the tokens per second.
Its events have its machines, the seconds of each phase of a start, and the cost of its saves. HEAD
has the size of a checkpoint.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pion.config.model_config import closest
from pion.errors import BadInput, PionError
from pipeline.console.formats import counted, size
from pipeline.cost.timeline import WAITED
from pipeline.job import Job
from pipeline.machine.rented import AT_HOME, PAID_TO_FIRST_STEP, RENTED
from pipeline.rent.replay.options import Given, Number, option
from pipeline.state.rows.metrics import Row, read_events, read_metrics
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import recorded_job
from pipeline.state.stores import open_store

# Together one minute from the start of payment to the first step.
BOOT_SECONDS, RESTORE_SECONDS = 50.0, 10.0
# Seconds from the start of payment to `pion run`, if no start on a rented machine was measured.
MACHINE_SECONDS = 30.0
# Bytes per second: copying a snapshot from GPU memory, hashing a checkpoint and writing it to disk,
# and uploading it over a gigabit line.
COPY_BYTES, WRITE_BYTES, UPLOAD_BYTES = 4e9, 250e6, 100e6
# Bytes per parameter in a checkpoint: a float32 weight and two moments.
STATE_BYTES = 12
# The phase measured from the start of `pion run`.
FIRST_STEP = "first step"
UNUSUAL = {"prepare", WAITED}


@dataclass(frozen=True)
class Numbers:
    """All numbers that a replay needs. `steps` maps each training stage to the seconds of a step.
    The prices are for all GPUs together, None if unknown."""

    steps: Mapping[str, Number]
    boot: Number
    restore: Number
    stall: Number
    write: Number
    warning: Number
    spot: Number | None
    on_demand: Number | None


def job_numbers(job: Job, given: Given) -> Numbers:
    """Return the numbers for a replay of `job`. Raises BadInput if nothing says how long a step
    takes, and for an invalid amount or an unknown GPU."""
    given.check()
    measured = measured_run(job)
    steps = _steps(job, given, measured)
    boot, restore = _restart(measured, next(iter(steps.values())).value)
    stall, write = _save(job, given, measured)
    spot, on_demand = _prices(job, given, measured)
    return Numbers(
        steps=steps,
        boot=given.number("boot_seconds") or boot,
        restore=given.number("restore_seconds") or restore,
        stall=given.number("stall_seconds") or stall,
        write=given.number("write_seconds") or write,
        warning=given.number("warning_seconds") or Number(0.0, "assumed: no warning"),
        spot=given.number("price") or spot,
        on_demand=given.number("on_demand_price") or on_demand,
    )


def _steps(job: Job, given: Given, measured: MeasuredRun) -> dict[str, Number]:
    """Return the seconds of a step, by stage."""
    tokens = {s: job.section(s).global_batch * job.seq_len(s) for s in job.train_stages}
    first = job.train_stages[0]
    if given.step_seconds is not None:
        speed = tokens[first] / given.step_seconds
        whose = {s: "" if s == first else f", scaled by tokens from {first}" for s in tokens}
        return {s: Number(tokens[s] / speed, option("step_seconds") + whose[s]) for s in tokens}
    if given.gpu is not None:
        return _steps_on(job, given, tokens)
    known = measured.tokens_per_second
    if not known:
        raise BadInput(
            f"nothing says how long a step of {job.name} takes: {measured.missing}. Pass "
            "--step-seconds N, or --gpu NAME (such as A40) for an estimate. Nothing was replayed."
        )
    other = next(iter(known.values()))
    speeds = {stage: known.get(stage, other) for stage in tokens}
    return {s: Number(tokens[s] / n.value, f"measured: {n.origin}") for s, n in speeds.items()}


def _steps_on(job: Job, given: Given, tokens: Mapping[str, int]) -> dict[str, Number]:
    """Return the seconds that `pion plan` expects on one GPU of the given type, or on
    `hardware.workers` of them."""
    from pipeline.rent.plan.estimate import estimate
    from pipeline.rent.plan.gpus import GPU_TYPES
    from pipeline.rent.plan.prices import Offer
    from pipeline.rent.plan.speeds import known_speeds

    gpu = given.gpu or ""
    if gpu not in GPU_TYPES:
        raise BadInput(
            f"--gpu {gpu} is unknown. Pass a different GPU, or --step-seconds N"
            f"{closest(gpu, GPU_TYPES)}"
        )
    offer = Offer(gpu, 1, None, None, True, None, None, GPU_TYPES[gpu].memory, 0)
    expected = estimate(job, offer, known_speeds(job, given.bench))
    if expected.problem is not None:
        raise BadInput(f"--gpu {gpu}: {expected.problem}.")
    steps = {}
    for stage in expected.stages:
        if stage.tokens_per_second is None:
            raise BadInput(f"--gpu {gpu}: {stage.speed_from}. Pass --step-seconds N.")
        seconds = tokens[stage.stage] / stage.tokens_per_second
        steps[stage.stage] = Number(seconds, f"{gpu}: {stage.speed_from}")
    return steps


def _restart(measured: MeasuredRun, step_seconds: float) -> tuple[Number, Number]:
    """Return the seconds of boot and of restore. A measured start ends with the first step, so the
    step is subtracted."""
    rented = [start for start in measured.starts if PAID_TO_FIRST_STEP in start]
    starts = rented or measured.starts
    restores = [
        sum(seconds for name, seconds in start.items() if name.endswith(" restored"))
        for start in starts
    ]
    resumed = [seconds for seconds in restores if seconds]
    restore = _median(resumed, "start") if resumed else Number(RESTORE_SECONDS, "assumed")
    if not starts:
        return Number(BOOT_SECONDS, "assumed"), restore
    totals = [start[PAID_TO_FIRST_STEP if rented else FIRST_STEP] for start in starts]
    boots = [max(total - back - step_seconds, 0.0) for total, back in zip(totals, restores)]
    boot, phases = _median(boots, "start"), _phases_in_words(starts)
    if rented:
        return Number(boot.value, f"{boot.origin} ({phases})"), restore
    words = f"on your own machines, plus {MACHINE_SECONDS:.0f} s assumed for booting"
    return Number(boot.value + MACHINE_SECONDS, f"{boot.origin} {words} ({phases})"), restore


def _median(values: Sequence[float], noun: str) -> Number:
    return Number(statistics.median(values), f"measured: median of {counted(len(values), noun)}")


def _phases_in_words(starts: Sequence[Mapping[str, float]]) -> str:
    """Return the median seconds of each phase."""
    names = dict.fromkeys(name for start in starts for name in start)
    medians = {n: statistics.median(s[n] for s in starts if n in s) for n in names}
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in medians.items())


def _save(job: Job, given: Given, measured: MeasuredRun) -> tuple[Number, Number]:
    """Return the seconds that a save stalls training, and those from then until its commit."""
    if measured.saves and given.upload_mb_per_second is None:
        # What the cadence counts as the cost of a save. An older version recorded no copy.
        stalls = [float(save.get("copy") or save["stall"]) for save in measured.saves]
        writes = [float(save["write"]) for save in measured.saves]
        return _median(stalls, "attempt"), _median(writes, "attempt")
    count = measured.checkpoint_bytes or _state_bytes(job)
    upload, whence = UPLOAD_BYTES, "assumed"
    if given.upload_mb_per_second is not None:
        upload, whence = 1e6 * given.upload_mb_per_second, option("upload_mb_per_second")
    basis = "as saved" if measured.checkpoint_bytes else "from the parameter count"
    state = f"{size(count)} {basis}"
    return (
        _stall(given, count, state),
        Number(
            count / WRITE_BYTES + count / upload,
            f"{whence}: {state}, written at {size(WRITE_BYTES)}/s, uploaded at {size(upload)}/s",
        ),
    )


def _stall(given: Given, count: int, state: str) -> Number:
    """Return the seconds of copying `count` bytes, at the speed of the given GPU if it is known."""
    copy = None
    if given.gpu is not None:
        from pipeline.rent.plan.speeds import bench_results, copy_speed

        copy = copy_speed(bench_results(given.bench), given.gpu)
    if copy is None:
        return Number(count / COPY_BYTES, f"assumed: {state}, copied at {size(COPY_BYTES)}/s")
    speed, source = copy
    words = f"estimated: {state}, copied at {size(speed)}/s, which {source} measured"
    return Number(count / speed, words)


def _state_bytes(job: Job) -> int:
    from pion.model.params_and_flops import cost_of  # imports torch, which takes a second

    return STATE_BYTES * cost_of(job.model_config_resolved()).all_params


def _prices(job: Job, given: Given, measured: MeasuredRun) -> tuple[Number | None, Number | None]:
    """Return the dollars per hour of all GPUs, spot and on demand, from the job's `prices` or else
    from SkyPilot's catalog."""
    if given.price is not None and given.on_demand_price is not None:
        return None, None  # both are given, so neither is needed
    prices = job.prices or {}
    gpu = given.gpu or measured.gpu or (next(iter(prices)) if len(prices) == 1 else None)
    if gpu is None:
        return None, None
    count, nodes, machine = _gpus(job, given, measured)
    if gpu not in prices:
        if given.gpu is not None and prices:
            raise BadInput(
                f"--gpu {gpu}: the job's `prices` has no price for this GPU, only for "
                f"{', '.join(prices)}. Add the price of {gpu}, or pass --price and "
                "--on-demand-price."
            )
        return _market_prices(gpu, count, nodes)
    times = f" × {machine}" if count * nodes > 1 else ""
    found = {
        way: Number(count * nodes * dollars, f"the job's prices.{gpu}.{way}{times}")
        for way, dollars in (("spot", prices[gpu].spot), ("on_demand", prices[gpu].on_demand))
        if dollars is not None
    }
    return found.get("spot"), found.get("on_demand")


def _gpus(job: Job, given: Given, measured: MeasuredRun) -> tuple[int, int, str]:
    """Return the GPUs per machine, the machines that the seconds of a step refer to, and both in
    words."""
    if given.step_seconds is None and given.gpu is None:
        count, nodes = measured.count, measured.nodes
        return count, nodes, f"the {count * nodes} GPUs of the measurement"
    workers = max(1, job.hardware.min_workers or 1)
    return workers, 1, f"{workers} workers"


def _market_prices(gpu: str, count: int, nodes: int) -> tuple[Number | None, Number | None]:
    """Return the prices that `pion plan` finds for `nodes` machines of `count` such GPUs, spot and
    on demand; None if SkyPilot's catalog has no price or can't be read."""
    from pipeline.rent.plan.prices import market  # SkyPilot takes seconds to import

    try:
        offers, _ = market([gpu], count=count)
    except BadInput:  # SkyPilot does not know the name
        return None, None
    times = f" × {nodes} nodes" if nodes > 1 else ""
    found = {
        offer.use_spot: Number(nodes * offer.price, f"SkyPilot's catalog: {offer}{times}")
        for offer in offers
        if offer.price is not None
    }
    return found.get(True), found.get(False)


# ---------------------------------------------------------------- what the run has measured


@dataclass
class MeasuredRun:
    """What this job's run has measured; `missing` says why there is nothing.

    `tokens_per_second` is the sum of all workers, on `nodes` machines with `count` GPUs each.
    """

    missing: str = ""
    tokens_per_second: dict[str, Number] = field(default_factory=dict)
    gpu: str | None = None
    count: int = 1
    nodes: int = 1
    starts: list[dict[str, float]] = field(default_factory=list)
    saves: list[Row] = field(default_factory=list)
    checkpoint_bytes: int | None = None


def measured_run(job: Job) -> MeasuredRun:
    """Return what this job's run has measured, if it has run and its store can be read."""
    try:
        store = open_store(job.store)
        run = RunState(store, job.name)
        head = run.read()
        if head is None:
            return MeasuredRun(f"there is no run {job.name} in {store.url}")
        then = recorded_job(run, head)
        if then is None:
            return MeasuredRun(f"run {job.name} has no record of its job")
        if then.model_config_resolved() != job.model_config_resolved():
            return MeasuredRun(f"run {job.name} trained another model")
        events = read_events(store, job.name)
        rows = {stage: read_metrics(store, job.name, head, stage) for stage in job.train_stages}
    except PionError as error:
        return MeasuredRun(f"the run can't be read: {error}")
    rented = [event for event in events if event["event"] == RENTED and event.get("gpu")]
    devices = {e["epoch"]: str(e.get("device")) for e in events if e["event"] == "training"}
    found = MeasuredRun(
        gpu=str(rented[-1]["gpu"]) if rented else None,
        starts=_starts(events),
        saves=[
            event
            for event in events
            if event["event"] == "saved" and None not in (event["stall"], event["write"])
        ],
        checkpoint_bytes=head.checkpoints[0].bytes if head.checkpoints else None,
    )
    reached = []  # the last epoch of each stage
    for stage, stage_rows in rows.items():
        steps = [row for row in stage_rows if row.get("tokens_per_second")]
        if steps:
            last = steps[-1]["epoch"]
            reached.append(last)
            newest = [row["tokens_per_second"] for row in steps if row["epoch"] == last]
            words = f"{len(newest):,} steps of {stage} on {devices.get(last, 'a machine')}"
            found.tokens_per_second[stage] = Number(statistics.median(newest), words)
    if not reached:
        found.missing = f"run {job.name} has not trained yet"
        return found
    gpu, found.count, found.nodes = _machine_of(max(reached), events)
    found.gpu = gpu or found.gpu
    return found


def _machine_of(epoch: int, events: Sequence[Row]) -> tuple[str | None, int, int]:
    """Return the GPU, the GPUs per node, and the nodes that `epoch` trained on. On a machine that
    was not rented, the GPUs are its workers."""
    claims = [e for e in events if e["epoch"] <= epoch and e["event"] in (RENTED, AT_HOME)]
    if claims and claims[-1]["event"] == RENTED:
        machine = claims[-1]
        return machine.get("gpu"), machine.get("count") or 1, machine.get("nodes") or 1
    trained = [e for e in events if e["event"] == "training" and e["epoch"] == epoch]
    workers = [e.get("workers", 1) for e in trained]
    return None, max([1, *workers[-1:]]), 1


def _starts(events: Sequence[Row]) -> list[dict[str, float]]:
    """Return the seconds of each phase, for every process that began to train. Leave out processes
    that first waited or prepared data, because their phases overlap."""
    found: dict[int, dict[str, float]] = {}
    for event in events:
        if event["event"] == "phase":
            found.setdefault(event["epoch"], {}).setdefault(event["name"], event["seconds"])
    return [start for start in found.values() if FIRST_STEP in start and not UNUSUAL & start.keys()]
