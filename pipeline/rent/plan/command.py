"""`pion plan`: what a job takes and costs on each type of GPU, the cheapest first, and what to
train for so many dollars. Both print rows of estimates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from rich.table import Table
from rich.text import Text

from pion.errors import BadInput
from pipeline.base.job_with_base import read_job
from pipeline.console.formats import (
    amount,
    counted,
    duration,
    minutes_or_hours,
    money,
    printable,
    short_amount,
    show,
    size,
    some,
)
from pipeline.console.print_and_ask import saying_if_slow, show_table
from pipeline.job import Job
from pipeline.job.section import made
from pipeline.machine.rented import CPU
from pipeline.rehearsal.phases import PhaseRead, phases_read, warnings_of
from pipeline.rehearsal.rehearse import expect_rows, rehearse
from pipeline.rent.plan.dollars import (
    SPARE,
    TOKENS_PER_PARAMETER,
    Money,
    Purchase,
    best_of_each,
    command_for,
    priced_offers,
    purchases,
)
from pipeline.rent.plan.estimate import Estimate, StageEstimate, estimate, seconds_here
from pipeline.rent.plan.prices import RESTART_SECONDS, Offer, machines_for, market
from pipeline.rent.plan.sizes import Size
from pipeline.rent.plan.speeds import Known, bench_results, known_speeds, past_speeds
from pipeline.rent.plan.what_fits import (
    COUNTS,
    GIB,
    fine_tuning_stages,
    narrow_spot,
    on_several,
    ways_on,
    what_several_would_fit,
    what_to_change,
    what_would_fit,
)
from pipeline.rent.sky_yaml import SkyYaml

# With less than so many seconds of training, the boot decides how long a job takes.
BRIEF = 60.0
# What takes time next to training on its rows, by stage.
NEXT_TO_STEPS = {
    "prefer": "computing the reference of prefer, once before its first step",
    "reinforce": "sampling the answers of reinforce, in each step",
}
# The columns of the tables: of a plan, and of what money buys.
PLANNED = "GPU", "way", "$/h", "batch", "GiB", "tokens/s", "time", "of it", "lost", "$", "$/10⁹"
BOUGHT = "GPU", "way", "$/h", "model", "tokens", "a parameter", "tokens/s", "time", "$"
# The columns of text. All others have numbers.
LEFT = ("GPU", "way", "model", "steps", "source")
# How many names a note has.
LISTED = 6
# How many cards `--dollars` shows. `--json` has all.
SHOWN = 5
# A model that answers one person reads all its weights for each token. The memory of a laptop reads
# so many bytes per second.
LAPTOP = 50e9

cents = partial(money, sign="")


def show_plan(
    job: str,
    overrides: Sequence[str],
    *,
    gpus: Sequence[str],
    as_json: bool,
    bench: Sequence[str] = (),
    on: str | None = None,
) -> int:
    """Print what a job takes on each type of GPU, ranked by dollars.

    A machine has one GPU, or as many as the job's `hardware.workers`. With `on`, a SkyPilot YAML,
    the machines are those of the YAML. `bench` names results of `pion bench`, which come before
    this user's. Raises BadInput for a job with mistakes, for an unknown GPU, for a file that is no
    result or no rental, and if the job fits on none of the GPUs.
    """
    with saying_if_slow(f"reading {job} and what it trains on", quiet=as_json):
        plan = read_job(job, overrides)
        known = known_speeds(plan, bench)
        uncertain = expect_rows(plan)
        sources = rehearse(plan, ["pretrain"]).rows_of("pretrain") if plan.mix_phases else ()
        phases = phases_read(plan, sources)
    offers, about, rental = machines_for(plan, gpus, on, quiet=as_json)
    here, nodes = seconds_here(plan, known), rental.num_nodes if rental else 1
    rows, more, notes = _rows_and_notes(plan, known, offers, rental)
    about = list(dict.fromkeys([*about, *more]))
    warnings = [*_narrow(plan, rental, rows), *warnings_of(plan, phases, sources)]
    notes = [*filter(None, [uncertain]), *about, *notes, *(f"warning: {w}" for w in warnings)]
    if here is None:
        notes.append("here, on this machine: known once a run of this model has trained here")
    if as_json:
        shown = {"run": plan.name, "estimates": [_as_json(plan, row) for row in rows]}
        read = {"phases": [asdict(phase) for phase in phases], "here_seconds": here}
        print(json.dumps({**shown, "notes": notes, **read}, indent=1))
        return 0
    # Without prices, the reason comes first: below the table, nobody looks for it.
    above = [] if any(row.offer.price for row in rows) else about
    _show_notes(above)
    title = f"{plan.name}: {amount(rows[0].tokens)} tokens ({', '.join(plan.train_stages)})"
    this = {"GPU": "here", "way": "own", "time": _or_unknown(here, duration)}
    _show_rows(title, [*map(_planned, rows), this], PLANNED)
    for stage in fine_tuning_stages(plan):
        at_once = f"with so many rows of {plan.seq_len(stage):,} tokens at once"
        _show_rows(f"{stage} on one GPU: GiB ({at_once})", _ways(plan, stage, rows))
    title = f"phases of pretrain on {rows[0].offer.gpu or 'CPU'}"
    _show_rows(title, _phases(phases, rows[0], nodes))
    _show_notes(note for note in notes if note not in above)
    return 0


def _show_notes(notes: Iterable[str]) -> None:
    for note in notes:
        style = "yellow" if note.startswith("warning: ") else "dim"
        show_table(Text(f"· {printable(note)}"), style)


def _rows_and_notes(
    job: Job, known: Known, offers: Sequence[Offer], rental: SkyYaml | None
) -> tuple[list[Estimate], list[str], list[str]]:
    """Return what the job takes on each machine, and on machines with several GPUs if it fits on
    none of the market; more notes about prices; and other notes. Raises BadInput if it fits on
    none."""
    nodes, prices = rental.num_nodes if rental else 1, list[str]()
    rows = [estimate(job, offer, known, num_nodes=nodes) for offer in offers]
    changes = what_to_change(job, rows, nodes)
    several = [] if rental or any(row.fits for row in rows) else on_several(job, rows)
    for count in sorted({guess.offer.count for guess in several}):
        gpus = [str(guess.offer.gpu) for guess in several if guess.offer.count == count]
        machines, about = market(gpus, job.prices, counts=(count,))
        rows += [estimate(job, offer, known) for offer in machines]
        prices += about
    rows = ranked(rows)
    if not rows[0].fits:
        lines = [*(f"  {reason}" for reason in _why_unfit(rows)), what_would_fit(job), *changes]
        lines += what_several_would_fit(job, rows)
        raise BadInput("\n".join([f"{job.name} fits on none of these GPUs.", *lines]))
    unpriced = sorted({r.offer.gpu or CPU for r in rows if r.fits and r.offer.price is None})
    if unpriced:
        prices.append(
            f"$/h ?: no price of {some(unpriced, LISTED)} is known. Add the price of one per hour "
            f"to the command, such as prices.{unpriced[0]}=0.4 for $0.40"
        )
    alone = (
        "the job fits on none of these GPUs alone. Several GPUs of one machine divide its weights "
        "(hardware.fsdp)"
    )
    notes = [*made({alone: several}), *_why_unfit(rows), *changes, *_assumptions(job, rows)]
    return rows, prices, notes


def _narrow(job: Job, rental: SkyYaml | None, rows: Sequence[Estimate]) -> list[str]:
    """Return a warning if the machines of the rental that the job fits on are all spot in one
    region or of one type of GPU; else nothing."""
    if rental is None:
        return []
    fitting = {(row.offer.gpu, row.offer.count, row.offer.use_spot) for row in rows if row.fits}
    candidates = [c for c in rental.candidates if (c.gpu, c.count, c.use_spot) in fitting]
    return [*filter(None, [narrow_spot(job, rental, candidates)])]


def ranked(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Return the estimates by dollars (by $/h if all train briefly), then those without a price by
    hours, then those that don't fit."""
    brief = _all_brief(estimates)

    def rank(row: Estimate) -> tuple[bool, bool, float, float, str]:
        paid = row.offer.price if brief and row.fits else row.dollars
        last = (row.hours or math.inf) if row.fits else -float(row.offer.gpu_memory or 0)
        return not row.fits, paid is None, paid or 0.0, last, str(row.offer)

    return sorted(estimates, key=rank)


