"""What learning from rewards has changed, in sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.measures import REWARDS
from pipeline.job import Job
from pipeline.job.reinforce_section import PythonReward
from pipeline.report.blocks import Block, change_table, changed_elsewhere, shown_answers, written
from pipeline.report.results import SIDES, numbers_of


def reward_blocks(results: Mapping[str, Any], *, brief: bool) -> list[Block]:
    """Return what the evaluation says of rewards; empty if it measured none.

    `brief` leaves out the texts of answers.
    """
    tuned: Mapping[str, Any] = results.get("reinforce", {})
    record: Mapping[str, Any] | None = tuned.get("rewards")
    if record is None:
        return []
    blocks: list[Block] = [
        f"{record['answers']} answers to each of {record['prompts']:,} held-out prompts, sampled "
        "before and after training from the same random numbers:",
        change_table([record[side] for side in SIDES], REWARDS),
        "The difference in the last row estimates the KL divergence to the start: how far the "
        "model has moved on the answers that it gave before. Chance can make it less than 0.",
        _only_more_frequent(record),
        changed_elsewhere(tuned),
    ]
    if not brief:
        blocks += ["Answers to the first of these prompts:", shown_answers(record["shown"])]
    return [block for block in blocks if block]


def rewards_in_brief(tuned: Mapping[str, Any]) -> str:
    """Return a line for the summary of a run; empty if there is nothing to say."""
    record = tuned.get("rewards")
    if record is None:
        return ""
    before, after = (written(record[side], "reward", REWARDS["reward"]) for side in SIDES[:2])
    return f"{before} → {after} on average for {record['prompts']:,} prompts"


def _only_more_frequent(record: Mapping[str, Any]) -> str:
    """Say so where a model is right more often, but not to more prompts."""
    change = numbers_of(record["change"])
    real, real_any = (change[name] - 2 * change[f"{name}_sem"] for name in ("pass", "pass_any"))
    if real > 0 and real_any <= 0:
        return (
            "The model is right more often, but not to more prompts: training made answers "
            "frequent that the model gave before."
        )
    return ""


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
