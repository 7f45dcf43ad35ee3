"""Overrides that shorten the user's job to the job that `pion prove` runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.job import HubDataset, Job, Source
from pipeline.machine.gpus import gpu_count

MAX_STEPS, MIN_STAGE_STEPS = 60, 6
SAVE_EVERY, EVALUATE_EVERY = 3, 10
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
        "evaluate.packs": [],
        "evaluate.lm_eval": {},
    }
    for stage, steps in cut_steps(job).items():
        section = job.section(stage)
        changes[f"{stage}.steps"] = steps
        if section.steps_are_known:
            warmup = section.total_warmup_steps * steps // section.total_steps
        else:
            warmup, changes[f"{stage}.epochs"] = steps // 10, None
        changes[f"{stage}.warmup_steps"] = warmup
    sources: dict[str, Sequence[Source]] = {"data": job.data.sources}
    if job.sft is not None:
        sources["sft"] = job.sft.sources
    for section_name, named in sources.items():
        for number, source in enumerate(named):
            if isinstance(source, HubDataset):
                most = min(HUB_DOCUMENTS, source.max_documents or HUB_DOCUMENTS)
                changes[f"{section_name}.sources.{number}.max_documents"] = most
    if gpu_count() > 0:  # without it, results on a GPU are not bit-identical
        changes["hardware.deterministic"] = True
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def cut_steps(job: Job) -> Mapping[str, int]:
    """Return the steps of each training stage: at most MAX_STEPS, in the job's proportion.

    A stage whose steps follow from its data counts as MAX_STEPS: its data is not read for this.
    """
    sections = {stage: job.section(stage) for stage in job.train_stages}
    steps = {
        stage: section.total_steps if section.steps_are_known else MAX_STEPS
        for stage, section in sections.items()
    }
    total = sum(steps.values())
    if total <= MAX_STEPS:
        return steps
    cut = {s: max(min(n, MIN_STAGE_STEPS), n * MAX_STEPS // total) for s, n in steps.items()}
    longest = max(cut, key=lambda stage: cut[stage])
    cut[longest] -= max(0, sum(cut.values()) - MAX_STEPS)
    return cut
