"""Find out whether the compiler works, before a training needs it: compile one block of the model.

A broken compiler is so found in seconds, and not after the data has arrived. One that works may
still be wrong: torch 2.11 lost gradients of a block without a word, and the loss fell all the same.
So the gradients of the compiled block are compared with those of the block as it is written.
smaller_plan.py has what is given up, in which order.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.model.attention.masks import masked_by_flex
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.model.saved_weights import without_values
from pion.train.hardware import configure, torch_dtype
from pion.train.settings import ComputePlan
from pion.train.smaller_plan import StepDown, WrongGradients, free_memory, step_down

# Of the norm of a weight's gradient, the most that the compiled block's may differ. Rounding in
# bf16 makes up to 0.13 (six families, on a CPU); a lost gradient makes 1.
MOST_DIFFERENT = 0.5
# The gradient of a few numbers is a sum over all tokens, of which rounding may leave nothing.
FEW_NUMBERS = 64


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
    fails or its gradients are wrong. Return the changes of the plan, in their order; none if
    nothing was wrong, or nothing is compiled.

    Raises what compiling raises if no smaller plan helps.
    """
    changes: list[StepDown] = []
    device = torch.device(plan.device)
    configure(plan)
    while plan.compile:
        flex = masked_by_flex(trial.config, device, documents=trial.documents)
        try:
            _require_alike(compile_block(trial, plan), _as_written(trial, plan))
            break
        except torch.OutOfMemoryError:
            break  # a training finds the rows that fit
        except Exception as error:
            if (change := step_down(plan, error, uses_flex=flex)) is None:
                raise
        # Here the error is gone, and with its traceback the tensors of the block.
        free_memory(device)
        plan = change.plan
        configure(plan)
        changes.append(change)
    free_memory(device)
    return changes


def compile_block(trial: Trial, plan: ComputePlan) -> dict[str, Tensor]:
    """Run the first block of the model forward and backward, compiled if the plan says so; return
    the gradients by the weights. All weights and tokens are the same in each call.

    The shapes are those of a training step, so the step need not compile this block again.
    """
    device = torch.device(plan.device)
    drawn = torch.Generator(device).manual_seed(0)
    model = _first_block(trial.config, device, drawn)
    shape, vocab = (plan.micro_batch, trial.seq_len), trial.config.vocab_size
    tokens = torch.randint(vocab, shape, generator=drawn, device=device)
    numbers = torch.zeros_like(tokens) if trial.documents else None
    dtype = torch_dtype(plan.dtype)
    options = StepOptions(
        recompute=plan.recompute,
        compiled=plan.compile,
        residual=torch_dtype(plan.residual),
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model.hidden(tokens, positions=numbers, documents=numbers, options=options)
        weights = torch.cos(torch.arange(hidden.numel(), device=device)).view(hidden.shape)
        (hidden * weights).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }


def _as_written(trial: Trial, plan: ComputePlan) -> dict[str, Tensor]:
    """Return the gradients without anything that is compiled. Flex attention would be, and take
    seconds."""
    written = dataclasses.replace(plan, compile=False, flex_attention=False)
    configure(written)
    try:
        return compile_block(trial, written)
    finally:
        configure(plan)


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest difference of a weight's gradient, as a share of the expected norm, and
    the weight's name. A gradient that is missing is 0. NaN is as large as can be.
    """
    shares = {
        name: _share(found.get(name), gradient)
        for name, gradient in expected.items()
        if gradient.numel() >= FEW_NUMBERS
    }
    worst = max(shares, key=lambda name: shares[name])
    return shares[worst], worst


def _share(found: Tensor | None, expected: Tensor) -> float:
    difference = expected if found is None else found - expected
    share = float(difference.norm() / expected.norm().clamp(min=torch.finfo(torch.float32).tiny))
    return share if share == share else float("inf")


def _require_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise WrongGradients if the compiled gradients differ by more than rounding explains."""
    share, name = difference(found, expected)
    if share > MOST_DIFFERENT:
        raise WrongGradients(
            f"the compiler of torch {torch.__version__} computes wrong gradients: that of {name} "
            f"differs by {share:.0%} from that of the block as it is written"
        )


def _first_block(config: ModelConfig, device: torch.device, drawn: torch.Generator) -> Decoder:
    """Return a model of one block, with made-up weights. Only these weights are in memory."""
    model = without_values(config.alone)
    model.blocks = nn.ModuleList([model.blocks[0]])
    model.to_empty(device=device)
    with torch.no_grad():
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.02, generator=drawn)
        for buffer in model.buffers():
            buffer.zero_()
    return model.train()
