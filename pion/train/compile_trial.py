"""Find out whether the compiler works, before a training needs it: compile one block of the model.

A broken compiler is so found in seconds, and not after the data has arrived.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from pion.config.model_config import ModelConfig
from pion.model.attention.masks import flexible, needs_masks
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.train.hardware import configure, torch_dtype
from pion.train.settings import ComputePlan
from pion.train.smaller_plan import StepDown, free_memory, step_down


@dataclasses.dataclass(frozen=True)
class Trial:
    """The block to compile: that of a model, for micro-batches of rows of `seq_len` tokens.

    `documents`: the rows are packed conversations, or their tokens see only their own document.
    """

    config: ModelConfig
    seq_len: int
    documents: bool


def try_compiler(trial: Trial, plan: ComputePlan) -> list[StepDown]:
    """Compile a block forward and backward by the plan, and by the next smaller plan while this
    fails. Return the changes of the plan, in their order; none if nothing failed or is compiled.

    Raises what compiling raises if no smaller plan helps.
    """
    changes: list[StepDown] = []
    device = torch.device(plan.device)
    configure(plan)
    masked = needs_masks(trial.config, documents=trial.documents)
    while plan.compile:
        flex = masked and flexible(trial.config, device.type)
        try:
            compile_block(trial, plan)
            break
        except torch.OutOfMemoryError:
            break  # a training finds the rows that fit
        except Exception as error:
            change = step_down(plan, error, uses_flex=flex)
            if change is None:
                raise
        # Here the error is gone, and with its traceback the tensors of the block.
        free_memory(device)
        plan = change.plan
        configure(plan)
        changes.append(change)
    free_memory(device)
    return changes


def compile_block(trial: Trial, plan: ComputePlan) -> None:
    """Run the first block of the model forward and backward, compiled if the plan says so.

    The shapes are those of a training step, so the step need not compile this block again.
    """
    device = torch.device(plan.device)
    model = _first_block(trial.config, device)
    tokens = torch.zeros(plan.micro_batch, trial.seq_len, dtype=torch.int64, device=device)
    numbers = torch.zeros_like(tokens) if trial.documents else None
    bf16 = torch_dtype(plan.dtype) == torch.bfloat16
    options = StepOptions(
        recompute=plan.recompute, compiled=plan.compile, residual=torch_dtype(plan.residual)
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        hidden = model.hidden(tokens, positions=numbers, documents=numbers, options=options)
        hidden.sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_block(config: ModelConfig, device: torch.device) -> Decoder:
    """Return a model of one block, with made-up weights. Only these weights are in memory."""
    with torch.device("meta"):
        model = Decoder(config)
    model.blocks = nn.ModuleList([model.blocks[0]])
    model.draft = None
    model.to_empty(device=device)
    with torch.no_grad():
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.02)
        for buffer in model.buffers():
            buffer.zero_()
    return model.train()
