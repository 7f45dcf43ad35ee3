"""What a job's preferences give, prepared in a temporary folder before anything is rented.

Of a data set on the Hub, only the first SAMPLED preferences are read.
"""

from __future__ import annotations

import math
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pion.data.chat.chat_format import ChatFormat
from pion.data.preference.rendering import Usable, marked_preference, preference_format
from pion.data.preference.summary import Summary
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput, PionError
from pipeline.base.keep import tokenizer_of_base
from pipeline.console.formats import amount, passes_in_words
from pipeline.console.formats import counted as counted_words
from pipeline.data.preferences import preferences
from pipeline.data.sources import SAMPLED, find_input
from pipeline.job import Job
from pipeline.rent.plan.few_steps import FEWEST_STEPS, better_batch
from pipeline.rent.plan.first_records import keep_first_records
from pipeline.stages.prepare import prepare_prefer

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


@dataclass(frozen=True)
class CountedPreferences:
    """What was counted, by source. `whole` is False if only the first preferences were read.

    `first` shows the first usable preference, with the learned tokens between ⟦ and ⟧, and
    `specials` are the special tokens in it, by their ids.
    """

    summaries: dict[str, Summary]
    rows: int
    whole: bool
    first: list[str]
    specials: dict[int, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def items(self) -> int:
        """The pairs, or single answers, to train on."""
        return sum(summary.train.items for summary in self.summaries.values())


def count_preferences(job: Job) -> CountedPreferences | None:
    """Return what the preferences of `prefer` give; None if their ids are not known yet.

    Raises BadInput for preferences that can't be used, and for too few to fill one batch.
    """
    assert job.prefer is not None
    if job.tokenizer is not None and job.tokenizer.train is not None:
        return None
    counted = job.model_copy(deep=True)
    assert counted.prefer is not None
    whole = keep_first_records(counted.prefer.sources)
    if not whole:
        counted.prefer.global_batch = 1
    with tempfile.TemporaryDirectory(prefix="pion-count-") as place:
        folder = Path(place)
        tokenizer = tokenizer_of_base(job, folder / "base")
        report = prepare_prefer(counted, folder / "rows", tokenizer, lambda message: None).report
        first, specials = _first(counted, folder / "rows")
    summaries = {
        f"prefer.sources.{number}": Summary.from_record(source["preferences"])
        for number, source in enumerate(report["sources"])
    }
    sources = report["sources"]
    return CountedPreferences(
        summaries,
        rows=report["train_rows"],
        whole=whole,
        first=first,
        specials=specials,
        notes=tuple(remark for source in sources for remark in source.get("remarks", ())),
        warnings=tuple(words for source in sources for words in source.get("warnings", ())),
    )


def _first(job: Job, folder: Path) -> tuple[list[str], dict[int, str]]:
    """Return the first usable preference as the model will see it, and its special tokens."""
    assert job.prefer is not None
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    found = find_input(job, job.prefer.sources[0], "prefer.sources.0")
    context = job.model_config_resolved().seq_len
    with closing(ChatFormat(folder / "tokenizer.json", tokenizer)) as written:
        how = preference_format(written, job.seq_len("prefer"), context)
        for _, read in zip(range(LOOKED_AT), preferences(job, found)):
            if isinstance(read.preference, str):
                continue
            (outcome,) = how.outcomes([read.preference])
            if isinstance(outcome, Usable):
                present = set(np.concatenate([side.sequence.ids for side in outcome.item]).tolist())
                specials = tokenizer.special_ids.items()
                found_in = {token: text for text, token in specials if token in present}
                return marked_preference(tokenizer, outcome), found_in
    return [], {}


def in_words(job: Job, counted: CountedPreferences) -> list[str]:
    """Return lines on each source, and on the steps of the stage, whose rows the job knows."""
    section = job.section("prefer")
    lines = []
    for key, summary in counted.summaries.items():
        first, *more = summary.in_words()
        lines += [f"{key}: {first}" if len(counted.summaries) > 1 else first, *more]
    lines += counted.notes
    tokens = section.total_steps * section.global_batch * job.seq_len("prefer")
    steps = counted_words(section.total_steps, "step")
    lines.append(
        f"{passes_in_words(passes_over(job, counted))} in {steps} of about "
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


def warnings_about(job: Job, counted: CountedPreferences) -> dict[str, str]:
    """Return what will probably disappoint, by a short name."""
    section, batch = job.prefer, per_step(job, counted)
    assert section is not None
    found = {}
    if not FEWEST_PAIRS <= batch <= MOST_PAIRS and counted.items >= FEWEST_PAIRS:
        found["batch"] = (
            f"a step has about {batch:,.0f} {_what(counted)}; {FEWEST_PAIRS} to {MOST_PAIRS} are "
            "usual. Change prefer.global_batch"
        )
    if counted.whole and section.steps is None and section.total_steps < FEWEST_STEPS:
        found["steps"] = _few_steps(job, counted)
    if (rate := high_rate(job)) is not None:
        found["rate"] = rate
    if counted.whole and (passes := passes_over(job, counted)) > MOST_PASSES:
        found["passes"] = (
            f"{passes:.3g} passes over the same {_what(counted)}: beyond {MOST_PASSES}, little is "
            "left to learn. Lower prefer.epochs or prefer.steps"
        )
    return found


def _few_steps(job: Job, counted: CountedPreferences) -> str:
    section = job.section("prefer")
    words = f"{counted_words(section.total_steps, 'step')} change a model little"
    rows = section.passes * counted.rows
    # A step needs FEWEST_PAIRS, too.
    batch = max(better_batch(rows), math.ceil(FEWEST_PAIRS * counted.rows / counted.items))
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


def per_step(job: Job, counted: CountedPreferences) -> float:
    """Return how many pairs, or single answers, a step learns from on average."""
    return job.section("prefer").global_batch * counted.items / counted.rows


def passes_over(job: Job, counted: CountedPreferences) -> float:
    """Return how often the stage trains on each of these rows."""
    section = job.section("prefer")
    if section.steps is None:
        return section.passes
    return section.steps * section.global_batch / counted.rows


def _what(counted: CountedPreferences) -> str:
    kinds = {summary.kind for summary in counted.summaries.values()}
    return "pairs" if kinds == {"pairs"} else "labelled answers"


def lacks_rows(job: Job) -> bool:
    """Return whether it depends on the rows of preferences, which are not known, how long the stage
    takes: its steps do, or the pass of its reference."""
    if job.prefer is None:
        return False
    return not job.prefer.steps_are_known or (
        job.needs_reference("prefer") and job.prefer.rows is None
    )


def require_known(job: Job) -> str | None:
    """Tell the job how many rows its preferences give, where its steps or the pass of its reference
    depend on them.

    Returns what is not certain about it, as a sentence; None if everything is. Raises BadInput for
    preferences that can't be used, unless only the pass depends on them.
    """
    if not lacks_rows(job):
        return None
    section = job.section("prefer")
    if section.steps_are_known:
        return _know_pass(job)
    counted = count_preferences(job)
    if counted is None:
        return "the steps of prefer follow from its rows, which are not known before prepare"
    section.know_rows(counted.rows)
    return None if counted.whole else _of_the_first("the steps of prefer are")


def _know_pass(job: Job) -> str | None:
    """Tell a job whose steps are given how many rows the pass of its reference has."""
    try:
        counted = count_preferences(job)
    except PionError as error:  # the checks say it, and the steps are known
        return f"the reference pass of prefer is left out: {error}"
    if counted is None:
        return "the reference pass of prefer is left out: its rows are not known before prepare"
    job.section("prefer").know_rows(counted.rows)
    return None if counted.whole else _of_the_first("the reference pass of prefer is")


def _of_the_first(what: str) -> str:
    return (
        f"{what} of the first {SAMPLED:,} preferences of a data set: all of them take as many "
        "times longer as there are more"
    )


def first_in_words(counted: CountedPreferences) -> str:
    """Return the first preference, with what is learned of it marked. Raises BadInput if none of
    the first can be used."""
    if not counted.first:
        raise BadInput(f"none of the first {LOOKED_AT} preferences can be used")
    return "\n".join(["what the model learns is between ⟦ and ⟧:", *counted.first])
