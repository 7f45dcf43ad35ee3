"""The arms of the races of recipes (benchmarks/recipes.py): for each a model and its training.

A is the recipe of pion-*, B the older Muon of the demo, C Pion 2, D Pion 2 Max, and N nanochat.
What follows a letter is one change of it. A rate is a factor of the size: AdamW's rates for
embeddings, head and vectors are given for a d_model of 768, and grow with (d_model / 768)^-½.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import nanochat_rival
from pion.config.presets import max_parts
from pion.data.documents.python_docs import source_files
from pion.files import write_atomically
from pion.model.params_and_flops import cost_of
from pipeline.job import Job, recipe
from pipeline.job.file import load_job

# What jobs/demo.yaml was before Pion 2.
JOB = Path(__file__).parent / "demo_muon.yaml"
# The source of Python's standard library: code with its docstrings and comments. Its prose alone is
# too little for one pass, and prose next to source would have copies of the held-out text. Tables
# of encodings and the topics of pydoc repeat each other or the docstrings.
TEXT_FILE = Path(tempfile.gettempdir()) / "pion-recipes.jsonl"
NO_TEXT = ("encodings/", "pydoc_data/")
TEXT = [
    f"data.sources=[{{kind: jsonl, path: {TEXT_FILE}}}]",
    "data.window=1000",  # all shards are mixed: a seed does not decide what a short run is about
    "sft=null",
    "evaluate.final_rows=10000",
]

# By name, d_model, n_layers, n_heads, n_kv_heads and d_ff of the demo's model and of smaller ones:
# 0.6, 1.0, 2.4 and 5.0 million multiplications a token.
SIZES = {
    "xs": (128, 2, 2, 1, 352),
    "s": (128, 4, 2, 1, 352),
    "m": (192, 5, 3, 1, 512),
    "l": (256, 6, 4, 2, 704),
}
# The steps of the demo's model; smaller ones have steps in proportion to their multiplications.
STEPS = 720
BATCH_TOKENS = 8 * 256  # of the demo
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """What a recipe changes in a job, by field of `model` and `pretrain`.

    `model` is called with d_model and n_layers, and `training` with d_model and the steps. `share`
    is how much of the steps of its race an arm gets.
    """

    model: Callable[[int, int], Settings]
    training: Callable[[int, int], Settings]
    documents: bool = True
    share: float = 1.0


def demo(d_model: int, n_layers: int) -> Settings:
    """Return no change of the demo's model."""
    return {}


