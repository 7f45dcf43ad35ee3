"""The memory that `predict_memory` predicts, compared with every storage on a pretended card.

The predictions leave out the reserve, because the pretended card has no context and its kernels
allocate nothing inside themselves.
"""

import pytest

from pion.config.presets import PRESETS
from pion.train.memory import predict_memory
from pion.train.workload import Workload
from tests.cuda_rehearsal.memory_traces import BOTH_STAGES, MICRO_BATCHES, SUITE, read_peaks
from tests.cuda_rehearsal.pretended_card import CARDS

PROGRAM = "tests.cuda_rehearsal.memory_traces"
MOST = 1.25  # a prediction is never under the peak, and never over by more than this


@pytest.fixture(scope="module")
def suite(run_on_pretended_card):
    return read_peaks("suite", run_on_pretended_card(PROGRAM, "suite"))


def predicted(trace):
    work = Workload(
        trace.config,
        trace.config.seq_len,
        trace.dtype,
        trace.optimizer,
        "cuda",
        trace.documents,
        lora=trace.lora,
        only_apart=trace.only_apart,
        capability=CARDS[trace.card].capability,
        sequences=trace.sequences,
        ranks=trace.ranks,
    )
    return predict_memory(work, micro_batch=trace.micro_batch, recompute=trace.recompute)


def ratio(trace, peak):
    return predicted(trace).counted / peak.size


def wrong(peaks):
    """Return the traces with a wrong prediction, both by parts, as text."""
    text = ""
    for trace, peak in peaks.items():
        if not 1 <= ratio(trace, peak) <= MOST:
            text += (
                f"\n{trace}: {ratio(trace, peak):.4f} of {peak.size:,} bytes; {predicted(trace)}"
            )
            text += "".join(f"\n  {size:15,} {line}" for line, size in peak.lines.items())
    return text


def test_the_prediction_is_never_under_the_peak_and_at_most_25_percent_over(suite):
    assert not wrong(suite), wrong(suite)
    assert len(suite) == len(SUITE) == 4


@pytest.mark.soak
def test_the_prediction_holds_for_more_steps(run_on_pretended_card):
    peaks = read_peaks("more", run_on_pretended_card(PROGRAM, "more"))
    assert not wrong(peaks), wrong(peaks)
    assert len(peaks) == 39


@pytest.mark.soak
@pytest.mark.parametrize("name", ["both stages", "more of both stages"])
def test_preferences_need_no_more_than_conversations_of_as_many_tokens(run_on_pretended_card, name):
    """The reference is numbers, and no second model is in memory."""
    peaks = read_peaks(name, run_on_pretended_card(PROGRAM, name))
    assert not wrong(peaks), wrong(peaks)
    for usual, ours in BOTH_STAGES[name]:
        assert 0.8 < peaks[ours].size / peaks[usual].size <= 1.02, ours
        assert ratio(ours, peaks[ours]) <= 1.1, ours


def test_each_phase_of_a_step_is_the_largest_in_some_trace():
    largest = set()
    for trace in SUITE:
        found = predicted(trace)
        phases = {name: getattr(found, name) for name in ("loss", "backward", "update")}
        largest.add(max(phases, key=lambda name: phases[name]))
    assert largest == {"loss", "backward", "update"}


@pytest.mark.soak
@pytest.mark.parametrize("rows", MICRO_BATCHES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_prediction_holds_for_every_preset(run_on_pretended_card, preset, rows):
    name = f"{preset} {rows}"
    peaks = read_peaks(name, run_on_pretended_card(PROGRAM, name))
    assert not wrong(peaks), wrong(peaks)
