"""From what was seen of the data to a whole job: sized by the rules, rehearsed, and priced."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from operator import mul
from pathlib import Path
from typing import Any

from pion.data.documents.languages import ENGLISH
from pion.data.documents.python_docs import documents
from pion.errors import BadInput
from pipeline.console.formats import minutes_or_hours, money
from pipeline.console.masking import masked
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job import Job
from pipeline.job.file import job_of_text
from pipeline.job.model_section import Base
from pipeline.job.stages import TRAINING
from pipeline.machine.time_limit import within
from pipeline.new.base import LookedUp
from pipeline.new.job_text import BUILT_IN, Proposal, job_text, lines_of, source_of
from pipeline.new.look import Look
from pipeline.new.options import NewOptions
from pipeline.new.rules import (
    MOST_FIT,
    Amount,
    FineTuning,
    FromRandom,
    Pretraining,
    StartModel,
    continued,
    default_base,
    fewer_passes,
    fine_tuning,
    pretrainings,
    shortened,
)
from pipeline.rehearsal.rehearse import StageData, rehearse
from pipeline.rent.plan.compared import Compared, on_the_market
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.speeds import Known, bench_results

# A run may cost so much more than its training: boots, preparing, evaluation.
SPARE = 0.95
# Prices that need more seconds are not waited for.
PRICE_SECONDS = 10.0
# A tokenizer is tried on about so many texts, of so many characters.
TRIED, TRIED_CHARACTERS = 500, 2_000
# So many bytes of a source are rehearsed.
REHEARSED_BYTES = 500_000
# By stage, what its data give.
Tried = Mapping[str, StageData]
# What is held out is tried in these shares, if the share that the rules say holds out nothing.
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)


def default_start(looks: Sequence[Look]) -> str | None:
    """Return the model to start from by the rules; None: random weights."""
    most = [look.languages.most_common(1)[0][0] for look in looks]
    return default_base(*_amounts(looks), english=all(one == ENGLISH for one in most))


def propose(
    options: NewOptions, looks: Sequence[Look], base: LookedUp | None
) -> tuple[Proposal, Tried]:
    """Return a job for what was seen, and what the data of each stage give.

    Raises BadInput if it is no valid job, or its data can't be used.
    """
    texts, others = _amounts(looks)
    sources: dict[str, list[Mapping[str, object]]] = {stage: [] for stage in TRAINING}
    for look in looks:
        sources[look.stage].append(source_of(look, look.path, options.folder))
    if base is None and not sources["pretrain"]:
        sources["pretrain"] = [BUILT_IN]
        lengths = sorted(len(document.text.encode()) for document in documents(False))
        texts = Amount(sum(lengths), len(lengths), lengths[int(0.9 * len(lengths))])
    p = Proposal(options, looks, texts, others, base, sources, _prompt_from(looks))
    p = replace(p, start=_start(p))
    sizes = _sizes(p)
    largest = next(sizes)
    if base is not None and base.base is None:
        return replace(largest, price="not known before the model is looked up"), {}
    # What the data can't be used for is found before anybody is asked for prices.
    with (
        saying_if_slow("trying the job on the head of the data"),
        tempfile.TemporaryDirectory(prefix="pion-new-") as place,
    ):
        tried, data = _tried(largest, Path(place))
    every = (_as_tried(one, tried) for one in chain([largest], sizes))
    return _affordable(every, _job_of(tried)), data


def _amounts(looks: Sequence[Look]) -> tuple[Amount, Amount]:
    """Return how much text there is to learn from, and how much else."""
    texts = [look for look in looks if look.stage == "pretrain"]
    return _amount(texts), _amount([look for look in looks if look not in texts])


def _amount(looks: Sequence[Look]) -> Amount:
    return Amount(
        sum(look.all_text_bytes for look in looks),
        sum(look.all_records * (look.paragraphs or 1) for look in looks),
        max(
            (look.length(MOST_FIT if look.stage == "prefer" else 0.9) for look in looks), default=0
        ),
    )


def _prompt_from(looks: Sequence[Look]) -> str | None:
    """Return a text to ask during training: a question of the data, or the beginning of a text."""
    for look in sorted(looks, key=lambda look: look.stage == "pretrain"):
        for line in (one.question for one in look.contents[:3]):
            if line and len(line) <= 200 and line.isprintable() and masked(line) == line:
                return line
    return None


def _start(p: Proposal) -> StartModel | None:
    contents = [one for look in p.looks for one in look.contents]
    some = contents[:: max(1, len(contents) // TRIED)]
    texts = [text[:TRIED_CHARACTERS] for one in some for text in one.texts]
    return None if p.base is None else p.base.start(texts)


def _sizes(p: Proposal) -> Iterator[Proposal]:
    """Yield the proposal in all sizes that suit the data, the largest first."""
    tuning = None if p.last == "pretrain" else _tuning(p)
    stages: list[Pretraining | None] = [None]
    if p.start is None:
        stages = [*pretrainings(p.texts, stock=p.options.stock)]
    elif p.sources["pretrain"]:
        stages = [continued(p.texts, p.start)]
    for stage in stages:
        yield replace(p, pretraining=stage, tuning=tuning)


def _tuning(p: Proposal, needed: int = 0) -> FineTuning:
    sides = len(p.learned[0].contents[0].texts)  # of a pair of answers, two
    return fine_tuning(p.last, p.others, p.start, sides, needed)


# ---------------------------------------------------------------- a rehearsal


def _tried(p: Proposal, folder: Path, *, again: bool = True) -> tuple[Proposal, Tried]:
    """Rehearse a proposal, with copies of the sample below a folder; return it with the rows that
    there are, and what the data of each stage give.

    Raises BadInput for data that a run would refuse.
    """
    copies: dict[str, Look] = {}
    sources = {stage: [one for one in p.sources[stage] if one is BUILT_IN] for stage in TRAINING}
    for look in p.looks:
        path = look.path
        if look.reading.copied:
            copies[path.name], path = look, folder / path.name
            lines = (json.dumps(one.record, default=str) + "\n" for one in look.contents)
            path.write_text("".join(lines), encoding="utf-8")
        sources[look.stage].append(source_of(look, path, p.options.folder))

    def named(words: str) -> str:
        """Return a message with the places in the data."""
        for path in (look.reading.group.path for look in p.looks):
            words = words.replace(str(path.absolute()), str(path))
        names = "|".join(map(re.escape, copies))
        return re.sub(rf"[^\s(]*{folder.name}/({names})(?::(\d+))?", place, words)

    def place(found: re.Match[str]) -> str:
        look = copies[found[1]]
        return look.contents[int(found[2]) - 1].where if found[2] else str(look.reading.group.path)

    for share in SHARES:
        tried = _holding_out(p, share)
        rehearsed = rehearse(_job_of(replace(tried, sources=sources)), most=REHEARSED_BYTES)
        failed = next(iter(rehearsed.failed.values()), None)
        if failed is None or not ("held_out (now" in str(failed) and "raise" in str(failed)):
            break
    if failed is not None:
        why = named(str(failed)).replace("Nothing was trained. ", "").rstrip(".")
        raise BadInput(f"a run would stop: {why}. Nothing was written.")
    data = {
        stage: replace(one, notes=[*map(named, one.notes)], warnings=[*map(named, one.warnings)])
        for stage, one in rehearsed.stages.items()
    }
    if tried.tuning is None or p.last not in data:
        return tried, data
    one = data[p.last]
    needed = max((summary.keeps_most for summary in one.summaries.values()), default=one.fits)
    better = _tuning(tried, needed)
    if again and better.seq_len != tried.tuning.seq_len:
        return _tried(replace(tried, tuning=better), folder, again=False)
    factors = (look.sample.factor if look.reading.copied else 1.0 for look in p.learned)
    rows = max(1, round(sum(map(mul, one.rows, factors))))
    return replace(tried, tuning=tried.tuning.of_rows(rows, p.others.count)), data


def _holding_out(p: Proposal, share: float) -> Proposal:
    """Return the proposal with at least this share held out."""

    def of(stage: Any) -> Any:
        return stage and replace(stage, held_out=max(share, stage.held_out))

    return replace(p, pretraining=of(p.pretraining), tuning=of(p.tuning))


def _as_tried(p: Proposal, tried: Proposal) -> Proposal:
    """Return a proposal of another size with what was found out."""
    share = 0.0 if tried.pretraining is None else tried.pretraining.held_out
    return replace(_holding_out(p, share), tuning=tried.tuning)


# ---------------------------------------------------------------- the price


def _affordable(sizes: Iterator[Proposal], job: Job) -> Proposal:
    """Return the largest proposal that the money buys, with its price. `job` is the largest."""
    try:
        with saying_if_slow("asking SkyPilot for the prices of machines"):
            market = within(PRICE_SECONDS, lambda: on_the_market(job, ()))
        why = "; ".join(note for note in market.notes if not note.startswith("prices"))
    except TimeoutError:
        market, why = Compared((), ()), f"SkyPilot did not say them within {PRICE_SECONDS:.0f} s"
    if all(offer.price is None for offer in market.offers):
        none = f"no price for any card today{f' ({why})' if why else ''}"
        return replace(next(sizes), price=f"{none}, so --dollars did not limit the size")
    known, dearer = Known(bench=bench_results(())), ""
    for p in sizes:
        best = _cheapest(p, market, known)
        if best is not None and (best.dollars or 0.0) <= p.options.dollars:
            return replace(p, price=_price(best, market) + dearer)
        dearer = _too_dear(p, best)
    if best is not None and best.dollars:
        share = SPARE * p.options.dollars / best.dollars
        p = replace(
            p,
            pretraining=None if p.pretraining is None else shortened(p.pretraining, share),
            tuning=None if p.tuning is None else fewer_passes(p.tuning, share),
        )
        best = _cheapest(p, market, known)
    return replace(p, price=_price(best, market) + dearer)


def _too_dear(p: Proposal, best: Estimate | None) -> str:
    """Return what a proposal that is too dear would cost."""
    if best is None or best.dollars is None or p.last == "prefer":
        return ""
    what = p.pretraining.preset if isinstance(p.pretraining, FromRandom) else "it"
    return f". All of {what} would cost {money(best.dollars)}"


def _cheapest(p: Proposal, market: Compared, known: Known) -> Estimate | None:
    """Return the cheapest way to train a proposal; None: no price."""
    job = _job_of(p)
    estimates = (estimate(job, offer, known) for offer in market.offers)
    priced = [e for e in estimates if e.fits and e.dollars is not None]
    return min(priced, key=lambda e: e.dollars or 0.0, default=None)


def _price(found: Estimate | None, market: Compared) -> str:
    """Return the price in a sentence, or that there is none."""
    if found is None:
        return "it fits on no card that has a price today; `pion plan` says why"
    assert found.dollars is not None
    assert found.hours is not None
    return (
        f"{money(found.dollars)}: about {minutes_or_hours(found.hours)} on {found.offer} at "
        f"{money(found.offer.price or 0.0)}/h, the cheapest of "
        f"{len({offer.gpu for offer in market.offers})} types of GPU today"
    )


def _job_of(p: Proposal) -> Job:
    """Return the job that is proposed, with its number of rows."""

    def find(values: dict[str, Any]) -> Base:
        assert p.base is not None
        assert p.base.base is not None
        return p.base.base

    job = job_of_text(job_text(lines_of(p)), p.options.target, find)
    if p.tuning is not None:
        job.section(job.train_stages[-1]).know_rows(p.tuning.rows)
    return job
