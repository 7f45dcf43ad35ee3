"""Check the machines of a SkyPilot YAML: are they offered, at what price, are they large enough,
and does the budget suffice?

Which of them are good enough for a job is one rule for check and launch: `pion check` reports the
others, and `pion launch` does not let SkyPilot rent them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pion.train.micro_batch import HEADROOM
from pipeline.console.formats import duration, money
from pipeline.cost.budget import check_budget, over_budget, price_per_hour
from pipeline.job import Budget, Job
from pipeline.job.digest import digest_job
from pipeline.job.hardware_section import ALONE
from pipeline.job.section import made, mistakes_of
from pipeline.machine.rented import CPU, PRICE_VARIABLE
from pipeline.rehearsal.rehearse import read_head
from pipeline.rent.check import CheckRow, unchecked
from pipeline.rent.deadline.times import OnDemand
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.prices import NotOffered, Offer, look_up
from pipeline.rent.plan.speeds import NOTHING_KNOWN, Known, known_speeds, past_speeds
from pipeline.rent.plan.what_fits import (
    fine_tuning_stages,
    narrow_spot,
    on_each_gpu,
    ways_on,
    what_several_would_fit,
    what_to_change,
    what_would_fit,
)
from pipeline.rent.sky_yaml import Candidate, SkyYaml, trains
from pipeline.rent.skypilot import cloud_named, enabled_clouds, quiet, sky_module
from pipeline.run.done_and_changed_stages import plan_stages
from pipeline.run.preflight import require_a_row_each
from pipeline.state.head import Head, Spent


@dataclass(frozen=True)
class Verdict:
    """A candidate, what the job takes on it, and why it will not do.

    `problem` is None if nothing is known against the candidate, even if nobody offers it. Else it
    may also say what to do.
    """

    candidate: Candidate
    guess: Estimate
    problem: str | None

    @property
    def will_do(self) -> bool:
        """Whether somebody offers the candidate and nothing is known against it."""
        return self.problem is None and not isinstance(self.guess.offer, NotOffered)


def judge(job: Job, sky_yaml: SkyYaml, known: Known, *, force: bool) -> list[Verdict]:
    """Return the verdict on each candidate. `force` accepts a spot price above the on-demand
    price."""
    verdicts = []
    for candidate in sky_yaml.candidates:
        # A GPU that is sold out today may be free tomorrow, when the run needs another machine.
        offer = look_up(candidate, sky_yaml.num_nodes, job.prices)
        guess = estimate(job, offer, known, num_nodes=sky_yaml.num_nodes)
        # Only a person can fix an unknown name, so the check must refuse it, not leave it out.
        misnamed = isinstance(offer, NotOffered) and offer.misnamed
        problem = None if misnamed else _problem(job, guess, sky_yaml.num_nodes, force)
        verdicts.append(Verdict(candidate, guess, problem))
    return verdicts


def lowest_spot_price(job: Job, sky_yaml: SkyYaml, known: Known) -> float | None:
    """Return the lowest price of the spot machines that will do, in dollars per hour of all nodes;
    None if no price is known."""
    verdicts = [v for v in judge(job, sky_yaml, known, force=True) if v.candidate.use_spot]
    prices = [v.guess.offer.price for v in verdicts if v.will_do]
    return min((p * sky_yaml.num_nodes for p in prices if p is not None), default=None)


def staying(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return what `pion launch` lets SkyPilot rent: the candidates without a problem.

    If no candidate will do, return all of them: the check then refuses the rental.
    """
    if not any(verdict.will_do for verdict in verdicts):
        return list(verdicts)
    return [verdict for verdict in verdicts if verdict.problem is None]


def fitting(job: Job, sky_yaml: SkyYaml, *, force: bool) -> list[Candidate]:
    """Return the rental's candidates that SkyPilot may rent, in their order."""
    if len(sky_yaml.candidates) == 1:
        return list(sky_yaml.candidates)
    # Speed matters only if saves are counted in steps: a preemption may then cost too much time.
    in_steps = job.checkpoint.every_steps is not None
    known = Known(past_speeds(job)) if in_steps else NOTHING_KNOWN
    return [verdict.candidate for verdict in staying(judge(job, sky_yaml, known, force=force))]


