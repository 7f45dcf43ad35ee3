"""Jobs that fine-tune a published model, and cards to plan them for."""

import json

import yaml

from pipeline.machine.gpus import GPU_TYPES
from pipeline.rent.plan.prices import Offer
from tests.support.jobs import write_tiny_data
from tests.support.published_models import write_published

# Makes the job learn from pairs, too.
PREFER = ["prefer.sources=[{kind: jsonl, path: pairs.jsonl}]"]


def write_fine_tuning(folder, name):
    """Write the shortest job that fine-tunes this model, with the model and all its data."""
    write_published(folder / name, name)
    write_tiny_data(folder)
    talks = folder / "talks.jsonl"
    long = {"role": "assistant", "content": "the cat saw two red birds " * 20}
    # Enough for a batch of rows of 2,048 tokens.
    questions = ({"role": "user", "content": f"Who is {number}?"} for number in range(400))
    talks.write_text("".join(json.dumps({"messages": [q, long]}) + "\n" for q in questions))
    short = {"role": "assistant", "content": "the cat saw two red birds"}
    pairs = [[{"role": "user", "content": f"Who is {number}?"}, long] for number in range(400)]
    lines = [{"chosen": pair, "rejected": [pair[0], short]} for pair in pairs]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = {
        "name": "mine",
        "model": {"from": name},
        "sft": {"sources": [{"kind": "jsonl", "path": "talks.jsonl"}]},
        "store": str(folder / "runs"),
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def read_fine_tuning(folder, name, *overrides):
    """Return the job of `write_fine_tuning`, as plan and check read it."""
    from pipeline.base.job_with_base import read_job
    from pipeline.rehearsal.rehearse import expect_rows

    path = folder / "mine.yaml"
    job = read_job(path if path.exists() else write_fine_tuning(folder, name), overrides)
    expect_rows(job)
    return job


def one(gpu):
    """Return an offer of one GPU of this type."""
    return Offer(gpu, 1, "RunPod", "CA", False, 0.4, 0.4, GPU_TYPES[gpu].memory, 60)
