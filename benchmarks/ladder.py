"""Predict runs by a ladder before they start, and compare: `pion ladder` itself, at home.

    uv run python -m benchmarks.ladder [--store FOLDER]

The job is Pion 2 at the size of the demo, on the text of the races of recipes. A law is fitted to
16 runs. Ten others are held out: six within the grid, and four with 4 to 10 times the FLOPs of the
largest run that was fitted. The command predicts all ten before the first of them starts. The same
command continues a measurement that was cut short. The result is kept in
benchmarks/results/ladder.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.recipe_arms import ARMS, JOB, TEXT, write_text

RESULTS = Path(__file__).parent / "results" / "ladder.json"
D_MODEL, N_LAYERS, STEPS = 256, 6, 1000
WIDTHS, TOKENS = "0.25,0.375,0.5,0.625", "0.0625,0.125,0.25,0.5"
# Shares of width and tokens.
WITHIN = "0.25x0.18,0.375x0.09,0.375x0.35,0.5x0.18,0.625x0.09,0.625x0.35"
BEYOND = "0.75x1.4,1x0.7,1x1,1x1.4"


def overrides(store: str) -> list[str]:
    """Return what makes a Pion 2 of the demo's job."""
    wide = ARMS["C pion 2"].model(D_MODEL, N_LAYERS)
    given = {f"model.{name}": value for name, value in {"d_ff": 704, **wide}.items()}
    given |= {"name": "law", "store": store, "data.documents": True}
    given["pretrain"] = {"recipe": "pion2", "steps": STEPS, "global_batch": 8}
    return [*TEXT, *(f"{name}={json.dumps(value)}" for name, value in given.items())]


def climb(store: str) -> dict[str, Any]:
    """Climb the ladder, and return what the command says as JSON."""
    main = "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    shares = ["--widths", WIDTHS, "--tokens", TOKENS, "--hold-out", f"{WITHIN},{BEYOND}"]
    command = [sys.executable, "-c", main, "ladder", str(JOB), *shares, "--json"]
    done = subprocess.run([*command, *overrides(store)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"pion ladder ended with {done.returncode}")
    return dict(json.loads(done.stdout))


def summary(ladder: dict[str, Any]) -> dict[str, Any]:
    """Return how good the predictions were."""
    largest = max(run["flops"] for run in ladder["runs"] if not run["held_out"])
    held = [run for run in ladder["runs"] if run["held_out"]]
    rows = [
        {
            "run": run["run"],
            "flops_of_largest": round(run["flops"] / largest, 2),
            "bits_per_byte": round(run["bits_per_byte"], 4),
            "predicted": round(run["predicted"]["bits_per_byte"], 4),
            "error": round(run["error"], 5),
            "held": run["predicted"]["low"] <= run["bits_per_byte"] <= run["predicted"]["high"],
            "width": round(
                (run["predicted"]["high"] - run["predicted"]["low"])
                / run["predicted"]["bits_per_byte"],
                5,
            ),
        }
        for run in held
    ]
    return {
        "largest_error_beyond": max(abs(r["error"]) for r in rows if r["flops_of_largest"] > 1),
        "held": sum(row["held"] for row in rows),
        "of": len(rows),
        "widest": max(row["width"] for row in rows),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", default="runs", help="a folder for the runs; default: runs")
    write_text()
    ladder = climb(parser.parse_args().store)
    report = {"summary": summary(ladder), "ladder": ladder}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
