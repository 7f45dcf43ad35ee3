"""Tiny jobs with the stage `prefer`, their pairs, and how to kill them."""

import json
import random

from pipeline.machine.kill_points import HALT_AT
from tests.support.meddling import Meddling
from tests.support.waiting import wait_until
from tests.support.whole_runs import kill, start, write_job

PAIRS = 120
# Two pairs of answers fit into most rows.
PREFER = {
    "loss": "dpo",
    "steps": 8,
    "global_batch": 4,
    "lr": 1e-3,
    "min_lr": 1e-4,
    "held_out": 0.2,
    "seq_len": 320,
    "sources": [{"kind": "jsonl", "path": "pairs.jsonl"}],
}
WORDS = ["the", "a", "cat", "birds", "sat", "saw", "flew", "over", "two", "red", "houses"]


def write_pairs(folder, pairs=PAIRS):
    """Write pairs.jsonl: every prompt is another one, and so are its answers."""
    draw = random.Random(1)

    def words(count):
        return " ".join(draw.choices(WORDS, k=count)) + "."

    lines = (
        {"prompt": f"What did {number} see?", "chosen": words(4), "rejected": words(6)}
        for number in range(pairs)
    )
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def prefer_job(folder, **changes):
    """Write a tiny job of three training stages, few steps each, and its data into `folder`.

    `changes` are as in `write_job`, such as `prefer__loss="simpo"`.
    """
    write_pairs(folder)
    short = {"pretrain__steps": 6, "sft__steps": 4, "sft__warmup_steps": 1}
    prefer = {f"prefer__{name}": value for name, value in PREFER.items()}
    return write_job(folder, **{**short, **prefer, **changes})


def killed_in_the_pass(folder, job, arrival):
    """Kill a run with SIGKILL at its `arrival` at a chunk of the reference; return its output."""
    chunks = Meddling(folder)
    chunks.run("import_module('pipeline.training.reference.compute').KEPT_SECONDS = 0.0")
    halted = folder / f"halted-{arrival}"
    process = start(job, env=chunks.environment() | {HALT_AT: f"reference:{arrival}:{halted}"})
    wait_until(lambda: halted.exists() or process.poll() is not None, "the run to reach a chunk")
    assert halted.exists()
    return kill(process)
