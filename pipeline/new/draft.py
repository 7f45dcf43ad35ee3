"""From what was seen of the data to a whole job: sized by the rules, and by what it may cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pion.data.documents.python_docs import documents
from pipeline.console.formats import money
from pipeline.job import Job
from pipeline.job.file import job_of_text
from pipeline.job.model_section import Base
from pipeline.new.base import LookedUp
from pipeline.new.examples import chat_examples, prompt_from, text_examples
from pipeline.new.held_out import with_enough_held_out
from pipeline.new.job_text import Proposal, job_text, source_of
from pipeline.new.look import Look, Reading
from pipeline.new.price import Market, cheapest, in_words, todays_market
from pipeline.new.proposal import (
    Amount,
    Pretraining,
    continued,
    fewer_passes,
    fine_tuning,
    pretrainings,
    shortened,
)
from pipeline.rent.plan.estimate import Estimate

# With fewer text files, which are short, each paragraph is a document: else none might be held out.
FEW_FILES, SHORT_BYTES = 50, 1 << 16
# A run may cost so much more than its training: boots, preparing, evaluation.
SPARE = 0.95
# A tokenizer is tried on about so many texts.
TRIED = 500
# The text that comes with Python.
BUILT_IN = {"kind": "python-docs"}


@dataclass(frozen=True)
class Wanted:
    """What the person asks for. `command` is how."""

    name: str
    target: Path
    command: str
    dollars: float


@dataclass(frozen=True)
class Draft:
    """A proposed job, for this amount of data.

    `job` is None if the `base`, the model to start from, can't be looked up now. `copies` are the
    data that must be copied, and where to. `price` is in words. `examples` show the first records
    of each look.
    """

    proposal: Proposal
    text: str
    job: Job | None
    amount: Amount
    base: LookedUp | None
    copies: Sequence[tuple[Reading, Path]]
    price: str
    examples: Sequence[Sequence[str]]


def amount_of(looks: Sequence[Look]) -> Amount:
    """Return how much there is to learn from."""
    plain, chats = ([one for one in looks if one.is_chat is kind] for kind in (False, True))
    return Amount(
        sum(one.all_text_bytes for one in plain),
        sum(one.all_records * (_paragraphs(one) or 1) for one in plain),
        max((one.length(0.9) for one in plain), default=0),
        sum(one.all_text_bytes for one in chats),
        sum(one.all_records for one in chats),
        max((one.length(0.9) for one in chats), default=0),
    )


def draft_of(wanted: Wanted, looks: Sequence[Look], base: LookedUp | None) -> Draft:
    """Return a job for what was seen, and what it costs. Raises BadInput if it is no valid job."""
    amount, folder = amount_of(looks), wanted.target.absolute().parent
    sources: dict[bool, list[dict[str, object]]] = {False: [], True: []}
    copies: list[tuple[Reading, Path]] = []
    for one in looks:
        reading = one.reading if not one.bad else replace(one.reading, direct=False)
        path = reading.group.path
        if not reading.direct:
            path = _copy_of(wanted.target, one, len(copies))
            copies.append((reading, path))
        sources[one.is_chat].append(
            source_of(reading, path, folder, "paragraph" if _paragraphs(one) else "file")
        )
    built_in = base is None and not sources[False]
    if built_in:
        sources[False] = [dict(BUILT_IN)]
        amount = replace(amount, **_built_in())
    proposal = Proposal(
        name=wanted.name,
        written_by=wanted.command,
        base=None if base is None else base.source,
        texts=sources[False],
        chats=sources[True],
        pretraining=None,
        fine_tuning=None,
        prompt=prompt_from(looks),
        dollars=wanted.dollars,
    )
    sizes = _sizes(proposal, amount, looks, base)
    largest = next(sizes)
    known = base is None or base.base is not None
    job = job_of(job_text(largest), base, wanted.target) if known else None
    # What the data can't be used for is found before anybody is asked for prices.
    examples = [chat_examples(one, job) if one.is_chat else text_examples(one) for one in looks]
    found, price = largest, "not known before the model is looked up: `pion plan` says it"
    if job is not None:
        found, job, price = _affordable(chain([largest], sizes), base, wanted)
    return Draft(found, job_text(found), job, amount, base, tuple(copies), price, examples)


def tried_texts(looks: Sequence[Look]) -> list[str]:
    """Return texts of the data on which a tokenizer is tried."""
    texts = [text for one in looks for text in one.kept]
    return texts[:: max(1, len(texts) // TRIED)]


def _built_in() -> dict[str, Any]:
    """Return how much text comes with Python."""
    lengths = sorted(len(document.text.encode()) for document in documents(False))
    long = lengths[int(0.9 * len(lengths))]
    return {"text_bytes": sum(lengths), "documents": len(lengths), "long_document": long}


def _copy_of(target: Path, one: Look, number: int) -> Path:
    """Return the name of the copy that is written of data that a job can't read."""
    what = "chats" if one.is_chat else "texts"
    return target.with_name(f"{target.stem}-{what}{number or ''}.jsonl")


