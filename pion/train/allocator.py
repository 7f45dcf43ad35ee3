"""Tell CUDA's allocator, before CUDA starts, to let its segments of memory grow.

A step whose tensors differ in size from those of the step before (another length of rows, a window
that has grown) then finds its memory in the same segments. Otherwise, memory is lost to gaps.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# The variable that torch reads when CUDA starts, and the name that it had before torch 2.9.
VARIABLE, OLD_VARIABLE = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"


def let_segments_grow(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set torch's variable for this process, unless the user has set it. Changes nothing on a CPU.

    Call this before anything uses CUDA: the allocator reads the variable once.
    """
    if VARIABLE not in environment and OLD_VARIABLE not in environment:
        environment[VARIABLE] = EXPANDABLE
