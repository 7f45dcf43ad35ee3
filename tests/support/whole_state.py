"""The state of a trainer with all tensors whole, whatever the number of ranks."""

import json

import torch
import torch.distributed as dist

from pion.train.trainer import TrainState


def whole_state(trainer):
    """Return a copy of the state after the last step, with what is no tensor through JSON.

    Every rank of the trainer calls this.
    """
    live = trainer.state()
    every = live.model | live.optimizer
    if trainer.plan.world_size > 1:
        every |= joined({n: each for n, each in every.items() if each.is_meta}, live.pieces)
    return TrainState(
        model={name: every[name].clone() for name in live.model},
        optimizer={name: every[name].clone() for name in live.optimizer},
        meta=json.loads(json.dumps(live.meta, allow_nan=False)),
    )


def trained_and_resumed(unbroken, resumed, steps, more) -> tuple[TrainState, TrainState]:
    """Train one, save it, and train on; train the other from what was saved. Return both ends.

    Rank 0 alone reads what was saved, unless ranks keep parts.
    """
    train(unbroken, steps)
    saved = whole_state(unbroken)
    train(unbroken, more)
    reads = resumed.rank == 0 or resumed.plan.sharded
    resumed.load(saved if reads else None)
    train(resumed, more)
    return whole_state(unbroken), whole_state(resumed)


def train(trainer, steps):
    for _ in range(steps):
        assert trainer.train_step()


def same(one, other):
    """Return whether two states have the same bits."""
    pairs = (one.model, other.model), (one.optimizer, other.optimizer)
    return all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
        for ours, theirs in pairs
    )


def joined(layout, pieces):
    """Return whole tensors like those of `layout` from the pieces of all ranks."""
    by_rank = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, list(pieces))
    whole = {name: torch.empty_like(each, device="cpu") for name, each in layout.items()}
    missing = {name: tensor.numel() for name, tensor in whole.items()}
    for piece in (piece for pieces in by_rank for piece in pieces):
        piece.within(whole[piece.name]).copy_(piece.values)
        missing[piece.name] -= piece.values.numel()
    assert not any(missing.values()), missing  # each element has one owner
    return whole
