"""The model that a stage trains, whole or in parts, with or without LoRA's additions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.state.shared.folder import WITH_ADDITIONS
from pipeline.training.first_weights import (
    adapter_before,
    cost_of_rounding,
    first_model,
    first_parts,
    frozen_base,
    show_first_rows,
)

if TYPE_CHECKING:
    from pion.config.lora import Adapter, Lora
    from pion.config.model_config import ModelConfig
    from pion.model.decoder import Decoder
    from pion.model.saved_weights import Saved
    from pion.train.settings import ComputePlan
    from pion.train.sharding import Shards
    from pipeline.state.checkpoints.restore import Loaded
    from pipeline.training.context import TrainingContext
    from pipeline.training.stage_data import StageData


@dataclass(frozen=True)
class StageModel:
    """The model that a stage starts from.

    Attributes:
        why: where its weights come from, in words.
        adapter: what LoRA trains of it; None: the whole model is trained.
        weights: the weights that the model itself lacks; None: it has them all.
        shards: this rank's part, if the ranks have divided the weights by now.
    """

    model: Decoder
    plan: ComputePlan
    why: str = ""
    adapter: Adapter | None = None
    weights: Saved | None = None
    shards: Shards | None = None

    def measuring(self) -> AbstractContextManager[None]:
        """Return what frees the weights that are gathered in the block."""
        return nullcontext() if self.shards is None else self.shards.measuring()

    def weights_sha256(self) -> str:
        """Return the hash of the weights, before they are divided: with LoRA, of the base and of
        what LoRA adds already."""
        from pion.model.lora_projections import B, additions
        from pion.model.parameters import tensors_sha256
        from pion.model.saved_weights import Tensors

        if self.adapter is None:
            own = self.model.state_dict()
            return tensors_sha256(own if self.weights is None else Tensors(self.weights, own))
        rounded = self.adapter.lora.base_dtype
        weights = str(self.adapter.base.sha256) + ("" if rounded is None else f" in {rounded}")
        added = additions(self.model)
        if any(bool(tensor.any()) for name, tensor in added.items() if name.endswith(f".{B}")):
            weights += f"{WITH_ADDITIONS}{tensors_sha256(added)}"
        return weights


def stage_model(
    context: TrainingContext,
    stage: str,
    data: StageData,
    plan: ComputePlan,
    saved: Loaded | None,
) -> StageModel:
    """Return the model to train.

    Of a stage that resumes, rank 0 has `saved` the checkpoint, and the trainer loads its weights.
    """
    from pion.model.decoder import Decoder
    from pion.model.saved_weights import without_values

    if context.job.lora(stage) is not None:
        return with_additions(context, stage, data, plan, saved)
    if not context.group.from_rank_0(saved is not None):
        if plan.sharded:
            model, weights, why = first_parts(context, stage)
        else:
            (model, why), weights = first_model(context, stage), None
        show_first_rows(model, data.train)
        return StageModel(model, plan, why, weights=weights)
    config = context.job.config_after(context.job.stage_before(stage))
    if plan.sharded:
        return StageModel(without_values(config), plan)
    return StageModel(Decoder.from_state(config, saved.model) if saved else Decoder(config), plan)


def with_additions(
    context: TrainingContext,
    stage: str,
    data: StageData,
    plan: ComputePlan,
    saved: Loaded | None,
) -> StageModel:
    """Return a frozen base with LoRA's additions, as the stage starts with them: new ones, or those
    of the stage before. The base is found again for each attempt.

    Raises BadInput on every rank if it is not the base of the checkpoint `saved`.
    """
    from pion.config.lora import Adapter, BaseModel, read_record, require_base
    from pion.model.decoder import Decoder
    from pion.model.lazy_lora import lazily_adapted
    from pion.model.lora_projections import adapted
    from pion.model.saved_weights import Tensors
    from pion.train.hardware import torch_dtype

    lora = context.job.lora(stage)
    assert lora is not None
    before = adapter_before(context, stage)
    config, weights, identity = frozen_base(context, stage, before)
    recorded = None
    if saved is not None:
        recorded = read_record(saved.folder) or Adapter(lora, BaseModel("an unknown base", ""))
    recorded = context.group.from_rank_0(recorded)
    why = f"adds LoRA of rank {lora.rank} to {identity.name}"
    if recorded is not None:
        require_base(recorded.base, str(identity.sha256), f"the newest checkpoint of {stage}")
    elif before is not None:
        continued = context.job.lora_before(stage)
        why = f"trains LoRA of {continued} further, of rank {lora.rank}, on {identity.name}"
    else:
        why += _about_base(context, data, (config, weights), plan, lora)
    seed, dtype = context.job.seed, torch_dtype(plan.dtype)
    added = None if before is None else before.additions()
    if plan.sharded:
        model, weights = lazily_adapted(
            config, weights, lora, seed=seed, dtype=dtype, tensors=added
        )
        return StageModel(model, plan, why, Adapter(lora, identity), weights)
    whole = Decoder.from_state(config, dict(Tensors(weights)))
    model = adapted(whole, lora, seed=seed, dtype=dtype, tensors=added)
    return StageModel(model, plan, why, Adapter(lora, identity))


def _about_base(
    context: TrainingContext,
    data: StageData,
    base: tuple[ModelConfig, Saved],
    plan: ComputePlan,
    lora: Lora,
) -> str:
    """Return what rounding costs the base, and a warning if LoRA can't teach it special tokens."""
    from pion.model.saved_weights import Tensors

    words = ""
    if lora.base_dtype is not None:
        words = f", {cost_of_rounding(context, base, data.held_out, data.tokenizer, plan)}"
    from pion.evaluation.untrained_rows import never_stops

    filling = {data.tokenizer.pad}.difference(data.chat_format.special.stop_ids)
    present = set(data.train.row(0).tokens.tolist()) - filling
    shown = {token: text for text, token in data.tokenizer.special_ids.items() if token in present}
    warning = never_stops(Tensors(base[1])["embed.weight"], shown)
    return words if warning is None else f"{words}. Warning: {warning}"
