"""What learning from rewards has done: to the rewards of answers to held-out prompts.

The model that the stage starts from is measured, too, by the same prompts and the same draws.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pion.evaluation.item_scores import ItemScores, before_and_after, pack
from pion.measures import REWARDS
from pipeline.console.messages import Say
from pipeline.data.judge import judged_by
from pipeline.state.run_state import BY_ITEM

if TYPE_CHECKING:
    from pipeline.stages.measures import Measures, Part, Result

STAGE = "reinforce"
# So many prompts are enough, each with several answers.
MOST_PROMPTS = 256
# Prompts whose first answers are kept as texts, and the most characters of each text.
SHOWN, LONGEST_SHOWN = 4, 1000
# How far the model has moved is measured on the first answers to so many prompts before training.
SCORED = 64
# What is measured of sampled answers alone: means over prompts.
SAMPLED = {name: measure for name, measure in REWARDS.items() if name != "nats"}


def rewards_of(measures: Measures, part: Part, say: Say) -> Result:
    """Return what is measured of the model after `reinforce`, and of the one that it started from.

    Under BY_ITEM are the scores of single prompts, by which runs are compared.
    """
    start = measures.trained.starts[STAGE].name
    label, compute = "{} model on held-out prompts".format, partial(_sampled, measures)
    before = part(f"{start}.sampled", label(start), partial(compute, start))
    after = part(f"{STAGE}.sampled", label(STAGE), partial(compute, STAGE, before["ids"]))
    prompts = len(before["pass"])
    lengths, ones = np.array(list(map(len, before["ids"]))), np.ones(prompts, np.int64)
    sides = [
        {
            name: ItemScores(np.array(side[name]), sizes=None if of.form == "share" else ones)
            for name, of in SAMPLED.items()
        }
        | {"nats": ItemScores(np.array(side["nats"]), sizes=lengths)}
        for side in (before, after)
    ]
    detail = {
        "start": start,
        "prompts": prompts,
        "answers": before["answers"],
        **before_and_after(*sides),
        "shown": [
            {"prompt": old["prompt"], "before": old["text"], "after": new["text"]}
            for old, new in zip(before["shown"], after["shown"], strict=True)
        ],
    }
    key = measures.same_rows(STAGE) | {"rewards": judged_by(measures.job)}
    return {
        **{name: detail["after"][name] for name in ("reward", "reward_sem", "pass", "pass_sem")},
        "rewards": detail,
        BY_ITEM: {name: {"key": key, **pack(sides[1][name])} for name in ("reward", "pass")},
    }


def _sampled(measures: Measures, model: str, of_start: list[list[int]] | None = None) -> Result:
    """Return what a model's answers to held-out prompts are like: a number of each prompt.

    `nats` is how unlikely the model finds `of_start`, the first answers of the model before
    training; None: it is this model.
    """
    from pion.train.rewards import answer_nats
    from pion.train.rollout_feed import TOGETHER
    from pipeline.training.prompts import open_feed

    job, stream = measures.job, measures.rows_of("held_out", STAGE)
    assert job.reinforce is not None
    decoder = measures.row_scorer(model, job.seq_len(STAGE)).model
    rows = range(min(job.evaluate.final_rows, MOST_PROMPTS, stream.total_rows))
    sampled: dict[str, Any] = {name: [] for name in (*SAMPLED, "shown", "ids")}
    with open_feed(job, measures.data[STAGE], decoder, "held_out", stream) as (feed, prompts):
        for first in range(0, len(rows), TOGETHER):
            groups = feed.sampled(prompts, rows[first : first + TOGETHER])
            means = groups.means(prompts.pass_at)
            for name in SAMPLED:
                sampled[name] += means[name].tolist()
            sampled["ids"] += [answer.ids for answer, *_ in groups.answers]
            sampled["shown"] += [
                {"prompt": prompt[:LONGEST_SHOWN], "text": answer_text[:LONGEST_SHOWN]}
                for prompt, ((_, answer_text), *_) in prompts.said()
            ]
            measures.on_batch()
        ids = (of_start or sampled["ids"])[:SCORED]
        nats = [answer_nats(decoder, prompts.ids(row), answer) for row, answer in zip(rows, ids)]
    shown = sampled["shown"][:SHOWN]
    return sampled | {"shown": shown, "ids": ids, "nats": nats, "answers": job.reinforce.answers}
