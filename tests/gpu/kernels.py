"""Compare hand-written forward and backward passes with plain torch: loss, experts, flex attention.

Plain torch computes in fp32 on the CPU. Differences are shares of the largest element. Flex
attention's block masks, built on the card, are compared with the boolean masks of the CPU.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, silu

from pion.bench.models import Bench, exact_float32
from pion.bench.results import Outcome, judged
from pion.config.model_config import ModelConfig
from pion.model.attention.attention import attend
from pion.model.attention.masks import Kernel, Mask, Masks, block_mask, build_masks
from pion.model.feedforward.expert_products import mix_experts
from pion.model.loss import IGNORED, Cap, cap_logits, linear_cross_entropy
from tests.gpu.differences import largest, largest_difference

# The most that a result or a gradient may differ, in fp32 and in bf16.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
# Flex attention's softmax is not torch's: it adds up in blocks, and its exponential has base 2.
FLEX_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
# The most that the compiled loss's distance from fp32, in bf16, may be, as a multiple of the plain
# loss's. Both round at random, so equal ones differ a little.
NO_FURTHER = 1.05
CAP = 15.0

# The tokens of a block and of the long window, where masks are compared.
BLOCK = 128
WINDOW = 2 * BLOCK
BLOCKS = {"tokens": WINDOW, "block": BLOCK}

Passes = Callable[[Sequence[Tensor]], Tensor]


def check_loss(bench: Bench) -> Outcome:
    """Check the chunked cross-entropy, with and without a cap on the logits."""
    rows, width, vocab = (64, 32, 512) if bench.tiny else (4096, 512, 16_384)
    inputs = [_random(rows, width), _random(vocab, width, scale=width**-0.5, seed=1)]
    targets = torch.arange(rows) * 7919 % vocab
    targets[::5] = IGNORED

    def ours(given: Sequence[Tensor], cap: float | None) -> Tensor:
        return linear_cross_entropy(
            given[0], given[1], targets.to(given[0].device), cap and Cap(cap)
        )

    def plain(given: Sequence[Tensor], cap: float | None) -> Tensor:
        logits = given[0] @ given[1].T
        logits = logits if cap is None else cap_logits(logits, Cap(cap))
        return cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")

    return _judged(_worst_of_caps(bench, ours, plain, inputs))


def check_compiled_loss(bench: Bench) -> Outcome:
    """Check the compiled cross-entropy against the plain one, by the gradients of both.

    In fp32 the gradients are the same up to rounding. In bf16, those of the compiled loss are no
    further from fp32 than those of the plain one. Tiny models run what would be compiled as it is
    written, because compiling takes a minute.
    """
    rows, width, vocab = (512, 32, 1000) if bench.tiny else (4096, 512, 16_390)
    inputs = [_random(rows, width), _random(vocab, width, scale=width**-0.5, seed=1)]
    inputs = [tensor.to(bench.device) for tensor in inputs]
    targets = torch.arange(rows, device=bench.device) * 7919 % vocab
    targets[::5] = IGNORED

    def gradients(compiled: bool, cap: float | None, dtype: torch.dtype) -> list[Tensor]:
        def passes(given: Sequence[Tensor]) -> Tensor:
            return linear_cross_entropy(
                given[0], given[1], targets, cap and Cap(cap), compiled=compiled
            )

        with torch.autocast(bench.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return _both_passes(passes, inputs)[1:]

    same, further = 0.0, 0.0
    with exact_float32(), torch.compiler.set_stance("force_eager" if bench.tiny else "default"):
        for cap in (None, CAP):
            exact = gradients(False, cap, torch.float32)
            same = max(same, _worst_share(gradients(True, cap, torch.float32), exact))
            plain = _distances(gradients(False, cap, torch.bfloat16), exact)
            ours = _distances(gradients(True, cap, torch.bfloat16), exact)
            further = max(further, *(a / b for a, b in zip(ours, plain, strict=True)))
    limit = LIMITS[torch.float32]
    return judged(
        same <= limit and further <= NO_FURTHER,
        f"largest difference of gradients {same:.0e}, at most {limit:.0e}; distance of bf16 from "
        f"fp32 {further:.2f} times the plain loss's, at most {NO_FURTHER:g}",
        fp32=same,
        bf16_distance=further,
    )


def check_experts(bench: Bench) -> Outcome:
    """Check the products of a mixture of experts, of which one has no token."""
    tokens, width, hidden, n, top_k = (48, 16, 24, 4, 2) if bench.tiny else (2048, 256, 704, 8, 2)
    shapes = ((n, hidden, width), (n, hidden, width), (n, width, hidden))
    matrices = [_random(*s, scale=width**-0.5, seed=seed) for seed, s in enumerate(shapes, 1)]
    chosen = _random(tokens, n - 1, seed=4).topk(top_k).indices  # never the last expert
    inputs = [_random(tokens, width), _random(tokens, top_k, seed=5).softmax(dim=1), *matrices]

    def ours(given: Sequence[Tensor]) -> Tensor:
        x, own, *three = given
        dtype = _dtype_of(x)
        experts, order = chosen.to(x.device).flatten().sort(stable=True)
        ends = torch.searchsorted(experts, torch.arange(n, device=x.device), right=True)
        return mix_experts(x.to(dtype), three, own, order, ends.to(torch.int32)).float()

    def plain(given: Sequence[Tensor]) -> Tensor:
        x, own, gate, up, down = given
        total = torch.zeros_like(x)
        for place in range(top_k):
            expert = chosen[:, place]
            gated = torch.einsum("td,thd->th", x, gate[expert])
            raised = torch.einsum("td,thd->th", x, up[expert])
            part = torch.einsum("th,tdh->td", silu(gated) * raised, down[expert])
            total = total + own[:, place, None] * part
        return total

    return _judged({_short(d): _worst(bench, ours, plain, inputs, d) for d in LIMITS})


def check_flex(bench: Bench) -> Outcome:
    """Check flex attention's compiled kernels, with documents and capped scores."""
    if not bench.on_cuda:
        return Outcome("left out", "flex attention has kernels only on CUDA")
    rows, heads, kv_heads, tokens, width = 2, 4, 2, 1024, 64
    shapes = ((rows, heads, tokens, width), *[(rows, kv_heads, tokens, width)] * 2)
    inputs = [_random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    places = torch.arange(tokens)
    documents = places * torch.tensor([[7], [3]]) // tokens
    same = documents[:, None, :, None] == documents[:, None, None, :]
    dense = Mask(allowed=same & (places[:, None] >= places))
    flex = Mask(blocks=block_mask(tokens, documents.to(bench.device), bench.device))

    def passes(given: Sequence[Tensor], cap: float | None, mask: Mask) -> Tensor:
        query, key, value = (tensor.to(_dtype_of(given[0])) for tensor in given)
        return attend(query, key, value, mask, cap).float()

    ours, plain = partial(passes, mask=flex), partial(passes, mask=dense)
    return _judged(_worst_of_caps(bench, ours, plain, inputs), FLEX_LIMITS)


def _worst_of_caps(
    bench: Bench,
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    inputs: Sequence[Tensor],
) -> dict[str, float]:
    """Return the largest differences without and with a `cap`, in each dtype."""
    return {
        f"{'plain' if cap is None else 'capped'}_{_short(dtype)}": _worst(
            bench, partial(ours, cap=cap), partial(plain, cap=cap), inputs, dtype
        )
        for cap in (None, CAP)
        for dtype in LIMITS
    }


def _worst(
    bench: Bench, ours: Passes, plain: Passes, inputs: Sequence[Tensor], dtype: torch.dtype
) -> float:
    """Return the largest difference of the result and of the gradients from plain torch."""
    with exact_float32():
        expected = _both_passes(plain, inputs)
        there = [tensor.to(bench.device) for tensor in inputs]
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = _both_passes(ours, there)
    return _worst_share(found, expected)


def _worst_share(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference as a share of the largest element; NaN if there is one."""
    return largest(
        largest_difference(a, b) / float(b.abs().max().clamp(min=1e-30))
        for a, b in zip(found, expected, strict=True)
    )


def _distances(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Return the norm of each difference."""
    return [float((a - b).norm()) for a, b in zip(found, exact, strict=True)]


def _both_passes(passes: Passes, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the result, and the gradients of a fixed mixture of its elements."""
    given = [tensor.clone().requires_grad_() for tensor in inputs]
    result = passes(given)
    mixture = torch.cos(torch.arange(result.numel(), device=result.device)).view(result.shape)
    return [result.detach(), *torch.autograd.grad((result * mixture).sum(), given)]


def _judged(worst: dict[str, float], limits_of: dict[torch.dtype, float] = LIMITS) -> Outcome:
    limits = {_short(dtype): limit for dtype, limit in limits_of.items()}
    right = all(share <= limits[name.split("_")[-1]] for name, share in worst.items())
    words = ", ".join(f"{name.replace('_', ' ')} {share:.0e}" for name, share in worst.items())
    shown = " and ".join(f"{limit:.0e} in {name}" for name, limit in limits.items())
    return judged(right, f"largest differences: {words}; at most {shown}", **worst)


def _random(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Return normal numbers. Inputs of one check need different seeds, or they are alike."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _dtype_of(x: Tensor) -> torch.dtype:
    """Return the dtype of products with `x`, which autocast decides."""
    return torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else x.dtype


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def check_masks(bench: Bench) -> Outcome:
    """Compare every token's keys, for documents, windows, and windows with documents."""
    tokens = 4 * BLOCK if bench.tiny else 16 * BLOCK
    places = torch.arange(tokens)
    documents = places * torch.tensor([[7], [3]]) // tokens
    compared, wrong = 0, []
    for name, windows, numbers in (
        ("documents", None, documents),
        ("windows", BLOCKS, None),
        ("windows and documents", BLOCKS, documents),
        ("windows of tokens", {"tokens": WINDOW + 45, "block": 1}, None),
        ("windows of tokens and documents", {"tokens": WINDOW + 45, "block": 1}, documents),
    ):
        there = None if numbers is None else numbers.to(bench.device)
        of_card = _masks(tokens, windows, there, bench.device, "flex")
        for reach, mask in _masks(tokens, windows, numbers, torch.device("cpu"), "dense").items():
            assert mask.allowed is not None
            expected = mask.allowed.reshape(-1, tokens, tokens)
            shown = shown_by_blocks(of_card[reach].blocks, tokens)
            found, expected = torch.broadcast_tensors(shown, expected)
            compared += found.numel()
            if not torch.equal(found, expected):
                wrong.append(f"{name} ({reach})")
    different = f"different from the CPU's: {', '.join(wrong)}"
    words = different if wrong else f"{compared:,} pairs of tokens agree"
    return judged(not wrong, words, pairs=compared, tokens=tokens)


def _masks(
    tokens: int,
    windows: dict[str, int] | None,
    documents: Tensor | None,
    device: torch.device,
    kernel: Kernel,
) -> Masks:
    """Return the masks of rows, by the function that training calls."""
    shape = {"d_model": 64, "n_layers": 3, "n_heads": 1, "n_kv_heads": 1, "d_ff": 8}
    config = ModelConfig.of({**shape, "windows": windows, "vocab_size": 8, "seq_len": tokens})
    row = torch.zeros(1, tokens, dtype=torch.int64, device=device)
    return build_masks(config, row, tokens, documents, kernel=kernel)


def shown_by_blocks(mask: Any, tokens: int) -> Tensor:
    """Return what a BlockMask with blocks of BLOCK tokens shows the kernel: (B, tokens, tokens).

    Partial blocks are judged by its function, full ones are shown whole.
    """
    position = torch.arange(tokens, device=mask.kv_indices.device)
    inside = torch.stack(
        [
            mask.mask_mod(row, torch.zeros_like(row), position[:, None], position)
            for row in torch.arange(mask.kv_num_blocks.shape[0], device=position.device)
        ]
    ).cpu()
    partial = _per_token(mask.kv_num_blocks, mask.kv_indices, tokens)
    whole = _per_token(mask.full_kv_num_blocks, mask.full_kv_indices, tokens)
    return whole | (partial & inside)


def _per_token(counts: Tensor, numbers: Tensor, tokens: int) -> Tensor:
    """Return the visited blocks, (B, tokens, tokens), from their counts and numbers."""
    counts, numbers = counts.cpu()[:, 0], numbers.cpu()[:, 0].long()
    listed = torch.arange(numbers.shape[-1]) < counts[..., None]
    visited = torch.zeros(numbers.shape, dtype=torch.bool).scatter(2, numbers, listed)
    each = visited.repeat_interleave(BLOCK, dim=1).repeat_interleave(BLOCK, dim=2)
    return each[:, :tokens, :tokens]
