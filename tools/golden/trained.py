"""Hashes of prepared data, and of weights after training."""

from __future__ import annotations

import hashlib
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from pion.config.lora import Lora
from pion.model.lora_projections import adapted
from tests.families.families import FAMILIES
from tests.paths import JOBS, OWN_JOBS
from tests.support.jobs import tiny_dict, write_tiny_data
from tests.support.preference_files import label_of, write_jsonl
from tests.support.preference_runs import PREFER, write_pairs
from tests.support.ranks import run_ranks
from tests.support.sharded_trainers import make, rows_of, train
from tests.support.whole_state import whole_state
from tools.golden.place import Place, Texts, place, processor

# ---------------------------------------------------------------- shards

# By name: changes to the tiny job.
TINY_JOBS = {
    "plain": {},
    "documents": {"data__documents": True, "data__window": 2},
    "cleaned": {"data__clean": {"min_words": 3, "max_repetition": 0.5, "languages": ["English"]}},
    "weighted": {
        "data__sources": [
            {"kind": "text", "path": "text", "split": "file", "weight": 2},
            {"kind": "jsonl", "path": "labels.jsonl", "field": "completion"},
        ]
    },
    "pairs": {f"prefer__{name}": value for name, value in PREFER.items()},
}
TINY_JOBS["labels"] = TINY_JOBS["pairs"] | {
    "prefer__loss": "apo-zero",
    "prefer__sources": [{"kind": "jsonl", "path": "labels.jsonl"}],
}


def shards() -> Texts:
    """Return the hashes of what small jobs and the demos prepare."""
    python = f"@python-{platform.python_version()}"
    with place() as here:
        write_tiny_data(here.folder)
        write_pairs(here.folder)
        write_jsonl(here.folder / "labels.jsonl", map(label_of, range(200)))
        for name, changes in TINY_JOBS.items():
            (here.folder / f"{name}.yaml").write_text(yaml.safe_dump(tiny_dict(**changes)))
        tiny = "\n".join(_prepared(here, f"{name}.yaml") for name in TINY_JOBS)
        own = [path.name for path in OWN_JOBS if path.stem.startswith("demo")]
        demos = [_prepared(here, f"jobs/{name}") for name in own]
        others = {path.stem for path in JOBS.glob("*.yaml") if not path.stem.startswith("demo")}
        demos += [f"\nThese jobs need the network: {', '.join(sorted(others))}\n"]
        return {"tiny.txt": tiny, f"demos{python}.txt": "".join(demos)}


def _prepared(here: Place, job: str) -> str:
    """Return the hashes of the data that a run prepares anew, without what is measured."""
    data = here.folder / "runs" / "_data"
    known = set(data.glob("*"))
    print("...", job, flush=True)
    said = here.pion("run", job, "store=runs", f"name={Path(job).stem}", "--until", "prepare")
    if not said.endswith("→ 0\n"):
        return f"# {job}\n{said}"
    rows = [f"# {job}"]
    for folder in sorted(set(data.glob("*")) - known):
        for path in sorted(folder.rglob("*")):
            written = path.suffix in (".npy", ".json") and path.name[0] != "."
            if written and path.parent != folder and path.name != "dataset.json":
                sha = hashlib.sha256(path.read_bytes()).hexdigest()
                name = "/".join(path.relative_to(folder).parts[1:])
                rows.append(f"{folder.name[:12]} {name} {sha}")
    return "\n".join(rows) + "\n"


# ---------------------------------------------------------------- weights

STEPS = 20
TRAINED = ("pion", "biased", "tachyon", "pilon", "lepton", "drafted", "daisy")
# By name: ranks, and the changes to the plan.
PLANS = {
    "1 rank": (1, {}),
    "1 rank, bfloat16": (1, {"dtype": "bfloat16"}),
    "2 ranks": (2, {"sharded": False}),
    "2 ranks, sharded": (2, {}),
}


def weights() -> Texts:
    """Return the hashes of weights and moments after 20 steps, which depend on the processor."""
    torch.set_num_threads(1)
    rows = []
    with place() as here:
        for name in (*TRAINED, "lora"):
            for plan, (ranks, changes) in PLANS.items():
                if name == "lora" and changes:
                    continue
                work = partial(_train, name, ranks, changes)
                out = here.folder / name / str(len(rows))
                out.mkdir(parents=True)
                run_ranks(work, out, ranks)
                rows.append(f"{name}, {plan}: {(out / 'result').read_text('utf-8')}")
    return {f"{processor()}.txt": "\n".join(rows) + "\n"}


def _train(name: str, ranks: int, changes: dict[str, Any], rank: int, folder: Path) -> None:
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
        )
    family = "pion" if name == "lora" else name
    given = {}
    if name == "lora":
        base = FAMILIES[family].decoder(0)
        given = {"model": adapted(base, Lora(rank=4), seed=0, dtype=torch.float32)}
    rows = rows_of(family, folder / str(rank))
    trainer = make(family, rows, world_size=ranks, rank=rank, **given, **changes)
    loss = train(trainer, STEPS)[-1]["loss"]
    state = whole_state(trainer)
    if rank == 0:
        sha = hashlib.sha256()
        for tensors in (state.model, state.optimizer):
            for key in sorted(tensors):
                sha.update(
                    key.encode()
                    + tensors[key].detach().contiguous().view(torch.uint8).numpy().tobytes()
                )
        (folder / "result").write_text(f"loss {loss:.6f} {sha.hexdigest()}")
