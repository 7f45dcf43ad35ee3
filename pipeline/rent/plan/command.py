"""`pion plan`: what a job takes and costs on each type of GPU, the cheapest first."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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
)
from pipeline.console.print_and_ask import saying_if_slow, show_table
from pipeline.job import Job
from pipeline.rehearsal.rehearse import expect_rows, rehearse
from pipeline.rent.plan.compared import Compared, machines_for
from pipeline.rent.plan.estimate import Estimate, StageEstimate, estimate, seconds_here
from pipeline.rent.plan.phases import phases_read, phases_table, warnings_of
from pipeline.rent.plan.prices import RESTART_SECONDS, market
from pipeline.rent.plan.speeds import Known, known_speeds
from pipeline.rent.plan.what_fits import (
    GIB,
    Way,
    Ways,
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
    "prefer": "the reference pass of prefer, once before its first step",
    "reinforce": "sampling the answers of reinforce, in each step",
}


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
        rows = [*rehearse(plan, ["pretrain"]).rows_of("pretrain")] if plan.mix_phases else []
        phases = phases_read(plan, rows)
    compared = machines_for(plan, gpus, on, quiet=as_json)
    nodes = compared.num_nodes
    estimates = ranked([estimate(plan, offer, known, num_nodes=nodes) for offer in compared.offers])
    changes = what_to_change(plan, estimates, nodes)
    if on is None and estimates and not any(e.fits for e in estimates):
        estimates, compared = _on_several(plan, estimates, compared, known)
    if estimates and not any(e.fits for e in estimates):
        raise _fits_nowhere(plan, estimates, changes)
    notes = [*compared.notes, *filter(None, [uncertain]), *_assumptions(plan, estimates, changes)]
    notes += [*compared.warning(plan, estimates), *_passes(estimates, nodes)]
    notes += [f"warning: {words}" for words in warnings_of(plan, phases, rows)]
    here = seconds_here(plan, known)
    if here is None:
        notes.append("here, on this machine: known once a run of this model has trained here")
    if as_json:
        read = {"phases": [dataclasses.asdict(phase) for phase in phases], "here_seconds": here}
        print(json.dumps(_as_json(plan, estimates, notes) | read, indent=1))
        return 0
    machines = _table(plan, estimates)
    machines.add_row("here", "own", *[""] * 4, "?" if here is None else duration(here))
    for table in (machines, *_ways_tables(plan, estimates)):
        show_table(table)
    if phases:
        show_table(phases_table(phases, next((e for e in estimates if e.fits), None), nodes))
    for note in notes:
        style = "yellow" if note.startswith("warning: ") else "dim"
        show_table(Text(f"· {printable(note)}"), style)
    return 0


def _fits_nowhere(job: Job, estimates: Sequence[Estimate], changes: Sequence[str]) -> BadInput:
    lines = [f"{job.name} fits on none of these GPUs."]
    lines += [f"  {reason}" for reason in _why_unfit(estimates)]
    lacking = [e.offer.gpu for e in estimates if e.offer.gpu and e.lacks]
    several = what_several_would_fit(job, lacking)
    return BadInput("\n".join([*lines, what_would_fit(job), *changes, *several]))


def _on_several(
    job: Job, estimates: Sequence[Estimate], compared: Compared, known: Known
) -> tuple[list[Estimate], Compared]:
    """Return the estimates and the machines of a job that fits on no single GPU, with machines that
    have the fewest GPUs that it fits on."""
    offers, notes = list(compared.offers), list(compared.notes)
    lacking = [e.offer.gpu for e in estimates if e.offer.gpu and e.lacks]
    by_count: dict[int, list[str]] = {}
    for guess in on_several(job, lacking):
        by_count.setdefault(guess.offer.count, []).append(str(guess.offer.gpu))
    found = []
    for count, gpus in by_count.items():
        more, about = market(gpus, job.prices, count=count)
        offers += more
        notes += [note for note in about if note not in notes]
        found += [estimate(job, offer, known) for offer in more]
    if found:
        notes.append(
            "the job fits on none of these GPUs alone. Several GPUs of one machine divide its "
            "weights (hardware.fsdp), or its moments"
        )
    return ranked([*estimates, *found]), replace(compared, offers=offers, notes=notes)


def ranked(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Return the estimates by dollars (by $/h if all train briefly), then those without a price by
    hours, then those that don't fit."""

    brief = all_brief(estimates)

    def rank(e: Estimate) -> tuple[bool, bool, float, float, str]:
        if brief and e.fits:
            return False, e.offer.price is None, e.offer.price or 0.0, 0.0, str(e.offer)
        hours = float("inf") if e.hours is None else e.hours
        last = hours if e.fits else -float(e.offer.gpu_memory or 0)
        return not e.fits, e.dollars is None, e.dollars or 0.0, last, str(e.offer)

    return sorted(estimates, key=rank)


