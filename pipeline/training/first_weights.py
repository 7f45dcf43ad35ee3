"""The weights that a stage starts with: another model's, the previous stage's, or random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pion.config.draft import require_learned
from pion.config.lora import is_adapter, read_record, require_base
from pipeline.job.model_section import Base
from pipeline.job.stages import AFTER
from pipeline.models.bring import bring_model
from pipeline.models.find import find_model
from pipeline.models.load import fitted
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import BASES, bring_base

if TYPE_CHECKING:
    from torch import Tensor

    from pion.config.lora import Adapter, BaseModel
    from pion.config.model_config import ModelConfig
    from pion.data.stream import RowStream
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.model.decoder import Decoder
    from pion.train.optimizer.state_pieces import Saved
    from pion.train.settings import ComputePlan
    from pipeline.training.context import TrainingContext


def first_model(context: TrainingContext, stage: str) -> tuple[Decoder, str]:
    """Return the model that `stage` starts from, the same on every rank, and its origin in words.

    Raises BadInput if `init_from` names a model that does not fit the job.
    """
    import torch

    from pion.model.decoder import Decoder

    job, source = context.job, context.job.section(stage).init_from
    if source is not None:
        from pipeline.models.load import load_model

        found = load_model(context.fetch(lambda: find_model(job.model_name(source))))
        warning = ", whose ternary weights are already rounded" if found.config.packed else ""
        model = fitted(job.model_config_resolved(), found, source, job.seed)
        return model, f"starts from {source}{warning}"
    if job.base is not None and stage == job.train_stages[0]:
        found = _brought_base(context, job.base)
        model = fitted(job.model_config_resolved(), found, job.base.source, job.seed)
        return model, f"starts from {job.base}"
    before = job.stage_before(stage)
    if before is not None:
        from pipeline.models.load import load_model_in

        _, folder = context.fetch(lambda: _bring_trained(context.run, before))
        return load_model_in(folder), f"starts from the {AFTER[before]} model"
    torch.manual_seed(job.seed)
    return Decoder(job.model_config_resolved()), "starts from random weights"


def first_parts(context: TrainingContext, stage: str) -> tuple[Decoder, Saved | None, str]:
    """Return the model that `stage` starts from, for ranks that each keep a part of it.

    As `first_model`, but the weights are read where a rank needs them: parameters of the model are
    on the device `meta`. None instead of weights: the model has them all, on each rank. So it is if
    the job sets `init_from`, if the model has a draft block, and if LoRA made the model.
    """
    job, before = context.job, context.job.stage_before(stage)
    section, config = job.section(stage), job.model_config_resolved()
    from_base = job.base is not None and stage == job.train_stages[0]
    if section.init_from is None and config.draft is None:
        if from_base:
            return _parts_of_base(context, config)
        if before is None:
            return _drawn_parts(job.seed, config)
        _, folder = context.fetch(lambda: _bring_trained(context.run, before))
        if not is_adapter(folder):
            return *_parts_in(folder), f"starts from the {AFTER[before]} model"
    model, why = first_model(context, stage)
    return model, None, why


def _drawn_parts(seed: int, config: ModelConfig) -> tuple[Decoder, Saved, str]:
    import torch

    from pion.model.drawn_later import drawn_later

    torch.manual_seed(seed)
    return *drawn_later(config), "starts from random weights"


def _parts_of_base(context: TrainingContext, config: ModelConfig) -> tuple[Decoder, Saved, str]:
    from pion.formats.load import load_state
    from pion.train.optimizer.state_pieces import Whole
    from pipeline.models.load import fitted_state

    base = context.job.base
    assert base is not None
    found = load_state(context.fetch(lambda: bring_base(context.run.store, base.hash)))
    state = fitted_state(config, found, base.source, context.job.seed)
    return without_values(config), Whole(state), f"starts from {base}"


def _parts_in(folder: Path) -> tuple[Decoder, Saved]:
    """Return the model of a checkpoint's folder, and its weights."""
    from pion.config.model_config import ModelConfig
    from pion.formats.load import CONFIG
    from pion.formats.parts import MODEL, read_saved
    from pion.formats.weights import read_settings

    config = ModelConfig.from_dict(read_settings(folder / CONFIG, "a model"))
    return without_values(config), read_saved(folder, MODEL)