def dear_spot(offer: Offer, num_nodes: int) -> str | None:
    """Return a message if the spot price is above the on-demand price, else None."""
    if not (offer.use_spot and offer.spot and offer.on_demand and offer.spot > offer.on_demand):
        return None
    return (
        f"spot costs {money(num_nodes * offer.spot)}/h, more than on demand "
        f"({money(num_nodes * offer.on_demand)}/h)"
    )


def _problem(job: Job, guess: Estimate, num_nodes: int, force: bool) -> str | None:
    """Return why the machine will not do, and what to do about it. An unknown memory or price is
    no reason."""
    problem = _worker_problem(job, guess.offer, num_nodes)
    if problem is not None or guess.offer.gpu_memory is None:
        return problem
    if guess.problem is None:
        dear = None if force else dear_spot(guess.offer, num_nodes)
        return dear and f"{dear}. Set use_spot: false, or pass --force"
    if guess.stages and all(stage.fits for stage in guess.stages):  # it would never end
        return str(guess.problem)
    changes = what_to_change(job, [guess], num_nodes)
    if num_nodes == 1 and guess.lacks is not None:
        changes += what_several_would_fit(job, [guess])
    return " ".join([f"{guess.problem}.", what_would_fit(job), *changes])


def _worker_problem(job: Job, offer: Offer, num_nodes: int) -> str | None:
    """Return why the job's workers can't run on the machine's GPUs; None if they can."""
    gpus, asked = offer.count * num_nodes, job.hardware.min_workers
    workers = gpus if asked is None else asked
    problems = made(
        {
            f"hardware.workers is {job.hardware.workers_in_words}, and a rental has no Ray whose "
            f"nodes come and go. Set hardware.workers={asked}, or remove it: one per GPU": (
                job.hardware.elastic and num_nodes == 1
            ),
            f"hardware.workers is {workers}, with {gpus} GPU(s); each worker needs one": (
                gpus and workers > gpus
            ),
            f"hardware.{ALONE.format(workers=1)}, or rent a machine with several GPUs": (
                gpus and workers == 1 and job.hardware.sharded
            ),
        }
    )
    few = mistakes_of(require_a_row_each, job, workers)
    return next(iter([*problems, *(w.partition(". Nothing was started")[0] for w in few)]), None)


# ---------------------------------------------------------------- what is reported


def check_machines(job: Job, sky_yaml: SkyYaml, *, force: bool) -> Iterator[CheckRow]:
    """Check each candidate (is it offered, at what price, does the model fit), the credentials and
    the budget. A candidate that will not do is only a warning if another one will. Spot in one
    region or on one type of GPU is a warning, too."""
    verdicts = judge(job, sky_yaml, known_speeds(job), force=force)
    stay = staying(verdicts)
    yield from (_credentials_of(cloud) for cloud in dict.fromkeys(v.candidate.cloud for v in stay))
    for verdict in verdicts:
        if verdict in stay:
            others = any(other.will_do for other in verdicts)
            yield _candidate_row(job, sky_yaml, verdict, others=others)
        else:
            skipped = f"pion launch skips this machine: {verdict.problem}"
            yield CheckRow(str(verdict.candidate), None, skipped)
    narrow = narrow_spot(job, sky_yaml, [verdict.candidate for verdict in stay])
    if narrow is not None:
        yield CheckRow("spot", None, narrow)
    offered = [v.guess for v in stay if not isinstance(v.guess.offer, NotOffered)]
    yield from check_budget_there(job, sky_yaml, offered)


