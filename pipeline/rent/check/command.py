"""`pion check`: find what would fail later, before it costs anything."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from rich.table import Column, Table
from rich.text import Text

from pion.config.model_config import ModelConfig
from pion.errors import BadInput, PionError
from pion.garbage_collection import importing
from pion.train.memory_trace.remembered import traced_seconds
from pipeline.base.job_with_base import read_job
from pipeline.console.formats import printable
from pipeline.console.print_and_ask import saying_if_slow, show_table
from pipeline.job import HubDataset, Job
from pipeline.job.file import load_job
from pipeline.job.model_section import Base
from pipeline.machine.core_waits import slowness
from pipeline.machine.time_limit import begin, within
from pipeline.rehearsal.rehearse import lacking
from pipeline.rent.check import CheckRow, failure, unchecked
from pipeline.rent.check.budget import check_spent
from pipeline.rent.check.data import check_clean, check_rows
from pipeline.rent.check.inputs import check_base, check_files
from pipeline.rent.check.job import (
    check_data,
    check_evaluate,
    check_model,
    check_names,
    check_publish,
    check_rates,
    check_store,
    check_tokenizer,
    check_workers,
)
from pipeline.rent.check.rental import (
    check_controller,
    check_credentials,
    check_disk,
    check_reach,
    check_recovery,
)
from pipeline.rent.check.rewards import check_rewards
from pipeline.rent.credentials import hub_inputs
from pipeline.rent.deadline.at_launch import refuse_past
from pipeline.rent.sky_yaml import SkyYaml, read_sky_yaml, with_until
from pipeline.rent.skypilot import sky_module
from pipeline.state.stores import open_store

# Seconds after which a check without an answer counts as not found out; more on a busy machine.
# They count once everything is imported: imports end by themselves.
SECONDS = 16.0
# SkyPilot may need so many to read a rental file.
RENTAL_SECONDS = 12.0
# The checks of a job whose store or model gives no answer have so many.
JOB_SECONDS = 4.0
# The row of checks that could not begin.
CHECKS = "checks"
AGAIN = "Run the same command again"
MARKS = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text("?", "yellow")}

# The part of these seconds that conversations may take if the steps depend on them.
CONVERSATION_SECONDS = 8.0

# More seconds for conversations in local files: no network can hang, but the first start of
# transformers takes long.
LOCAL_SECONDS = 60.0

# What this machine alone can find, whatever the model is that the job starts from; and a model.
LOCAL = ("names", "data", "store from there", "files", "credentials", "recovery", "controller")
ANY_MODEL = ModelConfig.preset("pion2-small", seq_len=1 << 17).to_dict()

WITHOUT_HUB = (
    "a model in a folder or of a run needs no Hub: model.from=FOLDER, or model.from=RUN. A job of "
    "`pion new DATA --from none` starts from random weights"
)

# What follows from the steps of a job, which are not known if its conversations can't be used. The
# clouds are asked for prices, too, which can take minutes.
PRICED = ("machines", "deadline")

# Waits for the rows of a check while there are seconds left.
Wait = Callable[[Callable[[], float]], list[CheckRow]]
Check = Callable[[], Iterable[CheckRow]]


def show_check(
    job: str, overrides: Sequence[str], *, on: str | None, force: bool, as_json: bool
) -> int:
    """Print what the checks find. Return 0 if nothing would fail, 2 if something would, and 1 if
    something could not be checked.

    `on` is a SkyPilot YAML; without it, only the checks that are the same for every machine run.
    A network that hangs can't hold this up.
    """
    rows: list[CheckRow] = []
    loaded, sky_yaml = None, None
    try:
        with saying_if_slow(f"reading {job}", quiet=as_json):
            loaded = read_job(job, overrides)
        refuse_past(job, overrides, loaded)
    except PionError as error:
        rows.append(failure("job", error))
        if loaded is None and not rows[0].checked:
            rows.append(unchecked("model.from", WITHOUT_HUB))
    if on is not None:
        try:
            # SkyPilot may fetch its list of GPUs to read the file, without a time limit.
            with saying_if_slow(f"SkyPilot reads {on} and its list of GPUs", quiet=as_json):
                sky_module()
                rental = within(RENTAL_SECONDS, partial(read_sky_yaml, on))
            sky_yaml = rental if loaded is None else with_until(rental, loaded, None)
        except BadInput as error:
            rows.append(failure("rental", error))
        except TimeoutError:
            sentence = (
                f"SkyPilot could not read {on} in time, because it could not fetch its list of "
                "GPUs or because this machine is busy. No machine was checked, and nothing was "
                f"rented. Check the network. {AGAIN}"
            )
            rows.append(unchecked("rental", sentence))
    if loaded is None:
        rows += _local_rows(job, overrides, sky_yaml)
    else:
        with saying_if_slow(asked_by_checks(loaded, sky_yaml), quiet=as_json):
            rows += run_checks(loaded, sky_yaml, path=job, force=force)
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print_rows(rows)
    if any(row.ok is False for row in rows):
        return 2
    return 0 if all(row.checked for row in rows) else 1


def _local_rows(path: str, overrides: Sequence[str], sky_yaml: SkyYaml | None) -> list[CheckRow]:
    """Return what is found on this machine if the job's store, or the Hub, gives no answer.

    A model of any shape stands for the one that the job starts from. If the job file itself has
    mistakes, nothing is returned.
    """
    with contextlib.suppress(BadInput):
        job = load_job(path, overrides, lambda job: Base(job["model"]["from"], "", "", ANY_MODEL))
        checks, end = checks_of(job, sky_yaml, path, force=False), time.monotonic() + JOB_SECONDS
        names = [name for name in LOCAL if name in checks]
        return [row for name in names for row in outcome(name, _begin(checks[name]), end, 0.0)]
    return []


def asked_by_checks(job: Job, sky_yaml: SkyYaml | None) -> str:
    """Return, in words, who is asked by the checks, and for how long."""
    services = [
        *([job.store] if "://" in job.store else []),
        *(["the Hub"] if _asks_hub(job) else []),
        *(["SkyPilot"] if sky_yaml is not None else []),
    ]
    who = f"asking {' and '.join(services)}" if services else "checking files and this machine"
    return f"{who}, for at most {SECONDS:.0f} s, or longer on a busy machine"


def run_checks(
    job: Job, sky_yaml: SkyYaml | None, *, path: str | None = None, force: bool = False
) -> list[CheckRow]:
    """Run every check of a job, and of its rental if there is one, all at the same time.

    `path` is the job file, which must be copied to the rental. `force` accepts a spot price above
    the on-demand price.
    """
    traced = traced_seconds()
    _import_first(job, sky_yaml)
    try:
        with contextlib.suppress(BadInput):  # the store's own check says so
            within(SECONDS, partial(open_store, job.store))
    except TimeoutError:
        return [unchecked(CHECKS, f"they did not start in time. Nothing was rented. {AGAIN}")]
    data = _begin(partial(check_rows, job))
    # A vocabulary is trained outside of Python while torch is imported.
    checks, is_local = checks_of(job, sky_yaml, path, force=force), _is_local(job)
    end = time.monotonic() + SECONDS
    later = PRICED if lacking(job) else ()
    begun = {name: _begin(check) for name, check in checks.items() if name not in later}
    sentence = f"{len(job.stages)} stages: {', '.join(job.stages)}"
    rows = [CheckRow("job", True, sentence)]
    soon = min(end, time.monotonic() + CONVERSATION_SECONDS) if later else end
    rows += outcome("rows", data, soon + LOCAL_SECONDS * is_local, traced)
    if not any(row.ok is False for row in rows):
        begun |= {name: _begin(checks[name]) for name in later if name in checks}
    for name, wait in begun.items():
        more = LOCAL_SECONDS if name == "rewards" and is_local else 0.0
        rows += outcome(name, wait, end + more, traced)
    # Several checks may meet the same mistake. The last one names its source.
    last = {row.words: row for row in rows}
    return [row for row in rows if row.ok is not False or row is last[row.words]]


def _is_local(job: Job) -> bool:
    """Return whether conversations are counted without a network."""
    on_hub = any(isinstance(source, HubDataset) for _, source in job.sources())
    return not on_hub and (job.base is None or job.base.commit is None)


def checks_of(
    job: Job, sky_yaml: SkyYaml | None, path: str | None, *, force: bool
) -> dict[str, Check]:
    """Return the checks that can run at the same time, by name. Imports torch."""
    with importing():
        from pipeline.rent.check.deadline import check_deadline
        from pipeline.rent.check.machines import check_machines, check_memory

    everywhere: dict[str, Check] = {
        "names": partial(check_names, job),
        "model": partial(check_model, job),
        "rate": partial(check_rates, job),
        "model.from": partial(check_base, job, sky_yaml),
        "tokenizer": partial(check_tokenizer, job),
        "data": partial(check_data, job),
        "data.clean": partial(check_clean, job),
        "store": partial(check_store, job),
        "rewards": partial(check_rewards, job),
        "evaluate": partial(check_evaluate, job, rented=sky_yaml is not None),
        "publish": partial(check_publish, job),
    }
    if sky_yaml is None:
        return everywhere | {
            "GPU memory": partial(check_memory, job),
            "workers": partial(check_workers, job),
            "budget": partial(check_spent, job),
        }
    return everywhere | {
        "store from there": partial(check_reach, job),
        "files": partial(check_files, job, sky_yaml, path),
        "credentials": partial(check_credentials, job, sky_yaml),
        "disk": partial(check_disk, job, sky_yaml),
        "recovery": partial(check_recovery, sky_yaml),
        "controller": check_controller,
        "machines": partial(check_machines, job, sky_yaml, force=force),
        "deadline": partial(check_deadline, job, sky_yaml, force=force),
    }


def print_rows(rows: Sequence[CheckRow]) -> None:
    """Print rows as one table: ✓ fine, ✗ would fail, ? not known, or a warning."""
    columns = Column(no_wrap=True), Column(style="bold"), Column(overflow="fold")
    table = Table(*columns, box=None, pad_edge=False, show_header=False)
    for row in rows:
        table.add_row(MARKS[row.ok], Text(printable(row.name)), Text(printable(row.words)))
    show_table(table)


def _asks_hub(job: Job) -> bool:
    return bool(hub_inputs(job)) or (job.publish is not None and job.publish.to.startswith("hf://"))


def _import_first(job: Job, sky_yaml: SkyYaml | None) -> None:
    """Import what several checks use. Threads that import the same package at the same time can
    see it half loaded."""
    if _asks_hub(job):
        import huggingface_hub.hf_api  # noqa: F401
    if sky_yaml is not None:
        import sky.clouds  # noqa: F401
        import sky.data.storage_utils  # noqa: F401
        import sky.server.common  # noqa: F401


def _begin(check: Check) -> Wait:
    return begin(lambda: list(check()))


def outcome(name: str, wait: Wait, end: float, traced: float) -> list[CheckRow]:
    """Return a check's rows, or one row that says why it failed.

    What this machine computes ends by itself, so seconds of traces are not counted: the process had
    traced for `traced` seconds when the checks began. On a busy machine, the wait is longer.
    """
    try:
        slow = (slowness() - 1) * SECONDS
        return wait(lambda: end + slow + traced_seconds() - traced - time.monotonic())
    except TimeoutError:
        return [unchecked(name, f"no answer in time. {AGAIN}")]
    except PionError as error:
        return [failure(name, error)]
    except Exception as error:  # of a library; the job may be fine
        return [unchecked(name, f"can't be checked: {type(error).__name__}: {error}. {AGAIN}")]
