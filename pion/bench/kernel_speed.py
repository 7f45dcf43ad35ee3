"""The measurement of a kernel alone: flex attention over rows with slots."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pion.bench.models import STEP_TOKENS, Bench, check_model, row_tokens
from pion.bench.results import Outcome
from pion.config.model_config import ModelConfig
from pion.model.attention.attention import attend
from pion.model.attention.masks import Mask
from pion.model.attention.slot_entries import entries_of
from pion.model.attention.slot_masks import mask_of_rows
from pion.train.hardware import pick_dtype, torch_dtype

TIMES = 10


def measure_slots(bench: Bench) -> Outcome:
    """Attend forward and backward in one layer of Lepton-small, and causally in equal rows."""
    if not bench.on_cuda:
        return Outcome("left out", "flex attention has kernels only on CUDA")
    config = check_model("lepton", tiny=True) if bench.tiny else ModelConfig.preset("lepton-small")
    assert config.slots is not None
    tokens = row_tokens(config)
    rows = 2 if bench.tiny else STEP_TOKENS // tokens
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device=bench.device)
    entries = entries_of(config.slots, None, None, ids)
    slots, causal = mask_of_rows(config.slots, entries, flex=True), Mask(causal=True)
    dtype = pick_dtype("auto", bench.device)
    heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
    shapes = [(rows, count, entries.order.shape[1], config.head_dim) for count in heads]
    inputs = [
        torch.randn(shape, device=bench.device, dtype=torch_dtype(dtype)).requires_grad_()
        for shape in shapes
    ]
    with_slots, first = _timed(functools.partial(_both_passes, inputs, slots))
    plain, _ = _timed(functools.partial(_both_passes, inputs, causal))
    return Outcome(
        "measured",
        f"{1000 * with_slots:.2f} ms a layer, {with_slots / plain:.2f} times causal attention over "
        f"as many entries, {dtype}, compiled in {first:.0f} s",
        {
            "layer_seconds": with_slots,
            "causal_seconds": plain,
            "compile_seconds": first,
            "entries": entries.order.shape[1],
            "rows": rows,
            "dtype": dtype,
        },
    )


def _both_passes(inputs: list[Tensor], mask: Mask) -> None:
    query, key, value = inputs
    torch.autograd.grad(attend(query, key, value, mask, None).float().sum(), inputs)


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return the median seconds of `work`, and what the first call took longer."""
    seconds = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    usual = statistics.median(seconds[1:])
    return usual, max(0.0, seconds[0] - usual)