def _paragraphs(one: Look) -> int:
    """Return about how many paragraphs a file has, if paragraphs are the documents; else 0."""
    group = one.reading.group
    few = group.kind == "text" and len(group.files) < FEW_FILES and not one.bad
    if not few or max(one.lengths, default=0) >= SHORT_BYTES:
        return 0
    paragraphs = sum(record["text"].count("\n\n") + 1 for _, record in one.shown)
    return max(1, paragraphs // max(1, len(one.shown)))


# ---------------------------------------------------------------- size and price


def _sizes(
    proposal: Proposal, amount: Amount, looks: Sequence[Look], base: LookedUp | None
) -> Iterator[Proposal]:
    """Yield the proposal in all sizes that suit the data, the largest first.

    Raises BadInput for data that is too little.
    """
    start = None if base is None else base.start(tried_texts(looks))
    sft = fine_tuning(amount, start) if proposal.chats else None
    stages: list[Pretraining | None] = [None]
    if start is None:
        stages = [*pretrainings(amount)]
    elif proposal.texts:
        stages = [continued(amount, start)]
    for stage in stages:
        found = replace(proposal, pretraining=stage, fine_tuning=sft)
        yield with_enough_held_out(found, looks, [bool(_paragraphs(one)) for one in looks])


def _affordable(
    sizes: Iterable[Proposal], base: LookedUp | None, wanted: Wanted
) -> tuple[Proposal, Job, str]:
    """Return the largest proposal that the money buys, its job, and its price in words."""
    market: Market | None = None
    dearer = ""
    for found in sizes:
        job, sft = job_of(job_text(found), base, wanted.target), found.fine_tuning
        market = market or todays_market(job)
        best = cheapest(job, market, None if sft is None else sft.rows)
        if not market.priced or (best is not None and (best.dollars or 0.0) <= wanted.dollars):
            return found, job, in_words(best, market) + dearer
        dearer = _too_dear(found.pretraining, best)
    assert market is not None
    if best is not None and best.dollars:
        share = SPARE * wanted.dollars / best.dollars
        found = replace(
            found,
            pretraining=None if found.pretraining is None else shortened(found.pretraining, share),
            fine_tuning=None if sft is None else fewer_passes(sft, share),
        )
        job = job_of(job_text(found), base, wanted.target)
        best = cheapest(job, market, None if sft is None else sft.rows)
    return found, job, in_words(best, market) + dearer


def _too_dear(stage: Pretraining | None, best: Estimate | None) -> str:
    """Return what a proposal that is too dear would cost."""
    if best is None or best.dollars is None:
        return ""
    what = "all of it" if stage is None or stage.preset is None else f"all of {stage.preset}"
    return f". {what[0].upper()}{what[1:]} would cost {money(best.dollars)}"


def job_of(text: str, base: LookedUp | None, target: Path) -> Job:
    """Return the job that a text of `target` describes, which starts from `base`."""

    def find(values: dict[str, Any]) -> Base:
        assert base is not None
        assert base.base is not None
        return base.base

    return job_of_text(text, target, find)
