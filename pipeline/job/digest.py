"""Stage digests: what a stage's result depends on, and how two jobs differ.

A digest covers the identity and schedule fields of a stage and the digests of its inputs, never
runtime fields and never code versions, so that a finished stage is skipped exactly when redoing it
would give the same thing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pipeline.job import Job, Section

Inputs = dict[str, Any]
"""Dotted path → value; paths that start with `input.` are digests of what comes before."""


@dataclass(frozen=True)
class Digests:
    """Digests of one job: its data sets and its stages, and the inputs they were made of."""

    data: dict[str, str]
    stages: dict[str, str]
    inputs: dict[str, Inputs]


def digest_of(inputs: Inputs) -> str:
    """16 hex digits that name `inputs`."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def covered_fields(section: Section, prefix: str) -> Inputs:
    """The identity and schedule fields below `section`, by dotted path."""
    inputs: Inputs = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("part") == "runtime":
            continue
        _flatten(getattr(section, name), f"{prefix}.{name}" if prefix else name, inputs)
    return inputs


def _flatten(value: Any, path: str, into: Inputs) -> None:
    if isinstance(value, Section):
        into.update(covered_fields(value, path))
    elif isinstance(value, list) and any(isinstance(item, BaseModel) for item in value):
        for index, item in enumerate(value):
            _flatten(item, f"{path}.{index}", into)
    else:
        into[path] = value


def digest_job(job: Job) -> Digests:
    """Digests of every data set and stage of `job`."""
    tokenizer = covered_fields(job.tokenizer, "tokenizer")
    data: dict[str, str] = {}
    inputs: dict[str, Inputs] = {}

    if job.data.sources:
        inputs["data.pretrain"] = covered_fields(job.data, "data") | tokenizer
        data["pretrain"] = digest_of(inputs["data.pretrain"])
    if job.sft is not None:
        inputs["data.sft"] = {
            path: value
            for path, value in covered_fields(job.sft, "sft").items()
            if path.startswith(("sft.sources", "sft.held_out"))
        } | {"sft.seq_len": job.sft_seq_len, "data.held_out": job.data.held_out}
        # A trained tokenizer comes from the pretraining text, so its data decides the ids.
        inputs["data.sft"] |= (
            {"input.data.pretrain": data["pretrain"]} if job.tokenizer.train else tokenizer
        )
        data["sft"] = digest_of(inputs["data.sft"])

    inputs["prepare"] = {f"input.data.{part}": digest for part, digest in data.items()}
    stages = {"prepare": digest_of(inputs["prepare"])}
    model = {f"model.{k}": v for k, v in job.model_config_resolved().to_dict().items()}
    previous: str | None = None
    for stage in job.train_stages:
        section = covered_fields(job.section(stage), stage)
        own = {p: v for p, v in section.items() if p not in inputs.get(f"data.{stage}", {})}
        order = {"seed": job.seed, "data.window": job.data.window}
        inputs[stage] = model | own | order | {f"input.data.{stage}": data[stage]}
        if previous is not None and job.section(stage).init_from is None:
            inputs[stage][f"input.{previous}"] = stages[previous]
        stages[stage] = digest_of(inputs[stage])
        previous = stage

    trained = {f"input.{stage}": stages[stage] for stage in job.train_stages}
    inputs["evaluate"] = covered_fields(job.evaluate, "evaluate") | trained | inputs["prepare"]
    stages["evaluate"] = digest_of(inputs["evaluate"])
    if job.publish is not None:
        inputs["publish"] = covered_fields(job.publish, "publish") | {
            "input.evaluate": stages["evaluate"]
        }
        stages["publish"] = digest_of(inputs["publish"])
    return Digests(data, stages, inputs)


@dataclass(frozen=True)
class Difference:
    """One field that two jobs disagree on."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} → {_shown(self.new)}"


def differences(old: Inputs, new: Inputs) -> list[Difference]:
    """Fields that differ, without the digests of inputs (those have differences of their own)."""
    paths = [p for p in sorted(old.keys() | new.keys()) if not p.startswith("input.")]
    return [Difference(p, old.get(p), new.get(p)) for p in paths if old.get(p) != new.get(p)]


def _shown(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)
