"""Advance a run until it is done: see what is left, refuse what can't work, claim, do it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from pion.errors import BadInput, Interrupted, PionError, Stopped
from pipeline.console.display import Display
from pipeline.console.messages import Note, StageState, Summary
from pipeline.cost.budget import check_budget, over_budget, price_per_hour
from pipeline.job import Job
from pipeline.job.digest import Digests, Inputs, digest_job
from pipeline.machine.preemption import watch_for_notices
from pipeline.run.advance import Advance, Options
from pipeline.run.finish import summary_rows
from pipeline.run.handover import ask_for_handover
from pipeline.run.preflight import preflight
from pipeline.run.signals import StoppingOnSignals
from pipeline.run.stage_plan import (
    Refusal,
    StagePlan,
    check_redo,
    first_stale,
    goes_on_under_another_digest,
    plan_stages,
)
from pipeline.state.checkpoints.restore import refuse_other_formats
from pipeline.state.claim import claim_run
from pipeline.state.owner import RELEASED, Owner, launch_id
from pipeline.state.rental_note import over_unless_interrupted
from pipeline.state.requests import pending_stop
from pipeline.state.run_state import Clock, RunState
from pipeline.state.stores import StoreError, open_store
from pipeline.state.workspace import Workspace

LOOK_SECONDS = 0.5
"""Between two looks at what the heartbeat has found, which reads nothing."""


def run_job(job: Job, options: Options, display: Display) -> int:
    """Do what is left of `job` and return 0; raises PionError with the exit code otherwise."""
    stopping = StoppingOnSignals(display, grace=job.checkpoint.grace)
    run = RunState(open_store(job.store), job.name, Clock(sleep=stopping.sleep))
    with over_unless_interrupted(run, launch_id()):
        _do_what_is_left(job, options, display, run, stopping)
    return 0


def _do_what_is_left(
    job: Job, options: Options, display: Display, run: RunState, stopping: StoppingOnSignals
) -> None:
    started = time.time()
    digests = digest_job(job)
    try:
        head = run.read()
    except StoreError as error:
        raise _not_started(error) from error

    def read_inputs(stage: str, digest: str) -> Inputs | None:
        kept = run.read_stage(stage, digest)
        return kept["inputs"] if kept else None

    plans = plan_stages(job, digests, head)
    raised = None
    stale = first_stale(plans)
    if stale and head and goes_on_under_another_digest(job, stale, digests, head, read_inputs):
        raised = stale
    else:
        refusal = Refusal(job, options.job_path, digests, read_inputs)
        check_redo(job, plans, options.redo, refusal)
    if options.redo is None and all(plan.state == "done" for plan in plans):
        for plan in plans:
            display.say(StageState(plan.stage, "done", plan.why))
        display.say(Summary(summary_rows(job, run)))
        return

    for note in preflight(job):
        display.say(Note(note))
    try:
        run.store.probe(run.key(""))
        if head is not None:
            refuse_other_formats(run, head)
    except StoreError as error:
        raise _not_started(error) from error
    price = price_per_hour(job.budget)
    check_budget(job.budget, price)
    if head is not None and (over := over_budget(job.budget, head.spent)):
        raise Stopped(over)
    with stopping, _watching_for_notices(stopping, display):
        owner = Owner.me()
        asked = time.monotonic()
        try:
            if owner.launch_id is not None:
                _obey_stop_request(run, owner)
                ask_for_handover(
                    run,
                    owner,
                    say=lambda text: display.say(Note(text)),
                    fetch=lambda: _bring_data(job, run, digests, plans),
                )
            claim = claim_run(
                run,
                owner,
                take_over=options.take_over,
                unattended=options.unattended,
                price=price,
                say=lambda text: display.say(Note(text)),
            )
        except StoreError as error:
            raise _not_started(error) from error
        if claim.before.claims and claim.reason != RELEASED:
            display.say(Note(f"taking the run over: {claim.reason}"))
        waited = time.monotonic() - asked
        advance = Advance(job, options, display, digests, run, owner, claim, started, stopping)
        with _obeying_in_time(advance):
            advance.introduce(waited)
            advance.go(raised)


def _not_started(error: StoreError) -> PionError:
    """Why nothing was started; a manager shall try again when the store is merely down."""
    if error.outage and Owner.me().launch_id is not None:
        return Interrupted(f"{error} Nothing was started; run the same command again.")
    return BadInput(f"{error} Nothing was started.")


@contextlib.contextmanager
def _watching_for_notices(stopping: StoppingOnSignals, display: Display) -> Iterator[None]:
    """A cloud's notice that it will take this machine is a request to stop in time."""
    end = watch_for_notices(stopping.ask, lambda text: display.say(Note(text)))
    try:
        yield
    finally:
        if end is not None:
            end()


@contextlib.contextmanager
def _obeying_in_time(advance: Advance) -> Iterator[None]:
    """What the claim hears of is obeyed, whatever long work the main thread is in."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            advance.obey()

    threading.Thread(target=watch, name="obeying", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _bring_data(job: Job, run: RunState, digests: Digests, plans: list[StagePlan]) -> None:
    """Have the data of the stage to be trained on this machine. Raises `PionError`."""
    for plan in plans:
        if plan.stage in job.train_stages and plan.state != "done":
            Workspace(run.store, run.name).bring_data(digests.data[plan.stage])
            return


def _obey_stop_request(run: RunState, owner: Owner) -> None:
    """A run that was asked to stop stays stopped, whatever manager starts it again."""
    request = pending_stop(run, launch_id=owner.launch_id)
    if request is not None:
        raise Stopped(
            f"Stopped by request ({request.describe()}); nothing was started. To go on, start it "
            "yourself with `pion run`, which clears the request."
        )
