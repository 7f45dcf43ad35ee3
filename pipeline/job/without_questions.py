"""Changes of a job that only trains: nothing is asked at its end, and its data stay the same."""

from __future__ import annotations

from typing import Any

from pipeline.job.job import Job


def without_questions(job: Job) -> dict[str, Any]:
    """Return changes, by dotted key, with which the evaluation asks no questions.

    The text stays cleaned of the same evaluation sets, so prepared data are shared.
    """
    changes: dict[str, Any] = {
        "evaluate.packs": [],
        "evaluate.core": None,
        "evaluate.lm_eval": {},
    }
    if job.removed_sets:
        changes["data.clean.decontaminate"] = [path for _, path in job.removed_sets]
    return changes
