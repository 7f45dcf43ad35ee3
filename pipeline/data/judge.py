"""The rewards of a job, ready to judge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice, product

from pion.data.prompt.layouts import Question
from pion.errors import BadInput
from pion.rewards.answered import Answered, right_answers
from pion.rewards.builtin import (
    BuiltinReward,
    exact,
    json_with,
    math_reward,
    number,
    regex_reward,
    unjudgeable,
)
from pion.rewards.function import FunctionReward, judged_differently, read_function
from pion.rewards.judge import Judge, Reward
from pipeline.data.prompts import questions
from pipeline.data.sources import find_input
from pipeline.job import Job
from pipeline.job.digest import covered_fields, digest_of, files_of
from pipeline.job.reinforce_section import (
    JsonReward,
    MathReward,
    PythonReward,
    RegexReward,
    RewardSection,
)


def judge_of(job: Job) -> Judge:
    """Return what judges the answers of `reinforce`. Raises BadInput for a reward that can't be
    used."""
    assert job.reinforce is not None
    return Judge([(_reward(job, section), section.weight) for section in job.reinforce.rewards])


def judged_by(job: Job) -> str:
    """Return the digits that name what judges answers: rewards, their files, and where they end."""
    assert job.reinforce is not None
    fields = covered_fields(job.reinforce, "reinforce").items()
    names = ("reinforce.rewards", "reinforce.max_tokens")
    judging = {path: value for path, value in fields if path.startswith(names)}
    return digest_of(
        judging | files_of(job, "reinforce") | {"reinforce.pass_at": job.reinforce.pass_at}
    )


def _reward(job: Job, section: RewardSection) -> Reward:
    match section:
        case PythonReward():
            return _function(job, section)
        case MathReward():
            return math_reward()
        case RegexReward():
            return regex_reward(section.pattern)
        case JsonReward():
            return BuiltinReward("json", partial(json_with, section.keys))
        case _:
            return BuiltinReward(section.kind, {"number": number, "exact": exact}[section.kind])


def _function(job: Job, section: PythonReward, hash_seed: int = 0) -> FunctionReward:
    function = read_function(job.kept_path(section.path), section.function)
    with_path = replace(
        function, path=str(job.input_path(section.path))
    )  # whose folder it may read
    return FunctionReward(with_path, hash_seed)


def require_judgeable(job: Job, answers: Sequence[Answered]) -> None:
    """Raise BadInput if a reward compares with right answers and none of these records has one, or
    if a function judges an answer in two ways and the job does not accept it."""
    assert job.reinforce is not None
    for index, section in enumerate(job.reinforce.rewards):
        if answers and all(
            why := unjudgeable(section.kind, answered.answer) for answered in answers
        ):
            raise BadInput(
                f"reinforce.rewards.{index}: {why}, in any of the first records. "
                "`pion help rewards` lists the keys that may have a right answer"
            )
        if not isinstance(section, PythonReward) or not section.deterministic:
            continue
        answer = judged_differently(partial(_function, job, section), answers)
        if answer is not None:
            raise BadInput(
                f"reinforce.rewards.{index}: {section.function} gives the same answer another "
                f"reward in another process: {answer.text[:200]!r}. A resumed run would learn "
                "something else. Remove what is random or remembered from the function (times, "
                "sets, global variables), or set `deterministic: false`"
            )


# ---------------------------------------------------------------- before anything is trained

# So many records of each source are read, and so many of all are judged: rewards may take seconds.
READ, JUDGED = 16, 4


def judge_first(job: Job) -> tuple[list[Answered], list[list[float]], float]:
    """Judge the right answers of the first records, and empty answers.

    Return the right answers, the rewards of both, and the seconds that one answer took. Raises
    BadInput for rewards that can't be used, and for records that they can't judge.
    """
    first = _first(job)
    own = [
        _answered(question, right)
        for question in first[:JUDGED]
        for right in right_answers(question.answer)
    ]
    with closing(judge_of(job)) as judge:
        started = time.monotonic()
        totals = [
            judge.judge([answers]).total[0] if answers else []
            for answers in (own, [_answered(question, "") for question in first[:JUDGED]])
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
        question
        for number, source in enumerate(section.sources)
        for question, _, _ in islice(
            questions(job, find_input(job, source, f"reinforce.sources.{number}")), READ
        )
        if isinstance(question, Question)
    ]
    for question, reward in product(first, section.rewards):
        if (why := unjudgeable(reward.kind, question.answer)) is not None:
            raise BadInput(f"{question.conversation.where}: {why}. Nothing was trained")
    return first


def _answered(question: Question, text: str) -> Answered:
    ids = [0] * (len(text) // 4)  # a stand-in: no model has said it
    return Answered(
        text,
        question.prompt,
        question.answer,
        question.record,
        finished=True,
        tokens=len(ids),
        ids=ids,
    )