def _all_brief(estimates: Sequence[Estimate]) -> bool:
    """Return whether training takes less than a minute on each GPU that it fits on."""
    seconds = [row.training_seconds or BRIEF for row in estimates if row.fits and row.stages]
    return bool(seconds) and max(seconds) < BRIEF


# ---------------------------------------------------------------- notes


def _assumptions(job: Job, rows: Sequence[Estimate]) -> list[str]:
    """Return notes that say what numbers are based on."""
    stages = [stage for row in rows if row.fits for stage in row.stages]
    timed = [stage.stage for stage in stages if stage.reference_tokens]
    count = max((row.offer.count for row in rows), default=1)
    boot = f"a boot of {RESTART_SECONDS:.0f} s"
    notes: dict[str, object] = {
        f"hardware.workers {job.hardware.workers_in_words}: planned for "
        f"{counted(job.hardware.min_workers or 1, 'worker')}": job.hardware.elastic,
        f"$/h and tokens/s are for a machine's {count} GPUs, one for each worker": count > 1,
        **{
            f"batch {s.micro_batch}×{s.grad_accum}: in {s.stage}, each GPU computes "
            f"{counted(s.micro_batch, 'row')} at once, {counted(s.grad_accum, 'time')} for a "
            "step": True
            for s in stages[:1]
        },
        **{f"tokens/s {source}": True for source in sorted({s.speed_from for s in stages})},
        f"training takes less than a minute on each GPU, so {boot} is nearly all of the time, and "
        "the list is sorted by $/h": _all_brief(rows),
        "$/10⁹: dollars for a billion tokens": True,
        f"lost: the time that preemptions cost. On spot, a preemption every "
        f"{job.checkpoint.preemption_hours:g} h (checkpoint.preemption_hours) costs a restart of "
        f"{RESTART_SECONDS:.0f} s and half the time between two saves": stages,
        **{f"of it: the time of {work}": s in timed for s, work in NEXT_TO_STEPS.items()},
        "* activations are recomputed to fit": (
            fine_tuning_stages(job) or any(stage.recompute for stage in stages)
        ),
        f"time and $: {boot} and training; preparing data, evaluation and publishing are extra": (
            True
        ),
    }
    return made(notes)


