"""Training LoRA's additions: the base has no gradient, no moments, no bucket and no snapshot."""

import pytest
import torch

from pion.config.lora import Lora, lora_cost
from pion.errors import BadInput
from pion.model import loss as loss_module
from pion.model.lora_projections import adapted, additions
from pion.model.params_and_flops import flops_per_token, token_flops
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import open_stream, run
from tests.support.ranks import ask_ranks
from tests.support.tiny_config import drawn, tiny_config
from tests.support.whole_state import same, trained_and_resumed, whole_state

STEPS = 8
BIASED = tiny_config(heads={"qkv_bias": True})
SETTINGS = {"steps": STEPS, "global_batch": 6, "lr": 1e-2, "weight_decay": 0.0}


def make(stream, *, seed=0, rank=0, **plan):
    compute = ComputePlan(**{"micro_batch": 2, "threads": 1} | plan)
    dtype = torch.bfloat16 if compute.dtype == "bfloat16" else torch.float32
    model = adapted(drawn(BIASED), Lora(rank=4), seed=seed, dtype=dtype)
    return Trainer(model, stream, TrainSettings(**SETTINGS), compute, rank=rank)


def steps(trainer, number):
    return [row["loss"] for row in run(trainer, number)]


def test_a_state_has_only_the_additions_and_their_moments(text):
    trainer = make(text)
    steps(trainer, 1)
    state, names = trainer.state(), additions(trainer.model).keys()
    assert state.model.keys() == names
    moments = {f"{name}.{moment}" for name in names for moment in ("exp_avg", "exp_avg_sq")}
    assert state.optimizer.keys() == moments
    assert [id(param) for param in trainer.optimizer.params] == [
        id(param) for param in trainer.model.parameters() if param.requires_grad
    ]


def test_training_changes_the_additions_alone_and_lowers_the_loss(text):
    trainer = make(text)
    before = drawn(BIASED).state_dict()
    losses = steps(trainer, STEPS)
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.any() for tensor in additions(trainer.model).values())
    assert losses[-1] < losses[0]


def test_the_heads_gradient_is_not_even_computed(text, monkeypatch):
    computed = []
    plain = loss_module._plain

    def watched(given, *, into, **options):
        computed.append(tuple(gradient is not None for gradient in into))
        return plain(given, into=into, **options)

    monkeypatch.setattr(loss_module, "_plain", watched)
    steps(make(text), 1)
    assert set(computed) == {(True, False)}


def test_mfu_counts_no_gradients_of_frozen_weights(text):
    lora = make(text)
    whole = Trainer(drawn(BIASED), text, TrainSettings(**SETTINGS), lora.plan)
    config, flops = lora.model.config, []
    for trainer in (lora, whole):
        (row,) = run(trainer, 1)
        flops.append(row["mfu"] / row["tokens_per_second"])  # of a token, over the peak
    expected = token_flops(config, config.seq_len, lora_cost(config, Lora(rank=4)).params)
    share = expected.total / flops_per_token(config, config.seq_len)
    assert flops[0] / flops[1] == pytest.approx(share)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", [{"dtype": "bfloat16", "recompute": True}, pytest.param({}, marks=pytest.mark.soak)]
)
def test_a_resumed_run_ends_with_the_same_bits(text, plan):
    unbroken, resumed = make(text, **plan), make(text, seed=99, **plan)
    assert same(*trained_and_resumed(unbroken, resumed, 3, STEPS - 3))


def test_a_state_of_the_whole_model_is_refused(text):
    plan = ComputePlan(micro_batch=2, threads=1)
    whole = Trainer(drawn(BIASED), text, TrainSettings(**SETTINGS), plan)
    with pytest.raises(BadInput, match="it belongs to a different model"):
        make(text).load(whole_state(whole))


# ---------------------------------------------------------------- several ranks


def work(rank, folder):
    stream = open_stream(folder / f"data{rank}")
    trainer = make(stream, rank=rank, world_size=2)
    resumed = make(stream, seed=5 + rank, rank=rank, world_size=2)
    ends = trained_and_resumed(trainer, resumed, 3, STEPS - 3)
    alone = make(stream)
    steps(alone, 3)
    hopped = make(stream, seed=7 + rank, rank=rank, world_size=2)
    hopped.load(whole_state(alone) if rank == 0 else None)
    buckets = trainer._gradients.buckets
    numbers = sum(tensor.numel() for tensor in trainer.state().model.values())
    return {
        "losses": [row["loss"] for row in trainer.drain_metrics()],
        "same": same(*ends),
        "hopped": steps(hopped, STEPS - 3),
        "exchanged": buckets.nbytes == 4 * numbers,
    }


@pytest.mark.soak
def test_two_ranks_follow_one_exchange_the_additions_alone_and_resume_bit_for_bit(tmp_path, text):
    """So does a run that hops from one rank to two."""
    ranks = ask_ranks(work, tmp_path, 2)
    alone = steps(make(text), STEPS)
    assert ranks[0]["losses"] == pytest.approx(alone, rel=1e-5)
    assert ranks[0]["hopped"] == pytest.approx(alone[3:], rel=1e-5)
    for rank in ranks:
        assert rank["losses"] == ranks[0]["losses"]
        assert rank["exchanged"]
        assert rank["same"]


# ---------------------------------------------------------------- compiled


def test_all_blocks_share_one_compilation_behind_a_frozen_embedding(text, compilations):
    trainer = make(text, compile=True)
    plain = make(text)
    assert steps(trainer, 2) == pytest.approx(steps(plain, 2), rel=1e-5)
    assert len(compilations) == 1
