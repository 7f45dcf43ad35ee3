"""Predict runs by a ladder before they start, and compare: `pion ladder` itself, at home.

    uv run python -m benchmarks.ladder [--case source] [--store FOLDER]

The job is Pion 2 on the text of the races of recipes. A law is fitted to small runs. Ten others are
held out: six within the grid, and four with 4 to 10 times the FLOPs of the largest run that was
fitted. The command predicts all ten before the first of them starts. The same command continues a
measurement that was cut short. The result is kept in benchmarks/results/ladder-<case>.json.

Whether the four beyond the grid are predicted well depends on what the fitted runs have begun to
learn (docs/ladder.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recipe_arms import ARMS, BATCH_TOKENS, JOB, NO_TEXT, TEXT, write_text
from pion.files import write_atomically

RESULTS = Path(__file__).parent / "results"
# Shares of width and tokens.
WIDTHS = "0.25,0.375,0.5,0.625"
FAR = "0.75x1.4,1x0.7,1x1,1x1.4"
# The source of Python's standard library with its tests: three times the text of the races.
CODE_FILE = Path(tempfile.gettempdir()) / "pion-ladder.jsonl"


@dataclass(frozen=True)
class Case:
    """The job, and the runs of its ladder: `tokens`, `within` and `beyond` are shares, as WIDTHS
    are. `text` is what the job reads instead of the demo's prose."""

    d_model: int
    n_layers: int
    d_ff: int
    seq_len: int
    tokens: str
    within: str
    beyond: str
    steps: int
    text: tuple[str, ...] = ()
    widths: str = WIDTHS
    head_dim: int = 128
    batch_tokens: int = BATCH_TOKENS
    documents: bool = True


CASES = {
    "prose": Case(
        d_model=192,
        n_layers=5,
        d_ff=512,
        seq_len=64,
        tokens="0.06,0.09,0.13,0.19,0.28",
        within="0.334x0.16,0.417x0.075,0.417x0.23,0.5x0.16,0.584x0.075,0.584x0.23",
        beyond="0.75x0.8,1x0.4,1x0.55,1x0.75",
        steps=430,  # less than one pass
        text=("data.window=1000", "sft=null", "evaluate.final_rows=10000"),
        widths="0.334,0.417,0.5,0.584",
        head_dim=32,
    ),
    "source": Case(
        d_model=256,
        n_layers=6,
        d_ff=704,
        seq_len=256,
        tokens="0.0625,0.125,0.25,0.5",
        within="0.25x0.18,0.375x0.09,0.375x0.35,0.5x0.18,0.625x0.09,0.625x0.35",
        beyond=FAR,
        steps=1000,
        text=tuple(TEXT),
    ),
    # Models of one layer, on short rows: they can't learn to copy, so longer runs learn nothing
    # that shorter ones have not begun. Each fitted run has 650 steps or more.
    "one-layer": Case(
        d_model=128,
        n_layers=1,
        d_ff=352,
        seq_len=32,
        tokens="0.135,0.225,0.375,0.625",
        within="0.25x0.3,0.375x0.175,0.375x0.5,0.5x0.3,0.625x0.175,0.625x0.5",
        beyond="0.875x1.5,1x1.4,1.25x1.12,1.25x1.5",
        steps=2200,
        text=(
            f"data.sources=[{{kind: jsonl, path: {CODE_FILE}}}]",
            "data.window=1000",
            "tokenizer.train.vocab_size=512",
            "sft=null",
            "evaluate.every=5000",
            "evaluate.final_rows=5000",
            "hardware.workers=0",
        ),
        widths="0.25,0.375,0.5,0.625",
        head_dim=16,
        batch_tokens=4096,
        documents=False,
    ),
}


def write_code() -> None:
    """Write every source file of the standard library and its tests, as a document each."""
    library = Path(sysconfig.get_path("stdlib"))
    lines = []
    for path in sorted(library.rglob("*.py"), key=lambda path: path.as_posix()):
        name = path.relative_to(library).as_posix()
        if "site-packages" in name or name.startswith(NO_TEXT):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        lines.append(json.dumps({"text": text, "id": name}))
    write_atomically(CODE_FILE, ("\n".join(lines) + "\n").encode())


def overrides(case: str, store: str) -> list[str]:
    """Return what makes the job of a case of the demo's."""
    of = CASES[case]
    shape = {"d_model": of.d_model, "n_layers": of.n_layers, "d_ff": of.d_ff}
    model = shape | dict(ARMS["C pion 2"].model(of.d_model, of.n_layers))
    if of.head_dim != model["head_dim"]:
        heads = of.d_model // of.head_dim
        model |= {"head_dim": of.head_dim, "n_heads": heads, "n_kv_heads": heads}
    given: dict[str, Any] = {f"model.{name}": value for name, value in model.items()}
    given |= {
        "name": case,
        "store": store,
        "data.documents": of.documents,
        "data.seq_len": of.seq_len,
    }
    batch = of.batch_tokens // of.seq_len
    given["pretrain"] = {"recipe": "pion2", "steps": of.steps, "global_batch": batch}
    return [*of.text, *(f"{name}={json.dumps(value)}" for name, value in given.items())]


def climb(case: str, store: str) -> dict[str, Any]:
    """Climb the ladder, and return what the command says as JSON."""
    main = "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    held_out = f"{CASES[case].within},{CASES[case].beyond}"
    shares = [
        "--widths",
        CASES[case].widths,
        "--tokens",
        CASES[case].tokens,
        "--hold-out",
        held_out,
    ]
    command = [sys.executable, "-c", main, "ladder", str(JOB), *shares, "--json"]
    done = subprocess.run([*command, *overrides(case, store)], stdout=subprocess.PIPE, text=True)
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
    parser.add_argument("--case", choices=CASES, default="prose")
    options = parser.parse_args()
    write_text()
    write_code()
    ladder = climb(options.case, options.store)
    del ladder["page"]  # a path of this machine
    report = {"summary": summary(ladder), "ladder": ladder}
    path = RESULTS / f"ladder-{options.case}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
