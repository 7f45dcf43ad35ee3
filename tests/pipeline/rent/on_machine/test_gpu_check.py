"""The check of rented GPUs before anything is trained on them."""

import pytest
import torch

from pipeline.rent.on_machine.boot_check import ANOTHER_MACHINE
from pipeline.rent.on_machine.gpu_check import check_gpus, main, worst_error


def test_a_device_that_computes_right_passes():
    assert worst_error(torch.device("cpu")) is None


def test_a_device_that_computes_wrong_is_found_out(monkeypatch):
    right = torch.Tensor.__matmul__
    results = []

    def wrong_the_second_time(a, b):
        results.append(right(a, b))
        if len(results) == 2:
            results[-1][17, 4] *= 2
        return results[-1]

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong_the_second_time)
    assert "float32 matrix product differs" in str(worst_error(torch.device("cpu")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_a_machine_whose_gpu_torch_cannot_use_is_left_for_another(capsys):
    assert main() == ANOTHER_MACHINE
    assert "finds no GPU that it can use" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_good_gpu_passes():
    assert "computed correctly" in check_gpus(1)
