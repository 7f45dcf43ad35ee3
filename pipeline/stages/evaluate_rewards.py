"""What learning from rewards has done: to the rewards of answers to held-out prompts.

The model that the stage starts from is measured, too, by the same prompts and the same draws.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pion.evaluation.item_scores import ItemScores, before_and_after, pack
from pipeline.state.run_state import BY_ITEM

if TYPE_CHECKING:
    from pipeline.stages.measures import Measures, Part, Result

STAGE = "reinforce"
# So many prompts are enough, each with several answers.
MOST_PROMPTS = 256
# Prompts whose first answers are kept as texts, and the most characters of each text.
SHOWN, LONGEST_SHOWN = 4, 1000
# What is measured of answers: means over prompts. `any`: with a right answer.
NAMES = ("reward", "pass", "any", "unfinished", "tokens")


def rewards_of(measures: Measures, part: Part) -> Result:
    """Return what is measured of the model after `reinforce`, and of the one that it started from.

    Under BY_ITEM are the scores of single prompts, by which runs are compared.
    """
    start = measures.trained.starts[STAGE].name
    before, after = (
        part(
            f"{model}.rewards",
            f"{model} model on held-out prompts",
            partial(_sampled, measures, model),
        )
        for model in (start, STAGE)
    )
    sides = [{name: _scores(side[name], name) for name in NAMES} for side in (before, after)]
    detail = {
        "start": start,
        "prompts": len(before["pass"]),
        "answers": before["answers"],
        **before_and_after(*sides),
        "shown": [
            {"prompt": old["prompt"], "before": old["text"], "after": new["text"]}
            for old, new in zip(before["shown"], after["shown"], strict=True)
        ],
    }
    key = measures.same_rows(STAGE)
    flat = {name: detail["after"][name] for name in ("reward", "reward_sem", "pass", "pass_sem")}
    by_item = {name: {"key": key, **pack(sides[1][name])} for name in ("reward", "pass")}
    return {**flat, "rewards": detail, BY_ITEM: by_item}


def _scores(values: list[float], name: str) -> ItemScores:
    """Return a number of each prompt as scores. A reward need not be from 0 to 1, nor a length."""
    share = name not in ("reward", "tokens")
    sizes = None if share else np.ones(len(values), np.int64)
    return ItemScores(np.array(values, dtype=np.float64), sizes=sizes)


def _sampled(measures: Measures, model: str) -> Result:
    """Return what a model's answers to held-out prompts are like: a number of each prompt."""
    from pion.data.chat.chat_format import ChatFormat
    from pion.train.held_out_rewards import TOGETHER
    from pion.train.rollout_feed import RolloutFeed
    from pion.train.settings import ComputePlan
    from pipeline.training.prompts import open_prompts

    job, data = measures.job, measures.data[STAGE]
    assert job.reinforce is not None
    decoder = measures.row_scorer(model, job.seq_len(STAGE)).model
    stream = measures.rows_of("held_out", STAGE)
    learning = job.reinforce.reinforcement
    dtype: Any = "bfloat16" if measures.device.type == "cuda" else "float32"
    plan = ComputePlan(str(measures.device), dtype=dtype, rollout_rows=MOST_PROMPTS)
    with (
        closing(ChatFormat(data.tokenizer_path, measures.tokenizer)) as chat_format,
        open_prompts(job, data, chat_format) as prompts_of,
    ):
        prompts = prompts_of("held_out", stream)
        feed = RolloutFeed(decoder, prompts, learning, plan, global_batch=1, rank=0)
        rows = range(min(job.evaluate.final_rows, MOST_PROMPTS, stream.total_rows))
        found: dict[str, Any] = {name: [] for name in (*NAMES, "shown")}
        for first in range(0, len(rows), TOGETHER):
            groups = feed.sampled(prompts, rows[first : first + TOGETHER])
            rewards, answers = groups.judged.rewards, groups.answers
            right = (rewards >= prompts.pass_at).double()
            found["reward"] += rewards.mean(dim=1).tolist()
            found["pass"] += right.mean(dim=1).tolist()
            found["any"] += right.amax(dim=1).tolist()
            found["unfinished"] += [np.mean([not a.finished for a in each]) for each in answers]
            found["tokens"] += [np.mean([len(a.ids) for a in each]) for each in answers]
            for prompt, (answer, *_) in zip(groups.prompts, answers, strict=True):
                said = (chat_format.tokenizer.decode([*ids]) for ids in (prompt.ids, answer.ids))
                texts = dict(zip(("prompt", "text"), said, strict=True))
                found["shown"].append({name: text[:LONGEST_SHOWN] for name, text in texts.items()})
            measures.on_batch()
    found["shown"] = found["shown"][:SHOWN]
    return {**found, "answers": learning.answers}
