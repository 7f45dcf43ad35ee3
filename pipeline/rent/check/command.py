"""`pion check`: everything that can fail later, found before it costs anything."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pion.errors import BadInput, PionError
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.rent.check import of_job, of_rental
from pipeline.rent.check.of_controller import check_controller
from pipeline.rent.check.of_machines import check_machines
from pipeline.rent.check.row import CheckRow
from pipeline.rent.sky_yaml import SkyYaml, read_sky_yaml
from pipeline.rent.time_limit import begin, within
from pipeline.state.stores import open_store

# A check that has not answered this long after the command's start counts as not found out.
SECONDS = 16.0
# The part of these seconds that is left to the checks of the job if the rental can't be read.
JOB_SECONDS = 4.0
MARKS = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text("?", "yellow")}

Check = Callable[[], list[CheckRow]]


def show_check(
    job: str, overrides: Sequence[str], *, on: str | None, force: bool, as_json: bool
) -> int:
    """Print what is found; returns 0 if nothing speaks against the run, else 2.

    `on` is a SkyPilot YAML; without it only what no machine changes is checked. Returns in time,
    whatever the network does.
    """
    end = time.monotonic() + SECONDS
    rows: list[CheckRow] = []
    loaded, sky_yaml = None, None
    try:
        loaded = load_job(job, overrides)
    except BadInput as error:
        rows.append(CheckRow("job", False, str(error)))
    if on is not None:
        try:
            # SkyPilot may fetch its list of GPUs for it, and sets itself no limit.
            sky_yaml = within(end - JOB_SECONDS - time.monotonic(), partial(read_sky_yaml, on))
        except BadInput as error:
            rows.append(CheckRow("rental", False, str(error)))
        except TimeoutError:
            words = (
                f"SkyPilot could not read {on} in time: its list of GPUs does not come, or this "
                "machine is busy. No machine was looked at, and nothing was rented. Look at the "
                "network, and run it again"
            )
            rows.append(CheckRow("rental", False, words))
    if loaded is not None:
        rows += run_checks(loaded, sky_yaml, path=job, force=force, end=end)
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print_rows(rows)
    return 2 if any(row.ok is False for row in rows) else 0


def run_checks(
    job: Job,
    sky_yaml: SkyYaml | None,
    *,
    path: str | None = None,
    force: bool = False,
    end: float | None = None,
) -> list[CheckRow]:
    """Every check of a job, and of the rental it shall run on; all at the same time.

    `path` is the job file, which has to travel to the rental. `force` lets a spot price pass that
    is above the on-demand price. At `end`, of the monotonic clock, nothing is waited for any more.
    """
    end = time.monotonic() + SECONDS if end is None else end
    try:
        within(end - time.monotonic(), partial(_import_first, job, sky_yaml))
    except TimeoutError:
        words = (
            f"nothing was found out within {SECONDS:.0f} s, and nothing was rented. Run it again"
        )
        return [CheckRow("checks", False, words)]
    checks: list[tuple[str, Check]] = [
        ("model", partial(of_job.check_model, job, rented=sky_yaml is not None)),
        ("tokenizer", partial(of_job.check_tokenizer, job)),
        ("data", partial(of_job.check_data, job)),
        ("store", partial(of_job.check_store, job)),
        ("evaluate", partial(of_job.check_evaluate, job)),
        ("publish", partial(of_job.check_publish, job)),
    ]
    if sky_yaml is not None:
        checks += [
            ("store from there", partial(of_rental.check_reach, job)),
            ("files", partial(of_rental.check_files, job, sky_yaml, path)),
            ("credentials", partial(of_rental.check_credentials, job, sky_yaml)),
            ("disk", partial(of_rental.check_disk, job, sky_yaml)),
            ("recovery", partial(of_rental.check_recovery, sky_yaml)),
            ("controller", check_controller),
            ("machines", partial(check_machines, job, sky_yaml, force=force)),
        ]
    waiting = [(name, begin(check)) for name, check in checks]
    words = f"{len(job.stages)} stages: {', '.join(job.stages)}"
    rows = [CheckRow("job", True, words)]
    for name, wait in waiting:
        rows += _outcome(name, wait, end)
    return rows


def print_rows(rows: Sequence[CheckRow]) -> None:
    """Print rows as one table: ✓ fine, ✗ would fail, ? not known or to be considered."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(MARKS[row.ok], Text(row.name), Text(row.words))
    Console(highlight=False).print(table)


def _import_first(job: Job, sky_yaml: SkyYaml | None) -> None:
    """Load what several checks use: threads that import the same package at the same time can
    find it half loaded."""
    import huggingface_hub.hf_api  # noqa: F401

    with contextlib.suppress(BadInput):  # the store's own check says so
        open_store(job.store)
    if sky_yaml is not None:
        import sky.clouds
        import sky.data.storage_utils
        import sky.server.common  # noqa: F401


def _outcome(name: str, wait: Callable[[float], list[CheckRow]], end: float) -> list[CheckRow]:
    """A check's rows, or the one that says why there are none."""
    try:
        return wait(end - time.monotonic())
    except BadInput as error:
        return [CheckRow(name, False, str(error))]
    except TimeoutError:
        return [CheckRow(name, None, f"no answer within {SECONDS:.0f} s")]
    except PionError as error:  # the network, or a service that is down
        return [CheckRow(name, None, str(error))]
    except Exception as error:  # of a library: not known to be the job's fault
        return [CheckRow(name, None, f"can't be checked: {type(error).__name__}: {error}")]
