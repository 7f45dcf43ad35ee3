"""Whether torch can use a CUDA card, and whether the card failed: in words for people."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import torch

from pion.errors import BadInput, causes

# What torch says when the card or its driver no longer answers. Not among them is what a program
# causes, such as a device-side assert.
_FAILED = re.compile(
    r"CUDA error: (?!out of memory|device-side assert|invalid argument|no kernel image|\w+_ALLOC_)"
    r"|CUDA driver error"
    r"|CUBLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)"
    r"|CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)"
)

# From torch's sdp_utils.cpp: cards on which it prefers cuDNN's attention, if cuDNN is newer than
# this. Others get FlashAttention 2, or torch's memory-efficient attention.
PREFER_CUDNN, CUDNN_TOO_OLD = ((9, 0), (10, 0)), 91500


def why_no_cuda() -> str:
    """Return why torch sees no CUDA device on this machine, as a clause."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return "CUDA_VISIBLE_DEVICES is empty, which hides all GPUs"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        hidden = "" if visible is None else f"CUDA_VISIBLE_DEVICES is {visible!r}, and "
        return f"{hidden}the driver says: {str(error).splitlines()[0]}"
    return "the driver gives no reason"


def require_kernels(device: torch.device) -> None:
    """Raise BadInput if this torch was built without kernels for the card."""
    capability, built = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if not has_kernels(capability, built):
        raise BadInput(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)}, "
            f"which has compute capability {capability[0]}.{capability[1]}: it was built for "
            f"{' '.join(built)}. Nothing was changed. Install a torch that was built for this GPU "
            "(https://pytorch.org/get-started/previous-versions), or set CUDA_VISIBLE_DEVICES= to "
            "compute on the CPU"
        )


def has_kernels(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Return whether a card can run code that was `built` for these architectures, such as sm_86.

    Machine code (sm) runs on cards of the same major capability that are not older. What is not
    compiled to machine code (compute) is compiled for any newer card. Code for one architecture
    alone ends with an a, code for its family with an f.
    """
    matches = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name) for name in built]
    targets = [match.groups() for match in matches if match]
    if not targets:
        return True  # a torch that does not say
    for kind, major, minor, suffix in targets:
        target = (int(major), int(minor))
        anywhere = kind == "compute" and not suffix
        same_family = target[0] == capability[0] and suffix != "a"
        if target == capability or (target <= capability and (anywhere or same_family)):
            return True
    return False


def words_about_bf16(device: torch.device, asked: str) -> str | None:
    """Return what a job that asks for the dtype `asked` should know about the card's precision."""
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    name = torch.cuda.get_device_name(device)
    if asked == "bfloat16":
        return (
            f"the {name} has no bf16 arithmetic, so torch emulates it, which is slower than fp32. "
            "Set hardware.dtype=auto"
        )
    if asked == "auto":
        return f"the {name} has no bf16 arithmetic, so this stage computes in fp32"
    return None


def words_about_attention(device: torch.device, *, flex: bool) -> str | None:
    """Return which attention the rows of a stage get on a CUDA card, and whether a newer torch has
    a faster one. `flex`: flex attention masks them."""
    if device.type != "cuda":
        return None
    if flex:
        return "attention: flex attention, which masks documents, windows and caps"
    cudnn = torch.backends.cudnn.version() or 0
    named = f"cuDNN {cudnn // 10000}.{cudnn // 100 % 100}"
    if torch.cuda.get_device_capability(device) not in PREFER_CUDNN:
        return f"attention: PyTorch's own kernels, without {named}"
    if cudnn > CUDNN_TOO_OLD:
        return f"attention: {named}"
    return (
        f"attention: PyTorch's own kernels, because {named} is not above 9.15. A step is about "
        "8 % faster on this card (estimated) with the cuDNN of torch 2.11 or later"
    )


def card_failure(error: BaseException) -> str | None:
    """Return the first line of what the card or its driver said, if one of them ended the work;
    None if `error` has another cause."""
    for seen in causes(error):
        if isinstance(seen, RuntimeError) and _FAILED.search(str(seen)):
            return str(seen).splitlines()[0]
    return None
