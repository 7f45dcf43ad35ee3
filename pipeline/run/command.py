"""Advance a run until it is done: plan what is left, check it, claim the run, do the work."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from pion.errors import Stopped
from pipeline.base.keep import say_if_moved
from pipeline.console.display import Display
from pipeline.console.messages import Note, StageState, Summary
from pipeline.cost.budget import check_budget, over_budget, true_price
from pipeline.job import Job
from pipeline.job.stages import check_until
from pipeline.machine.preemption import watch_for_notices
from pipeline.run.advance import Advance
from pipeline.run.done_and_changed_stages import WorkLeft, work_left
from pipeline.run.finish import summary_rows
from pipeline.run.handover import ask_for_handover
from pipeline.run.inputs import RunOptions, Start, changed_inputs
from pipeline.run.journal import Journal
from pipeline.run.preemption_stop import PreemptionStop
from pipeline.run.preflight import preflight, refuse_one_choice, require_room
from pipeline.run.signals import StoppingOnSignals
from pipeline.state.checkpoints.restore import refuse_other_formats
from pipeline.state.claim import Claim, claim_run, refuse_owned
from pipeline.state.notes.rental_note import over_unless_interrupted
from pipeline.state.notes.stop_requests import pending_stop
from pipeline.state.owner import RELEASED, Owner, launch_id
from pipeline.state.run_state import RunState
from pipeline.state.shared.folder import bring_data
from pipeline.state.stores import open_store
from pipeline.state.stores.clock import Clock
from pipeline.state.stores.errors import before_work

# Seconds between two looks at what the heartbeat has found. A look reads nothing from the store.
LOOK_SECONDS = 0.5


def run_job(job: Job, options: RunOptions, display: Display) -> int:
    """Do what is left of `job` and return 0. Raises PionError, which has the exit code."""
    started = time.time()
    stopping = StoppingOnSignals(display, grace=job.checkpoint.grace)
    run = RunState(open_store(job.store), job.name, Clock(sleep=stopping.sleep))
    with over_unless_interrupted(run, launch_id()):
        with _nothing_started():
            check_until(job.stages, options.until, options.redo)
            left = work_left(job, run, redo=options.redo, job_path=options.job_path)
            for words in changed_inputs(job, run, left.head, options.redo, options.job_path):
                display.say(Note(words))
            if left.finished(options.until):
                _show_finished(job, run, left, display)
                return 0
            if left.head is not None and not (options.unattended or options.take_over):
                # The claim would refuse it, too, but only after checks that import torch or ask
                # others. Starts in the same second all get past this.
                refuse_owned(run, left.head, Owner.me())
            price = _check_before_claiming(job, run, left, options.until, display)
        with stopping, _watching_for_notices(stopping, display) as preemption_stop:
            start = Start(
                job,
                options,
                left.digests,
                run,
                Owner.me(),
                stopping,
                started,
                price,
                preemption_stop,
            )
            asked = time.monotonic()
            claim = _claim(start, left, display)
            if claim.before.claims and claim.reason != RELEASED:
                display.say(Note(f"taking the run over: {claim.reason}"))
            journal = Journal(start, claim, display)
            advance = Advance(start, claim, journal)
            with _obeying_in_time(advance):
                journal.introduce(waited=time.monotonic() - asked)
                advance.go(left.raised)
    return 0


def _nothing_started() -> contextlib.AbstractContextManager[None]:
    """Return a context that raises the verdict on a store that fails before this run begins."""
    return before_work("Nothing was started.", managed=launch_id() is not None)


def _show_finished(job: Job, run: RunState, left: WorkLeft, display: Display) -> None:
    for plan in left.plans:
        display.say(StageState(plan.stage, plan.state, plan.why))
    if left.finished():
        display.say(Summary(summary_rows(job, run)))


def _check_before_claiming(
    job: Job, run: RunState, left: WorkLeft, until: str | None, display: Display
) -> float | None:
    """Find now what would fail later; return the dollars that this machine costs an hour.

    Raises BadInput, and Stopped if the budget is spent or the machine costs too much.
    """
    head = left.head
    refuse_one_choice(job)
    for note in preflight(job):
        display.say(Note(note))
    if job.reinforce is not None and not any(plan.state == "done" for plan in left.plans):
        from pipeline.data.judge import judge_first

        judge_first(job)
    if job.base is not None:
        say_if_moved(run, job.base, job.folder, display.say)
    if note := run.store.probe(run.key("")):
        display.say(Note(note))
    require_room(job, run, left, until)
    if head is not None:
        refuse_other_formats(run, head)
    price = true_price(job.budget, _notes_to(display))
    check_budget(job.budget, price)
    if head is not None and (over := over_budget(job.budget, head.spent)):
        raise Stopped(over)
    return price


def _notes_to(display: Display) -> Callable[[str], None]:
    """Return what shows a line on the display."""
    return lambda text: display.say(Note(text))


def _claim(start: Start, left: WorkLeft, display: Display) -> Claim:
    """Claim the run, once its owner is gone or has handed it over."""
    run, owner, say = start.run, start.owner, _notes_to(display)
    with _nothing_started():
        if owner.launch_id is not None:
            # Restarting a run that was asked to stop is up to a person.
            request = pending_stop(run, launch_id=owner.launch_id)
            if request is not None:
                raise Stopped(
                    f"Stopped by request ({request.describe()}). Nothing was started. To continue, "
                    "run `pion run` yourself. This clears the request."
                )
            ask_for_handover(run, owner, say=say, fetch=lambda: _bring_data(start, left))
        return claim_run(
            run,
            owner,
            take_over=start.options.take_over,
            unattended=start.options.unattended,
            price=start.price,
            say=say,
        )


@contextlib.contextmanager
def _watching_for_notices(
    stopping: StoppingOnSignals, display: Display
) -> Iterator[PreemptionStop]:
    """Ask for a stop in time if the cloud gives notice that it will take this machine."""
    say = _notes_to(display)
    with PreemptionStop(stopping, say) as preemption_stop, contextlib.ExitStack() as ending:
        end = watch_for_notices(preemption_stop.noticed, say)
        if end is not None:
            ending.callback(end)
        yield preemption_stop


@contextlib.contextmanager
def _obeying_in_time(advance: Advance) -> Iterator[None]:
    """Obey what the claim has found, and tell of a hang, while the main thread is in a call."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            advance.obey()
            advance.journal.watchdog.check()

    threading.Thread(target=watch, name="obeying", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _bring_data(start: Start, left: WorkLeft) -> None:
    """Bring the data of the next training stage to this machine. Raises PionError."""
    done = {plan.stage for plan in left.plans if plan.state == "done"}
    stage = next((stage for stage in start.job.train_stages if stage not in done), None)
    if stage is not None:
        assert left.head is not None
        bring_data(start.run, left.head, stage)