def all_brief(estimates: Sequence[Estimate]) -> bool:
    """Return whether training takes less than a minute on each GPU that it fits on."""
    fit = [e for e in estimates if e.fits and e.stages]
    return bool(fit) and all((e.training_seconds or BRIEF) < BRIEF for e in fit)


def batch_in_words(estimate: Estimate) -> str:
    """Return micro-batch × accumulation, once per stage if the stages differ; * if activations are
    recomputed."""
    words = [f"{s.micro_batch}×{s.grad_accum}{'*' if s.recompute else ''}" for s in estimate.stages]
    return ", ".join(dict.fromkeys(words))


def _assumptions(job: Job, estimates: Sequence[Estimate], changes: Sequence[str]) -> list[str]:
    """Return notes that say what does not fit, what to change, and what numbers are based on."""
    notes = [*_why_unfit(estimates), *changes]
    if job.hardware.elastic:
        fewest = counted(job.hardware.min_workers or 1, "worker")
        notes.append(f"hardware.workers {job.hardware.workers_in_words}: planned for {fewest}")
    count = max((e.offer.count for e in estimates), default=1)
    if count > 1:
        notes.append(f"$/h and tokens/s are for a machine's {count} GPUs, one for each worker")
    notes += [f"tokens/s {s}" for s in sorted({s.speed_from for e in estimates for s in e.stages})]
    if all_brief(estimates):
        notes.append(
            f"training takes less than a minute on each GPU, so a boot of {RESTART_SECONDS:.0f} s "
            "is nearly all of the time, and the list is sorted by $/h"
        )
    notes.append("$/10⁹: dollars for a billion tokens")
    if any(e.offer.use_spot for e in estimates):
        notes.append(
            f"lost: on spot, a preemption every {job.checkpoint.preemption_hours:g} h "
            f"(checkpoint.preemption_hours) costs a restart of {RESTART_SECONDS:.0f} s and half "
            "the time between two saves"
        )
    ways = (ways_on(job, s, e.offer) for s in fine_tuning_stages(job) for e in estimates)
    by_lora = [way.lora for way in ways if way is not None and way.lora is not None]
    if any(part.recompute for part in [s for e in estimates for s in e.stages] + by_lora):
        notes.append("* activations are recomputed to fit")
    notes.append(
        f"time and $: a boot of {RESTART_SECONDS:.0f} s and training; preparing data, evaluation "
        "and publishing are extra"
    )
    return notes


def _passes(estimates: Sequence[Estimate], nodes: int) -> list[str]:
    """Return a line on the pass that computes a reference, and one on sampled answers: what they
    take on each type of GPU, by its cheapest machine."""
    found: dict[str, dict[str, str]] = {}
    fitting = ((e.offer, stage) for e in estimates for stage in e.stages if e.fits)
    for offer, stage in fitting:
        seconds, price, gpu = stage.reference_seconds, offer.price, offer.gpu or "CPU"
        if seconds is not None:
            dollars = "" if price is None else f", {money(seconds / 3600 * price * nodes)}"
            found.setdefault(stage.stage, {}).setdefault(gpu, f"{gpu} {duration(seconds)}{dollars}")
    return [f"of it, {NEXT_TO_STEPS[name]}: {'; '.join(on.values())}" for name, on in found.items()]


def _why_unfit(estimates: Sequence[Estimate]) -> list[str]:
    """Return a line for each reason why GPUs will not do, with these GPUs and what they have."""
    unfit: dict[str, list[str]] = {}
    for e in sorted(estimates, key=lambda e: 0 if e.lacks is None else e.lacks.usable):
        gpu = e.offer.gpu or "CPU"
        if e.lacks is not None:
            gpu += f" ({e.lacks.usable / 2**30:.1f} GiB usable)"
            unfit.setdefault(e.lacks.what, []).append(gpu)
        elif e.problem is not None:
            unfit.setdefault(e.problem, []).append(gpu)
    return [f"{', '.join(dict.fromkeys(gpus))}: {why}" for why, gpus in unfit.items()]


