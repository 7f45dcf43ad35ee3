"""Several processes train like one process: same rows, same losses, same decisions."""

import hashlib
from functools import partial

import pytest
import torch
import torch._inductor  # noqa: F401

from pion.errors import BadInput
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import open_stream, run, tiny_decoder
from tests.support.ranks import ask_ranks
from tests.support.sharded_trainers import STOPPED, stop_on_rank_1
from tests.support.whole_state import whole_state

STEPS = 6  # more than all rows, of which there are 40

# 7 rows: no world size divides them, and conversations differ in how much of them is learned.
SETTINGS = {"steps": STEPS, "global_batch": 7, "lr": 1e-2, "warmup_steps": 2}


def make(stream, world_size, rank=0, seed=0, **fields):
    plan = ComputePlan(
        micro_batch=1, world_size=world_size, threads=1, deterministic=world_size > 1
    )
    return Trainer(tiny_decoder(seed), stream, TrainSettings(**SETTINGS | fields), plan, rank=rank)


def curve(trainer, steps=STEPS):
    wanted = ("step", "loss", "grad_norm", "tokens", "rows")
    return [{key: metrics[key] for key in wanted} for metrics in run(trainer, steps)]


def digest(trainer):
    state = whole_state(trainer)
    tensors = state.model | state.optimizer
    data = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    return hashlib.sha256(data).hexdigest() + f" step {trainer.step} row {trainer.next_row}"


def train_both_kinds(streams, world_size, rank):
    """The results that are compared between one process and several processes."""
    text = make(streams["text"], world_size, rank, optimizer="muon")
    conversations = make(streams["conversations"], world_size, rank)
    results = {"text": curve(text), "conversations": curve(conversations)}
    evaluation = conversations.evaluate(streams["conversations"], range(5, 20), 4, end_of_text=0)
    results["evaluation"] = vars(evaluation)
    results["digest"] = digest(text)
    return results


def stop_on_one_rank(streams, world_size, rank):
    trainer = make(streams["text"], world_size, rank)
    curve(trainer, 2)
    stopped = stop_on_rank_1(trainer)
    curve(trainer, 1)
    return {**stopped, "after": digest(trainer)}


def resume_from_rank_0(streams, world_size, rank):
    trainer = make(streams["text"], world_size, rank)
    curve(trainer, 2)
    saved = whole_state(trainer)
    curve(trainer, 3)
    resumed = make(streams["text"], world_size, rank, seed=50 + rank)
    resumed.load(saved if rank == 0 else None)
    curve(resumed, 3)
    refused = False
    try:
        make(streams["text"], world_size, rank, optimizer="muon").load(saved if rank == 0 else None)
    except BadInput:
        refused = True
    return {"unbroken": digest(trainer), "resumed": digest(resumed), "refused": refused}


def where_gradients_are(streams, world_size, rank):
    """Train two steps of several micro-batches; return where gradients were after each."""
    # What one rank drew counts for all.
    trainer = make(streams["text"], world_size, rank, seed=60 + rank)
    params, add = trainer.optimizer.params, trainer._gradients.add
    places = []

    def add_and_look(*arguments, **settings):
        result = add(*arguments, **settings)
        storages = [p.grad.untyped_storage() for p in params if p.grad is not None]
        places.append({storage.data_ptr(): storage.nbytes() for storage in storages})
        return result

    trainer._gradients.add = add_and_look
    curve(trainer, 2)
    return {
        "micro_batches": len(places),
        "moved": any(place != places[0] for place in places),
        "bytes": sum(places[0].values()),
        "expected": 4 * sum(param.numel() for param in params),
        "digest": digest(trainer),
    }


def open_both(folder):
    return {
        kind: open_stream(folder / kind, conversations=kind == "conversations")
        for kind in ("text", "conversations")
    }


def work(world_size, rank, folder):
    streams = open_both(folder / f"data{rank}")
    return {
        "training": train_both_kinds(streams, world_size, rank),
        "stop": stop_on_one_rank(streams, world_size, rank),
        "resume": resume_from_rank_0(streams, world_size, rank),
        "gradients": where_gradients_are(streams, world_size, rank),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(scope="module", params=[3, pytest.param(2, marks=pytest.mark.soak)])
def ranks(request, tmp_path_factory):
    """Return the results of each rank."""
    # Forks have imported torch already, and torch._inductor, which is imported where algorithms are
    # made deterministic. This takes most of the time of a new process.
    return ask_ranks(partial(work, request.param), tmp_path_factory.mktemp("ranks"), request.param)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return the results of the same training in one process."""
    return train_both_kinds(open_both(tmp_path_factory.mktemp("alone")), 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "conversations"])
def test_several_ranks_follow_the_loss_curve_of_one(ranks, alone, kind):
    ours, one = ranks[0]["training"][kind], alone[kind]
    assert len(ours) == STEPS
    for key in ("loss", "grad_norm"):
        assert [m[key] for m in ours] == pytest.approx([m[key] for m in one], rel=1e-5)
    for key in ("step", "rows", "tokens"):
        assert [m[key] for m in ours] == [m[key] for m in one]


def test_every_rank_reports_the_global_batch(ranks):
    for rank in ranks[1:]:
        assert rank["training"] == ranks[0]["training"]  # and ends with the same weights


def test_an_evaluation_split_over_ranks_equals_that_of_one_process(ranks, alone):
    # The weights differ by rounding after so many steps.
    found, expected = dict(ranks[0]["training"]["evaluation"]), dict(alone["evaluation"])
    assert all(found.pop(n) == expected.pop(n) == {} for n in ("measures", "by_source"))
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_stop_that_one_rank_asks_for_abandons_the_step_on_all(ranks):
    after = ranks[0]["stop"]["after"]
    assert [rank["stop"] for rank in ranks] == [{**STOPPED, "after": after}] * len(ranks)


def test_ranks_resume_from_rank_0s_state_bit_for_bit(ranks):
    """With three ranks, gradients must be added in the same order before and after the resume."""
    digests = [rank["resume"][run] for rank in ranks for run in ("unbroken", "resumed")]
    assert len(set(digests)) == 1


def test_a_refused_state_and_a_deterministic_plan_hold_on_every_rank(ranks):
    assert all(rank["resume"]["refused"] and rank["deterministic"] for rank in ranks)


def test_a_rank_has_one_set_of_gradients_in_one_place_for_all_micro_batches_and_steps(ranks):
    found = [rank["gradients"] for rank in ranks]
    assert len({each["micro_batches"] for each in found}) == 2  # 7 rows cannot be shared equally
    for each in found:
        assert not each["moved"]
        assert each["bytes"] == each["expected"]


def test_ranks_that_drew_different_weights_train_those_of_rank_0(ranks):
    assert len({rank["gradients"]["digest"] for rank in ranks}) == 1
