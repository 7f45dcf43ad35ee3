"""Small jobs for tests."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pipeline.job import Job

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_ff": 48},
    "tokenizer": {"train": {"vocab_size": 320}},
    "data": {
        "seq_len": 32,
        "shard_rows": 64,
        "held_out": 0.2,
        "sources": [{"kind": "text", "path": "text", "split": "paragraph"}],
    },
    "pretrain": {"steps": 20, "global_batch": 4, "lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 2},
    "sft": {
        "steps": 10,
        "global_batch": 4,
        "lr": 1e-3,
        "min_lr": 1e-4,
        "warmup_steps": 1,
        "held_out": 0.2,
        "sources": [{"kind": "jsonl", "path": "talks.jsonl"}],
    },
    "evaluate": {"every": 10, "rows": 4, "final_rows": 8, "continuations": 0, "prompts": ["a"]},
}


def tiny_dict(**changes: Any) -> dict[str, Any]:
    """TINY with `changes` by dotted path (`__` for the dots): `pretrain__steps=30`."""
    job = deepcopy(TINY)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = job
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return job


def tiny_job(**changes: Any) -> Job:
    """A validated tiny job; see `tiny_dict`."""
    return Job.model_validate(tiny_dict(**changes))
