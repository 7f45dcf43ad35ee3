"""Run a benchmark in a process that pretends a GPU, and get what it counted."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cuda_rehearsal.environment import (
    compile_shim,
    pinned_torch,
    run_pretended,
    this_machine,
    why_impossible,
)
from tests.cuda_rehearsal.report import handed_back


def counted_by(module: str, arguments: Sequence[str]) -> Any:
    """Return what `python -m MODULE ARGUMENT …` hands back on the pretended card.

    Raises SystemExit, with the reason, on a machine where that is impossible.
    """
    reason = why_impossible(this_machine(), pinned_torch())
    if reason is not None:
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        return handed_back(run_pretended(module, compile_shim(Path(folder)), *arguments))
