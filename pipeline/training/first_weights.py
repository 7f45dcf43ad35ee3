"""The weights that a stage starts with: another model's, the previous stage's, or random."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pion.config.lora import read_record, require_base
from pipeline.job.model_section import Base
from pipeline.job.stages import WORDS
from pipeline.models.bring import bring_model
from pipeline.models.find import found_in
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import BASES, bring_base

if TYPE_CHECKING:
    from torch import Tensor

    from pion.config.lora import Adapter, BaseModel
    from pion.config.model_config import ModelConfig
    from pion.data.stream import RowStream
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.model.decoder import Decoder
    from pion.model.saved_weights import Saved
    from pion.train.settings import ComputePlan
    from pipeline.training.context import TrainingContext


def first_model(context: TrainingContext, stage: str) -> tuple[Decoder, str]:
    """Return the model that `stage` starts from, and its origin in words."""
    import torch

    from pion.model.decoder import Decoder
    from pion.model.saved_weights import Tensors

    config, weights, why = _start(context, stage)
    if weights is not None:
        return Decoder.from_state(config, dict(Tensors(weights))), why
    torch.manual_seed(context.job.seed)
    return Decoder(config), why


def first_parts(context: TrainingContext, stage: str) -> tuple[Decoder, Saved | None, str]:
    """Return the model that `stage` starts from, for ranks that each keep a part of it.

    As `first_model`, but the weights are read where a rank needs them: parameters of the model are
    on the device `meta`. None instead of weights: the model has them all, on each rank. So it is if
    the model has a part that learns from it (ModelConfig.alone).
    """
    import torch

    from pion.model.lazy_weights import lazily_drawn
    from pion.model.saved_weights import without_values

    config = context.job.model_config_resolved()
    if config.alone != config:
        model, why = first_model(context, stage)
        return model, None, why
    config, weights, why = _start(context, stage)
    if weights is not None:
        return without_values(config), weights, why
    torch.manual_seed(context.job.seed)
    return *lazily_drawn(config), why


def _start(context: TrainingContext, stage: str) -> tuple[ModelConfig, Saved | None, str]:
    """Return the settings of the model that `stage` starts from, its weights, which are read when
    they are needed (None: random ones), and its origin in words."""
    from pipeline.models.load import fitted, load_model_lazily

    job, before = context.job, context.job.stage_before(stage)
    config = job.model_config_resolved()
    if job.base is not None and stage == job.train_stages[0]:
        weights = fitted(config, _base_lazily(context, job.base), job.seed)
        return config, weights, f"starts from {job.base}"
    if before is None:
        return config, None, "starts from random weights"
    _, folder = context.fetch(lambda: _bring_trained(context.run, before))
    own, weights = load_model_lazily(found_in(folder))
    return own, weights, f"starts from the {WORDS[before].after} model"


def _base_lazily(context: TrainingContext, base: Base) -> Saved:
    """Return the weights of the model that the run starts from, as in the run's store."""
    from pion.formats.load import load_lazily

    return load_lazily(context.fetch(lambda: bring_base(context.run.store, base.hash)))[1]


def frozen_base(
    context: TrainingContext, stage: str, before: Before | None = None
) -> tuple[ModelConfig, Saved, BaseModel]:
    """Return the model that LoRA adapts in `stage`: its settings, its weights, which are read when
    they are needed, and its identity in fp32.

    A stage that trains the additions of the one `before` further has the same base.

    Raises BadInput for another base than the additions before are of.
    """
    from pion.formats.load import identify, load_lazily
    from pipeline.models.load import fitted

    job = context.job
    continued = job.lora_before(stage)
    if continued is not None:
        assert before is not None
        earlier = adapter_before(context, continued)
        config, weights, identity = frozen_base(context, continued, earlier)
        recorded = before.adapter.base
        require_base(recorded, str(identity.sha256), f"the {WORDS[continued].after} model")
        return config, weights, recorded
    trained = job.stage_before(stage)
    if trained is not None:
        key, folder = context.fetch(lambda: _bring_trained(context.run, trained))
        own, weights = load_lazily(folder)
        return own, weights, identify(weights, key)
    assert job.base is not None  # the first stage with LoRA starts from something
    config, whole = job.model_config_resolved(), _base_lazily(context, job.base)
    return config, fitted(config, whole), identify(whole, f"{BASES}/{job.base.hash}")


