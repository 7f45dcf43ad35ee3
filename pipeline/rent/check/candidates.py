"""Which machines of a SkyPilot YAML are good enough for a job: one rule for check and launch.

`pion check` reports the others, and `pion launch` does not let SkyPilot rent them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.prices import NotOffered, Offer, look_up, unpriced
from pipeline.rent.plan.speeds import NOTHING_KNOWN, Known, past_speeds
from pipeline.rent.plan.what_fits import what_to_change, what_would_fit
from pipeline.rent.sky_yaml import Candidate, SkyYaml
from pipeline.run.preflight import require_a_row_each


@dataclass(frozen=True)
class Verdict:
    """A candidate: its price, what the job takes on it, and why it will not do.

    `problem` is None if nothing is known against the candidate, even if nobody offers it. `advice`
    says what to do about the problem; it may be empty.
    """

    candidate: Candidate
    found: Offer | NotOffered
    guess: Estimate
    problem: str | None = None
    advice: str = ""

    @property
    def will_do(self) -> bool:
        """Whether somebody offers the candidate and nothing is known against it."""
        return isinstance(self.found, Offer) and self.problem is None


def judge(job: Job, sky_yaml: SkyYaml, known: Known, *, force: bool) -> list[Verdict]:
    """Return the verdict on each candidate. `force` accepts a spot price above the on-demand
    price."""
    verdicts = []
    for candidate in sky_yaml.candidates:
        found = look_up(candidate, sky_yaml.num_nodes, job.prices)
        # A GPU that is sold out today may be free tomorrow, when the run needs another machine.
        offer = found if isinstance(found, Offer) else unpriced(candidate)
        guess = estimate(job, offer, known, num_nodes=sky_yaml.num_nodes)
        problem, advice = None, ""
        # Only a person can fix an unknown name, so the check must refuse it, not leave it out.
        if not (isinstance(found, NotOffered) and found.misnamed):
            problem, advice = _problem(job, guess, sky_yaml.num_nodes, force)
        verdicts.append(Verdict(candidate, found, guess, problem, advice))
    return verdicts


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
        f"spot costs ${num_nodes * offer.spot:.2f}/h, more than on demand "
        f"(${num_nodes * offer.on_demand:.2f}/h)"
    )


def _problem(job: Job, guess: Estimate, num_nodes: int, force: bool) -> tuple[str | None, str]:
    """Return why the machine will not do, and what to do about it. An unknown memory or price is
    no reason."""
    offer = guess.offer
    problem = _worker_problem(job, offer, num_nodes)
    if problem is not None:
        return problem, ""
    if offer.gpu is None or offer.gpu_memory is None:
        return None, ""
    if guess.problem is not None:
        if guess.stages:
            return guess.problem, ""
        changes = what_to_change(job, [guess], num_nodes)
        return guess.problem, " ".join([what_would_fit(job), *changes])
    dear = None if force else dear_spot(offer, num_nodes)
    return dear, "Set use_spot: false, or pass --force" if dear else ""


def _worker_problem(job: Job, offer: Offer, num_nodes: int) -> str | None:
    """Return why the job's workers can't run on the machine's GPUs; None if they can."""
    gpus = offer.count * num_nodes
    workers = gpus if job.hardware.workers is None else job.hardware.workers
    if gpus and workers > gpus:
        return f"hardware.workers is {workers}, with {gpus} GPU(s); each worker needs one"
    try:
        require_a_row_each(job, workers)
    except BadInput as error:
        return str(error).partition(". Nothing was started")[0]
    return None
