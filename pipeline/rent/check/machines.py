"""Check the machines of a SkyPilot YAML: are they offered, at what price, are they large enough?

Which of them are good enough for a job is one rule for check and launch: `pion check` reports the
others, and `pion launch` does not let SkyPilot rent them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pion.train.micro_batch import HEADROOM
from pipeline.console.formats import duration, money
from pipeline.job import Job
from pipeline.job.hardware_section import ALONE
from pipeline.job.section import made, mistakes_of
from pipeline.rent.check import CheckRow, unchecked
from pipeline.rent.check.budget import check_budget_there
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
from pipeline.run.preflight import require_a_row_each


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
    speeds = Known(past_speeds(job)) if in_steps else NOTHING_KNOWN
    return [verdict.candidate for verdict in staying(judge(job, sky_yaml, speeds, force=force))]


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
    gpus, min_workers = offer.count * num_nodes, job.hardware.min_workers
    workers = gpus if min_workers is None else min_workers
    problems = made(
        {
            f"hardware.workers is {job.hardware.workers_in_words}, and a rental has no Ray whose "
            f"nodes come and go. Set hardware.workers={min_workers}, or remove it: one per GPU": (
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
        sentence = f"enabled: {', '.join(enabled)}"
        none = "no cloud is enabled. Set one up, then run: sky check"
        return CheckRow(title, bool(enabled), sentence if enabled else none)
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
        sentence = "memory and speed are unknown" if trained else "and the rental does not train"
        sentence = f"no GPU{':' if trained else ','} {sentence}{_cost(guess, nodes)}"
        return CheckRow(title, None if trained else True, sentence)
    if offer.gpu_memory is None:
        return CheckRow(title, None, offer.note or str(guess.problem))
    ways = [ways_on(job, stage, offer, nodes) for stage in fine_tuning_stages(job)]
    sentence = ". ".join([_memory(guess) + _cost(guess, nodes), *map(str, filter(None, ways))])
    note = dear_spot(offer, nodes)
    if offer.price is None:
        note = f"{offer.note or 'SkyPilot lists no price'}. Set prices.{offer.gpu} in the job"
    return CheckRow(
        title, offer.price is not None or None, f"{sentence}; {note}" if note else sentence
    )


def _memory(guess: Estimate) -> str:
    assert guess.offer.gpu_memory is not None
    usable = guess.offer.gpu_memory * (1 - HEADROOM)
    batches = ", ".join(dict.fromkeys(f"{s.micro_batch}×{s.grad_accum}" for s in guess.stages))
    sentence = f"{batches} sequences, {guess.peak_bytes / 2**30:.1f} of {usable / 2**30:.1f} GiB"
    return f"{sentence} on each GPU, which divide the weights" if guess.sharded else sentence


def _cost(guess: Estimate, num_nodes: int) -> str:
    """Return the price of all nodes together, and the job's estimated time and dollars."""
    price = guess.offer.price
    of_all = f" for {num_nodes} nodes" if num_nodes > 1 else ""
    sentence = "" if price is None else f", {money(num_nodes * price)}/h{of_all}"
    if guess.hours is not None:
        sentence += f", about {duration(3600 * guess.hours)}"
        if guess.offer.count * num_nodes > 1 and not guess.measured:
            sentence += " (several GPUs: not measured)"
    return sentence + ("" if guess.dollars is None else f", {money(guess.dollars)}")


def check_memory(job: Job) -> list[CheckRow]:
    """Check that some GPU known here can train the job, and name the GPUs that can."""
    guesses = on_each_gpu(job)
    too_small = [guess for guess in guesses if not guess.fits]
    sentence = what_would_fit(job)
    if too_small:
        largest, changes = too_small[-1], what_to_change(job, too_small)
        sentence = " ".join([sentence, f"{largest.offer.gpu}: {largest.problem}.", *changes])
    return [CheckRow("GPU memory", len(too_small) < len(guesses), sentence)]
