"""From what was seen of the data to a whole job: sized by the rules, and by what it may cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from pion.data.documents.languages import ENGLISH
from pion.data.documents.python_docs import documents, is_held_out
from pion.errors import BadInput
from pipeline.console.formats import minutes_or_hours, money
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.data.sources import LONG_CHARS, texts_of
from pipeline.job import Job
from pipeline.job.file import job_of_text
from pipeline.job.model_section import Base
from pipeline.job.stages import TRAINING
from pipeline.new.base import LookedUp
from pipeline.new.examples import examples_of, prompt_from
from pipeline.new.job_text import BUILT_IN, Proposal, job_text, lines_of, source_of
from pipeline.new.look import Look
from pipeline.new.options import NewOptions
from pipeline.new.rules import (
    MOST_FIT,
    Amount,
    FromRandom,
    Pretraining,
    continued,
    default_base,
    fewer_passes,
    fine_tuning,
    preferring,
    pretrainings,
    rewarding,
    shortened,
)
from pipeline.rent.plan.compared import Compared, on_the_market
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.speeds import Known, bench_results

# A run may cost so much more than its training: boots, preparing, evaluation.
SPARE = 0.95
# A tokenizer is tried on about so many texts and conversations.
TRIED = 500


def default_start(looks: Sequence[Look]) -> str | None:
    """Return the model to start from by the rules; None: random weights."""
    most = [one.languages.most_common(1)[0][0] for one in looks if one.languages]
    return default_base(*_amounts(looks), english=all(one == ENGLISH for one in most))


def propose(
    options: NewOptions, looks: Sequence[Look], base: LookedUp | None
) -> tuple[Proposal, list[list[str]]]:
    """Return a job for what was seen, and the first records of each as its model sees them. Raises
    BadInput if it is no valid job."""
    texts, chats = _amounts(looks)
    folder = options.target.absolute().parent
    sources: dict[str, list[dict[str, object]]] = {stage: [] for stage in TRAINING}
    for look in looks:
        split = "paragraph" if look.paragraphs else "file"
        sources[look.stage].append(source_of(look.reading, look.path, folder, split))
    if base is None and not sources["pretrain"]:
        sources["pretrain"] = [dict(BUILT_IN)]
        lengths = sorted(len(document.text.encode()) for document in documents(False))
        texts = Amount(sum(lengths), len(lengths), lengths[int(0.9 * len(lengths))])
    sizes = _sizes(Proposal(options, looks, texts, chats, base, sources, prompt_from(looks)))
    largest = next(sizes)
    job = _job_of(largest) if base is None or base.base is not None else None
    # What the data can't be used for is found before anybody is asked for prices.
    examples = [examples_of(look, job) for look in looks]
    if job is not None:
        sizes = chain([largest], sizes)
        if base is not None:  # its template was tried
            sizes = _sizes(replace(largest, chats=_amounts(looks)[1]))
        return _affordable(sizes, job), examples
    advice = "" if largest.prefers else ": `pion plan` says it"
    return replace(largest, price=f"not known before the model is looked up{advice}"), examples


def _amounts(looks: Sequence[Look]) -> tuple[Amount, Amount]:
    """Return how much text there is to learn from, and how many conversations or preferences."""
    texts = [look for look in looks if look.stage == "pretrain"]
    chats = [look for look in looks if look.stage != "pretrain"]
    return _amount(texts), _amount(chats)


def _amount(looks: Sequence[Look]) -> Amount:
    return Amount(
        sum(look.all_text_bytes for look in looks),
        sum(look.all_records * (look.paragraphs or 1) for look in looks),
        max((look.length(MOST_FIT if look.first else 0.9) for look in looks), default=0),
        tuple(sorted(tokens for look in looks for tokens in look.tokens)),
    )


# ---------------------------------------------------------------- size and price


def _sizes(p: Proposal) -> Iterator[Proposal]:
    """Yield the proposal in all sizes that suit the data, the largest first.

    Raises BadInput for data that is too little.
    """
    texts = [text for look in p.looks for text in look.kept]
    every = 1 if p.prefers else max(1, len(texts) // TRIED)
    start = None if p.base is None else p.base.start(texts[::every])
    tuning = fine_tuning(p.chats, start) if p.sources["sft"] else None
    if p.prefers is not None and start is not None:
        tuning = preferring(p.chats, start, paired=p.prefers.paired)
    if p.sources["reinforce"] and start is not None:
        tuning = rewarding(p.chats, start)
    stages: list[Pretraining | None] = [None]
    if start is None:
        stages = [*pretrainings(p.texts, stock=p.options.stock)]
    elif p.sources["pretrain"]:
        stages = [continued(p.texts, start)]
    for stage in stages:
        yield _with_enough_held_out(replace(p, pretraining=stage, tuning=tuning))


def _affordable(sizes: Iterator[Proposal], job: Job) -> Proposal:
    """Return the largest proposal that the money buys, with its price. `job` is the largest."""
    with saying_if_slow("asking SkyPilot for the prices of machines"):
        market = on_the_market(job, ())
    if all(offer.price is None for offer in market.offers):
        why = "; ".join(note for note in market.notes if not note.startswith("prices"))
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
    if best is None or best.dollars is None or p.prefers is not None:
        return ""
    what = p.pretraining.preset if isinstance(p.pretraining, FromRandom) else "it"
    return f". All of {what} would cost {money(best.dollars)}"


def _cheapest(p: Proposal, market: Compared, known: Known) -> Estimate | None:
    """Return the cheapest way to train a proposal; None: no price.

    This is the only place that asks the planner.
    """
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
        f"${found.offer.price:.2f}/h, the cheapest of "
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


# ---------------------------------------------------------------- what is held out

# A hash of each text decides what is held out, so of a few texts, none may be on the held-out
# side. Of little data, all of which was looked at, this asks the hash as the run will.


# What is tried if the share that the rules say holds out too little.
SHARES = (0.1, 0.2, 0.3, 0.4)
# So many conversations are held out at least; and so many rows of text, for spare.
CONVERSATIONS, ROWS = 2, 1.5


def _with_enough_held_out(p: Proposal) -> Proposal:
    """Return the proposal with shares that hold something out of each source.

    Raises BadInput for data that is too little for that.
    """
    stage, sft = p.pretraining, p.tuning
    for look in p.looks:
        if not (look.all_kept and look.records):
            continue
        if look.stage == "sft" and sft is not None:
            talks = (one.conversation for one in look.few if one.conversation is not None)
            own = look.reading.own_template
            # The text whose hash decides, as when the data are prepared.
            sized = [("\n".join(texts_of(talk, own=own)), 1.0) for talk in talks]
            sft = replace(sft, held_out=_enough(look, sized, sft.held_out, CONVERSATIONS))
        elif look.stage == "pretrain" and stage is not None:
            per_token = look.text_bytes / max(1, stage.own_tokens)
            documents = _documents(look)
            if any(len(text) > LONG_CHARS for text in documents):
                continue  # the end of each is held out
            sized = [(text, len(text.encode()) / per_token) for text in documents]
            stage = replace(
                stage, held_out=_enough(look, sized, stage.held_out, ROWS * stage.seq_len)
            )
    return replace(p, pretraining=stage, tuning=sft)


def _enough(look: Look, texts: Sequence[tuple[str, float]], planned: float, needed: float) -> float:
    """Return the smallest share that holds out texts of `needed` size in all."""
    for share in (planned, *(share for share in SHARES if share > planned)):
        if sum(size for text, size in texts if is_held_out(text, share)) >= needed:
            return share
    count = f"{look.text_bytes:,} bytes of text"
    if look.stage == "sft":
        count = f"{len(texts):,} conversations"
    raise BadInput(
        f"{look.reading.group.path}: {count} are too little to train on: even if four tenths are "
        "held out, that is too little to measure anything on. Add data. Nothing was written."
    )


def _documents(look: Look) -> list[str]:
    texts = [text for one in look.few for text in one.texts]
    if look.paragraphs:
        texts = [part for text in texts for part in re.split(r"\n\s*\n", text)]
    return [text for text in texts if text.strip()]
