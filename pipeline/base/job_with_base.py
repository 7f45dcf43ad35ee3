"""Read a job file together with the model that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.job.model_section import Base
from pipeline.job.stages import TRAINING
from pipeline.machine.own_files import file_meant
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import read_pin
from pipeline.state.stores import DEFAULT_STORE, open_store
from pipeline.state.stores.errors import before_work


def read_job(path: str | Path, overrides: Sequence[str] = (), redo: str | None = None) -> Job:
    """Return the job of a file, as `load_job` does.

    A model to start from is the one that the run has recorded, or else what its name means now.
    With `redo`, its name is looked up again if the run begins with that stage. Raises BadInput,
    also if a store does not answer.
    """

    def find(values: dict[str, Any]) -> Base:
        source = str(values["model"]["from"])
        again = redo in ("prepare", next((stage for stage in TRAINING if stage in values), "sft"))
        pinned = _pinned(values, source)
        if pinned is not None and not again:
            return pinned
        from pipeline.base.find import find_base

        found = find_base(source, file_meant(path, "jobs").resolve().parent).base
        # What the run has recorded holds for the same content, also the day of its chat template.
        return pinned if pinned is not None and pinned.hash == found.hash else found

    with before_work("Nothing was started."):
        job = load_job(path, overrides, find)
        if job.kept_inputs:
            from pipeline.state.kept_inputs import use_kept_inputs

            use_kept_inputs(job, redo)
    return job


def _pinned(values: dict[str, Any], source: str) -> Base | None:
    store, name = values.get("store", DEFAULT_STORE), values.get("name")
    try:
        run = RunState(open_store(str(store)), str(name))
    except BadInput:  # validation says what is wrong with it
        return None
    return read_pin(run, source)
