"""What to try when a step can't be computed as planned: the next smaller plan, or none.

Running out of GPU memory halves the micro-batch, down to one row, then recomputes activations, and
at last lets several ranks divide the model, if they may.
A compilation that fails, or computes wrong gradients, is tried again without combo kernels, then
without flex attention, which lacks kernels on some cards. Then it gives way to eager computation.
All these plans learn the same, up to rounding.
"""

from __future__ import annotations

import dataclasses
import gc

import torch

from pion.errors import BadInput, causes
from pion.train.hardware import combines_kernels
from pion.train.settings import AS_MANY_AS_FIT, ComputePlan

# Errors of the compiler come from these packages: while it traces, makes code or loads a kernel.
_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")


@dataclasses.dataclass(frozen=True)
class StepDown:
    """The plan to try next, `plan`, in place of `before`, and why."""

    before: ComputePlan
    plan: ComputePlan
    why: str

    @property
    def changes(self) -> str:
        """What differs between the two plans: `micro_batch 8 → 4`."""
        old, new = dataclasses.asdict(self.before), dataclasses.asdict(self.plan)
        return ", ".join(
            f"{name} {_word(old[name])} → {_word(new[name])}"
            for name in old
            if old[name] != new[name]
        )


class WrongGradients(RuntimeError):
    """A compiled block computes other gradients than the block as it is written."""


class StepTooLarge(BadInput):
    """Not even one row fits into the GPU's memory, although activations are recomputed."""


def step_down(
    plan: ComputePlan, error: BaseException, *, uses_flex: bool = False, may_divide: bool = False
) -> StepDown | None:
    """Return the plan to try after `error` ended a step; None if another plan can't help.

    `uses_flex` says whether the step attends by flex attention, which is compiled even in an eager
    step. `may_divide` says whether several ranks that have the whole model each may divide it.
    Raises StepTooLarge if memory ran out and there is no smaller plan.
    """
    if isinstance(error, torch.OutOfMemoryError):
        why = "the GPU's memory ran out"
        if plan.micro_batch > 1:
            # Answers that are sampled together may have taken the memory, too.
            sampled = None if plan.rollout_rows is None else (plan.rollout_rows + 1) // 2
            half = (plan.micro_batch + 1) // 2
            fewer = dataclasses.replace(plan, micro_batch=half, rollout_rows=sampled)
            return StepDown(plan, fewer, why)
        if not plan.recompute:
            return StepDown(plan, dataclasses.replace(plan, recompute=True), why)
        undivided = plan.world_size > 1 and not plan.sharded
        if undivided and may_divide:
            # A part of a model leaves room for more rows, so their number is chosen again.
            divided = dataclasses.replace(
                plan, sharded=True, micro_batch=AS_MANY_AS_FIT, recompute=False
            )
            return StepDown(plan, divided, why)
        divide = ", or set hardware.fsdp: true, and the GPUs divide the model" if undivided else ""
        raise StepTooLarge(
            "the model does not fit: training on one row with recomputed activations ran out of "
            f"the GPU's memory{_numbers(plan)}. Everything committed is safe. Use a larger GPU, a "
            f"smaller model or shorter rows (seq_len){divide}. The GPU's error: "
            f"{_first_lines(error)}"
        ) from None
    wrong = isinstance(error, WrongGradients)
    smaller = _compiling_less(plan, uses_flex) if wrong or _is_compilers(error) else None
    if smaller is None:
        return None
    failed = f"torch.compile failed ({type(error).__name__}: {_first_lines(error)})"
    return StepDown(plan, smaller, str(error) if wrong else failed)


def _compiling_less(plan: ComputePlan, uses_flex: bool) -> ComputePlan | None:
    """Return the plan that leaves out the next thing to compile; None if nothing is compiled."""
    if plan.compile and combines_kernels(plan):
        return dataclasses.replace(plan, combo_kernels=False)
    if uses_flex and plan.flex_attention:
        return dataclasses.replace(plan, flex_attention=False)
    return dataclasses.replace(plan, compile=False) if plan.compile else None


def free_memory(device: torch.device) -> None:
    """Give back the memory of an abandoned step."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _is_compilers(error: BaseException) -> bool:
    """Return whether the error, or one that it came from, is of the compiler."""
    kinds = [kind for seen in causes(error) for kind in type(seen).__mro__]
    return any(kind.__module__.startswith(_COMPILERS) for kind in kinds)


def _numbers(plan: ComputePlan) -> str:
    """Return how much memory the GPU has and how much of it was in use, if there is a GPU."""
    if not plan.device.startswith("cuda"):
        return ""
    total = torch.cuda.get_device_properties(plan.device).total_memory
    peak = torch.cuda.max_memory_allocated(plan.device)
    return f" ({peak / 2**30:.1f} of {total / 2**30:.1f} GiB were in use)"


def _first_lines(error: BaseException) -> str:
    """Return the first two lines of the message: the second line says what the first announces."""
    return " ".join(str(error).split("\n")[:2]).strip()[:300] or "no message"


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
