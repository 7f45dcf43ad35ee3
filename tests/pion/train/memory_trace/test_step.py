"""The trace of a step, without a card and without a driver.

tests/cuda_rehearsal/test_memory.py compares traces with whole steps on a pretended card.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.train.memory import Workload
from pion.train.memory_trace.request import Traced
from pion.train.memory_trace.step import StepTrace
from tests.support.waiting import run_to_end

TINY = ModelConfig(
    d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=160, vocab_size=512, seq_len=256
)


def traced(
    config: ModelConfig = TINY, *, compiled: bool = False, lora: Lora | None = None
) -> Traced:
    work = Workload(
        config, config.seq_len, "bfloat16", "adamw", "cuda", False, compile=compiled, lora=lora
    )
    return work.traced()


@pytest.mark.parametrize("compiled", [False, True])
def test_layers_of_one_structure_are_measured_once_and_each_adds_the_same(compiled: bool) -> None:
    kept = []
    for layers in (2, 3, 4):
        trace = StepTrace(traced(replace(TINY, n_layers=layers), compiled=compiled))
        assert len(set(trace.blocks)) == 1
        kept.append(trace.peaks(8, recompute=False).activations)
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0


def test_recomputed_blocks_keep_less_and_compiled_ones_too() -> None:
    eager, compiled = (StepTrace(traced(compiled=compiled)) for compiled in (False, True))
    kept = eager.peaks(8, recompute=False).activations
    assert eager.peaks(8, recompute=True).activations < 0.6 * kept
    assert compiled.peaks(8, recompute=False).activations < kept


def test_lora_keeps_no_gradients_of_frozen_weights() -> None:
    trace = StepTrace(traced(lora=Lora(rank=4)))
    assert trace.peaks(4, recompute=False).activations > 0


def test_a_trace_leaves_torch_as_it_was() -> None:
    autocast = torch.is_autocast_enabled("cuda")
    StepTrace(traced()).peaks(2, recompute=True)
    assert torch.is_autocast_enabled("cuda") == autocast
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()
    assert weight.grad is not None
    assert type(weight.grad) is torch.Tensor


FORKS_AFTER_A_TRACE = """
import os, torch
from tests.pion.train.memory_trace.test_step import StepTrace, traced
StepTrace(traced())
torch.ones(1, requires_grad=True).sum().backward()
child = os.fork()
if not child:
    torch.ones(1, requires_grad=True).sum().backward()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_that_is_forked_after_a_trace_can_train() -> None:
    run_to_end([sys.executable, "-c", FORKS_AFTER_A_TRACE], check=True)
