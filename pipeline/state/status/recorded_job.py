"""Read the job that a run was last started with from the run's store, and tell it its data."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput
from pipeline.job.stages import TRAINING
from pipeline.machine.own_files import OWN
from pipeline.state.head import Head
from pipeline.state.record_json import Count, Damaged, build, damaged, open_record, record_type
from pipeline.state.run_state import RunState

if TYPE_CHECKING:
    from pipeline.job import Job
    from pipeline.job.model_section import Base

# What prepare reported of the data of each training stage.
_ROWS = open_record(record_type(total=False, train_rows=Count))
_PREPARED: type[Mapping[str, Any]] = open_record(
    record_type(total=False, **dict.fromkeys(TRAINING, _ROWS))
)
_HEADER = re.compile(r"# (?P<name>.+) with these overrides merged in:")


def recorded_text(state: RunState, head: Head) -> str | None:
    """Return the text of HEAD's job with its overrides merged in; None if it was not recorded."""
    return state.read_job(head.job) if head.job else None


def recorded_job(state: RunState, head: Head) -> Job | None:
    """Return HEAD's job; None if it was not recorded.

    Raises BadInput if another version of pion recorded it and this version can't read it.
    """
    text = recorded_text(state, head)
    if text is None:
        return None
    job = _parsed(text, state)
    know_rows(job, head)
    return job


def _parsed(text: str, state: RunState) -> Job:
    from pipeline.job.file import parse_job

    def find(values: dict[str, Any]) -> Base:
        from pipeline.state.shared.bases import read_pin

        base = read_pin(state, str(values["model"]["from"]))
        if base is None:
            raise BadInput(f"run {state.name} has no record of the model that it starts from")
        return base

    return parse_job(text, f"the job of run {state.name}", find)


def recorded_stages(
    state: RunState, head: Head, note: Callable[[str], None] = lambda text: None
) -> list[str] | None:
    """Return the stages of HEAD's job, in order; None if this pion can't read the job.

    `note` gets the reason if the file is damaged, and not only of another version.
    """
    try:
        text = recorded_text(state, head)
        return None if text is None else list(_stages_of(text, state))
    except Damaged as error:
        note(str(error))
    except BadInput:
        pass
    return None


@functools.lru_cache(maxsize=64)
def _stages_of(text: str, state: RunState) -> list[str]:
    """Return the stages of a job, which a watcher asks for at every look."""
    return _parsed(text, state).stages


def know_rows(job: Job, head: Head) -> None:
    """Tell the job how many rows its prepared data has, if the run has prepared this data.

    Raises BadInput if a schedule does not fit into the steps that follow, and Damaged.
    """
    from pipeline.job.digest import digest_job

    record = head.stages.get("prepare")
    if record is not None and record.digest == digest_job(job).stages["prepare"]:
        where = f"{job.store}/{job.name}/HEAD.json"
        know_rows_of(job, build(_PREPARED, record.result, where, "stages.prepare.result"))
        for stage in job.train_stages:
            if not job.section(stage).steps_are_known:
                raise damaged(where, f"stages.prepare.result.{stage}.train_rows is missing")


def know_rows_of(job: Job, reports: Mapping[str, Any]) -> None:
    """Tell the job how many rows of data `prepare` has counted for each stage."""
    for stage in job.train_stages:
        if (rows := reports.get(stage, {}).get("train_rows")) is not None:
            job.section(stage).know_rows(rows)


def find_job_file(state: RunState, head: Head) -> tuple[str, list[str]]:
    """Return the job file and overrides that the run was last started with.

    Searches for the file below the working directory. Raises BadInput if no file matches the record
    in the store.
    """
    from pipeline.job.file import job_text

    text = recorded_text(state, head)
    if text is None:
        raise BadInput(f"{state.name} has no record of its job. Pass the job file: --job FILE.")
    header = _HEADER.match(text)
    lines = text.splitlines()[1:] if header else []
    comments = itertools.takewhile(lambda line: line.startswith("# "), lines)
    overrides = [line.removeprefix("# ") for line in comments]
    for path in _job_files(header["name"] if header else None):
        with contextlib.suppress(BadInput):
            if job_text(path, overrides) == text:
                return str(path), overrides
    named = f" ({header['name']} with {' '.join(overrides)})" if header else ""
    raise BadInput(
        f"no job file in {Path.cwd()} or its subfolders matches the job that {state.name} "
        f"recorded{named}. The file has changed, or it is in a different folder. cd to the folder "
        "of the job file, or pass --job FILE. Nothing was rented."
    )


def _job_files(name: str | None) -> Iterator[Path]:
    """Yield YAML files below the working directory, jobs/ first, and then Pion's own jobs. With a
    `name`, yield only files of that name."""
    for folder, below, files in os.walk("."):
        below[:] = sorted(
            (b for b in below if not b.startswith(".")), key=lambda b: (b != "jobs", b)
        )
        for file in sorted(files):
            if file == name or (name is None and file.endswith((".yaml", ".yml"))):
                yield Path(folder) / file
    yield from (
        job_file
        for job_file in sorted((OWN / "jobs").glob("*.yaml"))
        if name in (None, job_file.name)
    )
