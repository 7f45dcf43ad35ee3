"""Give a stage that learns from preferences the numbers of its reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pion.data.preference.mismatched import require_mismatched
from pion.model.parameters import tensors_sha256
from pipeline.training.reference.compute import (
    StartingModel,
    bound_reference,
    make_reference,
    require_same,
)
from pipeline.training.reference.share import MISMATCHED

if TYPE_CHECKING:
    from pion.config.lora import Adapter
    from pion.data.stream import RowStream
    from pion.model.decoder import Decoder
    from pion.train.settings import ComputePlan
    from pipeline.state.checkpoints.restore import Loaded
    from pipeline.training.context import TrainingContext
    from pipeline.training.reference.share import Bound

# The model that a stage starts from, what LoRA adds to it, and how this machine computes.
Start = tuple["Decoder", "Adapter | None", "ComputePlan"]


def _starting(model: Decoder, adapter: Adapter | None, plan: ComputePlan) -> StartingModel:
    """Return the model that a stage starts from. LoRA's additions are 0 then, so it is the base."""
    if adapter is None:
        return StartingModel(model, tensors_sha256(model.state_dict()), plan)
    rounded = adapter.lora.base_dtype
    weights = str(adapter.base.sha256) + ("" if rounded is None else f" in {rounded}")
    return StartingModel(model, weights, plan)


def with_reference(
    context: TrainingContext,
    streams: Mapping[str, RowStream],
    start: Start | None,
    saved: Loaded | None,
) -> tuple[dict[str, RowStream], Bound]:
    """Return the streams of both splits with the numbers of the reference, and these numbers.

    If there are streams of mismatched rows, named as in MISMATCHED, they are those of the splits.
    Raises BadInput if these have too few sequences.

    They are computed, or found, with the model that the stage starts from, and only then. A stage
    that resumes (`start` is None) has the numbers that HEAD and its checkpoint name.
    """
    if start is None:
        bound = bound_reference(context, streams)
        require_same(context, bound, None if saved is None else saved.folder)
    else:
        bound = make_reference(context, streams, _starting(*start))
    if (others := bound.splits.get(MISMATCHED["train"])) is not None:
        require_mismatched(len(others.sums), len(bound.splits["train"].sums), "prefer")
    found = {split: bound.splits[split].in_stream(one) for split, one in streams.items()}
    return {
        split: found[split].with_mismatched(found.get(name)) for split, name in MISMATCHED.items()
    }, bound
