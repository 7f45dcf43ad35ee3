"""The memory that `predict_memory` predicts, compared with every storage on a pretended card.

The predictions leave out the reserve, because the pretended card has no context and its kernels
allocate nothing inside themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from pion.config.presets import PRESETS
from pion.model import params_and_flops as cost
from pion.model.attention.attention import Attention
from pion.model.feedforward.dense import SwiGLU
from pion.model.feedforward.experts import Experts
from pion.model.norm_and_projection import RMSNorm
from pion.model.skips_and_value_tables import ValueTables, Wiring
from pion.train import memory
from pion.train.memory import Memory, Workload, predict_memory
from tests.cuda_rehearsal.memory_traces import MICRO_BATCHES, SUITE, Peak, Trace, read_peaks
from tests.cuda_rehearsal.pretended_card import CARDS

PROGRAM = "tests.cuda_rehearsal.memory_traces"
MOST = 1.15  # a prediction is never under the peak, and never over by more than this

Peaks = dict[Trace, Peak]


@pytest.fixture(scope="module")
def suite(run_on_pretended_card: Callable[..., str]) -> Peaks:
    return read_peaks("suite", run_on_pretended_card(PROGRAM, "suite"))


def predicted(trace: Trace) -> Memory:
    work = Workload(
        trace.config,
        trace.config.seq_len,
        trace.dtype,
        trace.optimizer,
        "cuda",
        trace.documents,
        lora=trace.lora,
        only_draft=trace.only_draft,
        capability=CARDS[trace.card].capability,
        ranks=trace.ranks,
    )
    return predict_memory(work, micro_batch=trace.micro_batch, recompute=trace.recompute)


def ratio(trace: Trace, peak: Peak) -> float:
    return predicted(trace).counted / peak.size


def wrong(peaks: Peaks) -> str:
    """Return the traces with a wrong prediction, both by parts, as text."""
    text = ""
    for trace, peak in peaks.items():
        if not 1 <= ratio(trace, peak) <= MOST:
            text += (
                f"\n{trace}: {ratio(trace, peak):.4f} of {peak.size:,} bytes; {predicted(trace)}"
            )
            text += "".join(f"\n  {size:15,} {line}" for line, size in peak.lines.items())
    return text


@contextmanager
def planted(owner: Any, name: str, change: Callable[[int], int]) -> Iterator[None]:
    """Change what a part states as its cost."""
    stated = getattr(owner, name)
    remembered = [f for f in vars(cost).values() if hasattr(f, "cache_clear")]

    def forget() -> None:
        for function in remembered:
            function.cache_clear()

    forget()
    with mock.patch.object(owner, name, lambda *a, **k: change(stated(*a, **k))):
        yield
    forget()


def test_the_prediction_is_never_under_the_peak_and_at_most_15_percent_over(suite: Peaks) -> None:
    assert not wrong(suite), wrong(suite)
    assert len(suite) == len(SUITE) == 34


def test_each_phase_of_a_step_is_the_largest_in_some_trace() -> None:
    largest = set()
    for trace in SUITE:
        found = predicted(trace)
        phases = {name: getattr(found, name) for name in ("loss", "backward", "update")}
        largest.add(max(phases, key=lambda name: phases[name]))
    assert largest == {"loss", "backward", "update"}


# What each of these states is needed, so a part that forgets tensors shows.
STATED = [
    (RMSNorm, "kept_bytes"),
    (SwiGLU, "kept_bytes_per_token"),
    (SwiGLU, "backward_bytes"),
    (Attention, "kept_bytes_per_token"),
    (Experts, "kept_bytes_per_token"),
    (Experts, "backward_bytes"),
    (Wiring, "kept_bytes_per_token"),
    (ValueTables, "kept_bytes_per_token"),
    (memory, "loss_bytes"),
    (memory, "step_bytes"),
]


@pytest.mark.parametrize(
    ("owner", "name"), STATED, ids=[f"{o.__name__}.{name}" for o, name in STATED]
)
def test_a_part_that_forgets_half_is_found(suite: Peaks, owner: Any, name: str) -> None:
    with planted(owner, name, lambda size: size // 2):
        assert any(ratio(trace, peak) < 1 for trace, peak in suite.items())


@pytest.mark.soak
@pytest.mark.parametrize("rows", MICRO_BATCHES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_prediction_holds_for_every_preset(
    run_on_pretended_card: Callable[..., str], preset: str, rows: int
) -> None:
    name = f"{preset} {rows}"
    peaks = read_peaks(name, run_on_pretended_card(PROGRAM, name))
    assert not wrong(peaks), wrong(peaks)
