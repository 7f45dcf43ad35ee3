"""Compare Pion with other software, and write benchmarks/results/comparisons.json.

    uv run python -m benchmarks [NAME …] [--quick]

Each comparison measures both sides by turns on this machine. Without names, all comparisons run,
one after another; with names, the results of the others are kept. A missed target does not fail
the command: it is a measurement. Run this on an idle machine: if other processes use the cores,
the ratios mean little. --quick tries everything with tiny shapes, and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import Comparison, heading

# Each is a module with a function `run(quick)` that yields comparisons.
NAMES = (
    "training",
    "peak_memory",
    "fine_tuning",
    "decoding",
    "commands",
    "tokenizing",
    "same_loss",
    "serve",
)
RESULTS = Path(__file__).parent / "results" / "comparisons.json"


def main(arguments: list[str] | None = None) -> None:
    """Run the named comparisons, print the table, and keep the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="tiny shapes; writes nothing")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no comparison {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    conditions = circumstances()
    print(heading(), flush=True)
    verdicts = []
    for name in options.names or NAMES:
        start = time.perf_counter()
        found = printed(importlib.import_module(f"benchmarks.{name}").run(options.quick))
        verdicts += [comparison.verdict for comparison in found]
        if not options.quick:
            keep(RESULTS, name, found, conditions | {"seconds": time.perf_counter() - start})
    print(summary(verdicts, options.quick))


def printed(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the comparisons, each printed as soon as it is measured."""
    found = []
    for comparison in comparisons:
        print(comparison.line(), flush=True)
        found.append(comparison)
    return found


def summary(verdicts: list[str], quick: bool) -> str:
    """Return the last line of the output."""
    if quick:
        return "everything ran; the shapes are tiny, so the numbers mean nothing, and none was kept"
    missed = verdicts.count("missed")
    return f"{verdicts.count('met')} targets met, {missed} missed; written to {RESULTS}"


def keep(path: Path, name: str, comparisons: list[Comparison], conditions: dict[str, Any]) -> None:
    """Replace the results of one name in the file, and keep those of the others."""
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}
    results[name] = {
        **conditions,
        "seconds": round(conditions["seconds"]),
        "comparisons": [comparison.to_dict() for comparison in comparisons],
    }
    ordered = {known: results[known] for known in NAMES if known in results}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def circumstances() -> dict[str, Any]:
    """Return when and where this runs, with the versions of both sides' packages."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "load_average_before": round(os.getloadavg()[0], 2),
        **{package: version(package) for package in ("torch", "transformers", "tokenizers")},
    }


def processor() -> str:
    """Return the name of the processor (Linux), or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
