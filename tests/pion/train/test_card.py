"""What Pion says about a CUDA card that it can't use as asked, and about one that failed."""

import pytest
import torch

from pion.errors import BadInput
from pion.train import hardware
from pion.train.card import (
    card_failure,
    has_kernels,
    why_no_cuda,
    words_about_attention,
    words_about_bf16,
)

CUDA = torch.device("cuda")
BUILT = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


def pretend(monkeypatch, name, capability):
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: name,
        "get_device_capability": lambda device=None: capability,
        "get_arch_list": lambda: list(BUILT),
        "is_bf16_supported": lambda including_emulation: capability >= (8, 0),
    }
    for function, answer in answers.items():
        monkeypatch.setattr(torch.cuda, function, answer)


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 9), BUILT, True),  # by sm_86
        ((10, 3), BUILT, True),
        ((7, 0), BUILT, False),
        ((11, 0), BUILT, False),
        ((11, 0), (*BUILT, "compute_120"), False),
        ((12, 1), (*BUILT, "compute_120"), True),
        ((13, 0), (*BUILT, "compute_120"), True),
        ((9, 0), ("sm_90a",), True),
        ((12, 0), ("sm_90a", "compute_90a"), False),
        ((10, 3), ("sm_100f",), True),
        ((12, 0), ("sm_100f", "compute_100f"), False),
        ((7, 0), (), True),  # torch does not say
    ],
)
def test_a_card_runs_what_was_built_for_its_like(capability, built, runs):
    assert has_kernels(capability, built) is runs


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_torch_without_kernels_for_the_card_is_refused(monkeypatch, device):
    pretend(monkeypatch, "Tesla V100-SXM2-16GB", (7, 0))
    with pytest.raises(BadInput) as refused:
        hardware.pick_device(device)
    message = str(refused.value)
    assert "no kernels for Tesla V100-SXM2-16GB, which has compute capability 7.0" in message
    assert "it was built for sm_75 sm_80" in message
    assert "Install a torch that was built for this GPU" in message
    assert refused.value.exit_code == 2
    assert "CUDA_VISIBLE_DEVICES=" in message


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("bfloat16", "torch emulates it, which is slower than fp32. Set hardware.dtype=auto"),
        ("auto", "this stage computes in fp32"),
    ],
)
def test_a_card_without_bf16_computes_in_fp32_unless_told_otherwise_and_says_so(
    monkeypatch, asked, words
):
    pretend(monkeypatch, "Tesla T4", (7, 5))
    assert words_about_bf16(CUDA, asked) == f"the Tesla T4 has no bf16 arithmetic, so {words}"
    assert hardware.pick_dtype(asked, CUDA) == {"auto": "float32"}.get(asked, asked)
    assert words_about_bf16(CUDA, "float32") is None
    pretend(monkeypatch, "NVIDIA A40", (8, 6))
    assert words_about_bf16(CUDA, asked) is None


def test_a_stage_says_which_attention_its_card_has(monkeypatch):
    old = "because cuDNN 9.15 is not above 9.15. A step is about 8 %"
    for capability, cudnn, words in (
        ((9, 0), 92000, "attention: cuDNN 9.20"),
        ((9, 0), 91500, old),
        ((8, 6), 92000, "attention: PyTorch's own kernels, without cuDNN 9.20"),
    ):
        pretend(monkeypatch, "a card", capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda cudnn=cudnn: cudnn)
        assert words in words_about_attention(CUDA, flex=False)
    assert words_about_attention(torch.device("cpu"), flex=False) is None


def test_a_mig_slice_has_no_figure_of_the_whole_card():
    slice_ = "NVIDIA A100-SXM4-80GB MIG 1g.10gb"
    assert hardware.gpu_flops(slice_, "bfloat16") is None
    assert hardware.gpu_flops(slice_.partition(" MIG")[0], "bfloat16") == 311.9e12


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_variable_that_hides_the_cards_is_named(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert why_no_cuda() == "CUDA_VISIBLE_DEVICES is empty, which hides all GPUs"
    with pytest.raises(BadInput, match="CUDA_VISIBLE_DEVICES is empty"):
        hardware.pick_device("cuda")
    if torch.version.cuda is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        assert why_no_cuda().startswith("CUDA_VISIBLE_DEVICES is '7', and the driver says: ")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert why_no_cuda() == "this torch is built without CUDA"


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: unspecified launch failure\nCUDA kernel errors might be …",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA driver error: unknown error",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_a_card_that_failed_is_known_by_what_the_driver_says(said):
    assert card_failure(RuntimeError(said)) == said.splitlines()[0]
    wrapped = ValueError("while saving")
    wrapped.__cause__ = RuntimeError(said)
    assert card_failure(wrapped) == said.splitlines()[0]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CUDA error: of somebody else"),
        RuntimeError("shapes differ"),
        RuntimeError("CUDA error: device-side assert triggered"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("CUDA error: invalid argument"),
    ],
)
def test_other_errors_are_no_failures_of_a_card(error):
    assert card_failure(error) is None
