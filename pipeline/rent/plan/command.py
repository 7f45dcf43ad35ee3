"""`pion plan`: what a job takes and costs on each type of GPU, the cheapest first, and what to
train for so many dollars. Both print rows of estimates."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
)
from pipeline.console.print_and_ask import saying_if_slow, show_table
from pipeline.job import Job
from pipeline.job.section import made
from pipeline.rehearsal.phases import PhaseRead, phases_read, warnings_of
from pipeline.rehearsal.rehearse import expect_rows, rehearse
from pipeline.rent.plan.compared import Compared, machines_for
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
from pipeline.rent.plan.prices import RESTART_SECONDS, market
from pipeline.rent.plan.sizes import Size
from pipeline.rent.plan.speeds import Known, known_speeds
from pipeline.rent.plan.what_fits import (
    COUNTS,
    GIB,
    fine_tuning_stages,
    on_several,
    ways_on,
    what_several_would_fit,
    what_to_change,
    what_would_fit,
)

# With less than so many seconds of training, the boot decides how long a job takes.
BRIEF = 60.0
# What takes time next to training on its rows, by stage.
NEXT_TO_STEPS = {
    "prefer": "computing the reference of prefer, once before its first step",
    "reinforce": "sampling the answers of reinforce, in each step",
}
# The columns of text. All others have numbers.
LEFT = ("GPU", "way", "model", "steps", "source")
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
    compared = machines_for(plan, gpus, on, quiet=as_json)
    here = seconds_here(plan, known)
    rows, notes = _rows_and_notes(plan, compared, known)
    warnings = [*compared.warnings(plan, rows), *warnings_of(plan, phases, sources)]
    notes = [*filter(None, [uncertain]), *notes, *(f"warning: {text}" for text in warnings)]
    if here is None:
        notes.append("here, on this machine: known once a run of this model has trained here")
    if as_json:
        shown = {"run": plan.name, "estimates": [_as_json(plan, row) for row in rows]}
        read = {"phases": [dataclasses.asdict(phase) for phase in phases], "here_seconds": here}
        print(json.dumps({**shown, "notes": notes, **read}, indent=1))
        return 0
    # Without prices, the reason comes first: below the table, nobody looks for it.
    above = [] if any(row.offer.price for row in rows) else list(compared.notes)
    _show_notes(above)
    tokens = rows[0].tokens if rows else 0
    title = f"{plan.name}: {amount(tokens)} tokens ({', '.join(plan.train_stages)})"
    this = {"GPU": "here", "way": "own", "time": _or_unknown(here, duration)}
    _show_rows(title, [*map(_cells, rows), this])
    for stage in fine_tuning_stages(plan):
        at_once = f"with so many rows of {plan.seq_len(stage):,} tokens at once"
        _show_rows(f"{stage} on one GPU: GiB ({at_once})", _ways(plan, stage, rows))
    for row in rows[:1]:
        title = f"phases of pretrain on {row.offer.gpu or 'CPU'}"
        _show_rows(title, _phases(phases, row, compared.num_nodes))
    _show_notes(note for note in notes if note not in above)
    return 0


def _show_notes(notes: Iterable[str]) -> None:
    for note in notes:
        style = "yellow" if note.startswith("warning: ") else "dim"
        show_table(Text(f"· {printable(note)}"), style)


def _rows_and_notes(job: Job, compared: Compared, known: Known) -> tuple[list[Estimate], list[str]]:
    """Return what the job takes on each machine, and on machines with several GPUs if it fits on
    none of the market; and what to know about it. Raises BadInput if it fits on none."""
    nodes, notes = compared.num_nodes, list(compared.notes)
    rows = [estimate(job, offer, known, num_nodes=nodes) for offer in compared.offers]
    changes = what_to_change(job, rows, nodes)
    is_rental, fits = compared.sky_yaml is not None, any(row.fits for row in rows)
    several = [] if is_rental or fits else on_several(job, rows)
    for count in sorted({guess.offer.count for guess in several}):
        gpus = [str(guess.offer.gpu) for guess in several if guess.offer.count == count]
        offers, about = market(gpus, job.prices, count=count)
        rows += [estimate(job, offer, known) for offer in offers]
        notes += [note for note in about if note not in notes]
    rows = ranked(rows)
    if rows and not rows[0].fits:
        lines = [*(f"  {reason}" for reason in _why_unfit(rows)), what_would_fit(job), *changes]
        lines += what_several_would_fit(job, rows)
        raise BadInput("\n".join([f"{job.name} fits on none of these GPUs.", *lines]))
    if several:
        notes.append(
            "the job fits on none of these GPUs alone. Several GPUs of one machine divide its "
            "weights (hardware.fsdp), or Muon's momentum"
        )
    return rows, [*notes, *_why_unfit(rows), *changes, *_assumptions(job, rows)]


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
        **{f"tokens/s {source}": True for source in sorted({s.speed_from for s in stages})},
        f"training takes less than a minute on each GPU, so {boot} is nearly all of the time, and "
        "the list is sorted by $/h": _all_brief(rows),
        "$/10⁹: dollars for a billion tokens": True,
        f"lost: on spot, a preemption every {job.checkpoint.preemption_hours:g} h "
        f"(checkpoint.preemption_hours) costs a restart of {RESTART_SECONDS:.0f} s and half "
        "the time between two saves": any(row.offer.use_spot for row in rows),
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
    gpus_of: dict[str, dict[str, None]] = {}
    refused = (row for row in rows if not row.fits)
    for row in sorted(refused, key=lambda row: row.lacks.usable if row.lacks else 0):
        gpu, why = row.offer.gpu or "CPU", str(row.problem)
        if row.lacks is not None:
            gpu, why = f"{gpu} ({row.lacks.usable / GIB:.1f} GiB usable)", row.lacks.what
        gpus_of.setdefault(why, {})[gpu] = None
    return [f"{', '.join(gpus)}: {why}" for why, gpus in gpus_of.items()]


# ---------------------------------------------------------------- tables


def _show_rows(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table with a column for each cell of the first row, if there are rows. Other rows may
    have fewer cells."""
    if not rows:
        return
    show_table(Text(title), "italic")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # 80 columns hold it
    for name in rows[0]:
        style = "bold" if name == "GPU" else ""
        table.add_column(
            name, justify="left" if name in LEFT else "right", style=style, no_wrap=True
        )
    for row in rows:
        table.add_row(*(row.get(name, "") for name in rows[0]))
    show_table(table)


