"""An optimizer over several ranks: the bits of one rank, and each of Muon's moments once."""

from functools import cache

import pytest
import torch
from torch import Tensor

from pion.config.lora import Lora
from pion.model.decoder import Decoder
from pion.model.lora_projections import add_lora
from pion.train.optimizer import shared_muon
from pion.train.optimizer.optimizer import Optimizer
from pion.train.phases import Phase
from pion.train.schedule import plan_at
from pion.train.settings import TrainSettings
from tests.families.families import FAMILIES
from tests.support.ranks import ask_ranks
from tests.support.tiny_config import tiny_config

STEPS = 3
MUON = {"optimizer": "muon"}
# The last band and the embedding stand still at first, and then everything learns.
PHASES = (Phase(until=2, rates={"embedding": 0.0}, only_bands=(0,)), Phase())


CASES = {
    "adamw": (tiny_config(), {}),
    "adamw8bit": (tiny_config(d_model=64, vocab_size=320), {"optimizer": "adamw8bit"}),
    "muon": (tiny_config(), MUON),
    "muon, bf16": (tiny_config(), MUON),
    "experts": (FAMILIES["tachyon"].config(), MUON),
    "primitives": (FAMILIES["pilon"].config(), MUON),
    "phases": (FAMILIES["pilon"].config(), {**MUON, "phases": PHASES}),
    "lora": (tiny_config(), {}),
}


def run(case, rank=0, world_size=1) -> tuple[dict[str, Tensor], Optimizer]:
    """Take some steps with gradients that are equal on all ranks; return the weights."""
    config, given = CASES[case]
    torch.manual_seed(0)
    model = Decoder(config)
    if case == "lora":
        add_lora(model, Lora(rank=4), seed=0)
    settings = TrainSettings(**{"steps": STEPS, "global_batch": 4, "lr": 1e-2} | given)
    dtype = torch.bfloat16 if "bf16" in case else torch.float32
    optimizer = Optimizer(model, settings, dtype, rank=rank, world_size=world_size)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        for param in optimizer.params:
            param.grad = torch.randn(param.shape, generator=generator) / 100
        optimizer.step(plan_at(settings, step, config))
    return {name: param.detach() for name, param in model.named_parameters()}, optimizer


@cache
def run_alone(case) -> tuple[dict[str, Tensor], Optimizer]:
    return run(case)


def compare(rank, world_size):
    """Return what differs from a process that does all, by case."""
    differs = {}
    for case in CASES:
        ours, optimizer = run(case, rank, world_size)
        alone, whole = run_alone(case)
        names = [name for name in alone if not torch.equal(ours[name], alone[name])]
        state = whole.state_tensors()
        pieces = optimizer.pieces()
        names += [p.name for p in pieces if not torch.equal(p.within(state[p.name]), p.values)]
        differs[case] = {
            "names": names,
            "layout": shapes(state) != shapes(optimizer.state_tensors()),
            "counts": optimizer.counts() != whole.counts(),
            "saved": sum(piece.values.numel() for piece in pieces if piece.saved),
            "by Muon": sum(p.values.numel() for p in pieces if p.name.endswith(".momentum")),
            "all": sum(tensor.numel() for tensor in state.values()),
            "all by Muon": sum(t.numel() for n, t in state.items() if n.endswith(".momentum")),
        }
    return differs


def shapes(tensors):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@pytest.fixture(
    scope="module",
    params=[
        (2, False),
        (3, True),
        pytest.param((2, True), marks=pytest.mark.soak),
        pytest.param((3, False), marks=pytest.mark.soak),
    ],
    ids=lambda given: f"{given[0]}{' in rounds' * given[1]}",
)
def ranks(request, tmp_path_factory):
    """What each of several ranks has seen, which work in one round or in many small ones."""
    world_size, in_rounds = request.param
    for case in CASES:
        run_alone(case)  # the ranks are forks, and have it
    with pytest.MonkeyPatch.context() as patch:
        if in_rounds:
            patch.setattr(shared_muon, "BATCH_ELEMENTS", 20_000)
        return ask_ranks(
            lambda rank, _: compare(rank, world_size), tmp_path_factory.mktemp("ranks"), world_size
        )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_weights_and_moments_have_the_bits_of_one_rank(ranks, case):
    """AdamW computes each element for itself. Muon's matrices are orthogonalized whole: the
    products of a batch do not depend on the others in the batch."""
    assert [rank[case]["names"] for rank in ranks] == [[] for _ in ranks]


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_has_the_tensors_of_one_rank(ranks, case):
    assert not any(rank[case]["layout"] or rank[case]["counts"] for rank in ranks)


@pytest.mark.parametrize("case", CASES)
def test_each_moment_is_saved_once_and_no_rank_has_many_more_of_muons_than_its_share(ranks, case):
    assert sum(rank[case]["saved"] for rank in ranks) == ranks[0][case]["all"]
    momentum, whole = [rank[case]["by Muon"] for rank in ranks], ranks[0][case]["all by Muon"]
    assert sum(momentum) == whole
    assert max(momentum) <= 1.3 * whole / len(ranks)
