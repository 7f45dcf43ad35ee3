"""`pion report`: write a run's report.html again from its store."""

from __future__ import annotations

import json
from pathlib import Path

from pion.errors import BadInput
from pion.files import write_atomically
from pipeline.console.formats import show
from pipeline.report.report_file import write_run_report
from pipeline.state.find_run import read_run
from pipeline.state.status.recorded_job import recorded_job


def rewrite_report(run: str, *, as_json: bool) -> None:
    """Write report.html of a run again from its store, and print its path.

    The report of a remote run is also written to the working directory.
    """
    state, head = read_run(run)
    job = recorded_job(state, head)
    if job is None:
        raise BadInput(f"run {state.name} has no record of its job, so there is nothing to report")
    try:
        path = write_run_report(job, state)
    except BadInput as error:
        raise BadInput(f"{error} Then run the same command again.") from error
    if state.store.local_path(state.name) is None:
        report, path = path.read_bytes(), Path(f"{state.name}-report.html")
        write_atomically(path, report)
    show(json.dumps({"report": str(path)}) if as_json else str(path))
