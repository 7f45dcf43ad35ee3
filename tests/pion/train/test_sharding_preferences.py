"""Ranks that keep parts of a model learn from preferences as one process does, by any loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from pion.model.decoder import Decoder
from pion.train.preference import Loss, Preference
from pion.train.trainer import Trainer
from tests.support import pair_rows
from tests.support.ranks import ask_ranks
from tests.support.sharded_trainers import apart, make, train
from tests.support.whole_state import same, whole_state

pytestmark = pytest.mark.soak

STEPS, SAVED_AFTER = 20, 12
# How far weights may be apart in fp32, and what share of a loss. Losses of ipo are in the hundreds.
WEIGHTS, LOSS = 2e-6, 5e-6
CASES = [
    *((loss, "adamw", 0.0) for loss in get_args(Loss)),
    ("dpo", "muon", 0.0),
    ("dpo-norm", "adamw", 0.5),
]


def trainer_of(case: tuple[Loss, str, float], rank: int = 0, world_size: int = 1) -> Trainer:
    loss, optimizer, sft_weight = case
    torch.manual_seed(0)
    return make(
        "pion",
        pair_rows.PairRows(pair_rows.random_pairs(20)).as_stream(),
        rank=rank,
        world_size=world_size,
        model=Decoder(pair_rows.CONFIG),
        preference=Preference(loss, sft_weight=sft_weight),
        optimizer=optimizer,
    )


def work(rank: int, folder: Path) -> list[dict[str, Any]]:
    """Train each case; save, and train on; and resume."""
    results: list[dict[str, Any]] = []
    for number, case in enumerate(CASES):
        trainer = trainer_of(case, rank, 2)
        losses = [row["loss"] for row in train(trainer, SAVED_AFTER)]
        saved = whole_state(trainer)
        losses += [row["loss"] for row in train(trainer, STEPS - SAVED_AFTER)]
        ended = whole_state(trainer)
        resumed = trainer_of(case, rank, 2)
        resumed.load(saved)
        train(resumed, STEPS - SAVED_AFTER)
        results.append({"losses": losses, "resumed": same(ended, whole_state(resumed))})
        if rank == 0:
            torch.save(ended.model, folder / f"model{number}")
    return results


def test_each_loss_trains_as_in_one_process_and_resumes_bit_for_bit(tmp_path):
    ranks = ask_ranks(work, tmp_path, 2)
    assert ranks[0] == ranks[1]
    wrong = {}
    for number, (case, found) in enumerate(zip(CASES, ranks[0], strict=True)):
        alone = trainer_of(case)
        losses = [row["loss"] for row in train(alone, STEPS)]
        weights = apart(whole_state(alone).model, torch.load(tmp_path / f"model{number}"))
        pairs = zip(losses, found["losses"], strict=True)
        loss = max(abs(a - b) / max(1, abs(a)) for a, b in pairs)
        if not (found["resumed"] and weights <= WEIGHTS and loss <= LOSS):
            wrong[case] = (found["resumed"], weights, loss)
    assert not wrong, wrong
