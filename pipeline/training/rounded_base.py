"""Measure what `sft.lora.base_dtype: bfloat16` costs, before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pion.data.stream import RowStream
    from pion.data.tokenizer import Tokenizer
    from pion.model.decoder import Decoder
    from pion.train.settings import ComputePlan
    from pipeline.training.context import TrainingContext


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

    from pion.evaluate import Scorer
    from pion.model.lora_projections import round_weights
    from pion.train.heldout import evaluate

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
