"""Check that the rewards of a job can judge: by the records' own answers, and by an empty one."""

from __future__ import annotations

from contextlib import closing
from itertools import chain, islice

from pion.data.prompt.layouts import Question
from pion.errors import BadInput
from pion.rewards.answered import Answered
from pion.rewards.builtin import unjudgeable
from pipeline.data.judge import judge_of, require_deterministic
from pipeline.data.prompts import questions
from pipeline.data.sources import find_input
from pipeline.job import Job
from pipeline.rent.check import CheckRow

# Of each source, so many records are judged.
JUDGED = 16
ROW = "rewards"


def check_rewards(job: Job) -> list[CheckRow]:
    """Judge the own answers of the first records, and empty answers.

    Raises BadInput for rewards that can't be used, and for records that they can't judge.
    """
    if job.reinforce is None:
        return []
    first = list(chain.from_iterable(_first(job, number) for number in _sources(job)))
    _require_answers(job, first)
    own = [_answered(one, one.answer) for one in first if one.answer is not None]
    with closing(judge_of(job)) as judge:
        totals = [
            judge.judge([answers]).total[0] if answers else []
            for answers in (own, [_answered(one, "") for one in first])
        ]
        errors = [text for reward in judge.rewards.values() for text in reward.errors]
    require_deterministic(job, own)
    said = [
        f"{name} of the first {len(judged)} records get {sum(judged) / len(judged):.3g} on average"
        for name, judged in zip(("the own answers", "empty answers"), totals, strict=True)
        if judged
    ]
    rows = [CheckRow(ROW, True, "; ".join(said))]
    if errors:
        rows.append(CheckRow(ROW, None, f"some answers can't be judged: {errors[0]}"))
    if own and set(totals[0]) == set(totals[1]) and len(set(totals[0])) == 1:
        rows.append(
            CheckRow(
                ROW,
                None,
                "the records' own answers get what empty answers get. Is the answer in the form "
                "that the rewards look for?",
            )
        )
    return rows


def _sources(job: Job) -> range:
    assert job.reinforce is not None
    return range(len(job.reinforce.sources))


def _first(job: Job, number: int) -> list[Question]:
    """Return the first records of a source that can be used."""
    assert job.reinforce is not None
    found = find_input(job, job.reinforce.sources[number], f"reinforce.sources.{number}")
    read = islice(questions(job, found), JUDGED)
    return [one for one, _, _ in read if isinstance(one, Question)]


def _require_answers(job: Job, first: list[Question]) -> None:
    """Raise BadInput if a reward compares with answers, and a record has none."""
    assert job.reinforce is not None
    for reward in job.reinforce.rewards:
        for one in first:
            why = unjudgeable(reward.kind, one.answer)
            if why is not None:
                raise BadInput(f"{one.conversation.where}: {why}. Nothing was trained")


def _answered(one: Question, text: str) -> Answered:
    return Answered(text, one.prompt, one.answer, one.record, finished=True, tokens=len(text) // 4)
