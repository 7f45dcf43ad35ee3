"""`pion bench`: the bench of `pion.bench`, with its result where `pion plan` finds it."""

from __future__ import annotations

from pathlib import Path

from pion.bench.options import Options
from pipeline.console.formats import show
from pipeline.machine.folders import own_bench_folder


def run_bench(options: Options) -> int:
    """Check and measure this machine's card. Return 1 if anything is wrong.

    Raises BadInput for a request that can't be met; then nothing was measured.
    """
    from pion.bench.run import bench

    elsewhere = options.out or options.resume or options.names
    folder = Path() if elsewhere else own_bench_folder()
    return bench(options, folder, show)
