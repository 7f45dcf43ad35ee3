"""Compare the time from `pion generate` to its first token with the time to import torch.

Both are fresh processes, started by turns. The model has the shape of Pion-small (103M) and random
weights. The time ends when the first text after the prompt arrives.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison, at_most, compare
from benchmarks.exported import export_random
from benchmarks.interleaved import alternate

ROUNDS, WARMUP = 9, 1
PROMPT = "The following example"


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        model = export_random(Path(folder) / "model", quick)
        measures = {
            "pion": lambda number: seconds_to_text(model),
            "torch": lambda number: seconds_to_import(),
        }
        seconds = alternate(measures, *((1, 0) if quick else (ROUNDS, WARMUP)))
    what = ("pion generate, until the first token", "python -c 'import torch'", "s")
    yield compare(what, seconds["pion"], seconds["torch"], at_most(1.7))


def seconds_to_text(model: Path) -> float:
    """Return the seconds from the command to the first text after the prompt."""
    command = [sys.executable, "-m", "pipeline.cli", "generate", str(model), "--prompt", PROMPT]
    start = time.perf_counter()
    # A few tokens: the first may be part of a character, which is printed once it is whole.
    with subprocess.Popen(
        [*command, "--max-tokens", "8", "--temperature", "0"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        text = process.stdout.read(len(PROMPT) + 1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    if process.returncode or len(text) <= len(PROMPT):
        raise SystemExit(f"pion generate ended with {process.returncode} after {text!r}")
    return seconds


def seconds_to_import() -> float:
    """Return the seconds of a process that only imports torch."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - start
