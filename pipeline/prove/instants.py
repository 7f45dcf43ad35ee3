"""What `pion prove` runs, a shortened job, and when it kills the runs.

Half the kills are at marks, half at random instants. The runs still make progress between them.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.job import HubDataset, Job
from pipeline.job.job import without_questions
from pipeline.machine.gpus import gpu_count
from pipeline.machine.kill_points import POINTS
from pipeline.prove.attempt import Attempt, Instant
from pipeline.state.head import REFERENCE, Head

MAX_STEPS, MIN_STAGE_STEPS = 60, 6
SAVE_EVERY, EVALUATE_EVERY = 3, 10
# Of a stage of rewards.
MOST_OF_REWARDS = {"global_batch": 4, "answers": 4, "max_tokens": 48, "min_signal": 0}
# Documents that are read from a Hub data set. Each killed run reads them again.
HUB_DOCUMENTS = 4000


def cut_overrides(job: Job, name: str, store: str) -> list[str]:
    """Return overrides for a run `name` in `store` with few steps and many saves.

    The run is evaluated only briefly, and not published.
    """
    changes: dict[str, Any] = {
        "name": name,
        "store": store,
        "publish": None,
        "budget": {},
        "log": {"every": 1},
        "checkpoint.every_steps": SAVE_EVERY,
        "checkpoint.every_seconds": None,
        "evaluate.every": EVALUATE_EVERY,
        "evaluate.rows": min(4, job.evaluate.rows),
        "evaluate.prompts": [],
        "evaluate.final_rows": min(8, job.evaluate.final_rows),
        "evaluate.continuations": min(4, job.evaluate.continuations),
        "evaluate.ngram_order": 0,
        **without_questions(job),
    }
    for stage, steps in cut_steps(job).items():
        section = job.section(stage)
        changes[f"{stage}.steps"] = steps
        if section.steps_are_known:
            warmup = section.total_warmup_steps * steps // section.total_steps
        else:
            warmup, changes[f"{stage}.epochs"] = steps // 10, None
        changes[f"{stage}.warmup_steps"] = warmup
    if (rewards := job.reinforce) is not None:
        for name, most in MOST_OF_REWARDS.items():
            changes[f"reinforce.{name}"] = min(most, getattr(rewards, name))
    for key, source in job.sources():
        if isinstance(source, HubDataset):
            most = min(HUB_DOCUMENTS, source.max_documents or HUB_DOCUMENTS)
            changes[f"{key}.max_documents"] = most
    if gpu_count() > 0:  # without it, results on a GPU are not bit-identical
        changes["hardware.deterministic"] = True
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def cut_steps(job: Job) -> Mapping[str, int]:
    """Return the steps of each training stage: at most MAX_STEPS, in the job's proportion.

    A stage whose steps follow from its data counts as MAX_STEPS: its data is not read for this.
    """
    steps = {
        stage: job.section(stage).total_steps if job.section(stage).steps_are_known else MAX_STEPS
        for stage in job.train_stages
    }
    total = sum(steps.values())
    if total <= MAX_STEPS:
        return steps
    cut = {s: max(min(n, MIN_STAGE_STEPS), n * MAX_STEPS // total) for s, n in steps.items()}
    longest = max(cut, key=lambda stage: cut[stage])
    cut[longest] -= max(0, sum(cut.values()) - MAX_STEPS)
    return cut


# Kills in a row that may land before anything is committed: `pion run` gives up after five.
FAILURES_BEFORE_COMMIT = 3
# A checkpoint has this many files, written and uploaded one after the other.
MARKS_PER_SAVE = 5
COMMITS_PER_START = 6
# Before and after a column of each split, and when all are written and when HEAD names them.
MARKS_OF_REFERENCE = 6
# The share of the random kills that land before the first step.
START_SHARE = 0.3
# Kills of a run that has only its evaluation left. Without a limit, it would never end.
AFTER_TRAINING = 1


class Instants:
    """Draws the next instant, in proportion to the times of `whole`, the unbroken run.

    `reference`: whether a stage computes a reference before its first step.
    """

    def __init__(
        self,
        draw: random.Random,
        whole: Attempt,
        stages: Sequence[str],
        *,
        remote: bool,
        reference: bool = False,
    ) -> None:
        self._draw, self._stages, self._remote = draw, list(stages), remote
        self._reference = reference
        self._lines = max(4, len(whole.line_times) // 3)
        self._start_seconds = whole.first_step_seconds or whole.seconds
        gaps = [b - a for a, b in zip(whole.step_times, whole.step_times[1:])]
        self._step_seconds = statistics.median(gaps) if gaps else 0.1
        self._used: Counter[str] = Counter()
        self._after_training = 0
        self._drawn = 0

    def next(self, head: Head, saves_left: int) -> Instant | None:
        """Return the instant at which to kill the next attempt, or None to let it finish.

        `head` is what the run has committed, `saves_left` how many checkpoints it will certainly
        still make.
        """
        trained = all(stage in head.stages for stage in self._stages)
        if trained:
            self._after_training += 1
            if self._after_training > AFTER_TRAINING:
                self._after_training = 0
                return None
        self._drawn += 1
        # The next `pion run` counts the current attempt too.
        failing = head.failed_attempts + 1 >= FAILURES_BEFORE_COMMIT
        # The first kill at a mark lands in a save, and the first at random after one.
        if not trained and (failing or self._drawn == 2):
            instant = Instant(lines=self._draw.randint(0, 3), after_commit=True)
        elif self._drawn % 2:
            instant = self._at_mark(head, trained, saves_left)
        elif self._draw.random() < START_SHARE:
            return self._dying(Instant(delay=self._draw.uniform(0.0, self._start_seconds)))
        else:
            instant = Instant(lines=self._draw.randint(1, self._lines))
        return self._dying(
            dataclasses.replace(instant, delay=self._draw.uniform(0.0, 2 * self._step_seconds))
        )

    def _dying(self, instant: Instant) -> Instant:
        """Draw what dies: half of the time the machine, and half of these times its disk too."""
        machine, disk = self._draw.random() < 0.5, self._draw.random() < 0.5
        return dataclasses.replace(instant, machine=machine, disk=machine and disk)

    def _rewards_left(self, head: Head, saves_left: int) -> int:
        if "reinforce" not in self._stages or "reinforce" in head.stages:
            return 0
        return SAVE_EVERY if saves_left > 1 else 1

    def _at_mark(self, head: Head, trained: bool, saves_left: int) -> Instant:
        """Return an instant at the least used mark that can still be reached."""
        unbound = REFERENCE not in head.data
        # How often the next attempt will certainly reach each of the marks; 0: never.
        most = {
            "shard": 0 if "prepare" in head.stages else 6,
            "reference": MARKS_OF_REFERENCE if self._reference and unbound else 0,
            # Each step and each evaluation samples and judges.
            **dict.fromkeys(("rollout", "reward"), self._rewards_left(head, saves_left)),
            "save": min(12, MARKS_PER_SAVE * saves_left),
            "upload": min(12, MARKS_PER_SAVE * saves_left) if self._remote else 0,
            "commit": COMMITS_PER_START + 2 * saves_left,
            "boundary": 0 if trained else 1,
        }
        point = min((p for p in POINTS if most[p]), key=lambda p: self._used[p])
        self._used[point] += 1
        return Instant(point, self._draw.randint(1, most[point]))
