"""How long a step of a job takes on 1, 2, 4 and 8 cards of a type, and what a token costs there.

A number of cards that is not worth its money is warned about: before anything is rented, nobody has
measured the links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pion.errors import BadInput
from pipeline.console.formats import counted, size
from pipeline.job import Job
from pipeline.rent.plan.estimate import (
    Estimate,
    StageEstimate,
    estimate,
    workers_on,
    workload_on,
)
from pipeline.rent.plan.links import Link, link_of
from pipeline.rent.plan.step_seconds import StepSeconds, StepWork, step_seconds
from pipeline.rent.plan.step_work import moments_on, step_work
from pipeline.run.preflight import require_a_row_each

CARDS = (1, 2, 4, 8)
# A token may cost so many times what it costs on one card, before a warning.
DEAR = 1.10
# How many types of GPU a warning names, those that the job is cheapest on first.
NAMED = 4


@dataclass(frozen=True)
class CardsRow:
    """A number of cards: a step on them, or `why_not` the job can't use them.

    Attributes:
        cost: the price of a token, where one card's is 1, if n cards cost n times as much as one.
        asked: whether the job or the rental asks for this number.
        moment_bytes: of the optimizer's moments, on the card that has the most of them.
        sharded: whether the cards divide the weights.
        peak_bytes: the memory that a card needs then.
    """

    cards: int
    link: Link
    step: StepSeconds | None
    why_not: str | None
    cost: float | None
    asked: bool
    moment_bytes: int
    sharded: bool = False
    peak_bytes: int | None = None


@dataclass(frozen=True)
class OnCards:
    """The longest training stage of a job on different numbers of cards of one type.

    `one` is the step on one card, also if one card has too little memory for it.
    """

    gpu: str
    stage: str
    gradient_bytes: int
    one: StepSeconds
    rows: tuple[CardsRow, ...]


def on_cards(job: Job, guess: Estimate, num_nodes: int = 1) -> OnCards | None:
    """Return what a step takes on different numbers of cards of an estimate's type.

    The speed of one card, and its micro-batch, are the estimate's. None if the job does not fit on
    this type, or if its speed is unknown.
    """
    offer = guess.offer
    longest = _longest(guess)
    if offer.gpu is None or not guess.fits or longest is None:
        return None
    asked = workers_on(job, offer, num_nodes)
    assert longest.one_gpu is not None
    work = _work(job, offer.gpu, replace(longest, sharded=False))
    reached = work.flops_per_second(longest.one_gpu)
    one = _step(work, 1, link_of(offer.gpu), reached)
    rows: list[CardsRow] = []
    for cards in sorted({*CARDS, asked}):
        link = link_of(offer.gpu, between_machines=num_nodes > 1 and cards > offer.count)
        # Fewer cards have more of the moments each, so they may have too little memory.
        as_asked = cards == asked or (cards > asked and not guess.sharded)
        mine = guess if as_asked else _on_cards(job, guess, cards, num_nodes)
        stage = next((s for s in mine.stages if s.stage == longest.stage), longest)
        why_not = _why_not(job, mine, cards)
        step = None if why_not else _step(_work(job, offer.gpu, stage), cards, link, reached)
        if step is not None and cards == 1:
            one = step
        cost = None if step is None else cards * step.seconds / one.seconds
        divided = stage.sharded and cards > 1
        alone = replace(workload_on(offer.gpu, job, longest.stage), sharded=divided)
        mark = asked > 1 and cards == asked
        peak = stage.peak_bytes if divided and step is not None else None
        moments = moments_on(alone, cards)
        rows.append(CardsRow(cards, link, step, why_not, cost, mark, moments, divided, peak))
    return OnCards(offer.gpu, longest.stage, work.gradient_bytes, one, tuple(rows))


def _work(job: Job, gpu: str, stage: StageEstimate) -> StepWork:
    return step_work(
        replace(workload_on(gpu, job, stage.stage), sharded=stage.sharded),
        job.section(stage.stage).global_batch,
        stage.micro_batch,
        recompute=stage.recompute,
        by_run=stage.by_run,
    )


def _step(work: StepWork, cards: int, link: Link, flops_per_second: float) -> StepSeconds:
    return step_seconds(
        work,
        cards,
        flops_per_second=flops_per_second,
        bytes_per_second=link.bytes_per_second,
    )


def _on_cards(job: Job, guess: Estimate, cards: int, num_nodes: int) -> Estimate:
    """Return what the job takes on another number of cards than those of an estimate.

    If they are those of several machines, more cards than a machine has are on as many machines as
    that takes.
    """
    hardware = job.hardware.model_copy(update={"workers": cards})
    other = job.model_copy(update={"hardware": hardware})
    each = min(cards, guess.offer.count) if num_nodes > 1 else cards
    return estimate(other, replace(guess.offer, count=each), num_nodes=-(-cards // each))


def _longest(guess: Estimate) -> StageEstimate | None:
    """Return the stage that trains longest; the first one while nobody knows."""
    known = [stage for stage in guess.stages if stage.one_gpu is not None]
    return max(known, key=lambda stage: stage.seconds or 0.0, default=None)


def _why_not(job: Job, guess: Estimate, cards: int) -> str | None:
    """Return why the job can't use so many cards; None if it can."""
    try:
        require_a_row_each(job, cards)
    except BadInput as error:
        return str(error).partition(". Nothing was started")[0]
    return None if guess.problem is None else f"{cards} × {guess.offer.gpu}: {guess.problem}"


