"""The model that a stage trains, whole or in parts, with or without LoRA's additions."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from pipeline.state.checkpoints.restore import Loaded
    from pipeline.training.context import TrainingContext
    from pipeline.training.stage_data import StageData


def stage_model(
    context: TrainingContext,
    stage: str,
    data: StageData,
    plan: ComputePlan,
    saved: Loaded | None,
) -> tuple[Decoder, Saved | None, str, Adapter | None]:
    """Return the model to train, its weights if it has none itself, where they come from, and what
    LoRA trains of it.

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
        return model, weights, why, None
    config = context.job.config_after(context.job.stage_before(stage))
    if plan.sharded:
        return without_values(config), None, "", None
    model = Decoder.from_state(config, saved.model) if saved else Decoder(config)
    return model, None, "", None


def with_additions(
    context: TrainingContext,
    stage: str,
    data: StageData,
    plan: ComputePlan,
    saved: Loaded | None,
) -> tuple[Decoder, Saved | None, str, Adapter]:
    """Return a frozen base with LoRA's additions, as the stage starts with them: new ones, or those
    of the stage before; and the base's weights if it has none itself. It is found again for each
    attempt.

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
        return model, weights, why, Adapter(lora, identity)
    whole = Decoder.from_state(config, dict(Tensors(weights)))
    model = adapted(whole, lora, seed=seed, dtype=dtype, tensors=added)
    return model, None, why, Adapter(lora, identity)


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

    present, specials = set(data.train.row(0).tokens.tolist()), data.tokenizer.special_ids
    shown = {token: text for text, token in specials.items() if token in present}
    warning = never_stops(Tensors(base[1])["embed.weight"], shown)
    return words if warning is None else f"{words}. Warning: {warning}"
