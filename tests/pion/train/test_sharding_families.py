"""Ranks that keep parts of a model of any family train it as one process does, by any optimizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor
import torch.distributed as dist

from tests.families.families import FAMILIES
from tests.support.ranks import run_ranks
from tests.support.sharded_trainers import apart, make, rows_of, same, train
from tests.support.whole_state import whole_state

pytestmark = pytest.mark.soak

STEPS, SAVED_AFTER = 20, 12
CASES = [(name, optimizer) for name in FAMILIES for optimizer in ("adamw", "muon")]
# In fp32, how far weights may be apart, if not 2e-6. AdamW follows the smallest gradients, those of
# value tables and of the biases of keys. Rounding decides which primitives a recipe chooses, and to
# which of a few values a weight is rounded.
APART = {"daisy": 1e-5, "biased": 1e-5, "routed-recipes": 3e-5, "ternary": 1e-2}
# In bf16, these families, and how far a step's loss may be apart, if not 2e-4. Rounding decides
# where a few tokens go; and a value of Daisy's that is rounded to the other side after 12 steps
# grows.
IN_BF16 = ("pion", "tachyon", "daisy", "pilon")
LOSS_APART = {"tachyon": 1e-2, "daisy": 1e-2}
# The last bit of the gradients' norm differs between numbers of ranks. Muon's iterations in bf16
# make it large, so nothing is clipped there.
BF16: dict[str, Any] = {"dtype": "bfloat16", "clip": 0.0}


@dataclass(frozen=True)
class Work:
    """What a process does: train each case; save, and train on; and resume."""

    world_size: int
    cases: list[tuple[str, str]]
    changes: dict[str, Any]

    def __call__(self, rank: int, folder: Path) -> None:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=self.world_size
        )
        results = {}
        for name, optimizer in self.cases:
            losses, saved, ended = self.run(name, optimizer, rank, folder / f"data{rank}")
            resumed = self.trainer(name, optimizer, rank, folder / f"data{rank}")
            resumed.load(saved)
            train(resumed, STEPS - SAVED_AFTER)
            results[f"{name} {optimizer}"] = {
                "losses": losses,
                "resumed": same(ended, whole_state(resumed)),
            }
            if rank == 0:
                torch.save(ended.model, folder / f"{name} {optimizer}")
        (folder / f"{rank}.json").write_text(json.dumps(results))
        dist.destroy_process_group()

    def run(self, name: str, optimizer: str, rank: int, folder: Path) -> tuple[Any, Any, Any]:
        """Return the losses, the state after some steps, and the last one."""
        trainer = self.trainer(name, optimizer, rank, folder)
        losses = [row["loss"] for row in train(trainer, SAVED_AFTER)]
        saved = whole_state(trainer)
        losses += [row["loss"] for row in train(trainer, STEPS - SAVED_AFTER)]
        return losses, saved, whole_state(trainer)

    def trainer(self, name: str, optimizer: str, rank: int, folder: Path) -> Any:
        return make(
            name,
            rows_of(name, folder),
            world_size=self.world_size,
            rank=rank,
            optimizer=optimizer,
            **self.changes,
        )


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_each_family_trains_as_in_one_process_and_resumes_bit_for_bit(
    tmp_path: Path, world_size: int
) -> None:
    worst = compare(tmp_path, world_size, CASES, {})
    wrong = {
        case: found
        for case, found in worst.items()
        if not (found["resumed"] and found["weights"] <= APART.get(case.split()[0], 2e-6))
    }
    assert not wrong, wrong


def test_in_bfloat16_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    cases = [case for case in CASES if case[0] in IN_BF16]
    worst = compare(tmp_path, 2, cases, BF16)
    wrong = {
        case: found
        for case, found in worst.items()
        if not (found["resumed"] and found["loss"] <= LOSS_APART.get(case.split()[0], 2e-4))
    }
    assert not wrong, wrong


def compare(
    folder: Path, world_size: int, cases: list[tuple[str, str]], changes: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return how far ranks and one process are apart, by case."""
    run_ranks(Work(world_size, cases, changes), folder, world_size)
    found = json.loads((folder / "0.json").read_text())
    worst = {}
    for name, optimizer in cases:
        case = f"{name} {optimizer}"
        losses, _, alone = Work(1, cases, changes).run(name, optimizer, 0, folder / "alone")
        worst[case] = {
            "loss": max(abs(a - b) for a, b in zip(losses, found[case]["losses"], strict=True)),
            "weights": apart(alone.model, torch.load(folder / case)),
            "resumed": found[case]["resumed"],
        }
    return worst
