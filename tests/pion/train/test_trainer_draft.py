"""Training a draft block alone: nothing else moves, and nothing else has moments."""

import pytest
import torch

from pion.config.lora import Lora
from pion.model.draft_block import block_of
from pion.model.lora_projections import adapted, additions, merge
from pion.model.params_and_flops import cost_of, token_flops
from pion.train.phases import Phase, only_apart
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import open_stream, run
from tests.support.ranks import ask_ranks
from tests.support.tiny_config import drawn, tiny_config
from tests.support.whole_state import same, trained_and_resumed

CONFIG = tiny_config(draft={"steps": 2, "ids": 30})
STEPS = 8
ALONE = (Phase(rates={"draft": 1.0, "others": 0.0}),)
SETTINGS = {"steps": STEPS, "global_batch": 6, "lr": 1e-2, "phases": ALONE}


def make(stream, *, seed=0, rank=0, world_size=1, **settings):
    plan = ComputePlan(micro_batch=2, threads=1, world_size=world_size)
    model = drawn(CONFIG, seed)
    if seed:  # the ids must come from the checkpoint, too
        block = block_of(model)
        block.ids.add_(9)
    return Trainer(model, stream, TrainSettings(**SETTINGS | settings), plan, rank=rank)


def norms(metrics):
    """Return the norm of the block's gradient in each step. It does not depend on micro-batches."""
    return [row["grad_norm"] for row in metrics]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_block_learns_and_every_other_tensor_keeps_its_bits(text, optimizer):
    trainer = make(text, optimizer=optimizer)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    first, *_, last = [sum(row["draft_loss"]) for row in run(trainer, STEPS)]
    assert last < first
    after = trainer.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("draft.")} - {"draft.ids"}


def test_only_the_block_has_moments_and_the_checkpoint_has_the_whole_model(text):
    trainer = make(text)
    run(trainer, 1)
    state = trainer.state()
    learned = [name for name, _ in trainer.model.named_parameters() if name.startswith("draft.")]
    moments = {f"{name}.{moment}" for name in learned for moment in ("exp_avg", "exp_avg_sq")}
    assert state.optimizer.keys() == moments
    assert state.model.keys() == trainer.model.state_dict().keys()


@pytest.mark.parametrize(
    ("phases", "alone"),
    [
        (ALONE, True),
        (ALONE * 2, True),
        ((), False),
        ((*ALONE, Phase()), False),
        ((Phase(rates={"draft": 1.0, "others": 0.0, "vector": 0.1}),), False),
        ((Phase(rates={"matrix": 0.0, "embedding": 0.0, "vector": 0.0}),), True),
    ],
)
def test_the_block_is_trained_alone_if_no_phase_trains_anything_else(phases, alone):
    assert only_apart(phases, CONFIG) is alone
    assert not only_apart(phases, tiny_config())


def test_under_lora_a_state_has_the_additions_alone_and_fits_the_base(text):
    model = adapted(drawn(CONFIG), Lora(rank=4), seed=0, dtype=torch.float32)
    settings = TrainSettings(**SETTINGS | {"phases": ()})
    trainer = Trainer(model, text, settings, ComputePlan(micro_batch=2, threads=1))
    assert trainer.train_step()
    learned = trainer.state().model
    assert learned.keys() == additions(model).keys()
    merged, base = merge(model), drawn(CONFIG)
    kept, own = merged.state_dict(), base.state_dict()
    learned_before = [name for name in own if name.startswith("draft.")]
    assert learned_before
    assert all(torch.equal(kept[name], own[name]) for name in learned_before)


# ---------------------------------------------------------------- arithmetic


def test_a_block_alone_has_no_backward_pass_through_the_model():
    plain, block = token_flops(tiny_config(), 24), cost_of(CONFIG).apart_macs
    width = 128  # 8/3 of 32, in steps of 64
    assert block == 2 * (2 * 32 * 32 + 3 * 32 * width + 30 * 32)
    alone = token_flops(CONFIG, 24, only_apart=True)
    assert alone.forward == plain.forward + 2 * block
    assert alone.backward == 4 * block
    together = token_flops(CONFIG, 24)
    assert together.forward == alone.forward
    assert together.backward == plain.backward + 4 * block


def test_mfu_counts_what_is_computed(text):
    flops = []
    for phases in (ALONE, ()):
        (row,) = run(make(text, phases=phases), 1)
        flops.append(row["mfu"] / row["tokens_per_second"])  # of a token, over the peak
    alone, whole = (token_flops(CONFIG, 24, only_apart=only) for only in (True, False))
    assert flops[0] / flops[1] == pytest.approx(alone.total / whole.total)


# ---------------------------------------------------------------- several ranks


def work(rank, folder):
    stream = open_stream(folder / f"data{rank}")
    trainer = make(stream, rank=rank, world_size=2)
    resumed = make(stream, seed=5 + rank, rank=rank, world_size=2)
    ends = trained_and_resumed(trainer, resumed, 3, STEPS - 3)
    buckets = trainer._gradients.buckets
    return {
        "norms": norms(trainer.drain_metrics()),
        "exchanged": buckets.nbytes == 4 * cost_of(CONFIG).params["draft"],
        "same": same(*ends),
    }


@pytest.mark.slow
def test_two_ranks_follow_one_exchange_the_block_alone_and_resume_bit_for_bit(tmp_path, text):
    ranks = ask_ranks(work, tmp_path, 2)
    assert ranks[0]["norms"] == pytest.approx(norms(run(make(text), STEPS)), rel=1e-5)
    assert ranks[0] == ranks[1]
    assert ranks[0]["same"]
    assert ranks[0]["exchanged"]
