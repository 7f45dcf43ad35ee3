"""Several processes learn from preferences like one process."""

import pytest
import torch
import torch._inductor  # noqa: F401 – the forks import it otherwise, for seconds

from pion.model.decoder import Decoder
from pion.train.preference import Preference
from pion.train.preference_losses import METRICS
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import run
from tests.support.pair_rows import CONFIG, PairRows, random_pairs
from tests.support.ranks import ask_ranks

PREFERENCES = [
    Preference("dpo", sft_weight=0.2),
    Preference("apo-zero", unpaired=True, undesirable_weight=2.0),
]


def curves(world_size, rank):
    """Return what each step reports. No world size divides the 7 rows."""
    found = []
    for preference in PREFERENCES:
        settings = TrainSettings(steps=4, global_batch=7, lr=1e-2, learning=preference)
        plan = ComputePlan(world_size=world_size, threads=1, deterministic=world_size > 1)
        torch.manual_seed(0)
        rows = PairRows(random_pairs(20), single=not preference.paired)
        trainer = Trainer(Decoder(CONFIG), rows.as_stream(), settings, plan, rank=rank)
        names = ["loss", "grad_norm", "tokens", *METRICS]
        found.append([{n: step[n] for n in names} for step in run(trainer, 2)])
        trainer.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [3, pytest.param(2, marks=pytest.mark.soak)])
def test_several_ranks_report_what_one_reports(tmp_path, world_size):
    ranks = ask_ranks(lambda rank, _: curves(world_size, rank), tmp_path, world_size)
    assert all(rank == ranks[0] for rank in ranks)
    for ours, one in zip(ranks[0], curves(1, 0), strict=True):
        for step, expected in zip(ours, one, strict=True):
            assert step == pytest.approx(expected, rel=1e-4, abs=1e-5)