def _table(job: Job, estimates: Sequence[Estimate]) -> Table:
    tokens = next((e.tokens for e in estimates if e.stages), 0)
    title = f"{job.name}: {amount(tokens)} tokens ({', '.join(job.train_stages)})"
    table = _empty_table(
        title, ("way", "$/h", "batch", "GiB", "tokens/s", "time", "lost", "$", "$/10⁹")
    )
    table.padding = (0, 1, 0, 0)  # 80 columns hold it
    cents = partial(money, sign="")
    for e in estimates:
        gpu = e.offer.gpu or "CPU"
        cells = [
            batch_in_words(e),
            f"{e.peak_bytes / 2**30:.1f}",
            _known(e.tokens_per_second, "{:,.0f}".format),
            _known(e.hours, minutes_or_hours),
            _known(e.lost_hours, minutes_or_hours),
            _known(e.dollars, cents),
            _known(e.dollars_per_billion_tokens, cents),
        ]
        name = f"{e.offer.count} × {gpu}" if e.offer.count > 1 else gpu
        table.add_row(
            f"{name}, sharded" if e.sharded else name,
            "spot" if e.offer.use_spot else "demand",
            _known(e.offer.price, cents),
            *(cells if e.fits else ["no fit"]),
        )
    return table


def _ways_tables(job: Job, estimates: Sequence[Estimate]) -> Iterator[Table]:
    """Yield a table for each stage that has several ways to train: what it needs on each type of
    GPU to train all weights, to recompute, and by LoRA."""
    for stage in fine_tuning_stages(job):
        ways = {e.offer.gpu: ways_on(job, stage, e.offer) for e in estimates}
        known = {gpu: found for gpu, found in ways.items() if found is not None}
        if not known:
            continue
        rank = next(iter(known.values())).rank
        length = job.seq_len(stage)
        title = f"{stage} on one GPU: GiB (with so many rows of {length:,} tokens at once)"
        table = _empty_table(title, ("usable", "in full", "recomputed", f"LoRA of rank {rank}"))
        for gpu, found in known.items():
            cells = map(_cell, (found.full, found.recomputed, found.lora))
            table.add_row(gpu, f"{found.usable / GIB:.1f}", *cells)
        yield table


def _empty_table(title: str, names: Sequence[str]) -> Table:
    """Return a table with a row to come for each GPU."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("GPU", style="bold", no_wrap=True)
    for name in names:
        table.add_column(name, justify="left" if name == "way" else "right", no_wrap=True)
    return table


def _cell(way: Way | None) -> str:
    if way is None:
        return "✗"
    mark, again = "✓" if way.fits else "✗", "*" if way.recompute else ""
    return f"{mark} {way.peak_bytes / GIB:.1f} ({way.micro_batch}{again})"


def _known(value: float | None, words: Callable[[float], str]) -> str:
    return "?" if value is None else words(value)


def _ways_as_json(ways: Mapping[str, Ways | None]) -> dict[str, Any]:
    return {s: None if found is None else dataclasses.asdict(found) for s, found in ways.items()}


def _values(stage: StageEstimate) -> dict[str, Any]:
    return {name: value for name, value in vars(stage).items() if name != "in_memory"}


def _as_json(job: Job, estimates: Sequence[Estimate], notes: Sequence[str]) -> dict[str, Any]:
    stages = fine_tuning_stages(job)
    ways = [{stage: ways_on(job, stage, e.offer) for stage in stages} for e in estimates]
    rows = [
        {
            **dataclasses.asdict(e.offer),
            "price": e.offer.price,
            "fits": e.fits,
            "problem": e.problem,
            "stages": [
                _values(stage)
                | {"peak_bytes": stage.peak_bytes, "reference_seconds": stage.reference_seconds}
                for stage in e.stages
            ],
            "peak_bytes": e.peak_bytes,
            "sharded": e.sharded,
            "tokens_per_second": e.tokens_per_second,
            "hours": e.hours,
            "dollars": e.dollars,
            "dollars_per_billion_tokens": e.dollars_per_billion_tokens,
            "preemption_loss_hours": e.lost_hours,
            # Of the first of these stages, as before there was `prefer`; and of all of them.
            "ways": next(iter(_ways_as_json(on_it).values()), None),
            "ways_by_stage": _ways_as_json(on_it),
        }
        for e, on_it in zip(estimates, ways, strict=True)
    ]
    return {"run": job.name, "estimates": rows, "notes": list(notes)}
