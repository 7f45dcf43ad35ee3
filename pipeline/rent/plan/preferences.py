"""What a job's preferences give, before anything is rented."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from pion.data.chat.chat_format import ChatFormat
from pion.data.preference.rendering import Usable, marked_preference, preference_format
from pion.data.preference.summary import Summary
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput, PionError
from pipeline.console.formats import amount, passes_in_words
from pipeline.console.formats import counted as counted_words
from pipeline.data.preferences import preferences
from pipeline.data.sources import SAMPLED, find_input
from pipeline.job import Job
from pipeline.rent.plan.counted import (
    Counted,
    better_batch,
    count,
    know_rows,
    know_steps,
    makes_few_steps,
)

# Outside of these pairs per step, recipes that worked are rare.
FEWEST_PAIRS, MOST_PAIRS = 32, 512
# With higher rates, models that learn from preferences begin to repeat themselves.
HIGHEST_LR, HIGHEST_LR_OF_LORA = 1e-5, 1e-4
# For simpo, this share of these: Meng et al. saw answers that only repeat at 1e-5.
SIMPO_SHARE = 0.5
# More passes over the same preferences rarely help.
MOST_PASSES = 3
# The first preference that can be used is looked for in so many.
LOOKED_AT = 64


def count_preferences(job: Job) -> Counted | None:
    """Return what the preferences of `prefer` give; None if their ids are not known yet.

    Raises BadInput for preferences that can't be used, and for too few to fill one batch.
    """
    return count(job, "prefer", _first, batch=True)


def _first(job: Job, tokenizer: Tokenizer, written: ChatFormat) -> tuple[list[str], Iterable[int]]:
    assert job.prefer is not None
    found = find_input(job, job.prefer.sources[0], "prefer.sources.0")
    how = preference_format(written, job.seq_len("prefer"), job.model_config_resolved().seq_len)
    for _, read in zip(range(LOOKED_AT), preferences(job, found)):
        if isinstance(read.preference, str):
            continue
        (outcome,) = how.outcomes([read.preference])
        if isinstance(outcome, Usable):
            ids = np.concatenate([side.sequence.ids for side in outcome.item])
            return marked_preference(tokenizer, outcome), ids.tolist()
    return [], ()


def _summaries(counted: Counted) -> dict[str, Summary]:
    """Return what was counted of each source, by its key."""
    return {
        f"prefer.sources.{number}": Summary.from_record(source["preferences"])
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
    if makes_few_steps(job, counted):
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
    rows = section.passes * counted.rows
    # A step needs FEWEST_PAIRS, too.
    batch = max(better_batch(rows), math.ceil(FEWEST_PAIRS * counted.rows / _items(counted)))
    if batch >= section.global_batch:
        return f"{words}: use more {_what(counted)}, or more passes"
    return (
        f"{words}. With prefer.global_batch={batch}, the same {_what(counted)} make "
        f"{math.ceil(rows / batch):,} steps"
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


def lacks_rows(job: Job) -> bool:
    """Return whether it depends on the rows of preferences, which are not known, how long the stage
    takes: its steps do, or the pass of its reference."""
    if job.prefer is None:
        return False
    return not job.prefer.steps_are_known or (
        job.needs_reference("prefer") and job.prefer.rows is None
    )


def know_preferences(job: Job) -> str | None:
    """Tell the job how many rows its preferences give, where its steps or the pass of its reference
    depend on them.

    Returns what is not certain about it, as a sentence; None if everything is. Raises BadInput for
    preferences that can't be used, unless only the pass depends on them.
    """
    if not lacks_rows(job):
        return None
    if not job.section("prefer").steps_are_known:
        return know_steps(job, "prefer", count_preferences(job))
    try:
        counted = count_preferences(job)
    except PionError as error:  # the checks say it, and the steps are known
        return f"the reference pass of prefer is left out: {error}"
    if counted is None:
        return "the reference pass of prefer is left out: its rows are not known before prepare"
    return know_rows(job, counted, "the reference pass of prefer is")


def require_first(counted: Counted) -> None:
    """Raise BadInput if none of the first preferences can be used."""
    if not counted.first:
        raise BadInput(f"none of the first {LOOKED_AT} preferences can be used")
