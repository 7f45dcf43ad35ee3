"""Check the machines of a SkyPilot YAML: are they offered, at what price, are they large enough?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pion.errors import PionError
from pion.train.micro_batch import HEADROOM
from pipeline.console.formats import duration
from pipeline.cost.budget import over_budget
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.machine.rented import CPU, PRICE_VARIABLE
from pipeline.machine.time_limit import within
from pipeline.rent.check.candidates import Verdict, dear_spot, judge, staying
from pipeline.rent.check.row import CheckRow
from pipeline.rent.plan.estimate import Estimate
from pipeline.rent.plan.prices import NotOffered, Offer
from pipeline.rent.plan.speeds import SECONDS, Known, past_speeds
from pipeline.rent.plan.spot_spread import narrow_spot
from pipeline.rent.plan.what_fits import ways_on
from pipeline.rent.sky_yaml import SkyYaml, trains
from pipeline.rent.skypilot import cloud_named, enabled_clouds, quiet, sky_module
from pipeline.run.stage_plan import plan_stages
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store


def check_machines(job: Job, sky_yaml: SkyYaml, *, force: bool) -> list[CheckRow]:
    """Check each candidate (is it offered, at what price, does the model fit), the credentials and
    the budget. A candidate that will not do is only a warning if another one will, and so is spot
    in one region or on one type of GPU."""
    verdicts = judge(job, sky_yaml, Known(past_speeds(job)), force=force)
    others = any(verdict.will_do for verdict in verdicts)
    stay = staying(verdicts)
    rows = [_credentials_of(cloud) for cloud in dict.fromkeys(v.candidate.cloud for v in stay)]
    for verdict in verdicts:
        if verdict in stay:
            rows.append(_candidate_row(job, sky_yaml, verdict, others=others))
        else:
            words = f"pion launch skips this machine: {_why_not(verdict)}"
            rows.append(CheckRow(str(verdict.candidate), None, words))
    offered = [verdict.guess for verdict in stay if isinstance(verdict.found, Offer)]
    narrow = narrow_spot(job, sky_yaml, [verdict.candidate for verdict in stay])
    if narrow is not None:
        rows.append(CheckRow("spot", None, narrow))
    return rows + _budget(job, sky_yaml, offered)


def _credentials_of(name: str | None) -> CheckRow:
    """Check that machines can be rented from a cloud with the credentials on this machine."""
    sky_module()
    from sky.clouds import CloudCapability
    from sky.server import common

    title = name or "any cloud"
    if not common.is_api_server_local():
        where = common.get_server_url()
        return CheckRow(
            title, None, f"the SkyPilot server {where} has the credentials. Run: sky check"
        )
    if name is None:
        enabled = [str(cloud) for cloud in enabled_clouds()]
        if enabled:
            return CheckRow(title, True, f"enabled: {', '.join(enabled)}")
        return CheckRow(title, False, "no cloud is enabled. Set one up, then run: sky check")
    try:
        with quiet():
            ok, reason = cloud_named(name).check_credentials(CloudCapability.COMPUTE)
    except Exception as error:  # SkyPilot's clouds raise all kinds of errors
        return CheckRow(title, None, f"can't be checked: {type(error).__name__}: {error}")
    if ok:
        return CheckRow(title, True, "credentials are set up")
    first = " ".join(str(reason).split()) if reason else "no credentials"
    if any(sign in first for sign in ("ConnectionError", "Timeout", "Max retries", "resolve")):
        return CheckRow(title, None, f"can't be reached: {first[:200]}")
    fix = "runpod config" if name == "RunPod" else f"sky check {name.lower()}"
    return CheckRow(title, False, f"{first.partition('Credentials can be')[0].strip()} Run: {fix}")


def _why_not(verdict: Verdict) -> str:
    """Return what is wrong with a candidate, and what to do about it."""
    return f"{verdict.problem}. {verdict.advice}" if verdict.advice else str(verdict.problem)


def _candidate_row(job: Job, sky_yaml: SkyYaml, verdict: Verdict, *, others: bool) -> CheckRow:
    """Return the row of a candidate that SkyPilot may rent. `others`: some candidate will do."""
    title, guess, found = str(verdict.candidate), verdict.guess, verdict.found
    if isinstance(found, NotOffered):
        # SkyPilot rents another candidate if there is one.
        return CheckRow(title, None if others and not found.misnamed else False, found.why)
    if verdict.problem is not None:
        return CheckRow(title, False, _why_not(verdict))
    nodes = sky_yaml.num_nodes
    if found.gpu is None and not trains(sky_yaml, job):
        return CheckRow(title, True, f"no GPU, and the rental does not train{_cost(guess, nodes)}")
    if found.gpu is None:
        return CheckRow(title, None, f"no GPU: memory and speed are unknown{_cost(guess, nodes)}")
    if found.gpu_memory is None:
        return CheckRow(title, None, found.note or guess.problem or "")
    ways = ways_on(job, found, nodes)
    words = f"{_memory(guess)}{_cost(guess, nodes)}{'' if ways is None else f'. {ways}'}"
    dear = dear_spot(found, nodes)
    if dear is not None:
        return CheckRow(title, True, f"{words}; {dear}")
    if found.price is None:
        note = found.note or "SkyPilot lists no price"
        return CheckRow(title, None, f"{words}; {note}. Set prices.{found.gpu} in the job")
    return CheckRow(title, True, words)


def _memory(guess: Estimate) -> str:
    assert guess.offer.gpu_memory is not None
    usable = guess.offer.gpu_memory * (1 - HEADROOM)
    batches = ", ".join(dict.fromkeys(f"{s.micro_batch}×{s.grad_accum}" for s in guess.stages))
    return f"{batches} sequences, {guess.peak_bytes / 2**30:.1f} of {usable / 2**30:.1f} GiB"


def _cost(guess: Estimate, num_nodes: int) -> str:
    """Return the price of all nodes together, and the job's estimated time and dollars."""
    price = guess.offer.price
    of_all = f" for {num_nodes} nodes" if num_nodes > 1 else ""
    words = "" if price is None else f", ${num_nodes * price:.2f}/h{of_all}"
    if guess.hours is not None:
        words += f", about {duration(3600 * guess.hours)}"
    return words + ("" if guess.dollars is None else f", ${guess.dollars:.2f}")


