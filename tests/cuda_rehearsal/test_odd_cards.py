"""A card that can't do all that a job asks for: one message each, or a plan that fits the card.

tests/pion/train/test_card.py has what Pion says of a card without kernels or without bf16.
"""

import pytest

from tests.cuda_rehearsal.report import handed_back


@pytest.fixture(scope="module")
def said(run_on_pretended_card):
    return handed_back(run_on_pretended_card("tests.cuda_rehearsal.odd_cards"))


def test_six_gigabytes_train_a_small_model_and_refuse_a_large_one(said):
    assert said["6 GB, small model"]["micro_batch"] >= 1
    assert said["6 GB, large model"]["code"] == 2
    message = said["6 GB, large model"]["refused"]
    assert "the model does not fit: training on one row of 1024 tokens needs" in message
    assert "of this machine's 6.0 GiB can be used" in message
    assert "Use a larger machine, a smaller model or shorter rows (seq_len)" in message


def test_a_mig_slice_has_its_own_memory(said):
    assert said["slice"]["micro_batch"] < said["whole card"]["micro_batch"]


def test_two_different_cards_compute_alike(said):
    found = said["next to a T4"]
    assert (found["dtype"], found["micro_batch"]) == ("float32", 1)
    assert said["whole card"]["dtype"] == "bfloat16"


def test_a_driver_that_ends_in_a_step_is_named_wherever_it_is_met(said):
    """In the step, in the thread that waits for a save, and at the end of training."""
    line = "CUDA error: unspecified launch failure"
    assert said["the driver ends"] == {"failures": [line] * 3, "step": 1}
