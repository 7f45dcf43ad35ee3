"""`pion ladder --on SKY` and `pion try --on SKY`: one rental works through all runs.

The rental is that of `pion launch`, but its machine runs the same command there. What decides is in
the store, so the next machine continues after a lost one.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.base.read_job import read_job
from pipeline.console.formats import counted, show
from pipeline.console.out import saying_if_slow
from pipeline.job import Job
from pipeline.ladder.ahead import Ahead
from pipeline.ladder.at_work import refuse_ordinary
from pipeline.ladder.cap import Cap, budget_of, describe, refuse_beyond
from pipeline.ladder.climb import Climb
from pipeline.ladder.command import LadderOptions, exit_code, grid_of, print_ladder
from pipeline.ladder.grid import as_overrides
from pipeline.ladder.page import write_page
from pipeline.ladder.runs import Runs
from pipeline.ladder.search import Outcome, Search
from pipeline.ladder.try_command import TryOptions, print_search, settings_to_try
from pipeline.rent.credentials import wanted_secrets
from pipeline.rent.managed.launch import rent_order, say_rented
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.provider.task import RUN, task_yaml
from pipeline.rent.managed.request import JobFile, Order, make_order, require_checks
from pipeline.rent.sky_yaml import COMMAND, read_sky_yaml, refuse_one_command_only
from pipeline.state.liveness import owner_of
from pipeline.state.notes.stop_requests import clear_stops
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from pipeline.state.stores.errors import before_work
from pipeline.state.stores.parallel import read_all


@dataclass(frozen=True)
class Renting:
    """Where to rent: the SkyPilot file `on`. `dry_run` only prints SkyPilot's task, and `force`
    rents in spite of warnings."""

    on: str
    dry_run: bool = False
    force: bool = False


@dataclass(frozen=True)
class _Many:
    """The runs of a ladder or of a search, as a rental does them.

    Attributes:
        what: "ladder" or "try".
        words: the options of the command on the machine, without its cap.
        look: returns what is left, with this cap, or else that of the store.
        finish: prints what was found, if all is done, and returns the exit code; None if it is not.
    """

    what: str
    job: Job
    runs: Runs
    words: Sequence[str]
    look: Callable[[Cap], Ahead]
    finish: Callable[[], int | None]


def launch_ladder(
    job_path: str, overrides: Sequence[str], options: LadderOptions, renting: Renting
) -> int:
    """Rent a machine that works through a ladder until it is done, and show it.

    Return what `pion ladder` returns, or 0 after Ctrl-C, because the rental continues. Raises
    BadInput if something would fail, and Stopped if the cap is reached: nothing was rented.
    """
    job, runs = _read(job_path, overrides, as_json=options.as_json)

    def climb(cap: Cap) -> Climb:
        return Climb(job, grid_of(options), cap, runs, lambda text: None)

    def finish() -> int | None:
        ladder = climb(Cap()).look()
        if any(not step.done for step in ladder.steps):
            return None
        print_ladder(ladder, write_page(ladder, runs.store), as_json=options.as_json)
        return exit_code(ladder)

    given = {
        "--widths": options.widths,
        "--tokens": options.tokens,
        "--hold-out": options.hold_out,
    }
    words = [f"{name}={value}" for name, value in given.items() if value is not None]
    many = _Many("ladder", job, runs, words, lambda cap: climb(cap).ahead(), finish)
    return _launch(many, Cap(options.hours, options.dollars), renting, as_json=options.as_json)


def launch_try(
    job_path: str, overrides: Sequence[str], options: TryOptions, renting: Renting
) -> int:
    """Rent a machine that works through a search until it has a choice, and show it.

    Returns and raises as `launch_ladder` does.
    """
    settings = settings_to_try(options)
    job, runs = _read(job_path, overrides, as_json=options.as_json)

    def search(cap: Cap) -> Search:
        return Search(job, settings, options.seeds, cap, runs, lambda text: None)

    def finish() -> int | None:
        found = search(Cap()).look()
        if not isinstance(found, Outcome):
            return None
        print_search(found, job_path, overrides, settings, as_json=options.as_json)
        return 0

    words = [word for text in options.varied for word in ("--vary", text)]
    words += ["--seeds", str(options.seeds)]
    many = _Many("try", job, runs, words, lambda cap: search(cap).ahead(), finish)
    return _launch(many, Cap(options.hours, options.dollars), renting, as_json=options.as_json)


def _read(job_path: str, overrides: Sequence[str], *, as_json: bool) -> tuple[Job, Runs]:
    with saying_if_slow(f"reading {job_path}", quiet=as_json):
        job = read_job(job_path, overrides)
    return job, Runs(open_store(job.store), job_path, overrides, elsewhere=True)


def _launch(many: _Many, cap: Cap, renting: Renting, *, as_json: bool) -> int:
    """Rent, follow the rental to its end, and print what was found.

    `cap` is the one that was given now. Without one, that of the store counts, or else the job's
    budget.
    """
    aside: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if as_json and not renting.dry_run:
        aside = contextlib.redirect_stdout(sys.stderr)
    with aside, before_work("Nothing was rented."):
        ahead = many.look(cap)
        if ahead.cap == Cap():
            ahead = many.look(Cap(many.job.budget.hours, many.job.budget.dollars))
    if ahead.left == 0 and not renting.dry_run:
        with aside:
            show(f"{many.job.name}: all runs are done, so nothing was rented.")
        return many.finish() or 0
    with aside:
        code = _rent_and_follow(many, ahead, renting)
    if renting.dry_run:
        return code
    found = many.finish()
    return code if found is None or code else found


def _rent_and_follow(many: _Many, ahead: Ahead, renting: Renting) -> int:
    """Return the exit code of the rented command; 0 after Ctrl-C."""
    provider = Provider()
    state = RunState(many.runs.store, ahead.run)
    order = _order(many, ahead, state, renting)
    if renting.dry_run:
        show(task_yaml(order.config, wanted_secrets(order.job_file.job)))
        return 0
    show(_introduction(many, ahead, state))
    require_checks(order, force=renting.force)
    from pipeline.rent.managed.watch import follow_or_leave  # before anything costs money

    with before_work("Nothing was rented."):
        _refuse_at_work(many, state, ahead)
        job_id = rent_order(order, provider, force=renting.force)
    say_rented(order, job_id, provider)
    return follow_or_leave(state, order.name, job_id, provider)


def _order(many: _Many, ahead: Ahead, state: RunState, renting: Renting) -> Order:
    """Return the order of a rental for all runs, whose checks are those of the largest run.

    Raises BadInput, and Stopped if the cap is reached.
    """
    _require_cap(many.what, ahead)
    with saying_if_slow(f"SkyPilot reads {renting.on} and its list of GPUs"):
        sky_yaml = read_sky_yaml(renting.on)
    refuse_one_command_only(sky_yaml, f"pion {many.what}")
    with before_work("Nothing was rented."):
        refuse_ordinary(state, state.read())
    runs = many.runs
    limits = budget_of(many.job.budget, ahead.cap, ahead.spent_by_others)
    alone = {**limits, "evaluate.ladder": None}
    largest, _ = runs.job([*ahead.overrides, *as_overrides(alone)])
    cap = {"--hours": ahead.cap.hours, "--dollars": ahead.cap.dollars}
    words = [many.what, *many.words]
    words += [f"{name}={value!r}" for name, value in cap.items() if value is not None]
    return make_order(
        state,
        JobFile(runs.job_path, runs.overrides, largest),
        sky_yaml,
        force=renting.force,
        deadline=False,
        variables={COMMAND: shlex.join(words), RUN: f"{many.job.store.rstrip('/')}/{state.name}"},
    )


def _require_cap(what: str, ahead: Ahead) -> None:
    """Raise BadInput without a cap, and Stopped if the next run would exceed it."""
    if ahead.cap == Cap():
        raise BadInput(
            f"pion {what} --on rents until all {len(ahead.runs)} runs are done, so say what they "
            "may cost together: --dollars D or --hours H. Nothing was rented."
        )
    refuse_beyond(ahead.cap, ahead.spent, ahead.next_run, ahead.next_hours, None)


def _introduction(many: _Many, ahead: Ahead, state: RunState) -> str:
    """Return what the rental is for, in words."""
    done = len(ahead.runs) - ahead.left
    spent = f", of which {describe(ahead.spent)} are spent" if ahead.spent.hours else ""
    lines = [
        f"one rental for {counted(len(ahead.runs), 'run')}"
        + (f", {done} done before" if done else ""),
        f"  it is called {state.url}",
        f"  cap over all runs: {ahead.cap}{spent}",
        f"  all that is left takes about {ahead.times:.1f} times the work of the largest run, and "
        "a start for each",
        f"  checked below: the largest run, {ahead.largest}",
    ]
    if many.job.deadline is not None:
        lines.append("  the job's deadline is for its own run, and is not kept here")
    return "\n".join(lines)


def _refuse_at_work(many: _Many, state: RunState, ahead: Ahead) -> None:
    """Raise BadInput if somebody does these runs, and clear requests to stop one of them: a person
    wants them to continue."""
    states = [state, *(RunState(many.runs.store, name) for name in ahead.runs)]
    heads = read_all(RunState.read, states)
    for each, head in zip(states, heads):
        if head is not None and head.owner is not None and owner_of(each, head).life == "alive":
            raise BadInput(
                f"{each.name} is being run by {head.owner.describe()}. A rental would cost money "
                f"while it waits for that owner. To see it: pion status {each.url}. To stop it: "
                f"pion stop {each.url} --wait. Nothing was rented."
            )
    for each, head in zip(states[1:], heads[1:]):
        if head is not None:
            clear_stops(each)
