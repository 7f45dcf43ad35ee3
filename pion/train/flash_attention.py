"""Let torch compute attention by a newer FlashAttention, if card and machine have one.

Torch brings FlashAttention 2. It can use version 3 or 4 of packages that the user installs. A newer
version is used only after it computed the same as plain torch, on this card, in this process.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# The newer versions, by the name that torch has for them: the module of the package, and the major
# compute capabilities of the cards that have its kernels. The first version that fits is used.
VERSIONS: dict[str, tuple[str, tuple[int, ...]]] = {
    "FA3": ("flash_attn_interface", (9,)),
    "FA4": ("flash_attn.cute", (9, 10)),
}
# The most that a result or a gradient may differ in bf16, as a share of its largest element.
LIMIT = 3e-2
OWN = "torch's own kernels compute attention"


@cache
def use_newest_flash_attention(device: torch.device, *, deterministic: bool) -> str:
    """Let torch use the newest FlashAttention that is right here; return in words what it uses.

    This is decided once for the process. On a CPU, and if results must be `deterministic`, nothing
    changes.
    """
    if device.type != "cuda" or deterministic or not hasattr(nn.attention, _ACTIVATE):
        return OWN
    major, refused = torch.cuda.get_device_capability(device)[0], []
    for version, (module, majors) in VERSIONS.items():
        if major not in majors or not _is_installed(module):
            continue
        mistake = _activate(version, device)
        if mistake is None:
            # Torch would prefer cuDNN's attention on Hopper.
            torch.backends.cuda.enable_cudnn_sdp(False)
            return f"FlashAttention {version.removeprefix('FA')} computes attention"
        refused.append(f"; {module} is installed and not used: {mistake}")
    return OWN + "".join(refused)


_ACTIVATE = "activate_flash_attention_impl"  # torch 2.11 may lack this function


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # not even the package around it
        return False


def _activate(version: str, device: torch.device) -> str | None:
    """Let torch use this version; return None, or why the version is not used after all."""
    attention: Any = nn.attention
    try:
        attention.activate_flash_attention_impl(version)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            found = _both_passes(device, torch.bfloat16)
        attention_differs = _largest_share(found, device)
    except Exception as error:  # a package for another card or another torch fails in many ways
        mistake = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    else:
        if attention_differs <= LIMIT:
            return None
        mistake = f"its results differ by {attention_differs:.0%} from plain torch's"
    attention.restore_flash_attention_impl(_raise_warn=False)
    return mistake


def _largest_share(found: list[Tensor], device: torch.device) -> float:
    """Return the largest difference from plain torch in fp32; infinity if there is a NaN."""
    with sdpa_kernel(SDPBackend.MATH):
        expected = _both_passes(device, torch.float32)
    shares = [
        float((a.float() - b).abs().max() / b.abs().max())
        for a, b in zip(found, expected, strict=True)
    ]
    return max(share if share == share else float("inf") for share in shares)


def _both_passes(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Return a small causal attention with fewer key heads, and its three gradients."""
    made = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 256, 64, generator=made).to(device, dtype).requires_grad_()
        for heads in (4, 2, 2)
    )
    result = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    weights = torch.randn(result.shape, generator=made).to(device, dtype)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), (query, key, value))]
