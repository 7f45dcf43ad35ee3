"""Compare endings of pretraining: questions late, spread over the run or not at all, and long rows.

    uv run python -m benchmarks.phases [--seeds N]

jobs/demo-phases.yaml runs with each seed in four ways: prose alone; questions in the last quarter;
the same number of rows of questions spread over the whole run, which is the honest control; and
prose with rows of four times the length in the last 15 % of the steps. All runs of a seed begin
with the same weights. Differences are paired by seed. The model that was never lengthened reads
rows of 1,024 tokens for comparison with the lengthened one. Writes benchmarks/results/phases.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.__main__ import circumstances
from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.held_out import Scorer
from pion.evaluation.long_context import long_context
from pion.model.decoder import Decoder
from pipeline.base.job_with_base import read_job
from pipeline.data.prepared import held_out_rows, open_data
from pipeline.models.load import load_model_in
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store

JOB = "jobs/demo-phases.yaml"
RESULTS = Path(__file__).parent / "results" / "phases.json"
ROW, LONGER = 256, 4
# Of 96 steps, 24 read one row of questions in three: a twelfth of all rows.
WAYS = {
    "prose": "[{mix: {prose: 1}}]",
    "late": "[{until: 0.75, mix: {prose: 1}}, {mix: {prose: 2, questions: 1}}]",
    "spread": "[{mix: {prose: 11, questions: 1}}]",
    "long": "[{until: 0.85, mix: {prose: 1}}, {seq_len: 1024}]",
}


def main() -> None:
    """Run all ways with all seeds, and write what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    about = circumstances()
    with tempfile.TemporaryDirectory() as store:
        found = {way: [measured(store, way, seed) for seed in seeds] for way in WAYS}
    differences = {
        f"{a} − {b}": {name: paired(found[a], found[b], name) for name in found[a][0]}
        for a, b in (("late", "prose"), ("late", "spread"), ("spread", "prose"), ("long", "prose"))
    }
    result = {
        "circumstances": about,
        "job": JOB,
        "ways": WAYS,
        "runs": found,
        "paired": differences,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for pair, numbers in differences.items():
        for name, (mean, sem, t) in numbers.items():
            print(f"{pair:16} {name:24} {mean:+.4f} ± {sem:.4f}  t {t:+.1f}")


def measured(store: str, way: str, seed: int) -> dict[str, float]:
    """Run the demo in one way, and return bits per byte by source and nats of rows by length."""
    job = [f"name={way}-{seed}", f"store={store}", f"seed={seed}", f"pretrain.phases={WAYS[way]}"]
    job += ["model.seq_len=1024"] if way == "long" else []
    subprocess.run([sys.executable, "-m", "pipeline.cli", "run", JOB, *job], check=True)
    run = RunState(open_store(store), f"{way}-{seed}")
    head = run.read()
    assert head is not None
    of: dict[str, Any] = head.stages["evaluate"].result["pretrain"]
    by_source = {name: one["bits_per_byte"] for name, one in of["sources"].items()}
    numbers = {f"{name}, bits per byte": value for name, value in by_source.items()}
    plan = read_job(JOB, [*job, f"pretrain.phases={WAYS['long']}", "model.seq_len=1024"])
    data = open_data(Path(store) / head.data["pretrain"])
    checkpoint = head.stages["pretrain"].checkpoint
    model = load_model_in(Path(store) / run.name / str(checkpoint))
    return numbers | by_length(model, plan, data)


def by_length(model: Decoder, plan: Any, data: Any) -> dict[str, float]:
    """Return the loss of rows of 1,024 tokens of prose, of their beginnings, and the worth of the
    context, in nats per token and bits per byte."""
    model.config = replace(model.config, seq_len=LONGER * ROW)
    stream, rows = held_out_rows(plan, data, 800, LONGER)
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    scorer = Scorer(model.eval(), tokenizer.vocab_size, 4)
    ends, sizes = tokenizer.end_of_text, tokenizer.token_bytes()
    of = [long_context(scorer, stream, rows["prose"], n, sizes, ends) for n in (ROW, LONGER * ROW)]
    return {
        "first 256, nats": of[0]["short_loss"],
        "all 1,024, nats": of[1]["short_loss"],
        "worth of the context": of[0]["worth"],
    }


def paired(ours: list[dict[str, float]], theirs: list[dict[str, float]], name: str) -> list[float]:
    """Return the mean difference of a number, its standard error, and Student's t."""
    both = zip(ours, theirs, strict=True)
    differences = np.array([a.get(name, np.nan) - b.get(name, np.nan) for a, b in both])
    sem = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    return [float(differences.mean()), sem, float(differences.mean()) / sem]


if __name__ == "__main__":
    main()
