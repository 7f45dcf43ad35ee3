"""Race recipes for little text that is read many times.

    uv run python -m benchmarks.little NAME FOLDER [--mb 0.3] [--models pion2-pico …] [--arms C …]

Each file of FOLDER is a document, and the first `--mb` of them in an order of their own are the
text. Arms of a seed begin with the same weights and read the same rows in the same order. A and B
train with the passes at which two further seeds were best. All held-out rows are scored in fp32.
Each result is kept in benchmarks/results/little.json when it is there, so the same command
continues a race that was cut short. A training takes one thread, so several texts can race.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pion.data.stream import RowStream
from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.held_out import Scorer, score, summarize
from pion.files import write_atomically
from pion.model.decoder import Decoder
from pion.train.hardware import device_name, pick_dtype
from pion.train.optimizer.optimizer import Optimizer
from pion.train.settings import ComputePlan
from pion.train.trainer import Trainer
from pipeline.data.prepared import PreparedData, open_data
from pipeline.job import Job
from pipeline.job.train_sections import settings_of
from pipeline.stages.prepare import prepare_part

RESULTS = Path(__file__).parent / "results" / "little.json"
SEEDS, TRIED = range(5), (5, 6)
# By arm: its weight decay and its passes. Of A and B, the best of these passes are raced.
ARMS: dict[str, tuple[float | str, tuple[int, ...]]] = {
    "C": ("0.6x", (8,)),
    "A": (0.0, (2, 3, 4, 6)),
    "B": (0.1, (2, 3, 4, 6)),
    "E": ("0.6x", (8,)),
    "F1": ("0.3x", (8,)),
    "F2": ("1.2x", (8,)),
    "G": ("0.6x", (16,)),
}
# A difference of five seeds counts as real with |t| of so much.
REAL = 2.8
# Of the files, next to those that are trained on.
HELD_OUT = 0.2
SCORED_AT_ONCE = 32


def main() -> None:
    """Race the arms on a text, and print the differences from C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="what the text is called in the results")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=float, default=0.3)
    parser.add_argument("--models", nargs="+", default=["pion2-pico", "pion2-max-pico"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        files = take(options.folder, options.mb / (1 - HELD_OUT), Path(place, "text"))
        for model in options.models:
            job = job_of(Path(place, "text"), model, options.mb)
            data = Path(place, model)
            prepare_part(job, "pretrain", data, lambda message: None, None)
            race = f"{options.name}, {options.mb:g} MB, {model}"
            opened = open_data(data)
            for arm in options.arms:
                run_arm(race, arm, job, opened)
            summary = [*summed_up(race)]
            rows = rows_of(job, 0, opened, "train").total_rows
            _keep(race, {"text": files, "rows": rows, "summary": summary})
            print(f"{race}: {rows:,} rows", *summary, sep="\n  ", flush=True)


def take(folder: Path, megabytes: float, target: Path) -> dict[str, Any]:
    """Write the first files by the hashes of their names; return how many, and their hash."""
    target.mkdir()
    names = [path for path in folder.rglob("*") if path.is_file()]
    names.sort(key=lambda path: hashlib.sha256(str(path.relative_to(folder)).encode()).hexdigest())
    digest, size, count = hashlib.sha256(), 0, 0
    for path in names:
        text = path.read_text("utf-8", errors="replace")
        if size >= megabytes * 1e6:
            break
        (target / f"{count:05}.txt").write_text(text)
        digest.update(text.encode())
        size, count = size + len(text.encode()), count + 1
    return {"files": count, "bytes": size, "sha256": digest.hexdigest()}


def job_of(text: Path, model: str, megabytes: float) -> Job:
    """Return the job that all arms share; each has its own decay and steps."""
    entries = 1024 if megabytes < 1 else 2048
    return Job.model_validate(
        {
            "name": "little",
            "model": {"preset": model, "seq_len": 128, "vocab_size": entries},
            "tokenizer": {"train": {"vocab_size": entries}},
            "data": {
                "seq_len": 128,
                "documents": True,
                "held_out": HELD_OUT,
                "sources": [{"kind": "text", "path": str(text)}],
            },
            "pretrain": {"recipe": "pion2", "steps": 1000, "global_batch": 8},
        }
    )


def run_arm(race: str, arm: str, job: Job, data: PreparedData) -> None:
    """Train an arm with all seeds that have no result yet."""
    _, passes = ARMS[arm]
    if len(passes) > 1:
        tried = {n: [_bits(race, arm, n, seed, job, data) for seed in TRIED] for n in passes}
        passes = (min(passes, key=lambda n: statistics.mean(tried[n])),)
    for seed in SEEDS:
        _bits(race, arm, passes[0], seed, job, data)


def _bits(race: str, arm: str, passes: int, seed: int, job: Job, data: PreparedData) -> float:
    """Return the held-out bits per byte of a training, which is trained if nobody has."""
    key, runs = f"{arm}, {passes} passes, seed {seed}", _read().get(race, {}).get("runs", {})
    if key not in runs:
        runs[key] = train(arm, passes, seed, job, data)
        _keep(race, {"runs": runs})
        print(f"{race}: {key}: {runs[key]:.4f}", flush=True)
    return float(runs[key])


def train(arm: str, passes: int, seed: int, job: Job, data: PreparedData) -> float:
    """Train a model; return its bits per byte on all held-out rows."""
    rows = rows_of(job, seed, data, "train")
    decay, _ = ARMS[arm]
    steps = math.ceil(passes * rows.total_rows / 8)
    fields = job.model_dump(by_alias=True, exclude_unset=True)
    fields["pretrain"] = {"recipe": "pion2", "steps": steps, "global_batch": 8}
    fields["pretrain"]["weight_decay"] = decay
    section = Job.model_validate(fields).pretrain
    assert section is not None
    section.know_rows(rows.total_rows)
    device = torch.device("cpu")
    dtype = pick_dtype("auto", device)
    plan = ComputePlan(dtype=dtype, micro_batch=8, threads=1)
    torch.manual_seed(seed)
    whole = Optimizer._decay  # arm E is no setting of a job
    if arm == "E":
        Optimizer._decay = lambda self, role: whole(self, role) if role == "matrix" else 0.0  # type: ignore[method-assign]
    try:
        trainer = Trainer(Decoder(job.model_config_resolved()), rows, settings_of(section), plan)
    finally:
        Optimizer._decay = whole  # type: ignore[method-assign]
    for _ in range(steps):
        trainer.train_step()
        trainer.drain_metrics()
    trainer.close()
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    scored = rows_of(job, seed, data, "held_out")
    scorer = Scorer(trainer.model, tokenizer.vocab_size, SCORED_AT_ONCE)
    every = range(scored.total_rows)
    documents = scored.document_numbers(every, tokenizer.end_of_text)
    found = score(scorer, scored, every)
    of = summarize(found.nll, found.targets, tokenizer.token_bytes(), documents)
    return float(of.bits_per_byte)


def rows_of(job: Job, seed: int, data: PreparedData, split: str) -> RowStream:
    """Return the rows of a split, as a run of the job with this seed reads them."""
    return data.stream(split, seed=seed, window=job.data.window, documents=True)


def summed_up(race: str) -> Iterator[str]:
    """Yield each arm's mean, and its paired difference from C."""
    runs = _read()[race]["runs"]
    arms: dict[str, list[float]] = {}
    for key, bits in runs.items():
        arm, passes, seed = key.split(", ")
        if int(seed.removeprefix("seed ")) in SEEDS:
            arms.setdefault(f"{arm}, {passes}", []).append(bits)
    base = arms.get("C, 8 passes", [])
    for name, bits in arms.items():
        words = f"{name}: {statistics.mean(bits):.4f} bits per byte"
        yield words + (_compared(base, bits) if len(bits) == len(base) == len(SEEDS) else "")


def _compared(base: Sequence[float], bits: Sequence[float]) -> str:
    if base == bits:
        return ""
    differences = [a - b for a, b in zip(bits, base, strict=True)]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(bits) ** 0.5
    real = "real" if abs(mean) >= REAL * error else "not resolved"
    return f", {mean:+.4f} ± {error:.4f} from C ({real})"


def _read() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def _keep(race: str, what: dict[str, Any]) -> None:
    every = _read()
    about = {"processor": device_name(torch.device("cpu"))}
    every[race] = about | every.get(race, {}) | what
    write_atomically(RESULTS, (json.dumps(every, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
