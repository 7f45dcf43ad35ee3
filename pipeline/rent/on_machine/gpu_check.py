"""Check that the GPUs of a rented machine compute correctly. Runs once torch is installed.

    python -m pipeline.rent.on_machine.gpu_check     exit 0: yes · exit 75: rent another

Takes a second per GPU once torch is imported: one matrix product in fp32 and one in bf16, compared
with the CPU's. Finds drivers that torch can't use, GPUs that fell off the bus, and bad memory.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pipeline.rent.on_machine.boot_check import ANOTHER_MACHINE, BadMachine

if TYPE_CHECKING:
    import torch

SIZE = 1024
# As a share of the product's largest element. For sums of 1,024 terms, about 50 rounding errors.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


def check_gpus(asked: int) -> str:
    """Test every GPU, and describe what was tested. Raises BadMachine."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of the image, or a broken disk
        raise BadMachine(f"torch can't be imported: {error}") from None

    if not torch.cuda.is_available():
        raise BadMachine(f"torch {torch.__version__} finds no GPU that it can use: {_cuda_error()}")
    if torch.cuda.device_count() < asked:
        found = torch.cuda.device_count()
        raise BadMachine(f"torch sees {found} GPU(s), but {asked} were requested")
    for index in range(torch.cuda.device_count()):
        try:
            worst = worst_error(torch.device("cuda", index))
        except RuntimeError as error:
            raise BadMachine(f"GPU {index} failed: {str(error).splitlines()[0]}") from None
        if worst is not None:
            raise BadMachine(f"GPU {index} computed wrong results: {worst}")
    return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)} computed correctly"


def worst_error(device: torch.device) -> str | None:
    """Return what is wrong with matrix products on `device`; None if they are right."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(2))
    right = a @ b
    tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    try:
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            product = (a.to(device, dtype) @ b.to(device, dtype)).float().cpu()
            error = float((product - right).abs().max() / right.abs().max())
            if not error <= TOLERANCE[name]:  # NaN too
                return f"a {name} matrix product differs from the CPU's result by {error:.1e}"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return None


def _cuda_error() -> str:
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "no reason given"


def main() -> int:
    asked = int(float(os.environ.get("SKYPILOT_NUM_GPUS_PER_NODE") or 1))
    try:
        print(f"GPU test: {check_gpus(asked)}", file=sys.stderr)
    except BadMachine as bad:
        print(
            f"GPU test: this machine won't do: {bad}. Exiting with code {ANOTHER_MACHINE}, so "
            "that another machine replaces it.",
            file=sys.stderr,
        )
        return ANOTHER_MACHINE
    return 0


if __name__ == "__main__":
    sys.exit(main())