def _why_unfit(rows: Sequence[Estimate]) -> list[str]:
    """Return a line for each reason why GPUs will not do, with these GPUs and what they have."""
    refused = [row for row in rows if not row.fits]
    gpus_of: dict[str, list[str]] = {}
    for row in sorted(refused, key=lambda row: row.lacks.usable if row.lacks else 0):
        gpu, lacks = row.offer.gpu or "CPU", row.lacks
        usable = f" ({lacks.usable / GIB:.1f} GiB usable)" if lacks else ""
        gpus_of.setdefault(lacks.what if lacks else str(row.problem), []).append(gpu + usable)
    return [f"{', '.join(dict.fromkeys(gpus))}: {why}" for why, gpus in gpus_of.items()]


# ---------------------------------------------------------------- tables


def _show_rows(title: str, rows: Sequence[Mapping[str, str]], columns: Sequence[str] = ()) -> None:
    """Print a table, if there are rows: with these columns or all, as far as the first row has
    them. Other rows may have fewer cells."""
    if not rows:
        return
    show_table(Text(title), "italic")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # 80 columns hold it
    names = [name for name in columns or rows[0] if name in rows[0]]
    for name in names:
        table.add_column(
            name,
            justify="left" if name in LEFT else "right",
            style="bold" if name == "GPU" else "",
            no_wrap=True,
        )
    for row in rows:
        table.add_row(*(row.get(name, "") for name in names))
    show_table(table)