def _budget(job: Job, sky_yaml: SkyYaml, estimates: Sequence[Estimate]) -> list[CheckRow]:
    """Check that the budget lets the run begin there, and compare the lowest estimates of dollars
    and hours with it."""
    dollars, hours = job.budget.dollars, job.budget.hours
    stops = already_spent(job) or _price_missing(job, sky_yaml, estimates)
    if stops is not None:
        return [CheckRow("budget", False, stops)]
    fitting = [e for e in estimates if e.fits]
    limits: list[tuple[str, float | None, list[float | None], Callable[[float], str]]] = [
        ("dollars", dollars, [e.dollars for e in fitting], lambda price: f"${price:.2f}"),
        ("hours", hours, [e.hours for e in fitting], lambda time: duration(3600 * time)),
    ]
    above, within_it = [], []
    for name, limit, estimated, words in limits:
        known = [amount for amount in estimated if amount is not None]
        if limit is None or not known:
            continue
        least = min(known)
        if least > limit:
            above.append(f"the estimate, {words(least)}, is above budget.{name} {limit:g}")
        within_it.append(f"{words(least)} estimated of {words(limit)}")
    if above:
        return [CheckRow("budget", None, f"{'; '.join(above)}: the run would stop there")]
    return [CheckRow("budget", True, "; ".join(within_it))] if within_it else []


def already_spent(job: Job) -> str | None:
    """Return why the run would stop at once, if its cost so far has reached its budget."""
    if job.budget.dollars is None and job.budget.hours is None:
        return None
    try:
        head = within(SECONDS, RunState(open_store(job.store), job.name).read)
    except (PionError, TimeoutError):  # the store's check reports it
        return None
    over = None if head is None else over_budget(job.budget, head.spent)
    if over is None or all(
        plan.state == "done" for plan in plan_stages(job, digest_job(job), head)
    ):
        return None  # a finished run ends with 0
    return over


def _price_missing(job: Job, sky_yaml: SkyYaml, estimates: Iterable[Estimate]) -> str | None:
    """Return why the run would refuse a machine: `budget.dollars` needs the machine's price.

    `pion launch` tells the machine one price for each type of GPU, spot or on demand.
    """
    budget = job.budget
    told = budget.dollars_per_hour is not None or sky_yaml.envs.get(PRICE_VARIABLE)
    if budget.dollars is None or told:
        return None
    offers = [e.offer for e in estimates]
    priced = {offer.gpu for offer in offers if offer.price is not None}
    missing = sorted({offer.gpu or CPU for offer in offers if offer.gpu not in priced})
    if not missing:
        return None
    keys = " and ".join(f"prices.{gpu}" for gpu in missing)
    return (
        f"budget.dollars is {budget.dollars:g}, but the price of {', '.join(missing)} is not "
        f"known, so the run would refuse to start there. Set {keys} in the job, or "
        "budget.dollars_per_hour"
    )
