"""The trace of a step, without a card and without a driver.

tests/cuda_rehearsal/test_memory.py compares traces with whole steps on a pretended card.
"""

import sys
from dataclasses import replace

import pytest
import torch

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.train.memory_trace.stand_ins import _efficient_takes_fewer_keys
from pion.train.memory_trace.step import StepTrace
from pion.train.workload import Workload
from tests.support.waiting import run_to_end

TINY = ModelConfig(
    d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=160, vocab_size=512, seq_len=256
)


def traced(config=TINY, *, dtype="bfloat16", compiled=False, lora=None, sequences=None):
    rows = {"documents": sequences is not None, "sequences": sequences or 0}
    how = {"compile": compiled, "lora": lora}
    return Workload(config, config.seq_len, dtype, "adamw", "cuda", **rows, **how).traced()


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_layers_of_one_structure_each_add_the_same(compiled):
    kept = [
        StepTrace(traced(replace(TINY, n_layers=layers), compiled=compiled))
        .peaks(8, recompute=False)
        .activations
        for layers in (2, 3, 4)
    ]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0


def test_recomputed_blocks_keep_less_and_compiled_ones_too():
    eager, compiled = (StepTrace(traced(compiled=compiled)) for compiled in (False, True))
    kept = eager.peaks(8, recompute=False).activations
    assert eager.peaks(8, recompute=True).activations < 0.6 * kept
    assert compiled.peaks(8, recompute=False).activations < kept


def test_attention_in_fp32_keeps_no_scores():
    """The first trace of a process finds out which heads torch's kernel takes."""
    _efficient_takes_fewer_keys.cache_clear()
    short, long = (
        StepTrace(traced(replace(TINY, seq_len=length), dtype="float32"))
        .peaks(2048 // length, recompute=False)
        .activations
        for length in (256, 2048)
    )
    assert long <= 1.02 * short


@pytest.mark.soak
def test_lora_keeps_no_gradients_of_frozen_weights():
    trace = StepTrace(traced(lora=Lora(rank=4)))
    assert trace.peaks(4, recompute=False).activations > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiled", "lora"),
    [
        (False, None),
        pytest.param(True, Lora(rank=4), marks=pytest.mark.soak),
        pytest.param(True, None, marks=pytest.mark.soak),
        pytest.param(False, Lora(rank=4), marks=pytest.mark.soak),
    ],
)
def test_a_step_of_preferences_needs_no_more_than_one_of_conversations(compiled, lora):
    """Its gradients by the head are made in the backward pass, instead of the forward pass."""
    large = replace(TINY, vocab_size=8192)
    usual, ours = (
        StepTrace(traced(large, compiled=compiled, lora=lora, sequences=sequences)).peaks(
            8, recompute=False
        )
        for sequences in (0, 8)
    )
    most = max(usual.forward, usual.backward)
    assert 0.9 * most < max(ours.forward, ours.backward) < 1.02 * most
    assert (ours.backward > ours.forward) == (lora is None)


@pytest.mark.soak
def test_more_answers_in_a_row_need_the_memory_of_their_sums():
    few, many = (
        StepTrace(traced(sequences=count)).peaks(8, recompute=False) for count in (1024, 2048)
    )
    # Each product of a token and a mask is there in fp32 and in fp64.
    assert many.forward - few.forward >= 1024 * 8 * TINY.seq_len * (4 + 8)


def test_a_trace_leaves_torch_as_it_was():
    autocast = torch.is_autocast_enabled("cuda")
    StepTrace(traced()).peaks(2, recompute=True)
    assert torch.is_autocast_enabled("cuda") == autocast
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()
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


@pytest.mark.soak
def test_a_process_that_is_forked_after_a_trace_can_train():
    run_to_end([sys.executable, "-c", FORKS_AFTER_A_TRACE], check=True)


def test_a_row_may_have_any_number_of_answers():
    """Labels come one by one. A step pads them to a power of two, as the trace does."""
    five, eight = (StepTrace(traced(sequences=count)).peaks(8, recompute=False) for count in (5, 8))
    assert five == eight
