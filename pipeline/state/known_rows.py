"""What a run's prepared data says of its job: the rows, from which steps may follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.state.records import Head


def know_rows(job: Job, head: Head) -> None:
    """Tell the job how many rows its prepared data has, if the run has prepared this data.

    Raises BadInput if a schedule does not fit into the steps that follow.
    """
    record = head.stages.get("prepare")
    if record is not None and record.digest == digest_job(job).stages["prepare"]:
        know_rows_of(job, record.result)


def know_rows_of(job: Job, reports: Mapping[str, Any]) -> None:
    """Tell the job how many rows of data `prepare` has counted for each stage."""
    for stage in job.train_stages:
        rows = reports.get(stage, {}).get("train_rows")
        if type(rows) is int:
            job.section(stage).know_rows(rows)