def _credentials_of(name: str | None) -> CheckRow:
    """Check that machines can be rented from a cloud with the credentials on this machine."""
    sky_module()
    from sky.clouds import CloudCapability
    from sky.server import common

    title = name or "any cloud"
    if not common.is_api_server_local():
        where = f"the SkyPilot server {common.get_server_url()}"
        return CheckRow(title, None, f"{where} has the credentials. Run: sky check")
    if name is None:
        enabled = [str(cloud) for cloud in enabled_clouds()]
        words = f"enabled: {', '.join(enabled)}"
        none = "no cloud is enabled. Set one up, then run: sky check"
        return CheckRow(title, bool(enabled), words if enabled else none)
    try:
        with quiet():
            ok, reason = cloud_named(name).check_credentials(CloudCapability.COMPUTE)
    except Exception as error:  # SkyPilot's clouds raise all kinds of errors
        return unchecked(title, f"can't be checked: {type(error).__name__}: {error}")
    if ok:
        return CheckRow(title, True, "credentials are set up")
    first = " ".join(str(reason).split()) if reason else "no credentials"
    if any(sign in first for sign in ("ConnectionError", "Timeout", "Max retries", "resolve")):
        return unchecked(title, f"can't be reached: {first[:200]}")
    fix = "runpod config" if name == "RunPod" else f"sky check {name.lower()}"
    return CheckRow(title, False, f"{first.partition('Credentials can be')[0].strip()} Run: {fix}")


def _candidate_row(job: Job, sky_yaml: SkyYaml, verdict: Verdict, *, others: bool) -> CheckRow:
    """Return the row of a candidate that SkyPilot may rent. `others`: some candidate will do."""
    title, guess, offer = str(verdict.candidate), verdict.guess, verdict.guess.offer
    nodes = sky_yaml.num_nodes
    if isinstance(offer, NotOffered):
        # SkyPilot rents another candidate if there is one.
        return CheckRow(title, None if others and not offer.misnamed else False, offer.note or "")
    if verdict.problem is not None:
        return CheckRow(title, False, verdict.problem)
    if offer.gpu is None:
        trained = trains(sky_yaml, job)
        words = "memory and speed are unknown" if trained else "and the rental does not train"
        words = f"no GPU{':' if trained else ','} {words}{_cost(guess, nodes)}"
        return CheckRow(title, None if trained else True, words)
    if offer.gpu_memory is None:
        return CheckRow(title, None, offer.note or str(guess.problem))
    ways = [ways_on(job, stage, offer, nodes) for stage in fine_tuning_stages(job)]
    words = ". ".join([_memory(guess) + _cost(guess, nodes), *map(str, filter(None, ways))])
    note = dear_spot(offer, nodes)
    if offer.price is None:
        note = f"{offer.note or 'SkyPilot lists no price'}. Set prices.{offer.gpu} in the job"
    return CheckRow(title, offer.price is not None or None, f"{words}; {note}" if note else words)


def _memory(guess: Estimate) -> str:
    assert guess.offer.gpu_memory is not None
    usable = guess.offer.gpu_memory * (1 - HEADROOM)
    batches = ", ".join(dict.fromkeys(f"{s.micro_batch}×{s.grad_accum}" for s in guess.stages))
    words = f"{batches} sequences, {guess.peak_bytes / 2**30:.1f} of {usable / 2**30:.1f} GiB"
    return f"{words} on each GPU, which divide the weights" if guess.sharded else words


def _cost(guess: Estimate, num_nodes: int) -> str:
    """Return the price of all nodes together, and the job's estimated time and dollars."""
    price = guess.offer.price
    of_all = f" for {num_nodes} nodes" if num_nodes > 1 else ""
    words = "" if price is None else f", {money(num_nodes * price)}/h{of_all}"
    if guess.hours is not None:
        words += f", about {duration(3600 * guess.hours)}"
        if guess.offer.count * num_nodes > 1 and not guess.measured:
            words += " (several GPUs: not measured)"
    return words + ("" if guess.dollars is None else f", {money(guess.dollars)}")


def check_memory(job: Job) -> list[CheckRow]:
    """Check that some GPU known here can train the job, and name the GPUs that can."""
    guesses = on_each_gpu(job)
    too_small = [guess for guess in guesses if not guess.fits]
    words = what_would_fit(job)
    if too_small:
        largest, changes = too_small[-1], what_to_change(job, too_small)
        words = " ".join([words, f"{largest.offer.gpu}: {largest.problem}.", *changes])
    return [CheckRow("GPU memory", len(too_small) < len(guesses), words)]


# ---------------------------------------------------------------- the budget

# How an amount of each limit of a budget is written.
WRITTEN: dict[str, Callable[[float], str]] = {
    "dollars": money,
    "hours": lambda hours: duration(3600 * hours),
}