def without_values(config: ModelConfig) -> Decoder:
    """Return a model whose weights are still to be read: they are on the device `meta`."""
    import torch

    from pion.model.decoder import Decoder

    with torch.device("meta"):
        return Decoder(config)


def _brought_base(context: TrainingContext, base: Base) -> Decoder:
    """Return the model that the run starts from, as it is in the run's store."""
    from pion.formats.load import load_decoder

    return load_decoder(context.fetch(lambda: bring_base(context.run.store, base.hash)))


def frozen_base(
    context: TrainingContext, stage: str, before: Before | None = None
) -> tuple[Decoder, BaseModel]:
    """Return the model that LoRA adapts in `stage`, in fp32, and its identity.

    A stage that trains the additions of the one `before` further has the same base.

    Raises BadInput if `init_from` names a model that does not fit the job, or an adapter, and for a
    draft block that this model does not have.
    """
    from pion.formats.load import identify, load_decoder
    from pipeline.models.load import check_start, load_model

    job, source = context.job, context.job.section(stage).init_from
    continued = job.lora_before(stage)
    if continued is not None:
        assert before is not None
        model, identity = frozen_base(context, continued, adapter_before(context, continued))
        recorded = before.adapter.base
        require_base(recorded, str(identity.sha256), f"the {AFTER[continued]} model")
        return model, recorded
    if job.base is not None and stage == job.train_stages[0]:
        whole = _brought_base(context, job.base)
        identity = identify(whole, f"{BASES}/{job.base.hash}")
        return fitted(job.model_config_resolved(), whole, job.base.source), identity
    trained = job.stage_before(stage)
    if source is None and trained is not None:
        key, folder = context.fetch(lambda: _bring_trained(context.run, trained))
        pretrained = load_decoder(folder)
        return pretrained, identify(pretrained, key)
    assert source is not None  # the first stage with LoRA starts from something
    found = context.fetch(lambda: find_model(job.model_name(source)))
    check_start(found, source, lora_of=stage)
    model = load_model(found)
    config = job.model_config_resolved()
    require_learned(config.draft, model.config.draft, config.vocab_size)
    base = identify(model, job.model_name(source, found.commit), found.commit)
    return fitted(config, model, source), base


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


# The draft block's ids are those that are most frequent in so many rows of training.
COUNTED_ROWS = 2048


def count_draft_ids(model: Decoder, rows: RowStream) -> None:
    """Set which ids a new draft block guesses, the same on every rank: the most frequent ones."""
    import torch

    from pion.model.draft_block import most_frequent

    if model.draft is None or model.draft.ids is None:
        return
    known = range(min(COUNTED_ROWS, rows.total_rows))
    tokens = torch.cat([torch.from_numpy(rows.row(i).tokens) for i in known])
    ids = most_frequent(tokens, len(model.draft.ids), model.config.vocab_size)
    model.draft.ids.copy_(ids)


def cost_of_rounding(
    context: TrainingContext,
    base: Decoder,
    held_out: RowStream,
    tokenizer: Tokenizer,
    plan: ComputePlan,
) -> str:
    """Round `base` to bfloat16; return its held-out loss before and after it, in words.

    Both are computed in fp32, on the rows of the job's evaluations. Every rank calls this.
    """
    import torch

    from pion.evaluation.held_out import Scorer, evaluate
    from pion.model.lora_projections import round_weights

    base.to(torch.device(plan.device))
    scorer = Scorer(base, tokenizer.vocab_size, plan.micro_batch)
    rows = range(min(context.job.evaluate.rows, held_out.total_rows))
    losses = []
    for rounds in (False, True):
        if rounds:
            round_weights(base)
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
    base.cpu()
    return f"rounded to bfloat16: held-out loss {losses[0]:.4f} → {losses[1]:.4f}"
