"""A card that can't do all that a job asks for: one message each, or a plan that fits the card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cuda_rehearsal.report import handed_back


@pytest.fixture(scope="module")
def said(run_on_pretended_card: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = handed_back(
        run_on_pretended_card("tests.cuda_rehearsal.odd_cards")
    )
    return found


def test_a_card_without_kernels_in_torch_is_refused(said: dict[str, dict[str, Any]]) -> None:
    assert said["no kernels"]["code"] == 2
    message = said["no kernels"]["refused"]
    assert "no kernels for Tesla V100-SXM2-16GB, which has compute capability 7.0" in message
    assert "Install a torch that was built for this GPU" in message


def test_a_card_without_bf16_trains_in_fp32(said: dict[str, dict[str, Any]]) -> None:
    assert (said["no bf16"]["device"], said["no bf16"]["dtype"]) == ("cuda", "float32")
    assert said["no bf16"]["note"] == (
        "the Tesla T4 has no bf16 arithmetic, so this stage computes in fp32"
    )


def test_bf16_on_such_a_card_is_obeyed_with_a_warning(said: dict[str, dict[str, Any]]) -> None:
    found = said["no bf16, asked for"]
    assert found["dtype"] == "bfloat16"
    assert "Set hardware.dtype=auto" in found["note"]


def test_six_gigabytes_train_a_small_model_and_refuse_a_large_one(
    said: dict[str, dict[str, Any]],
) -> None:
    assert said["6 GB, small model"]["micro_batch"] >= 1
    assert said["6 GB, large model"]["code"] == 2
    message = said["6 GB, large model"]["refused"]
    assert "the model does not fit: training on one row of 1024 tokens needs" in message
    assert "of this machine's 6.0 GiB can be used" in message
    assert "Use a larger machine, a smaller model or a shorter data.seq_len" in message


def test_a_mig_slice_has_its_own_memory_and_no_peak_of_the_whole_card(
    said: dict[str, dict[str, Any]],
) -> None:
    assert said["slice"]["peak"] is None
    assert said["slice"]["micro_batch"] < said["whole card"]["micro_batch"]


def test_two_different_cards_compute_alike(said: dict[str, dict[str, Any]]) -> None:
    found = said["next to a T4"]
    assert (found["dtype"], found["micro_batch"]) == ("float32", 1)
    assert said["whole card"]["dtype"] == "bfloat16"


def test_a_driver_that_ends_in_a_step_is_named_wherever_it_is_met(
    said: dict[str, dict[str, Any]],
) -> None:
    """In the step, in the thread that waits for a save, and at the end of training."""
    line = "CUDA error: unspecified launch failure"
    assert said["the driver ends"] == {"failures": [line] * 3, "step": 1}
