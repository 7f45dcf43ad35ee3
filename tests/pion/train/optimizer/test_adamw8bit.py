"""AdamW with moments of 8 bits: their errors, their bytes, and a sharded model's bits."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder
from pion.train.memory import predict_memory
from pion.train.memory_trace.live_bytes import ROUNDED_TO, LiveBytes
from pion.train.optimizer import adamw8bit
from pion.train.optimizer.adamw8bit import AdamW8bit
from pion.train.optimizer.optimizer import Optimizer
from pion.train.optimizer.state_pieces import Held, OwnParts, Run
from pion.train.schedule import plan_at
from pion.train.settings import TrainSettings
from pion.train.shard_rules import own_rows
from pion.train.workload import Workload

SETTINGS = TrainSettings(steps=20, global_batch=1, lr=1e-2, optimizer="adamw8bit")
SHAPE = ModelConfig(
    d_model=128, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=352, vocab_size=512, seq_len=16
)


class Weights(nn.Module):
    """A matrix (rows, cols), or some rows of it, and a vector."""

    def __init__(self, rows=range(96), cols=96):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        every = torch.randn(96, cols, generator=generator)
        self.rows = rows
        self.matrix = nn.Parameter(every[rows.start : rows.stop].clone())
        self.vector = nn.Parameter(torch.randn(8, generator=generator))

    def train(self, optimizer, steps, scale=1.0):
        """Take steps with gradients whose elements differ by orders of magnitude."""
        generator = torch.Generator().manual_seed(1)
        sizes = torch.randn(96, self.matrix.shape[1], generator=generator).mul(scale).exp()
        for step in range(steps):
            whole = sizes * torch.randn(sizes.shape, generator=generator)
            optimizer.params[0].grad = whole[self.rows.start : self.rows.stop]
            optimizer.params[1].grad = torch.randn(8, generator=generator)
            optimizer.step(plan_at(SETTINGS, step))
        return self.matrix.detach()


@pytest.mark.parametrize(("scale", "most"), [(0.0, 0.03), (1.0, 0.04), (3.0, 0.2)])
def test_weights_move_as_by_adamw_whatever_the_sizes_of_gradients_in_a_block(scale, most):
    """No update is large because a small second moment was read as 0."""
    first, exact, coded = Weights(), Weights(), Weights()
    by_adamw = exact.train(Optimizer(exact, TrainSettings(20, 1, 1e-2)), 20, scale)
    by_codes = coded.train(Optimizer(coded, SETTINGS), 20, scale)
    moved = (by_adamw - first.matrix).norm()
    assert (by_codes - by_adamw).norm() <= most * moved
    assert torch.equal(coded.vector, exact.vector), "what is small has moments in fp32"


def test_a_state_of_zeros_stays_one_where_there_is_no_gradient():
    model = Weights()
    optimizer = Optimizer(model, SETTINGS)
    before = model.matrix[0].clone()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step(plan_at(SETTINGS, 19))
    rate = plan_at(SETTINGS, 19).rates["matrix"]
    torch.testing.assert_close(model.matrix[0], before * (1 - rate * SETTINGS.weight_decay))


@pytest.mark.parametrize("ranks", [2, 5])
def test_ranks_that_keep_rows_of_a_model_have_the_bits_of_one(ranks, monkeypatch):
    """Also if a parameter is updated in many parts."""
    whole = Weights()
    one = Optimizer(whole, SETTINGS)
    weights, state = whole.train(one, 5), one.state_tensors()
    monkeypatch.setattr(adamw8bit, "AT_ONCE", 1000)
    found = dict.fromkeys(state, 0)
    for rank in range(ranks):
        rows = own_rows(96, rank, ranks)
        part = Weights(rows)
        held = {
            "matrix": Held(whole.matrix.shape, (Run(rows.start * 96, 0, len(rows) * 96),)),
            "vector": Held(whole.vector.shape, (Run(0, 0, 8),), saved=rank == 0),
        }
        own = OwnParts(dict(part.named_parameters()), held)
        optimizer = Optimizer(part, SETTINGS, rank=rank, world_size=ranks, own=own)
        assert torch.equal(part.train(optimizer, 5), weights[rows.start : rows.stop])
        for piece in optimizer.pieces():
            assert torch.equal(piece.values, piece.within(state[piece.name])), piece.name
            found[piece.name] += piece.values.numel() * piece.saved
    assert found == {name: tensor.numel() for name, tensor in state.items()}


def test_rows_without_blocks_have_moments_in_fp32():
    optimizer = Optimizer(Weights(cols=97), SETTINGS)
    assert {tensor.dtype for tensor in optimizer.state_tensors().values()} == {torch.float32}


@pytest.mark.usefixtures("untraced")
def test_the_memory_plan_has_the_bytes_of_the_state():
    work = Workload(SHAPE, 16, "float32", "adamw8bit", "cuda", documents=False)
    found = predict_memory(work, micro_batch=1, recompute=False)
    model = Decoder(SHAPE)
    state = sum(tensor.nbytes for tensor in Optimizer(model, SETTINGS).state_tensors().values())
    rounding = 3 * ROUNDED_TO * len(list(model.parameters()))
    assert state <= found.optimizer <= 1.02 * state + rounding
    assert state <= 0.27 * 8 * model.num_params(), "a quarter of AdamW's"


def test_the_bytes_of_a_step_are_those_that_are_counted(monkeypatch):
    monkeypatch.setattr(adamw8bit, "AT_ONCE", 2**16)
    for rows in (96, 3072):
        with FakeTensorMode(), LiveBytes("cpu", {}) as live:
            model = nn.ParameterDict({"matrix": torch.empty(rows, 96)})
            optimizer = Optimizer(model, SETTINGS)
            optimizer.params[0].grad = torch.empty(rows, 96)
            start, live.history = live.live, []
            optimizer.step(plan_at(SETTINGS, 0))
        ratio = AdamW8bit.step_bytes([torch.Size((rows, 96))]) / (max(live.history) - start)
        assert 0.97 <= ratio <= 1.1  # the memory plan adds 3 %
