"""What is said of a job's preferences, before anything is rented."""

from __future__ import annotations

import math
from collections import Counter

from pion.data.preference.layouts import Pair
from pion.data.preference.rendering import reason_without_ids
from pion.data.preference.summary import Part, Summary, Tally
from pion.errors import BadInput
from pipeline.console.formats import amount, passes_in_words
from pipeline.console.formats import counted as counted_words
from pipeline.data.preferences import Read, preferences
from pipeline.data.sources import SAMPLED, find_input
from pipeline.job import Job
from pipeline.rent.plan.counted import Counted, better_batch, keep_first_records
from pipeline.state.record_json import build, closed_record

# Outside of these pairs per step, recipes that worked are rare.
FEWEST_PAIRS, MOST_PAIRS = 32, 512
# With higher rates, models that learn from preferences begin to repeat themselves.
HIGHEST_LR, HIGHEST_LR_OF_LORA = 1e-5, 1e-4
# For simpo, this share of these: Meng et al. saw answers that only repeat at 1e-5.
SIMPO_SHARE = 0.5
# More passes over the same preferences rarely help.
MOST_PASSES = 3


def _summaries(counted: Counted) -> dict[str, Summary]:
    """Return what was counted of each source, by its key."""
    return {
        f"prefer.sources.{number}": build(
            closed_record(Summary), source["preferences"], "what prepare counted"
        )
        for number, source in enumerate(counted.sources)
    }


def _items(counted: Counted) -> int:
    """Return the number of pairs, or of single answers, to train on."""
    return sum(summary.train.items for summary in _summaries(counted).values())


def in_words(job: Job, counted: Counted) -> list[str]:
    """Return lines on each source, and on the steps of the stage, whose rows the job knows."""
    section = job.section("prefer")
    lines, summaries = [], _summaries(counted)
    for key, summary in summaries.items():
        first, *more = summary.in_words()
        lines += [f"{key}: {first}" if len(summaries) > 1 else first, *more]
    lines += counted.notes
    tokens = section.total_steps * section.global_batch * job.seq_len("prefer")
    steps = counted_words(section.total_steps, "step")
    lines.append(
        f"{passes_in_words(counted.passes(job))} in {steps} of about "
        f"{per_step(job, counted):,.0f} {_what(counted)}: {amount(tokens)} tokens"
    )
    if job.needs_reference("prefer"):
        lines.append(
            "before the first step, the reference is computed once: it takes a third of the time "
            "of a pass, and another beta or loss does not need it again"
        )
    if not counted.whole:
        lines[0] = f"of the first {SAMPLED:,}: {lines[0]}"
    return lines


def warnings_about(job: Job, counted: Counted) -> dict[str, str]:
    """Return what will probably disappoint, by a short name."""
    section, batch = job.prefer, per_step(job, counted)
    assert section is not None
    found = {}
    if not FEWEST_PAIRS <= batch <= MOST_PAIRS and _items(counted) >= FEWEST_PAIRS:
        found["batch"] = (
            f"a step has about {batch:,.0f} {_what(counted)}; {FEWEST_PAIRS} to {MOST_PAIRS} are "
            "usual. Change prefer.global_batch"
        )
    if counted.makes_few_steps(job):
        found["steps"] = _few_steps(job, counted)
    if (rate := high_rate(job)) is not None:
        found["rate"] = rate
    if counted.whole and (passes := counted.passes(job)) > MOST_PASSES:
        found["passes"] = (
            f"{passes:.3g} passes over the same {_what(counted)}: beyond {MOST_PASSES}, little is "
            "left to learn. Lower prefer.epochs or prefer.steps"
        )
    return found


def _few_steps(job: Job, counted: Counted) -> str:
    section = job.section("prefer")
    words = f"{counted_words(section.total_steps, 'step')} change a model little"
    # A step needs FEWEST_PAIRS, too.
    least = math.ceil(FEWEST_PAIRS * counted.rows / _items(counted))
    batch = max(better_batch(job, counted), least)
    if batch >= section.global_batch:
        return f"{words}: use more {_what(counted)}, or more passes"
    return (
        f"{words}. With prefer.global_batch={batch}, the same {_what(counted)} make "
        f"{math.ceil(section.passes * counted.rows / batch):,} steps"
    )


def high_rate(job: Job) -> str | None:
    """Return a warning of a rate at which models that learn from preferences are often spoiled."""
    section = job.prefer
    assert section is not None
    highest = HIGHEST_LR if section.lora is None else HIGHEST_LR_OF_LORA
    anchor = ""
    if section.loss == "simpo":
        highest *= SIMPO_SHARE
        anchor = "simpo has no reference that holds the model back, and "
    if section.lr <= highest:
        return None
    return (
        f"prefer.lr {section.lr:g} is above {highest:g}: {anchor}models then often begin to "
        "repeat themselves. Lower it"
    )


def per_step(job: Job, counted: Counted) -> float:
    """Return how many pairs, or single answers, a step learns from on average."""
    return job.section("prefer").global_batch * _items(counted) / counted.rows


def _what(counted: Counted) -> str:
    kinds = {summary.kind for summary in _summaries(counted).values()}
    return "pairs" if kinds == {"pairs"} else "labelled answers"


# ---------------------------------------------------------------- before there is a tokenizer


def unencoded_in_words(job: Job) -> list[str]:
    """Return lines on each source of `prefer`, whose tokenizer is trained later.

    Raises BadInput for preferences that can't be used, whatever the tokenizer is.
    """
    read = job.model_copy(deep=True)
    assert read.prefer is not None
    whole = keep_first_records(read.prefer.sources)
    lines = []
    for number, source in enumerate(read.prefer.sources):
        key = f"prefer.sources.{number}"
        summary = _summary(read, key, list(preferences(read, find_input(read, source, key))))
        read.prefer.know_kind(summary.kind, key)
        summary.check(key)
        what = "pairs" if summary.kind == "pairs" else "labelled answers"
        first = "" if whole else f"of the first {SAMPLED:,}: "
        lines.append(f"{key}: {first}{summary.train.items:,} {what} can be used, before lengths")
        lines += summary.left_out()
    lines.append(
        "their lengths, rows and steps are known once the tokenizer is trained: "
        "`pion run JOB --until prepare` counts exactly, and trains nothing"
    )
    return lines


def _summary(job: Job, key: str, read: list[Read]) -> Summary:
    """Return the summary of a source, without lengths."""
    assert job.prefer is not None
    kinds = [one.kind for one in read if one.kind is not None]
    if not kinds:
        raise BadInput(f"{key}: none of its records is a preference. Use another data set")
    found = [one.preference for one in read if not isinstance(one.preference, str)]
    dropped = Counter(filter(None, map(reason_without_ids, found)))
    scored = [one for one in found if isinstance(one, Pair) and one.scores is not None]
    swapped = [one for one in scored if one.swapped]
    tally = Tally(
        read=len(read),
        refused=len(read) - len(found),
        scored=len(scored),
        swapped=len(swapped),
        first_swapped=swapped[0].conversations[0].where if swapped else "",
        dropped=dict(dropped),
    )
    kept = len(found) - sum(dropped.values())
    seq_len = job.seq_len("prefer")
    train, none = (Part(items, 0, 0, None, None) for items in (kept, 0))
    return Summary(kinds[0], seq_len, train, none, tally, seq_len)
