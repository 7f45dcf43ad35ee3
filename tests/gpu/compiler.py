"""Check whether the compiler works on this card, and learns what the model as written learns."""

import dataclasses
import time

import torch

from pion.bench.models import Bench, check_model, exact_float32
from pion.bench.results import Outcome, judged
from pion.train.compile_trial import Trial, compile_block, difference, try_compiler
from pion.train.hardware import configure, pick_dtype
from pion.train.settings import ComputePlan

# The most that a gradient may differ in fp32, as a share of its norm. Of a model that rounds its
# activations (PILON), some round the other way: on a CPU, this makes 2e-3.
LIMIT, ROUNDING_LIMIT = 1e-3, 2e-2


def check_compiler(bench: Bench, family: str) -> Outcome:
    """Compile a block forward and backward, as a training does before its data arrives. Then
    compare its gradients in fp32 with those of the block as it is written.

    Tiny models run the block as it is written, because compiling takes seconds.
    """
    device, dtype = str(bench.device), pick_dtype("auto", bench.device)
    plan = ComputePlan(device, dtype, micro_batch=2, compile=True)
    trial = Trial(check_model(family, bench.tiny), 32 if bench.tiny else 512, documents=False)
    limit = LIMIT if trial.config.primitives is None else ROUNDING_LIMIT
    started = time.perf_counter()
    with torch.compiler.set_stance("force_eager" if bench.tiny else "default"), exact_float32():
        changes = try_compiler(trial, plan)
        seconds = time.perf_counter() - started
        exact = dataclasses.replace(plan, dtype="float32", compile=not changes)
        configure(exact)
        written = dataclasses.replace(exact, compile=False)
        share, name = difference(compile_block(trial, exact), compile_block(trial, written))
    # The rows that follow compile as they would without this check.
    configure(ComputePlan(device, dtype))
    words = "; ".join(f"{each.why}, so training uses {each.changes}" for each in changes)
    return judged(
        not changes and share <= limit,
        words
        or f"a block forward and backward in {seconds:.0f} s; largest difference of "
        f"gradients {share:.0e} ({name}), at most {limit:.0e}",
        changes=len(changes),
        seconds=seconds,
        difference=share,
        limit=limit,
    )
