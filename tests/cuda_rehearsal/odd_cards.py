"""Ask for training on pretended cards that can't do all of it, and print what Pion says.

environment.py starts this program: `python -m tests.cuda_rehearsal.odd_cards`.

Not pretended: what only a driver does. CUDA_VISIBLE_DEVICES, MIG's ids and several cards are read
from what `nvidia-smi` lists (tests/pipeline/machine, tests/pipeline/run/test_preflight.py); that
CUDA gives a process one slice, and what an Xid leaves of other processes, is not tried anywhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import torch

from pion.errors import PionError
from pion.train.card import card_failure
from pion.train.memory_trace import remembered
from pipeline.state.checkpoints.snapshot import Snapshot
from pipeline.training.compute_plan import choose_plan
from pipeline.training.train_request import Group
from tests.cuda_rehearsal.pretended_card import PretendedStream, insert_card, pretended_card
from tests.cuda_rehearsal.report import hand_back
from tests.cuda_rehearsal.scenarios import MODELS, make_trainer
from tests.cuda_rehearsal.watch import Operation, Watch
from tests.support.jobs import tiny_job
from tests.support.recorded_traces import recorded_trace

XID = "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"


class WithT4(Group):
    """A group whose other rank has a T4 that takes one row."""

    def of_all_ranks(self, value: Any) -> list[Any]:
        plan = [1, False, "float32", True, True, True]
        return [value, "float32" if isinstance(value, str) else plan]


def plan(model: str, group: Group | None = None, **changes: Any) -> dict[str, Any]:
    """Return the plan of a job on the card that is inserted, or why there is none."""
    job = tiny_job(model=model, data__seq_len=1024, **changes)
    try:
        found = choose_plan(job, "pretrain", group or Group(), None)
    except PionError as error:
        return {"refused": str(error), "code": error.exit_code}
    return dataclasses.asdict(found)


def fail_in_a_step(watch: Watch) -> dict[str, Any]:
    """Train a step next to which the state is copied, in the middle of which the driver ends.

    From then on, every wait for the card fails, too.
    """

    def fail(*arguments: Any) -> None:
        raise RuntimeError(XID)

    def end_driver(operation: Operation) -> None:
        if operation.func is torch.ops.aten.mm.default:
            fail()

    failures = []
    trainer, memory = make_trainer(MODELS["dense"], "bfloat16"), Snapshot()
    trainer.train_step()
    state = trainer.state()
    memory.take(state.model, state.optimizer, state.meta, state.side_copy)
    with (
        mock.patch.object(watch, "seen", end_driver),
        mock.patch.object(PretendedStream, "synchronize", fail),
        mock.patch.object(PretendedStream, "wait_event", fail),
    ):
        for work in (trainer.train_step, memory.wait, trainer.close):
            try:
                work()
            except RuntimeError as error:
                failures.append(card_failure(error))
        memory.close()
    return {"failures": failures, "step": trainer.step}


def main() -> None:
    said: dict[str, dict[str, Any]] = {}
    with mock.patch.object(remembered, "_trace", recorded_trace), pretended_card() as watch:
        insert_card("RTX 2060")
        said["6 GB, small model"] = plan("pion-nano")
        said["6 GB, large model"] = plan("pion-xl")
        insert_card("A100 slice")
        said["slice"] = plan("pion-small", pretrain__global_batch=64)
        insert_card("A100")
        said["whole card"] = plan("pion-small", pretrain__global_batch=64)
        said["next to a T4"] = plan("pion-nano", WithT4(0, 2), pretrain__global_batch=64)
        insert_card("A40")
        said["the driver ends"] = fail_in_a_step(watch)
    hand_back(said)


if __name__ == "__main__":
    main()
