"""Compare an ending of pretraining on longer rows with one on rows as before, on long documents.

    uv run python -m benchmarks.longer_rows [--seeds N]

The model of jobs/demo-phases.yaml reads the source files of Python's standard library; each is a
document. In the last 15 % of the steps, its rows have 1,024 tokens, or 256 as before. Both endings
of a seed continue the same checkpoint. Both models then read held-out rows of 1,024 tokens; the one
that never saw such rows reads them with the other's `rope_theta`, too. Differences are paired by
seed. Writes benchmarks/results/longer_rows.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from benchmarks.__main__ import circumstances
from benchmarks.phases import paired
from pion.data.shards import IGNORED
from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.held_out import Scorer, score
from pion.evaluation.long_context import long_context
from pipeline.base.job_with_base import read_job
from pipeline.data.prepared import held_out_rows, open_data
from pipeline.models.load import load_model_in
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store

JOB = "jobs/demo-phases.yaml"
RESULTS = Path(__file__).parent / "results" / "longer_rows.json"
ROW, LONGER, STEPS, BORDER, THETA = 256, 4, 400, 340, 200_000.0
SOURCE = f"{{name: source, kind: text, path: {sysconfig.get_path('stdlib')}/*.py}}"
SETTINGS = ["data.held_out=0.1", "model.seq_len=1024", "pretrain.schedule=cosine"]
SETTINGS += [f"pretrain.steps={STEPS}", f"evaluate.every={STEPS}", "hardware.workers=0"]
# With the schedule's own rates, the beginnings of longer rows lost 0.03 nats (one seed, 300 steps).
ENDINGS = {
    "longer": f"{{seq_len: {LONGER * ROW}, rope_theta: {THETA}, rates: {{others: 0.1}}}}",
    "source": f"{{seq_len: {ROW}, rates: {{others: 0.1}}}}",
}


def main() -> None:
    """Run both endings with all seeds, and write what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    about = circumstances()
    with tempfile.TemporaryDirectory() as store:
        found = [measured(store, seed) for seed in seeds]
    write(about, found)


def write(about: dict[str, object], found: list[dict[str, dict[str, float]]]) -> None:
    """Write what each seed found, with the means over seeds and those of the differences."""
    runs = {way: [of[way] for of in found] for way in found[0]}
    nothing = [dict.fromkeys(one, 0.0) for one in runs["longer"]]
    pairs = {way: (numbers, nothing) for way, numbers in runs.items()}
    pairs |= {f"{a} − {b}": (runs[a], runs[b]) for a, b in combinations(runs, 2)}
    means = {
        pair: {name: paired(ours, theirs, name) for name in nothing[0]}
        for pair, (ours, theirs) in pairs.items()
    }
    result = {"circumstances": about, "job": JOB, "settings": SETTINGS, "endings": ENDINGS}
    result |= {"runs": runs, "paired": means}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for pair, numbers in means.items():
        for name, (mean, sem, t) in numbers.items():
            print(f"{pair:36} {name:36} {mean:+.4f} ± {sem:.4f}  t {t:+.1f}")


def measured(store: str, seed: int) -> dict[str, dict[str, float]]:
    """Train to both endings, and return what each model loses on rows of 1,024 tokens."""
    pion, trunk = [sys.executable, "-m", "pipeline.cli"], f"longer-{seed}"
    for end in ENDINGS:
        if end != "longer":
            fork = ["fork", f"{store}/{trunk}", f"{end}-{seed}", "--at", str(BORDER)]
            subprocess.run([*pion, *fork], check=True)
        subprocess.run([*pion, "run", JOB, *job_of(store, end, seed)], check=True)
    found = {end: losses(store, end, seed) for end in ENDINGS}
    return found | {"source, larger rope_theta": losses(store, "source", seed, THETA)}


def job_of(store: str, end: str, seed: int) -> list[str]:
    """Return what the run of an ending changes in the job."""
    phases = f"[{{until: {BORDER}, mix: {{source: 1}}}}, {ENDINGS[end]}]"
    own = [f"name={end}-{seed}", f"store={store}", f"seed={seed}", f"data.sources=[{SOURCE}]"]
    return [*own, *SETTINGS, f"pretrain.phases={phases}"]


def losses(store: str, end: str, seed: int, theta: float | None = None) -> dict[str, float]:
    """Return the loss of a model on rows of 1,024 tokens and on their beginnings, and what the
    context is worth to it. `theta` replaces its `rope_theta`."""
    head = RunState(open_store(store), f"{end}-{seed}").read()
    assert head is not None
    data = open_data(Path(store) / head.data["pretrain"])
    model = load_model_in(Path(store) / f"{end}-{seed}" / str(head.stages["pretrain"].checkpoint))
    theta = theta or model.config.rope_theta
    model.config = replace(model.config, seq_len=LONGER * ROW, rope_theta=theta)
    stream, rows = held_out_rows(read_job(JOB, job_of(store, end, seed)), data, 800, LONGER)
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    scorer = Scorer(model.eval(), tokenizer.vocab_size, 4)
    read = score(scorer, stream, rows["source"])
    counted = read.targets != IGNORED
    sizes, ends = tokenizer.token_bytes(), tokenizer.end_of_text
    context = long_context(scorer, stream, rows["source"], ROW, sizes, ends)
    return {
        "first 256, nats": float(read.nll[:, :ROW].sum() / counted[:, :ROW].sum()),
        "all 1,024, nats": float(read.nll.sum() / counted.sum()),
        "worth, bits per byte": context["worth"],
    }


if __name__ == "__main__":
    main()
