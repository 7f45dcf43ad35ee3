"""Check whether the compiler works on this card, before rows that need it."""

from __future__ import annotations

import time

import torch

from pion.bench.models import Bench, check_model
from pion.bench.results import Outcome, judged
from pion.train.compile_trial import Trial, try_compiler
from pion.train.hardware import configure, pick_dtype
from pion.train.settings import ComputePlan


def check_compiler(bench: Bench) -> Outcome:
    """Compile a block forward and backward, as a training does before its data arrives.

    Tiny models run the block as it is written, because compiling takes seconds.
    """
    device, dtype = str(bench.device), pick_dtype("auto", bench.device)
    plan = ComputePlan(device, dtype, micro_batch=2, compile=True)
    trial = Trial(check_model("pion", bench.tiny), 32 if bench.tiny else 512, documents=False)
    started = time.perf_counter()
    with torch.compiler.set_stance("force_eager" if bench.tiny else "default"):
        changes = try_compiler(trial, plan)
    seconds = time.perf_counter() - started
    # The rows that follow compile as they would without this check.
    configure(ComputePlan(device, dtype))
    words = "; ".join(f"{each.why}, so training uses {each.changes}" for each in changes)
    return judged(
        not changes,
        words or f"a block forward and backward in {seconds:.0f} s",
        changes=len(changes),
        seconds=seconds,
    )
