"""What learning from rewards has changed, in sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pipeline.job import Job
from pipeline.job.reinforce_section import PythonReward
from pipeline.report.blocks import Block, Table, percent_with_error, value_with_error
from pipeline.report.preferences import (
    COMPARED,
    compared,
    shown_answers,
    text_change_in_words,
)
from pipeline.report.results import SIDES, numbers_of

Result = Mapping[str, Any]

# What is compared, and how its numbers are written.
ROWS = (
    ("mean reward", value_with_error, "reward"),
    ("right answers", percent_with_error, "pass"),
    ("prompts with a right answer among them", percent_with_error, "pass_any"),
    ("answers without an end", percent_with_error, "unfinished"),
    ("tokens of an answer", partial(value_with_error, digits=1), "answer_tokens"),
    ("nats per token of answers from before", value_with_error, "nats"),
)


def reward_blocks(results: Mapping[str, Any], *, brief: bool) -> list[Block]:
    """Return what the evaluation says of rewards; empty if it measured none.

    `brief` leaves out the texts of answers.
    """
    tuned: Result = results.get("reinforce") or {}
    found: Result | None = tuned.get("rewards")
    if found is None:
        return []
    sides = [found[side] for side in SIDES]
    blocks: list[Block] = [
        f"{found['answers']} answers to each of {found['prompts']:,} held-out prompts, sampled "
        "before and after training from the same random numbers:",
        Table(COMPARED, [(title, *compared(sides, words, name)) for title, words, name in ROWS]),
        "The difference in the last row estimates the KL divergence to the start: how far the "
        "model has moved on the answers that it gave before. Chance can make it less than 0.",
        _in_words(found),
        text_change_in_words(tuned),
    ]
    if not brief:
        blocks += ["Answers to the first of these prompts:", shown_answers(found["shown"])]
    return [block for block in blocks if block]


def _in_words(found: Result) -> str:
    """Say so where a model is right more often, but not to more prompts."""
    change = numbers_of(found["change"])
    real, real_any = (change[name] - 2 * change[f"{name}_sem"] for name in ("pass", "pass_any"))
    if real > 0 and real_any <= 0:
        return (
            "The model is right more often, but not to more prompts: training made answers "
            "frequent that the model gave before."
        )
    return ""


def rewards_in_brief(tuned: Result) -> str:
    """Return a line for the summary of a run; empty if there is nothing to say."""
    found = tuned.get("rewards")
    if found is None:
        return ""
    before, after = (value_with_error(found[side], "reward") for side in ("before", "after"))
    return f"{before} → {after} on average for {found['prompts']:,} prompts"


def reward_training(job: Job) -> str:
    """Return how the stage was trained, for the card."""
    section = job.reinforce
    if section is None:
        return ""
    rewards = ", ".join(
        f"`{reward.function if isinstance(reward, PythonReward) else reward.kind}`"
        + (f" × {reward.weight:g}" if reward.weight != 1 else "")
        for reward in section.rewards
    )
    return (
        f"Rewards: {rewards}. {section.answers} answers to each prompt, of at most "
        f"{section.max_tokens} tokens; each step is one update by REINFORCE with the mean of a "
        "prompt's rewards as the baseline."
    )
