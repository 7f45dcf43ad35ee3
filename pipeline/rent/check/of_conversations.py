"""Check the conversations of a job: their rows, the passes over them, and what is lost of them."""

from __future__ import annotations

from pipeline.job import Job
from pipeline.rent.check.of_job import is_prepared
from pipeline.rent.check.row import CheckRow
from pipeline.rent.plan.conversations import (
    count_conversations,
    in_words,
    too_few_steps,
    too_many_passes,
)


def check_conversations(job: Job) -> list[CheckRow]:
    """Show what the conversations give. Raises BadInput for conversations that can't be used."""
    if job.sft is None or is_prepared(job):
        return []
    counted = count_conversations(job)
    if counted is None:
        return []
    job.section("sft").know_rows(counted.rows)
    rows = [CheckRow("conversations", True, in_words(job, counted))]
    warnings = {"steps": too_few_steps(job, counted), "passes": too_many_passes(job, counted)}
    return rows + [CheckRow(name, None, words) for name, words in warnings.items() if words]
