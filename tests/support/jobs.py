"""Small jobs for tests."""

import json
import random
from copy import deepcopy
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pipeline.console.display import Display
from pipeline.console.messages import Shown
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.job.model_section import Base
from pipeline.state.owner import Owner
from pipeline.training.train_request import TrainRequest

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
        "seq_len": 96,
        "held_out": 0.2,
        "sources": [{"kind": "jsonl", "path": "talks.jsonl"}],
    },
    "evaluate": {"every": 10, "rows": 4, "final_rows": 8, "continuations": 0, "prompts": ["a"]},
}


def tiny_dict(**changes: Any) -> dict[str, Any]:
    """Return TINY with `changes` by dotted path (`__` for the dots): `pretrain__steps=30`."""
    job = deepcopy(TINY)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = job
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return job


def tiny_job(**changes: Any) -> Job:
    """Return a validated tiny job; see `tiny_dict`."""
    return Job.model_validate(tiny_dict(**changes))


def job_from(config: ModelConfig, source: str = "base", **changes: Any) -> Job:
    """Return a validated tiny job that starts from a model of these settings, called `source`."""
    base = Base(source, "a" * 64, "b" * 64, config.to_dict())
    values = tiny_dict(model={"from": source}, tokenizer=None, **changes)
    return Job.model_validate(values, context={"base": base})


def train_request(job: Job, folder: Path, **changes: Any) -> TrainRequest:
    """Return the request to pretrain `job` in a folder, as this process, with `changes`."""
    request = TrainRequest(
        job=job.model_dump(mode="json"),
        job_folder=str(folder),
        store=str(folder / "runs"),
        owner=asdict(Owner.me()),
        stages=["pretrain"],
        digests={"pretrain": "d1", "sft": "d2"},
    )
    return replace(request, **changes)


def refusal(folder: Path, **changes: Any) -> str:
    """Return the message about the file of a tiny job with changes that are refused."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(**changes)))
    with pytest.raises(BadInput) as refused:
        load_job(path)
    assert refused.value.exit_code == 2
    return str(refused.value)


class SilentDisplay(Display):
    """A display that shows nothing and keeps every message."""

    def __init__(self) -> None:
        super().__init__(StringIO(), live=False)
        self.messages: list[Shown] = []

    def say(self, message: Shown) -> None:
        self.messages.append(message)


def write_tiny_data(folder: Path) -> None:
    """Write the text and the conversations that TINY names below `folder`."""
    words = ["the", "a", "cat", "birds", "sat", "saw", "flew", "over", "two", "red", "houses"]
    draw = random.Random(0)
    (folder / "text").mkdir(exist_ok=True)
    paragraphs = (" ".join(draw.choices(words, k=30)) + "." for _ in range(400))
    (folder / "text" / "all.txt").write_text("\n\n".join(paragraphs))
    talks = (
        {
            "conversations": [
                {"from": "human", "value": f"What did the {draw.choice(words)} see?"},
                {"from": "gpt", "value": " ".join(draw.choices(words, k=6)) + "."},
            ]
        }
        for _ in range(300)
    )
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