def adamw(lr: float) -> Arm:
    """Return the recipe of pion-*: AdamW on all, with the defaults of a job but for its rate."""

    def training(d_model: int, steps: int) -> Settings:
        return {
            "lr": lr,
            "min_lr": lr / 10,
            "optimizer": "adamw",
            "warmup_steps": max(1, steps // 10),
            "decay_shape": "cosine",
            "decay_fraction": 0.2,
        }

    return Arm(demo, training, documents=False)


def tuned_adamw(lr: float, embedding_lr: float = 5e-3) -> Arm:
    """Return the recipe of demo_muon.yaml with AdamW for the matrices, too."""

    def training(d_model: int, steps: int) -> Settings:
        return {
            "optimizer": "adamw",
            "lr": lr,
            "min_lr": lr / 50,
            "embedding_lr": embedding_lr,
            "warmup_steps": max(1, steps // 48),
        }

    return Arm(demo, training, documents=False)


def muon(muon_lr: float) -> Arm:
    """Return the recipe of demo_muon.yaml, which the base of all jobs here has, with a rate."""

    def training(d_model: int, steps: int) -> Settings:
        return {"muon_lr": muon_lr, "warmup_steps": max(1, steps // 48)}

    return Arm(demo, training, documents=False)


def pion2(
    model: Settings | None = None,
    *without: str,
    times: Settings | None = None,
    documents: bool = True,
    share: float = 1.0,
    **changes: Any,
) -> Arm:
    """Return Pion 2: few wide heads, one for keys and values, an untied head, Muon, linear decay.

    `model` has changes of its model, and `without` names what its model is without. `times` has
    factors of rates, and `changes` other values of `pretrain`.
    """

    def shape(d_model: int, n_layers: int) -> Settings:
        wide = {
            "n_heads": max(1, round(d_model / 128)),
            "n_kv_heads": 1,
            "head_dim": 128,
            "tie_embeddings": False,
            "rope_theta": 100_000,
        }
        kept = {name: value for name, value in wide.items() if name not in without}
        return kept | dict(model or {})

    def training(d_model: int, steps: int) -> Settings:
        own: dict[str, Any] = {**recipe.pion2(d_model, steps)}
        given = {"head_lr": own["lr"], **own}
        factors = {"min_lr": (times or {}).get("lr", 1.0), **(times or {})}
        return given | {name: float(given[name]) * f for name, f in factors.items()} | changes

    return Arm(shape, training, documents, share)


def most(model: Settings | None = None, *without: str, **changes: Any) -> Arm:
    """Return Pion 2 Max, which needs modelling files, with changes as in `pion2`."""
    own = max_parts(SIZES["l"][1])  # `job_of` leaves out the layers that a smaller one has not
    kept = {name: value for name, value in own.items() if name not in without}
    return pion2(kept | dict(model or {}), **changes)


NARROW = ("n_heads", "n_kv_heads", "head_dim")

ARMS: dict[str, Arm] = {
    "A adamw 3e-4": adamw(3e-4),
    "A adamw 1e-3": adamw(1e-3),
    "A adamw 2e-3": adamw(2e-3),
    "A adamw 3e-3": adamw(3e-3),
    "A adamw 1e-2": adamw(1e-2),
    "A tuned, lr 2.5e-4": tuned_adamw(2.5e-4),
    "A tuned, lr 5e-4": tuned_adamw(5e-4),
    "A tuned, lr 1e-3": tuned_adamw(1e-3),
    "A tuned, lr 2e-3": tuned_adamw(2e-3),
    "A tuned, lr 4e-3": tuned_adamw(4e-3),
    "A tuned, lr 8e-3": tuned_adamw(8e-3),
    "A tuned, lr 2e-3, embedding_lr 2e-3": tuned_adamw(2e-3, 2e-3),
    "A tuned, lr 2e-3, embedding_lr 1.5e-2": tuned_adamw(2e-3, 1.5e-2),
    "A tuned, lr 1e-3, embedding_lr 1.5e-2": tuned_adamw(1e-3, 1.5e-2),
    "A tuned, lr 2.5e-4, embedding_lr 1.5e-2": tuned_adamw(2.5e-4, 1.5e-2),
    "A tuned, lr 5e-4, embedding_lr 1.5e-2": tuned_adamw(5e-4, 1.5e-2),
    "A tuned, lr 5e-4, embedding_lr 4e-2": tuned_adamw(5e-4, 4e-2),
    "A tuned, lr 1e-3, embedding_lr 4e-2": tuned_adamw(1e-3, 4e-2),
    "B muon": muon(0.02),
    "B muon 0.005": muon(0.005),
    "B muon 0.01": muon(0.01),
    "B muon 0.04": muon(0.04),
    "C pion 2": pion2(),
    "C muon_lr / 2": pion2(times={"muon_lr": 0.5}),
    "C muon_lr · 2": pion2(times={"muon_lr": 2}),
    "C embedding_lr / 3": pion2(times={"embedding_lr": 1 / 3}),
    "C embedding_lr · 3": pion2(times={"embedding_lr": 3}),
    "C lr, head_lr, vector_lr / 2": pion2(times={"lr": 0.5, "head_lr": 0.5, "vector_lr": 0.5}),
    "C lr, head_lr, vector_lr · 2": pion2(times={"lr": 2, "head_lr": 2, "vector_lr": 2}),
    "C adamw": pion2(optimizer="adamw"),
    "C adamw, lr / 3": pion2(optimizer="adamw", times={"lr": 1 / 3}),
    "C adamw, lr / 10": pion2(optimizer="adamw", times={"lr": 1 / 10}),
    "C zero outputs": pion2({"init": "zero_outputs"}),
    "C zero outputs, muon_lr · 2": pion2({"init": "zero_outputs"}, times={"muon_lr": 2}),
    "C tied head": pion2(None, "tie_embeddings"),
    "C narrow heads": pion2(None, *NARROW),
    "C rope_theta 10000": pion2(None, "rope_theta"),
    "C documents together": pion2(documents=False),
    "C norm of embeddings": pion2({"wiring": {"embed_norm": True}}),
    "C without gains": pion2({"norm_gain": False}),
    "C weight_decay 0.1": pion2(weight_decay=0.1),
    "C beta1 0.9": pion2(beta1=0.9),
    "D max": most(),
    "D in 0.7 of the steps": most(share=0.7),
    "D in 0.83 of the steps": most(share=0.83),
    "D muon_lr / 2": most(times={"muon_lr": 0.5}),
    "D zero outputs": most({"init": "zero_outputs"}),
    "D without value tables": most(None, "values"),
    "D without wiring": most(None, "wiring"),
    "D with SwiGLU": most(None, "activation"),
    "D without a cap": most(None, "logit_cap"),
    "D without a scale": most(None, "heads"),
    "D with gains": most(None, "norm_gain"),
}
FIRST = "B muon"
# nanochat's own model and optimizer, and the factor of the rates that its rules give.
RIVALS = {f"N nanochat · {factor}": float(factor) for factor in (4, 8, 16, 32, 64)}


def write_text() -> None:
    """Write the text of the races where the jobs read it, if it is not there."""
    kept = (file for file in source_files() if not file.origin.startswith(NO_TEXT))
    lines = [json.dumps({"text": file.text, "id": file.origin}) for file in kept]
    text = "\n".join(lines) + "\n"
    if not TEXT_FILE.exists() or TEXT_FILE.read_text(encoding="utf-8") != text:
        write_atomically(TEXT_FILE, text.encode())


def job_of(size: str, arm: str, steps: int) -> Job:
    """Return the job of an arm."""
    d_model, n_layers, n_heads, n_kv_heads, d_ff = SIZES[size]
    found = ARMS[arm]
    shape = {"d_model": d_model, "n_layers": n_layers, "d_ff": d_ff}
    model: dict[str, Any] = shape | {"n_heads": n_heads, "n_kv_heads": n_kv_heads}
    model |= found.model(d_model, n_layers)
    if "values" in model:
        layers = [layer for layer in model["values"]["layers"] if layer < n_layers]
        model["values"] = {**model["values"], "layers": layers}
    training = {"steps": steps, **found.training(d_model, steps)}
    given = {f"model.{name}": value for name, value in model.items()}
    given |= {f"pretrain.{name}": value for name, value in training.items()}
    changes = [f"{name}={json.dumps(value)}" for name, value in given.items()]
    return load_job(JOB, [*TEXT, *changes, f"data.documents={json.dumps(found.documents)}"])


@functools.cache
def macs(size: str, arm: str) -> int:
    """Return the multiply-accumulates with weights for a token."""
    config = job_of(size, FIRST if arm in RIVALS else arm, 100).model_config_resolved()
    if arm in RIVALS:
        return nanochat_rival.macs(config.d_model, config.n_layers, config.vocab_size)
    return cost_of(config).macs_per_token


def steps_of(size: str, arm: str, *, equal_flops: bool) -> int:
    """Return the steps of an arm in one of its two races."""
    share = 1.0 if arm in RIVALS else ARMS[arm].share
    steps = STEPS * macs(size, FIRST) / macs("l", FIRST) * share
    return round(steps * macs(size, FIRST) / macs(size, arm) if equal_flops else steps)
