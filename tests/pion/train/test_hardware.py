"""What Pion detects about a machine."""

import os
import subprocess
import sys
from itertools import accumulate, chain

import pytest
import torch

from pion.errors import BadInput
from pion.train import hardware
from pion.train.settings import ComputePlan

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA RTX A4000", 76.7),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.4),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 438.9),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 480.0),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
    ],
)
def test_a_gpu_is_known_by_the_name_cuda_gives_it(name, tflops):
    assert hardware.gpu_flops(name, "bfloat16") == tflops * 1e12


def test_gpus_without_bf16_or_not_in_the_table_have_no_figure_for_it():
    assert hardware.gpu_flops("Tesla V100-SXM2-16GB", "bfloat16") is None
    assert hardware.gpu_flops("Tesla V100-SXM2-16GB", "float32") == 15.7e12
    assert hardware.gpu_flops("NVIDIA T400", "float32") is None


def test_a_peak_that_was_measured_while_the_cpu_was_busy_is_measured_again(monkeypatch):
    measured = [1e9, 3e9, 2e9]
    monkeypatch.setattr(hardware, "_peaks", {})
    monkeypatch.setattr(hardware, "_measured_flops", lambda device, dtype: measured.pop(0))
    assert hardware.peak_flops(CPU, "float32", reached=0.8e9) == 1e9
    assert hardware.peak_flops(CPU, "float32", reached=1.6e9) == 3e9
    assert hardware.peak_flops(CPU, "float32", reached=2.9e9) == 3e9
    assert hardware.peak_flops(CPU, "float32", reached=3.5e9) == 3.5e9  # never above 100 % MFU
    assert hardware.peak_flops(CPU, "float32") == 3.5e9


def test_the_peak_is_measured_with_random_numbers(monkeypatch):
    """A GPU multiplies ones faster than the numbers of a training."""
    factors = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (torch.Tensor.matmul, torch.Tensor.__matmul__):
                factors.extend(args)
            return func(*args, **(kwargs or {}))

    before = torch.get_rng_state()
    with Watch():
        assert hardware._measured_flops(CPU, "float32") > 0
    assert factors
    assert all(factor.std() > 0.5 for factor in factors)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("took", "best"),
    [
        ([4.0, 3.3, 3.4, 3.9, 3.3, 3.6, 3.3, 3.34, 1.0], 3.3),
        ([12.0, 10.1, 9.1, 12.5, 15.2, 15.9, 3.3, 15.1, 8.2, 3.3, 3.31, 11.0, 3.3, 1.0], 3.3),
        ([n / 2 for n in range(70, 0, -1)], 3.5),  # 64 products, and no four agree
        ([400.0, 1.0], 400.0),
    ],
    ids=["quiet", "busy", "slower and slower programs", "emulated"],
)
def test_a_cpus_peak_is_measured_until_the_fastest_four_products_agree(took, best, monkeypatch):
    """Not until a product takes 1 ms."""
    turns = zip(accumulate([0.0, *took]), accumulate(took), strict=False)
    clock = iter([0.0, *chain.from_iterable(turns)])
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock) / 1000)
    found = hardware._measured_flops(CPU, "float32")
    assert found == pytest.approx(2 * 512**3 / (best / 1000))


@pytest.mark.parametrize(
    ("flags", "speedup", "training", "generating"),
    [
        ({"avx512f", "avx512_bf16"}, 1.8, "bfloat16", "bfloat16"),  # an AMD EPYC
        ({"avx512f", "avx512_bf16", "amx_bf16"}, 4.2, "bfloat16", "bfloat16"),
        ({"avx512f", "avx512_bf16"}, 0.57, "float32", "bfloat16"),  # an Intel Xeon without AMX
        ({"avx512f", "avx512_bf16", "amx_bf16"}, 0.24, "float32", "float32"),  # held to AVX-512
        ({"avx2", "avx512f"}, 9.0, "float32", "float32"),
        ({"asimd", "bf16"}, 2.0, "bfloat16", "bfloat16"),
    ],
)
def test_auto_precision_is_bf16_exactly_where_it_is_faster(
    flags, speedup, training, generating, monkeypatch
):
    monkeypatch.setattr(hardware, "_processor", lambda: {"flags": " ".join(flags)})
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: speedup)
    assert hardware.pick_dtype("auto", CPU) == training
    assert hardware.pick_dtype("auto", CPU, generating=True) == generating
    assert hardware.pick_dtype("float32", CPU, generating=True) == "float32"
    words = hardware.words_about_cpu(CPU, "auto")
    assert words is None or f"computes in {'bf16' if training == 'bfloat16' else 'fp32'}" in words


def test_bf16_that_is_held_back_and_emulated_is_measured_to_be_slow():
    held = {name: "AVX2" for name in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")}
    code = "from pion.train.hardware import *; print(bf16_speedup() < EMULATED)"
    line = [sys.executable, "-c", code]
    environment = os.environ | held | {"ATEN_CPU_CAPABILITY": "avx2"}
    said = subprocess.check_output(line, env=environment, timeout=300, text=True)
    assert said.strip() == "True"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_asking_for_cuda_where_there_is_none_is_refused():
    with pytest.raises(BadInput, match="nvidia-smi"):
        hardware.pick_device("cuda")
    assert hardware.pick_device() == CPU


def test_a_device_torch_trains_on_elsewhere_is_refused():
    with pytest.raises(BadInput, match="cpu or cuda"):
        hardware.pick_device("mps")


def test_a_plan_puts_its_thread_count_into_force():
    hardware.configure(ComputePlan(threads=2))
    assert torch.get_num_threads() == 2
    hardware.configure(ComputePlan(threads=1))
    assert torch.get_num_threads() == 1


def test_memory_is_what_the_process_has_and_less_than_the_machine_has():
    assert 0 < hardware.memory_in_use(CPU) < hardware.total_memory(CPU)
