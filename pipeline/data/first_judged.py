"""Judge the first records of a job before anything is trained."""

from __future__ import annotations

import time
from contextlib import closing
from itertools import islice, product

from pion.data.prompt.layouts import Question
from pion.errors import BadInput
from pion.rewards.answered import Answered, right_answers
from pion.rewards.builtin import unjudgeable
from pipeline.data.judge import judge_of, require_judgeable
from pipeline.data.prompts import questions
from pipeline.data.sources import find_input
from pipeline.job import Job

# So many records of each source are read, and so many of all are judged: rewards may take seconds.
READ, JUDGED = 16, 4


def judge_first(job: Job) -> tuple[list[Answered], list[list[float]], float]:
    """Judge the right answers of the first records, and empty answers.

    Return the right answers, the rewards of both, and the seconds that one answer took. Raises
    BadInput for rewards that can't be used, and for records that they can't judge.
    """
    first = _first(job)
    own = [_answered(one, right) for one in first[:JUDGED] for right in right_answers(one.answer)]
    with closing(judge_of(job)) as judge:
        started = time.monotonic()
        totals = [
            judge.judge([answers]).total[0] if answers else []
            for answers in (own, [_answered(one, "") for one in first[:JUDGED]])
        ]
        spent = (time.monotonic() - started) / max(1, len(own) + len(first[:JUDGED]))
        errors = [text for reward in judge.rewards.values() for text in reward.errors]
    if errors:
        raise BadInput(
            f"right answers of the first records, or empty ones, can't be judged: {errors[0]}. "
            "Correct the function, or the records"
        )
    require_judgeable(job, own)
    return own, totals, spent


def _first(job: Job) -> list[Question]:
    """Return the first records of each source. Raises BadInput if rewards can't judge them."""
    section = job.reinforce
    assert section is not None
    first = [
        one
        for number, source in enumerate(section.sources)
        for one, _, _ in islice(
            questions(job, find_input(job, source, f"reinforce.sources.{number}")), READ
        )
        if isinstance(one, Question)
    ]
    for one, reward in product(first, section.rewards):
        if (why := unjudgeable(reward.kind, one.answer)) is not None:
            raise BadInput(f"{one.conversation.where}: {why}. Nothing was trained")
    return first


def _answered(one: Question, text: str) -> Answered:
    ids = [0] * (len(text) // 4)  # a stand-in: no model has said it
    return Answered(
        text, one.prompt, one.answer, one.record, finished=True, tokens=len(ids), ids=ids
    )
