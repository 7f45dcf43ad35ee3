"""The card's plot takes whatever was measured, and smooths it without lag."""

import math

import pytest

from pipeline.report.plots import loss_plot, running_mean
from tests.pipeline.report.test_page_data import METRICS

PNG = b"\x89PNG\r\n\x1a\n"


ODD = {
    "pretrain": [{"step": 1, "epoch": 1, "loss": 3.0}],
    "sft": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}],
    "prefer": [
        {"step": 1, "held_out_loss": 3.0},
        {"step": 1, "sample": {"prompt": "", "text": ""}},
    ],
}


def test_the_plot_takes_whatever_was_measured_and_is_the_same_again():
    assert loss_plot({"pretrain": []}).startswith(PNG)
    assert loss_plot(ODD | METRICS).startswith(PNG)
    odd = loss_plot(ODD)
    assert odd.startswith(PNG)
    assert loss_plot(ODD) == odd


def test_the_smoothed_curve_does_not_lag_behind_a_falling_one():
    falling = [float(value) for value in range(100, 0, -1)]
    smooth = running_mean(falling, 9)
    assert smooth[4:-4] == pytest.approx(falling[4:-4])
    assert len(smooth) == len(falling)
    assert running_mean(falling, 1) == falling