# ---------------------------------------------------------------- warnings


def warnings_about(found: Sequence[OnCards], *, only_asked: bool = False) -> list[str]:
    """Return at most two lines: on which types two cards are slower than one (or as many as are
    asked for), and on which types more cards make a token dear.

    `only_asked` leaves out numbers of cards that neither the job nor the rental asks for.
    """
    slow, dear = [], []
    for each in found:
        # One card can't hold what cards divide, so they are not compared with it.
        rows = [row for row in each.rows if row.cards > 1 and row.step and not row.sharded]
        if only_asked:
            rows = [row for row in rows if row.asked]
        # Steps that wait for their hosts take as long on any number of cards.
        slower = [row for row in rows if (row.cost or 0.0) > 1.01 * row.cards]
        if only_asked or any(row.cards == 2 for row in slower):
            slow += [_slower(each, row) for row in slower[:1]]
        if not slower:
            dear += [_dearer(each, row) for row in rows if (row.cost or 0.0) > DEAR][:1]
    if not found:
        return []
    gradients = f"A step sums {size(found[0].gradient_bytes)} of gradients over the link"
    lines = []
    if slow:
        lines.append(f"slower than one card: {_listed(slow)}. {gradients}")
    if dear:
        lines.append(
            f"a token costs over {DEAR - 1:.0%} more than on one card: {_listed(dear)}. {gradients}"
        )
    return lines


def _listed(types: Sequence[str]) -> str:
    more = len(types) - NAMED
    return "; ".join([*types[:NAMED], *([counted(more, "more type")] if more > 0 else [])])


def _slower(each: OnCards, row: CardsRow) -> str:
    assert row.step is not None
    return (
        f"{row.cards} × {each.gpu}, {row.step.seconds:.3g} s a step instead of "
        f"{each.one.seconds:.3g} ({link_in_words(row.link)})"
    )


def _dearer(each: OnCards, row: CardsRow) -> str:
    assert row.cost is not None
    return f"{row.cards} × {each.gpu}, {row.cost - 1:.0%} more ({link_in_words(row.link)})"


def link_in_words(link: Link) -> str:
    """Return a link and its speed: `PCI Express 4.0 x16, 18 GB/s`."""
    return f"{link.name}, {link.gb_per_second:g} GB/s"