def _planned(row: Estimate) -> dict[str, str]:
    """Return the cells of a machine in a plan."""
    if not row.fits:
        return _cells(row) | {"batch": "no fit"}
    # Once if the stages are alike.
    batches = [f"{s.micro_batch}×{s.grad_accum}{'*' if s.recompute else ''}" for s in row.stages]
    batch = ", ".join(dict.fromkeys(batches))
    return _cells(row) | {"batch": batch, "GiB": f"{row.peak_bytes / GIB:.1f}"}


def _cells(row: Estimate) -> dict[str, str]:
    """Return what each table shows of a machine: of its costs, if the job fits."""
    count = f"{row.offer.count} × " if row.offer.count > 1 else ""
    cells = {
        "GPU": f"{count}{row.offer.gpu or 'CPU'}{', sharded' if row.fits and row.sharded else ''}",
        "way": "spot" if row.offer.use_spot else "demand",
        "$/h": _or_unknown(row.offer.price, cents),
    }
    if not row.fits:
        return cells
    of_it = sum(stage.reference_seconds or 0.0 for stage in row.stages)
    return cells | {
        "tokens/s": _or_unknown(row.tokens_per_second, "{:,.0f}".format),
        "time": _or_unknown(row.hours, minutes_or_hours),
        **({"of it": minutes_or_hours(of_it / 3600)} if of_it else {}),
        "lost": _or_unknown(row.lost_hours, minutes_or_hours),
        "$": _or_unknown(row.dollars, cents),
        "$/10⁹": _or_unknown(row.dollars_per_billion_tokens, cents),
    }


def _or_unknown(value: float | None, form: Callable[[float], str]) -> str:
    return "?" if value is None else form(value)


def _ways(job: Job, stage: str, rows: Sequence[Estimate]) -> list[dict[str, str]]:
    """Return what a stage needs on each type of GPU to train all weights, to recompute, and by
    LoRA."""
    ways = {row.offer.gpu or "": ways_on(job, stage, row.offer) for row in rows}
    return [
        {
            "GPU": gpu,
            "usable": f"{each.usable / GIB:.1f}",
            "in full": _way(each.ways.get("full")),
            "recomputed": _way(each.ways.get("recomputed")),
            f"LoRA of rank {each.rank}": _way(each.ways.get("lora")),
        }
        for gpu, each in ways.items()
        if each is not None
    ]


def _way(way: StageEstimate | None) -> str:
    if way is None:
        return "✗"
    mark, again = "✓" if way.fits else "✗", "*" if way.recompute else ""
    return f"{mark} {way.peak_bytes / GIB:.1f} ({way.micro_batch}{again})"


def _phases(phases: Sequence[PhaseRead], row: Estimate, nodes: int) -> list[dict[str, str]]:
    """Return what each phase reads of each source, with its time and dollars on a machine."""
    cells = []
    speeds = row.stages[0].by_phase if row.stages else ()
    for phase, speed in zip_longest(phases, speeds):
        hours = phase.tokens / speed / 3600 if speed else None
        dollars = None if hours is None or not row.offer.price else hours * row.offer.price * nodes
        first = {
            "steps": f"{phase.first:,}–{phase.last:,}",
            "rows of": f"{phase.seq_len:,}",
            "time": _or_unknown(hours, minutes_or_hours),
            "$": _or_unknown(dollars, cents),
        }
        cells += [(first if n == 0 else {}) | s.cells for n, s in enumerate(phase.sources)]
    return cells


# ---------------------------------------------------------------- as JSON


def _offer(offer: Offer) -> dict[str, Any]:
    return {**asdict(offer), "price": offer.price}


def _as_json(job: Job, row: Estimate) -> dict[str, Any]:
    ways = {
        stage: None if each is None else each.as_json()
        for stage in fine_tuning_stages(job)
        for each in [ways_on(job, stage, row.offer)]
    }
    return {
        **_offer(row.offer),
        "fits": row.fits,
        "problem": None if row.fits else str(row.problem),
        "stages": [stage.as_json() for stage in row.stages],
        "peak_bytes": row.peak_bytes,
        "sharded": row.sharded,
        "tokens_per_second": row.tokens_per_second,
        "hours": row.hours,
        "dollars": row.dollars,
        "dollars_per_billion_tokens": row.dollars_per_billion_tokens,
        "preemption_loss_hours": row.lost_hours,
        # Of the first of these stages, as before there was `prefer`; and of all of them.
        "ways": next(iter(ways.values()), None),
        "ways_by_stage": ways,
    }