def _cells(row: Estimate) -> dict[str, str]:
    cells = _machine_cells(row)
    if not row.fits:
        return cells | {"batch": "no fit"}
    # Micro-batch × accumulation, once if the stages are alike; * if activations are recomputed.
    batches = [f"{s.micro_batch}×{s.grad_accum}{'*' if s.recompute else ''}" for s in row.stages]
    memory = {
        "batch": ", ".join(dict.fromkeys(batches)),
        "GiB": f"{row.peak_bytes / GIB:.1f}",
    }
    return cells | memory | _cost_cells(row)


def _machine_cells(row: Estimate) -> dict[str, str]:
    count = f"{row.offer.count} × " if row.offer.count > 1 else ""
    return {
        "GPU": f"{count}{row.offer.gpu or 'CPU'}{', sharded' if row.fits and row.sharded else ''}",
        "way": "spot" if row.offer.use_spot else "demand",
        "$/h": _or_unknown(row.offer.price, cents),
    }


def _cost_cells(row: Estimate) -> dict[str, str]:
    of_it = sum(stage.reference_seconds or 0.0 for stage in row.stages)
    return {
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
    rows = []
    for number, phase in enumerate(phases):
        speeds = row.stages[0].by_phase if row.stages else ()
        hours = phase.tokens / speeds[number] / 3600 if speeds else None
        dollars = None if hours is None or not row.offer.price else hours * row.offer.price * nodes
        cells = {
            "steps": f"{phase.first:,}–{phase.last:,}",
            "rows of": f"{phase.seq_len:,}",
            "time": _or_unknown(hours, minutes_or_hours),
            "$": _or_unknown(dollars, cents),
        }
        for source in phase.sources:
            rows.append(cells | source.cells)
            cells = dict.fromkeys(cells, "")
    return rows


# ---------------------------------------------------------------- as JSON


def _as_json(job: Job, row: Estimate) -> dict[str, Any]:
    ways = {
        stage: None if each is None else each.as_json()
        for stage in fine_tuning_stages(job)
        for each in [ways_on(job, stage, row.offer)]
    }
    return {
        **dataclasses.asdict(row.offer),
        "price": row.offer.price,
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
    with saying_if_slow("reading the speeds of earlier runs", quiet=as_json):
        # A store that does not answer costs a few seconds, and not as many for each model.
        with ThreadPoolExecutor(len(sizes)) as pool:
            known = pool.map(lambda size: known_speeds(size.job, bench), sizes)
            sizes = [dataclasses.replace(size, known=k) for size, k in zip(sizes, known)]
        uncertain = [expect_rows(size.job) for size in sizes]
    compared = machines_for(sizes[0].job, gpus, on, COUNTS, quiet=as_json)
    rows = purchases(budget, sizes, priced_offers(compared), compared.num_nodes)
    command, change = command_for(rows, budget.dollars, on)
    if as_json:
        notes = [*compared.notes, *dict.fromkeys(filter(None, uncertain))]
        notes += [f"{SPARE:.0%} of the money is kept for other work than training"]
        options = [
            dataclasses.asdict(row.estimate.offer)
            | {"price": row.estimate.offer.price, "chosen": row.as_json()}
            for row in rows
        ]
        shown = {"options": options, "inference": _use(rows[0]), "command": command, "notes": notes}
        print(json.dumps(dataclasses.asdict(budget) | shown, indent=1))
        return 0
    cards = best_of_each(rows)[:SHOWN]
    more = f" ({len(rows) - len(cards)} more with --json)" if len(rows) > len(cards) else ""
    title = f"What to train for {budget}. The best cards{more}:"
    _show_rows(title, [*map(_purchase_cells, cards)])
    then = "Next" if change is None else f"Next, {change}, then"
    kept = "A tenth of the money is kept for preparing data, evaluation and publishing."
    for line in (*_recommended(rows[0]), f"{kept} {then}:", f"  {command}"):
        show(line)
    return 0


def _use(row: Purchase) -> dict[str, float]:
    """Return the bytes of a model in bf16, and the most tokens that a laptop writes in a second."""
    cost = row.size.cost
    laptop = LAPTOP / (2 * cost.active_params)
    return {"bytes": 2 * cost.all_params, "laptop_tokens_per_second": laptop}


def _recommended(row: Purchase) -> Iterator[str]:
    """Yield the lines that say what to train."""
    rates = [f", {name} {value:g}" for name, value in row.settings.items()][2:]
    steps, batch = row.settings["steps"], row.settings["global_batch"]
    rows_of = f"{batch:,} × {row.size.job.data.seq_len:,} tokens"
    stage, use = row.estimate.stages[0], _use(row)
    per_second = float(f"{use['laptop_tokens_per_second']:.2g}")
    yield (
        f"Train {row.size.name}: the largest model that gets {TOKENS_PER_PARAMETER} tokens for "
        "each parameter."
    )
    yield f"  settings  {steps:,} steps of {rows_of}{''.join(rates)}"
    yield f"  speed     {stage.tokens_per_second or 0:,.0f} tokens/s, {stage.speed_from}"
    yield (
        f"  to use    {size(use['bytes'])} in bf16; a laptop that reads 50 GB/s writes at most "
        f"{per_second:,.0f} tokens/s"
    )


def _purchase_cells(row: Purchase) -> dict[str, str]:
    cost = _cost_cells(row.estimate)
    return _machine_cells(row.estimate) | {
        "model": row.size.name,
        "tokens": short_amount(row.tokens),
        "a parameter": f"{row.tokens_per_parameter:.0f}",
        **{name: cost[name] for name in ("tokens/s", "time", "$")},
    }
