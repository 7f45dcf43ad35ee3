"""Give a stage that learns from preferences the numbers of its reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pion.model.lora_projections import B, additions
from pion.model.parameters import tensors_sha256
from pion.model.saved_weights import Tensors
from pipeline.console.messages import Note
from pipeline.state.shared.folder import WITH_ADDITIONS
from pipeline.training.reference.compute import (
    StartingModel,
    bound_reference,
    make_reference,
    require_base,
    require_same,
)

if TYPE_CHECKING:
    from pion.config.lora import Adapter
    from pion.data.stream import RowStream
    from pion.model.decoder import Decoder
    from pion.model.saved_weights import Saved
    from pion.train.settings import ComputePlan
    from pion.train.sharding import Shards
    from pipeline.state.checkpoints.restore import Loaded
    from pipeline.training.context import TrainingContext
    from pipeline.training.reference.share import Bound


class Start(NamedTuple):
    """The model that a stage starts from, what LoRA adds to it, and how this machine computes.

    `weights` are those that the model lacks; None: it has them all.
    """

    model: Decoder
    adapter: Adapter | None
    plan: ComputePlan
    weights: Saved | None = None


def _starting(start: Start, context: TrainingContext) -> StartingModel:
    """Return the model that a stage starts from: with LoRA, the base, and what it adds already.

    The ranks of a sharded model get their parts of it.
    """
    model, _, plan, weights = start
    name = name_of(start)
    if not plan.sharded:
        return StartingModel(model, name, plan)
    from pion.train.hardware import configure
    from pion.train.sharding import sharded

    configure(plan)
    return StartingModel(model, name, plan, sharded(model, weights, plan, context.group.rank))


def name_of(start: Start) -> str:
    """Return the hash of the weights that a stage starts from."""
    model, adapter, _, saved = start
    if adapter is None:
        own = model.state_dict()
        return tensors_sha256(own if saved is None else Tensors(saved, own))
    rounded = adapter.lora.base_dtype
    weights = str(adapter.base.sha256) + ("" if rounded is None else f" in {rounded}")
    added = additions(model)
    if any(bool(tensor.any()) for name, tensor in added.items() if name.endswith(f".{B}")):
        weights += f"{WITH_ADDITIONS}{tensors_sha256(added)}"
    return weights


def with_reference(
    context: TrainingContext,
    streams: Mapping[str, RowStream],
    start: Start,
    saved: Loaded | None,
    *,
    resumes: bool,
) -> tuple[dict[str, RowStream], Bound, Shards | None]:
    """Return the streams of both splits with the numbers of the reference, these numbers, and the
    rank's part of the model if it was sharded to compute them.

    They are computed, or found, with the model that the stage starts from, and only then. A stage
    that `resumes` has the numbers that HEAD and its checkpoint name. Rank 0 has the checkpoint, and
    the weights of `start` are then of no use, but for a base of LoRA.
    """
    shards = None
    if resumes:
        bound = bound_reference(context, streams)
        require_same(context, bound, None if saved is None else saved.folder)
        if (note := _other_dtype(bound, start.plan)) is not None:
            context.report(Note(note))
        if start.adapter is not None:  # LoRA adds what it does at the start: this is the reference
            starting = _starting(start, context)
            require_base(context, streams, starting, bound)
            shards = starting.shards
    else:
        starting = _starting(start, context)
        bound = make_reference(context, streams, starting)
        shards = starting.shards
    splits = {split: bound.splits[split].in_stream(one) for split, one in streams.items()}
    return splits, bound, shards


def _other_dtype(bound: Bound, plan: ComputePlan) -> str | None:
    """Return what to say if this machine computes the model otherwise than the reference was."""
    settings = (
        ("hardware.dtype", bound.dtype, plan.dtype),
        ("hardware.residual", bound.residual, plan.residual),
    )
    other = [(name, before, now) for name, before, now in settings if before != now]
    if not other:
        return None
    words = ", ".join(f"{name} was {before} and is {now}" for name, before, now in other)
    back = " ".join(f"{name}={before}" for name, before, _ in other)
    return (
        f"warning: prefer resumes with a reference that was computed otherwise: {words}. The model "
        "and its reference now differ by rounding, too, so the loss jumps a little. The numbers of "
        f"the reference stay as they are. To train as before, stop and continue with {back}"
    )
