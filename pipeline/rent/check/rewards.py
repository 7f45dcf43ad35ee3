"""Check that the rewards of a job can judge: the records' right answers, empty ones, and those of a
small model. Rewards that teach nothing are found here."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from pion.errors import BadInput
from pipeline.console.formats import amount, beginning, counted, duration, passes_in_words
from pipeline.data.judge import judge_first
from pipeline.job import Job
from pipeline.models.find import find_model
from pipeline.models.load import load_model
from pipeline.rehearsal.rehearse import StageData, prepared_head
from pipeline.rent.check import CheckRow
from pipeline.rent.check.job import is_prepared

# Rewards that take so many seconds for an answer are not asked about the answers of a model.
SLOW = 0.1
# A model answers so many prompts, and as many as before a first step if rewards teach nothing.
FEW = 8
# It is small enough if parameters × tokens to sample are at most this: half a minute on two cores.
SMALL = 2e11
# Prompts whose best and worst answers are shown, and the most characters of all.
SHOWN, MOST_CHARACTERS = 3, 1500


def check_rewards(job: Job) -> Iterator[CheckRow]:
    """Judge the right answers of the first records, empty answers, and those of a small model.

    Raises BadInput for rewards that can't be used or teach nothing, and for records that they can't
    judge.
    """
    section = job.reinforce
    if section is None:
        return
    right_answers, totals, spent = judge_first(job)
    for name, total in zip(("the right answers", "empty answers"), totals, strict=True):
        if total:
            average = f"{mean(total):.3g} on average"
            yield CheckRow("rewards", True, f"{name} of the first records get {average}")
    if right_answers and set(totals[0]) == set(totals[1]) and len(set(totals[0])) == 1:
        yield CheckRow(
            "rewards",
            None,
            "right answers get what empty answers get. Is the answer in the form that the rewards "
            "look for?",
        )
    if spent <= SLOW:
        yield from _answers_of_start(job)
        return
    step = duration(spent * section.global_batch * section.answers)
    yield CheckRow("rewards", None, f"judging takes {duration(spent)} an answer, {step} a step")


def prompts_in_words(job: Job, data: StageData) -> str:
    """Return the prompts, steps and answers of `reinforce`."""
    section = job.reinforce
    assert section is not None
    sampled = data.steps * section.global_batch * section.answers * section.max_tokens
    sentence = (
        f"{data.items:,} prompts; {passes_in_words(data.passes)} in {counted(data.steps, 'step')} "
        f"of {section.global_batch} prompts, with {section.answers} answers to each: at most "
        f"{amount(sampled)} tokens to sample"
    )
    return "; ".join([sentence, *data.notes])


def _answers_of_start(job: Job) -> Iterator[CheckRow]:
    """Let a small model on this machine answer the first prompts, as before the first step.

    Raises BadInput if nothing can be learned from its answers.
    """
    section, base = job.reinforce, job.base
    if section is None or base is None or base.commit or job.train_stages[0] != "reinforce":
        return
    from torch import Tensor

    from pipeline.data.prepared import open_data
    from pipeline.training import prompts as of_stage

    model = load_model(find_model(job.model_name(base.source)))
    each = section.answers * section.max_tokens * sum(map(Tensor.numel, model.parameters()))
    counts = [n for n in (FEW, of_stage.FIRST_PROMPTS) if n * each <= SMALL]
    if is_prepared(job) or not counts:
        return
    with prepared_head(job, "reinforce") as folder:
        data = open_data(folder)
        stream = data.stream("train", job.seed, job.data.window, documents=job.within_documents)
        with of_stage.open_feed(job, data, model, "train", stream) as (feed, prompts):
            for count in counts:
                rows = range(min(count, stream.total_rows))
                rewarded = feed.evaluate(prompts, rows)
                if (why := of_stage.nothing_to_learn(section, rewarded)) is None:
                    break
    if why is not None and of_stage.FIRST_PROMPTS in counts:
        raise BadInput(why)
    lines = [
        of_stage.signal_in_words(section, rewarded),
        *(f"{each.prompt}\n{each.best_and_worst()}" for each in prompts.said()[:SHOWN]),
    ]
    yield CheckRow("rewards", None if why else True, beginning("\n".join(lines), MOST_CHARACTERS))
