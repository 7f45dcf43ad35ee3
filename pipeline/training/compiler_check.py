"""Find out before the data arrives whether this machine's compiler works.

While data is prepared or downloaded, the machine is paid for already. So a compiler that fails is
found here, in seconds, and the stages train by a plan that works.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pion.train.settings import AS_MANY_AS_FIT
from pipeline.console.messages import Note
from pipeline.machine.folders import use_private_compile_cache
from pipeline.machine.gpus import gpu_count
from pipeline.training.compute_plan import COMPILED, choose_plan
from pipeline.training.context import phase

if TYPE_CHECKING:
    from pion.train.compile_trial import Trial
    from pion.train.smaller_plan import StepDown
    from pipeline.training.context import TrainingContext


def check_compiler(context: TrainingContext) -> None:
    """Compile a block of the model of the first stage, if this machine compiles; let `context`
    train without what fails, and report it. Every rank calls this. Nothing is read from the store,
    and a second call does nothing.

    Raises what compiling raises if no smaller plan helps.
    """
    job, stages = context.job, context.request.stages
    if context.compiler_checked or not stages or job.hardware.compile is False:
        return
    context.compiler_checked = True
    if job.hardware.compile == "auto" and gpu_count() == 0:  # known without torch
        return
    from pion.train.compile_trial import try_compiler

    started = time.monotonic()
    # A rank that has nothing to compile must not keep the others waiting.
    alone = dataclasses.replace(context.group, distributed=False)
    try:
        plan = choose_plan(job, stages[0], alone, None, context.at_most)
    except BadInput:
        return  # the stage itself reports what does not fit
    if not plan.compile:
        return
    use_private_compile_cache()
    with context.watchdog.paused():
        changes = try_compiler(_trial(context, stages[0]), plan)
    context.report(phase("compiler checked", started))
    for change in changes:
        context.report(Note(compiler_note(change)))
    if changes:
        context.compiler_changes = changes
        left = {name: getattr(changes[-1].plan, name) for name in COMPILED}
        # As in the record of a plan: these leave the plan as large as it is.
        unlimited = {"micro_batch": AS_MANY_AS_FIT, "recompute": False, "compile": True}
        context.at_most = (context.at_most or unlimited) | left


def compiler_note(change: StepDown) -> str:
    """Return what to say of a compiler that failed before training."""
    return f"{change.why}. Training uses {change.changes}"


def _trial(context: TrainingContext, stage: str) -> Trial:
    from pion.train.compile_trial import Trial

    job = context.job
    return Trial(
        job.model_config_resolved(),
        job.seq_len(stage),
        documents=job.has_documents(stage),
    )
