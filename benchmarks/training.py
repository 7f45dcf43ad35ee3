"""Compare the speed of a training step with transformers and with plain PyTorch.

All models have the shape and the weights of Pion-nano and see the same rows. A step is forward,
backward, clipping to norm 1 and fused AdamW. Transformers' Qwen3 runs at its defaults, eager.
The plain PyTorch model is compiled as a whole with its loss. Compiling happens before the rounds;
the seconds of a first step that are not those of a later step count as compiling.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from benchmarks.comparison import Comparison, Work, alternate, at_least, compare, speed_of
from benchmarks.trainees import (
    NANO,
    TINY,
    Shape,
    Trainee,
    pion,
    plain_torch,
    qwen3,
    random_rows,
    stepper,
    targets_of,
)

ROUNDS, WARMUP = 15, 3
# The losses of equal weights differ by rounding only. In bf16 the models round differently.
MOST_LOSS_DIFFERENCE = 0.02
SPEED = "training tokens/s"
QWEN3 = "transformers Qwen3"
# Where torch.compile keeps what it has compiled.
COMPILED_FILES = "TORCHINDUCTOR_CACHE_DIR"
PLAIN = "plain PyTorch bf16 compiled"


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparisons in fp32, in bf16, and compiled."""
    shape, rounds, warmup = (TINY, 2, 1) if quick else (NANO, ROUNDS, WARMUP)
    yield from in_fp32(shape, rounds, warmup)
    with nullcontext() if quick else cold_compiler():
        yield from in_bf16(shape, rounds, warmup)


def in_fp32(shape: Shape, rounds: int, warmup: int) -> Iterator[Comparison]:
    """Yield the comparison of eager steps in fp32."""
    sides = {"pion": pion(shape.config), "qwen3": qwen3(shape.config)}
    speeds, _ = measure(sides, shape, rounds, warmup, bf16=False)
    yield compare(
        (f"{SPEED}, fp32", QWEN3, "tokens/s"), speeds["pion"], speeds["qwen3"], at_least(1.08)
    )


def in_bf16(shape: Shape, rounds: int, warmup: int) -> Iterator[Comparison]:
    """Yield the comparisons under autocast to bf16, eager and compiled."""
    config = shape.config
    sides = {
        "pion": pion(config),
        "compiled": pion(config, compiled=True),
        "qwen3": qwen3(config),
        "plain": plain_torch(config),
    }
    speeds, first = measure(sides, shape, rounds, warmup, bf16=True)
    ours, compiled, theirs = speeds["pion"], speeds["compiled"], speeds["qwen3"]
    yield compare((f"{SPEED}, bf16", QWEN3, "tokens/s"), ours, theirs, at_least(1.38))
    yield compare((f"{SPEED}, bf16 compiled", QWEN3, "tokens/s"), compiled, theirs, at_least(1.5))
    yield compare(
        (f"{SPEED}, bf16 compiled", PLAIN, "tokens/s"), compiled, speeds["plain"], at_least(1.12)
    )
    seconds = [
        first[name] - shape.tokens / statistics.median(speeds[name])
        for name in ("compiled", "plain")
    ]
    yield compare(("compiling a training step", PLAIN, "s"), seconds[:1], seconds[1:])


def measure(
    sides: dict[str, Trainee], shape: Shape, rounds: int, warmup: int, *, bf16: bool
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the tokens/s of each side by round, and the seconds of its first step."""
    tokens = random_rows(shape)
    targets = targets_of(tokens)
    first, losses, measures = {}, {}, {}
    for name, trainee in sides.items():
        step = stepper(trainee, bf16=bf16)
        start = time.perf_counter()
        losses[name] = step(tokens, targets)
        first[name] = time.perf_counter() - start
        measures[name] = speed_of(steps_of(step, tokens, targets))
    if max(losses.values()) - min(losses.values()) > MOST_LOSS_DIFFERENCE:
        raise SystemExit(f"the sides don't compute the same loss: {losses}")
    return alternate(measures, rounds, warmup), first


def steps_of(step: Callable[[Tensor, Tensor], float], tokens: Tensor, targets: Tensor) -> Work:
    """Return the work of a round: one step, counted in tokens."""

    def work(number: int) -> float:
        step(tokens, targets)
        return tokens.numel()

    return work


@contextmanager
def cold_compiler() -> Iterator[None]:
    """Let torch.compile find nothing that was compiled before, and load the compiler now.

    Otherwise the first side would also pay for importing the compiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        earlier = os.environ.get(COMPILED_FILES)
        os.environ[COMPILED_FILES] = folder
        try:
            x = torch.ones(8, requires_grad=True)
            torch.compile(lambda x: (x * 2).sum())(x).backward()
            yield
        finally:
            del os.environ[COMPILED_FILES]
            if earlier is not None:
                os.environ[COMPILED_FILES] = earlier