@dataclass(frozen=True)
class Before:
    """The final checkpoint of a stage with LoRA: what it says of its adapter, and its folder."""

    adapter: Adapter
    folder: Path

    def additions(self) -> dict[str, Tensor]:
        """Return what LoRA adds to the base, mapped from the checkpoint. Raises BadInput."""
        from pion.formats.model_tensors import read_adapter_tensors

        return read_adapter_tensors(self.folder)


def adapter_before(context: TrainingContext, stage: str) -> Before | None:
    """Return the checkpoint whose additions LoRA trains further in `stage`; None if it begins with
    new ones. To bring it may hash it and its base, so a start does this once."""
    continued = context.job.lora_before(stage)
    if continued is None:
        return None
    _, folder = context.fetch(lambda: _bring_trained(context.run, continued))
    recorded = read_record(folder)
    assert recorded is not None
    return Before(recorded, folder)


def _bring_trained(run: RunState, stage: str) -> tuple[str, Path]:
    """Return the key and the folder of the final checkpoint of a finished stage.

    Of the ranks on one machine, only the first one hashes its files, and only if they are new.
    """
    head = run.read()
    assert head is not None
    key = head.stages[stage].checkpoint
    assert key is not None
    return key, bring_model(run, head, key, once=True)


# Of training, parts of a new model see so many rows.
FIRST_ROWS = 2048


def show_first_rows(model: Decoder, rows: RowStream) -> None:
    """Let parts of a new model set what the first rows of training decide, on every rank alike."""
    import torch

    def first() -> Tensor:
        known = range(min(FIRST_ROWS, rows.total_rows))
        return torch.cat([torch.from_numpy(rows.row(i).tokens) for i in known])

    for part in model.shared_parts():
        part.read_rows(first)


def cost_of_rounding(
    context: TrainingContext,
    base: tuple[ModelConfig, Saved],
    held_out: RowStream,
    tokenizer: Tokenizer,
    plan: ComputePlan,
) -> str:
    """Return the held-out loss of `base` before and after it is rounded to bfloat16, in words.

    Both are computed in fp32, on the rows of the job's evaluations. Every rank calls this. Nothing
    is left of the models.
    """
    before, after = _losses_of_rounding(context, base, held_out, tokenizer, plan)
    # The modules of a sharded model refer to each other. The stage needs their memory.
    context.free_memory()
    return f"rounded to bfloat16: held-out loss {before:.4f} → {after:.4f}"


def _losses_of_rounding(
    context: TrainingContext,
    base: tuple[ModelConfig, Saved],
    held_out: RowStream,
    tokenizer: Tokenizer,
    plan: ComputePlan,
) -> list[float]:
    from pion.evaluation.held_out import Scorer, evaluate

    rows = range(min(context.job.evaluate.rows, held_out.total_rows))
    losses = []
    for model, measuring in _before_and_after_rounding(context, base, plan):
        scorer = Scorer(model, tokenizer.vocab_size, plan.micro_batch)
        with measuring:
            found = evaluate(
                scorer,
                held_out,
                rows,
                tokenizer.end_of_text,
                rank=context.group.rank,
                world_size=plan.world_size,
            )
        losses.append(found.loss)
        context.watchdog.restart()
    return losses


def _before_and_after_rounding(
    context: TrainingContext, base: tuple[ModelConfig, Saved], plan: ComputePlan
) -> Iterator[tuple[Decoder, AbstractContextManager[None]]]:
    """Yield the model in fp32 on its device, and what it is measured in; and again when it is
    rounded."""
    import torch

    from pion.model.decoder import Decoder
    from pion.model.lora_projections import weights_of_products
    from pion.model.parameters import round_to_bfloat16
    from pion.model.saved_weights import Rounded, Tensors, without_values

    config, weights = base
    if not plan.sharded:
        model = Decoder.from_state(config, dict(Tensors(weights))).to(torch.device(plan.device))
        yield model, nullcontext()
        round_to_bfloat16(model, weights_of_products(model))
        yield model, nullcontext()
        return
    from pion.train.sharding import sharded

    model = without_values(config)
    names = weights_of_products(model)
    shards = sharded(model, weights, dataclasses.replace(plan, dtype="float32"), context.group.rank)
    yield model, shards.measuring()
    shards.fill(Rounded(weights, names), names)
    yield model, shards.measuring()