# ---------------------------------------------------------------- what to train for money


def show_dollars(
    sizes: Sequence[Size],
    budget: Money,
    *,
    gpus: Sequence[str] = (),
    as_json: bool,
    bench: Sequence[str] = (),
    on: str | None = None,
) -> int:
    """Print which of the models to train for the money on each card, the best first. The other
    arguments are those of `show_plan`.

    Raises BadInput for a job with mistakes, for money that buys too little, and if no machine has a
    price.
    """
    results = bench_results(bench)
    with saying_if_slow("reading the speeds of earlier runs", quiet=as_json):
        # A store that does not answer costs a few seconds, and not as many for each model.
        with ThreadPoolExecutor(len(sizes)) as pool:
            runs = pool.map(past_speeds, [size.job for size in sizes])
            sizes = [replace(size, known=Known(r, results)) for size, r in zip(sizes, runs)]
        uncertain = [expect_rows(size.job) for size in sizes]
    offers, about, rental = machines_for(sizes[0].job, gpus, on, COUNTS, quiet=as_json)
    nodes = rental.num_nodes if rental else 1
    rows = purchases(budget, sizes, priced_offers(offers, about), nodes)
    command, change = command_for(rows, budget.dollars, on)
    if as_json:
        notes = [*about, *dict.fromkeys(filter(None, uncertain))]
        notes += [f"{SPARE:.0%} of the money is kept for other work than training"]
        options = [_offer(row.estimate.offer) | {"chosen": row.as_json()} for row in rows]
        shown = {"options": options, "inference": _use(rows[0]), "command": command, "notes": notes}
        print(json.dumps(asdict(budget) | shown, indent=1))
        return 0
    cards = best_of_each(rows)[:SHOWN]
    more = f" ({len(rows) - len(cards)} more with --json)" if len(rows) > len(cards) else ""
    title = f"What to train for {budget}. The best cards{more}:"
    _show_rows(title, [*map(_bought, cards)], BOUGHT)
    then = "Next" if change is None else f"Next, {change}, then"
    reserve = "A tenth of the money is kept for preparing data, evaluation and publishing."
    for line in (*_recommended(rows[0]), f"{reserve} {then}:", f"  {command}"):
        show(line)
    return 0


def _use(row: Purchase) -> dict[str, float]:
    """Return the bytes of a model in bf16, and the most tokens that a laptop writes in a second."""
    read = 2 * row.size.cost.active_params
    return {"bytes": 2 * row.size.cost.all_params, "laptop_tokens_per_second": LAPTOP / read}


def _recommended(row: Purchase) -> list[str]:
    """Return the lines that say what to train."""
    rates = [f", {name} {value:g}" for name, value in row.settings.items()][2:]
    steps, batch = row.settings["steps"], row.settings["global_batch"]
    rows_of = f"{batch:,} × {row.size.job.data.seq_len:,} tokens"
    stage, use = row.estimate.stages[0], _use(row)
    per_second = float(f"{use['laptop_tokens_per_second']:.2g}")
    return [
        f"Train {row.size.name}: the largest model that gets {TOKENS_PER_PARAMETER} tokens for "
        "each parameter.",
        f"  settings  {steps:,} steps of {rows_of}{''.join(rates)}",
        f"  speed     {stage.tokens_per_second or 0:,.0f} tokens/s, {stage.speed_from}",
        f"  to use    {size(use['bytes'])} in bf16; a laptop that reads 50 GB/s writes at most "
        f"{per_second:,.0f} tokens/s",
    ]


def _bought(row: Purchase) -> dict[str, str]:
    """Return the cells of a machine in what money buys."""
    return _cells(row.estimate) | {
        "model": row.size.name,
        "tokens": short_amount(row.tokens),
        "a parameter": f"{row.tokens_per_parameter:.0f}",
    }
