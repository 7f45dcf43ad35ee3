"""Measure how long training on an empty disk waits for its first batch, by the size of the data.

    uv run python -m benchmarks.first_batch [--mb 60 240 960] [--rounds 3]

The store is the service that PION_REAL_S3 names, with the usual AWS variables. It has data that
another machine prepared. Measured by turns, with empty caches: training as it starts, which fetches
one window of shards; and a download of all shards, as before training began with a window. Writes
benchmarks/results/first_batch.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3
import yaml

from benchmarks.startup import ROOT
from pipeline.data.prepared import open_data
from pipeline.data.shard_cache import ShardCache, fetching_from
from pipeline.job.file import load_job
from pipeline.stages.prepare import prepare_pretrain
from pipeline.state.stores import Store, open_store
from pipeline.state.workspace import Workspace

RESULT = ROOT / "benchmarks" / "results" / "first_batch.json"
SEQ_LEN, SHARD_ROWS, WINDOW, BATCH = 1024, 2048, 8, 8
SEED = 1
LETTERS = "abcdefghijklmnopqrstuvwxyz     \n"
DOCUMENT = 1 << 13
# What docs/performance.md computes: ten billion tokens in shards of the default size.
LARGE_BYTES, LARGE_SHARD_BYTES = 20e9, 41e6


def write_letters_job(
    folder: Path, name: str, size: int, *, seed: int, shard_rows: int, **more: Any
) -> Path:
    """Write a job whose text is `size` random letters, and return its file.

    A letter is about a token, because there are few ids.
    """
    drawn = random.Random(seed)
    with (folder / f"{name}.jsonl").open("w") as file:
        for _ in range(size // DOCUMENT):
            file.write(json.dumps({"text": "".join(drawn.choices(LETTERS, k=DOCUMENT))}) + "\n")
    job = {
        "name": name,
        "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 64},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {
            "seq_len": SEQ_LEN,
            "shard_rows": shard_rows,
            "held_out": 0.01,
            "sources": [{"kind": "jsonl", "path": f"{name}.jsonl"}],
        },
        "pretrain": {"steps": 10, "global_batch": 4, "warmup_steps": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job | more))
    return path


def prepare(store: Store, folder: Path, megabytes: int) -> str:
    """Prepare so many megabytes of shards, and keep them in the store. Return their key there."""
    key, letters = f"{megabytes}/data", (megabytes << 20) // 2  # a token has two bytes
    job = write_letters_job(folder, "first-batch", letters, seed=megabytes, shard_rows=SHARD_ROWS)
    machine = Workspace(store, "_data", folder / "machine")
    prepare_pretrain(load_job(job), machine.folder(key), lambda message: None)
    machine.keep(key)
    return key


def first_batch(store: Store, key: str, folder: Path, *, whole: bool) -> tuple[float, int, int]:
    """Return the seconds from an empty disk to the first batch, and how many shards of how many
    bytes were in `folder` by then."""
    start = time.perf_counter()
    workspace = Workspace(store, "_data", folder / "machine")
    data = open_data(workspace.bring(key, shards=whole))
    fetch = fetching_from(store, f"_data/{key}", lambda download: download())
    cache = ShardCache(folder / "cache", 20_000_000_000, fetch)
    stream = data.stream("train", SEED, WINDOW, lambda: cache)
    stream.batch(range(BATCH))
    seconds = time.perf_counter() - start
    found = [p.stat().st_size for p in folder.rglob("*") if p.stat().st_size > 1 << 20]
    cache.close()
    return seconds, len(found), sum(found)


def measure(store: Store, megabytes: int, rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        key = prepare(store, Path(folder), megabytes)
    times: dict[str, list[float]] = {"window": [], "whole": []}
    there: dict[str, tuple[int, int]] = {}
    # A download ahead may still be under way when the folder is removed.
    with tempfile.TemporaryDirectory(dir=ROOT, ignore_cleanup_errors=True) as folder:
        for number in range(rounds):
            for name in times:
                place = Path(folder) / f"{name}-{number}"
                seconds, shards, size = first_batch(store, key, place, whole=name == "whole")
                times[name].append(seconds)
                there[name] = shards, size
    return {
        "megabytes": megabytes,
        **{
            name: {
                "seconds": round(statistics.median(times[name]), 3),
                "shards": there[name][0],
                "megabytes": round(there[name][1] / 2**20),
            }
            for name in times
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, nargs="+", default=[60, 240, 960])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    os.environ["AWS_ENDPOINT_URL"] = os.environ["PION_REAL_S3"]
    bucket = f"first-batch-{int(time.time())}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    found = []
    for megabytes in given.mb:
        found.append(measure(open_store(f"s3://{bucket}/data"), megabytes, given.rounds))
        print(json.dumps(found[-1]), flush=True)
    window = min(WINDOW * LARGE_SHARD_BYTES, LARGE_BYTES)
    computed = {"bytes": LARGE_BYTES, "shard_bytes": LARGE_SHARD_BYTES, "before_step_1": window}
    result = {"window": WINDOW, "measured": found, "computed": computed}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