def check_spent(job: Job) -> list[CheckRow]:
    """Check that the budget is not spent; warn if its dollars can't be counted on this machine."""
    over = _already_spent(job)
    if over is not None:
        raise BadInput(over)
    errors = mistakes_of(lambda: check_budget(job.budget, price_per_hour(job.budget)))
    says = "`pion run` on this machine would say"
    return [CheckRow("budget", None, f"{says}: {error}") for error in errors]


def check_budget_there(
    job: Job, sky_yaml: SkyYaml, estimates: Sequence[Estimate]
) -> list[CheckRow]:
    """Check that the budget lets the run begin there, and compare the lowest estimates of dollars
    and hours with it."""
    stops = _already_spent(job) or _price_missing(job, sky_yaml, estimates)
    if stops is not None:
        return [CheckRow("budget", False, stops)]
    fitting = [estimate for estimate in estimates if estimate.fits]
    least = {
        name: min((n for e in fitting if (n := getattr(e, name)) is not None), default=None)
        for name in WRITTEN
    }
    if low := _too_low(job.budget, least):
        return [CheckRow("budget", None, f"{low}, the estimate: the run would stop there")]
    within_it = [
        f"{WRITTEN[name](cost)} estimated of {WRITTEN[name](limit)}"
        for name, limit, cost in _limits(job.budget, least)
    ]
    return [CheckRow("budget", True, "; ".join(within_it))] if within_it else []


def _limits(budget: Budget, costs: Mapping[str, float | None]) -> list[tuple[str, float, float]]:
    """Return the name of each limit of the budget, the limit, and its cost, if that is known."""
    limits = [(name, getattr(budget, name), cost) for name, cost in costs.items()]
    return [(n, limit, cost) for n, limit, cost in limits if limit is not None and cost is not None]


def _too_low(budget: Budget, costs: Mapping[str, float | None]) -> str:
    """Return, in words, the limits of the budget that are below these costs."""
    return " and ".join(
        f"budget.{name} {limit:g} is below {WRITTEN[name](cost)}"
        for name, limit, cost in _limits(budget, costs)
        if cost > limit
    )


def _already_spent(job: Job) -> str | None:
    """Return why the run would stop at once, if its cost so far has reached its budget."""
    if job.budget.dollars is None and job.budget.hours is None:
        return None
    head = read_head(job)
    over = None if head is None else over_budget(job.budget, head.spent)
    if over is None or all(
        plan.state == "done" for plan in plan_stages(job, digest_job(job), head)
    ):
        return None  # a finished run ends with 0
    return over


def _price_missing(job: Job, sky_yaml: SkyYaml, estimates: Sequence[Estimate]) -> str | None:
    """Return why the run would refuse a machine: `budget.dollars` needs the machine's price.

    `pion launch` tells the machine one price for each type of GPU, spot or on demand.
    """
    budget, offers = job.budget, [e.offer for e in estimates]
    known = budget.dollars_per_hour is not None or sky_yaml.envs.get(PRICE_VARIABLE)
    priced = {offer.gpu for offer in offers if offer.price is not None}
    missing = sorted({offer.gpu or CPU for offer in offers if offer.gpu not in priced})
    if budget.dollars is None or known or not missing:
        return None
    keys = " and ".join(f"prices.{gpu}" for gpu in missing)
    return (
        f"budget.dollars is {budget.dollars:g}, but the price of {', '.join(missing)} is not "
        f"known, so the run would refuse to start there. Set {keys} in the job, or "
        "budget.dollars_per_hour"
    )


def check_worst_case(job: Job, head: Head | None, first: OnDemand) -> list[CheckRow]:
    """Say so if the budget is below the worst case, in which all work is done on demand, on the
    machine that is requested `first`."""
    spent = head.spent if head is not None else Spent()
    hours = (first.work or 0.0) / 3600
    dollars = None if first.price is None else hours * first.price + spent.dollars
    if not (low := _too_low(job.budget, {"dollars": dollars, "hours": hours + spent.hours})):
        return []
    words = (
        f"{low}, the worst case, in which all work that is left is done on demand. The budget "
        "comes first: the run would stop there, with exit code 4"
    )
    return [CheckRow("budget", None, words)]
