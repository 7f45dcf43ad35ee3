"""Write `report.html`: the page of a run with its data frozen inside, one file without requests."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from pion.errors import BadInput, no_room, told
from pion.files import write_atomically
from pipeline.console.formats import moment, show
from pipeline.job import Job
from pipeline.report.curves import curves_of
from pipeline.report.history import STAGE_NAMES, RunHistory
from pipeline.report.page_data import page_data
from pipeline.report.reading import read_history
from pipeline.state.find_run import read_run
from pipeline.state.record_json import finite_json
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import recorded_job
from pipeline.state.workspace import Workspace
from pipeline.web.page import read_page

REPORT = "report.html"
PAGE = Path(__file__).with_name("page")
# In a script element, these could end it or begin a comment, and older scripts know no such lines.
_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def write_run_report(job: Job, run: RunState) -> Path:
    """Write `report.html` into the folder of `run` and return its path on this machine.

    A remote store gets a copy. Raises StoreError, and BadInput if a result is damaged or this
    machine can't write the file.
    """
    workspace = Workspace(run.store, run.name)
    history = read_history(run, job)
    path = workspace.folder(REPORT)
    try:
        write_report(path, history)
    except OSError as error:
        reason = no_room(error, path) or error.strerror or error
        raise BadInput(
            f"{path}: can't write the report ({reason}). The run is safe in {run.url}. Free some "
            "space, or check who owns the folder."
        ) from error
    if workspace.remote:
        run.store.write(run.key(REPORT), path)
        run.store.flush()
    return path


def write_report(path: Path, history: RunHistory) -> None:
    """Write the report of a run to `path`, replacing it atomically.

    The report leaves out what has not happened yet. Raises Damaged for a damaged result, and
    OSError if the file can't be written. Then an earlier report is still there, and nothing else is
    left.
    """
    html = report_html(history)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(html)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def report_html(history: RunHistory) -> bytes:
    """Return the page with the data inside. Raises Damaged for a damaged result."""
    _ = history.published, history.results, history.text
    curves = {stage: curves_of(rows) for stage, rows in history.metrics.items()}
    run, page = page_data(history) | {"curves": curves}, read_page(PAGE)
    # A file sends no requests, and a browser takes `frame-ancestors` from a server alone.
    policy = page.policy.replace("connect-src 'self'; ", "").replace("frame-ancestors 'none'; ", "")
    data = finite_json(
        {"frozen_at": history.now, "runs": [run], "settings": None}, ensure_ascii=False
    )
    inside = {
        "<!-- policy -->": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        "<title>Pion</title>": f"<title>{escape(run['name'])} · Pion</title>",
        ">Pion</h1>": f">{escape(run['name'])}</h1>",
        "<!-- numbers -->": _numbers(run, history.now),
        "<!-- frozen -->": '<script type="application/json" id="frozen">'
        f"{data.translate(_ESCAPED)}</script>",
    }
    html = page.html.decode()
    for placeholder, text in inside.items():
        before, mark, after = html.partition(placeholder)
        assert mark, placeholder
        html = before + text + after
    return html.encode(errors="backslashreplace")  # half a surrogate pair is no character


def _numbers(run: Mapping[str, Any], now: float) -> str:
    """Return the summary's numbers as HTML, for a browser that runs no scripts."""
    summary, due = run["summary"], run["summary"]["deadline"]
    rows = [("Run", run["url"]), ("As of", moment(now))]
    if summary["step"] is not None:
        stage = STAGE_NAMES.get(summary["stage"], summary["stage"])
        rows.append((f"{stage.capitalize()} step", f"{summary['step']:,}"))
    for name, title in (("loss", "Loss"), ("held_out_loss", "Held-out loss")):
        if summary[name] is not None:
            rows.append((title, f"{summary[name]:.4f}"))
    rows += run["figures"]
    if due is not None:
        rows.append((f"Deadline {moment(due['at'])}", due["ended"] or "not done yet"))
    cells = "".join(
        f'<div><dt>{escape(name)}</dt><dd dir="auto">{escape(value)}</dd></div>'
        for name, value in rows
    )
    return f'<dl class="facts">{cells}</dl>'


def rewrite_report(run: str, *, as_json: bool) -> None:
    """Write report.html of a run again from its store, and print its path.

    The report of a remote run is also written to the working directory.
    """
    state, head = read_run(run)
    job = recorded_job(state, head)
    if job is None:
        raise BadInput(f"run {state.name} has no record of its job, so there is nothing to report")
    with told(after=" Then run the same command again."):
        path = write_run_report(job, state)
    if state.store.local_path(state.name) is None:
        report, path = path.read_bytes(), Path(f"{state.name}-report.html")
        write_atomically(path, report)
    show(json.dumps({"report": str(path)}) if as_json else str(path))
