"""An optimizer over several ranks: each has the bits that one rank alone would have."""

from functools import cache

import pytest
import torch
from torch import Tensor

from pion.config.lora import Lora
from pion.model.decoder import Decoder
from pion.model.lora_projections import add_lora
from pion.train.optimizer import muon_rounds
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
        state, moments = whole.state_tensors(), optimizer.state_tensors()
        names += [name for name in state if not torch.equal(moments[name], state[name])]
        differs[case] = names + ["counts"] * (optimizer.counts() != whole.counts())
        assert moments.keys() == state.keys()
        assert not optimizer.pieces()
    return differs


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
            patch.setattr(muon_rounds, "BATCH_ELEMENTS", 20_000)
        return ask_ranks(
            lambda rank, _: compare(rank, world_size), tmp_path_factory.mktemp("ranks"), world_size
        )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_weights_and_moments_have_the_bits_of_one_rank(ranks, case):
    """Muon's matrices are orthogonalized whole: the products of a batch do not depend on the others
    in the batch."""
    assert [rank[case] for rank in ranks] == [[] for _ in ranks]
