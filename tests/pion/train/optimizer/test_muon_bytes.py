"""The memory that is predicted of Muon's step, over several ranks."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pion.config.model_config import ModelConfig
from pion.model.params_and_flops import shapes_and_roles
from pion.train.memory_trace.live_bytes import LiveBytes
from pion.train.optimizer.divided_muon import RowsMuon, WholeMuon
from pion.train.optimizer.muon_rounds import divided_step_bytes
from pion.train.shard_rules import own_rows, sharded_dim
from tests.cuda_rehearsal.fake_group import fake_group

# A prediction is never under what is counted, and never over by more than this.
MOST = 1.15
DTYPES = {4: torch.float32, 2: torch.bfloat16}


def counted(shapes, width, ranks, rank, sharded):
    """Return the most bytes at once in a step of a rank, besides weights, gradients and moments."""
    with fake_group(ranks), FakeTensorMode(), LiveBytes("cpu", {}) as live:
        params = {}
        for number, shape in enumerate(shapes):
            own = list(shape)
            if sharded:
                dim = sharded_dim(shape, ranks, "matrix")
                own[dim] = len(own_rows(shape[dim], rank, ranks))
            params[str(number)] = nn.Parameter(torch.empty(own))
            params[str(number)].grad = torch.empty(own)
        whole = {str(number): torch.Size(shape) for number, shape in enumerate(shapes)}
        muon = (RowsMuon if sharded else WholeMuon)(
            params, whole, weight_decay=0.1, dtype=DTYPES[width], rank=rank, world_size=ranks
        )
        start, live.history = live.live, []
        muon.step(1e-3, 0.9)
        return max(live.history, default=start) - start


def check(config, width, ranks, sharded):
    shapes = [shape for shape, role in shapes_and_roles(config) if role == "matrix"]
    # The first ranks have the most of uneven rows, and the last ones may have the largest matrix.
    measured = {*range(min(ranks, 4)), ranks - 1}
    most = max(counted(shapes, width, ranks, rank, sharded) for rank in measured)
    ratio = divided_step_bytes(shapes, width, ranks, sharded=sharded) / most
    assert 1 <= ratio <= MOST, f"{ratio:.3f} of {most:,} bytes"


@pytest.mark.parametrize(
    "preset", ["tachyon-tiny", pytest.param("pion-small", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("sharded", [False, True])
def test_the_prediction_is_never_under_and_at_most_15_percent_over(preset, sharded):
    check(ModelConfig.preset(preset, n_layers=2), 2, 4, sharded)


@pytest.mark.soak
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("width", DTYPES)
@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
@pytest.mark.parametrize("preset", ["pion-small", "tachyon-tiny", "daisy-pico"])
def test_the_prediction_holds_for_families_and_numbers_of_ranks(preset, ranks, width, sharded):
    check(ModelConfig.preset(preset), width, ranks, sharded)
