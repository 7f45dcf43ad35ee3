"""The memory of a loss, as pion/model/loss.py states it, compared with a pretended card."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pion.model.loss import LossShape, loss_bytes
from pion.model.pass_kind import PassKind
from tests.cuda_rehearsal.loss_peaks import Loss, read_loss_peaks

pytestmark = pytest.mark.soak

MOST = 1.02  # the statement is never under, and never over by more than this


def stated(how: Loss) -> int:
    shape = LossShape(how.rows, how.d_model, how.vocab, how.cap is not None)
    width = 2 if how.bf16 else 4
    return loss_bytes(shape, PassKind(width, 2048, "cuda", compiled=how.compiled))


def test_a_loss_takes_what_it_states_plain_and_compiled(
    run_on_pretended_card: Callable[..., str],
) -> None:
    peaks = read_loss_peaks(run_on_pretended_card("tests.cuda_rehearsal.loss_peaks"))
    ratios = {how: stated(how) / peak for how, peak in peaks.items()}
    assert {how: ratio for how, ratio in ratios.items() if not 1 <= ratio <= MOST} == {}
    assert {how.compiled for how in peaks} == {False, True}
