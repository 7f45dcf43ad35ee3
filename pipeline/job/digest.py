"""Stage digests: what a stage's result depends on, and how two jobs differ.

A digest covers the identity and schedule fields of a stage and the digests of its inputs, never
runtime fields and never code versions, so that a finished stage is skipped exactly when redoing it
would give the same thing. A field that was added after the first runs is covered only if its value
differs from `before` (section.py, pion/later_fields.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pion.config.model_config import ModelConfig
from pion.files import sha256_file
from pion.later_fields import values_before
from pipeline.job import Job, Section
from pipeline.job.mixes import source_names
from pipeline.job.section import ALWAYS_THERE, join, part_of, value_before
from pipeline.job.stages import CONVERSING

# Of a stage that learns from conversations: what decides their rows. An answer of max_tokens leaves
# the rest of a row to its prompt.
_DECIDE_ROWS = ("sources", "held_out", "template", "system", "max_tokens")
# Below a stage: whether LoRA trains next to the biases of the projections that it adapts. Stages
# from before this is recorded trained without them, and the models that they merged have them.
BIASES, BIASED = "lora.biases", {"q_proj", "k_proj", "v_proj"}
NO_BIASES = {f"{stage}.{BIASES}": False for stage in CONVERSING}
# Dotted path → value. Paths that start with `input.` are digests of earlier stages and of data.
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Digests:
    """Digests of one job: its data sets and its stages, and the inputs of each digest.

    `before` has the values of the job's later fields where a stage's inputs leave them out.
    """

    data: dict[str, str]
    stages: dict[str, str]
    inputs: dict[str, Inputs]
    before: Inputs


def digest_of(inputs: Inputs) -> str:
    """Return the 16 hex digits that name `inputs`."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def covered_fields(section: Section, prefix: str = "") -> Inputs:
    """Return the fields below `section` that a digest covers, by dotted path."""
    inputs: Inputs = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if part_of(field) != "runtime" and value != value_before(field):
            inputs |= _flat(value, join(prefix, name))
    return inputs


def fields_before(section: Section, prefix: str = "") -> Inputs:
    """Return the values that later fields below `section` have where they are left out."""
    before: Inputs = {}
    for name, field in type(section).model_fields.items():
        path = join(prefix, name)
        if value_before(field) is not ALWAYS_THERE:
            before |= _flat(value_before(field), path)
        for inner_path, inner in _sections_in(getattr(section, name), path):
            before |= fields_before(inner, inner_path)
    return before


def _flat(value: Any, path: str) -> Inputs:
    sections = _sections_in(value, path)
    if not sections:
        return {path: value}
    inputs: Inputs = {}
    for inner_path, section in sections:
        inputs |= covered_fields(section, inner_path)
    return inputs


def _sections_in(value: Any, path: str) -> list[tuple[str, Section]]:
    """Return the sections in `value`, a section or a list, each with its path."""
    if isinstance(value, Section):
        return [(path, value)]
    items = enumerate(value) if isinstance(value, list) else ()
    return [(f"{path}.{n}", item) for n, item in items if isinstance(item, Section)]


def digest_job(job: Job) -> Digests:
    """Return the digests of every data set and stage of `job`."""
    tokenizer = tokenizer_inputs(job)
    data: dict[str, str] = {}
    inputs: dict[str, Inputs] = {}

    if job.data.sources:
        inputs["data.pretrain"] = covered_fields(job.text_settings, "data") | tokenizer
        data["pretrain"] = digest_of(inputs["data.pretrain"])
    # A trained tokenizer comes from the pretraining text, so its data decides the ids.
    trained = job.tokenizer is not None and job.tokenizer.train is not None
    for stage in job.train_stages:
        if stage in CONVERSING:
            ids = {"input.data.pretrain": data["pretrain"]} if trained else tokenizer
            inputs[f"data.{stage}"] = conversation_inputs(job, stage) | ids
            data[stage] = digest_of(inputs[f"data.{stage}"])

    inputs["prepare"] = {f"input.data.{part}": digest for part, digest in data.items()}
    stages = {"prepare": digest_of(inputs["prepare"])}
    config = job.model_config_resolved()
    model = model_inputs(config)
    previous: str | None = None
    for stage in job.train_stages:
        own = {
            path: value
            for path, value in covered_fields(job.section(stage), stage).items()
            if path not in inputs.get(f"data.{stage}", {})
        }
        # 0.1.0 recorded a field that is gone, which named another model to start from.
        own |= {"seed": job.seed, "data.window": job.data.window, f"{stage}.init_from": None}
        inputs[stage] = model | own | _read_by(job, stage, data[stage], tokenizer)
        inputs[stage] |= _biases(job, stage, config) | files_of(job, stage)
        if previous is not None:
            inputs[stage][f"input.{previous}"] = stages[previous]
        elif job.base is not None:
            inputs[stage]["model.from"] = job.base.hash
        stages[stage] = digest_of(inputs[stage])
        previous = stage

    models = {f"input.{stage}": stages[stage] for stage in job.train_stages}
    inputs["evaluate"] = covered_fields(job.evaluate, "evaluate") | models | inputs["prepare"]
    stages["evaluate"] = digest_of(inputs["evaluate"])
    if job.publish is not None:
        inputs["publish"] = covered_fields(job.publish, "publish") | {
            "input.evaluate": stages["evaluate"]
        }
        stages["publish"] = digest_of(inputs["publish"])
    before = {f"model.{k}": v for k, v in values_before(type(config)).items()}
    return Digests(data, stages, inputs, before | NO_BIASES | fields_before(job))


def _biases(job: Job, stage: str, config: ModelConfig) -> Inputs:
    """Return that LoRA trains next to the biases of what it adapts, if there are any."""
    lora, biased = job.lora(stage), config.heads is not None and config.heads.qkv_bias
    kept = biased and lora is not None and BIASED & set(lora.targets_of(config))
    return {f"{stage}.{BIASES}": True} if kept else {}


def _read_by(job: Job, stage: str, digest: str, tokenizer: Inputs) -> Inputs:
    """Return the digest of a stage's data; of each source that phases name, so that a fork may add
    sources."""
    if stage != "pretrain" or not job.mix_phases:
        return {f"input.data.{stage}": digest}
    data = covered_fields(job.text_settings, "data").items()
    shared = {path: value for path, value in data if not path.startswith("data.sources.")}
    found: Inputs = {}
    for name, source in zip(source_names(job.data), job.data.sources):
        own = shared | tokenizer | covered_fields(source, "source")
        found[f"input.data.pretrain.{name}"] = digest_of(own)
        if job.data.clean is not None:  # a copy of an earlier source's document is left out
            shared = shared | {f"input.{name}": digest_of(own)}
    if job.tokenizer is not None and job.tokenizer.train is not None:
        learned = {name: found[f"input.data.pretrain.{name}"] for name in job.tokenizer_sources}
        found["input.data.pretrain"] = digest_of(learned)
    return found


def conversation_inputs(job: Job, stage: str) -> Inputs:
    """Return what decides the rows of a stage's conversations, apart from the tokenizer."""
    inputs = _fields_of_rows(job, stage) | {f"{stage}.seq_len": job.seq_len(stage)}
    others = {
        "data.held_out": job.data.held_out,  # with a text, what is about it
        "model.seq_len": job.model_config_resolved().seq_len,  # no answer is longer
    }
    inputs |= {path: others[path] for path in job.conversations(stage).rows_depend_on}
    template = job.template_stage
    if template is not None and template != stage:
        written = _fields_of_rows(job, template).items()
        rows = (f"{template}.sources", f"{template}.held_out")
        inputs |= {path: value for path, value in written if not path.startswith(rows)}
    if job.base is not None and job.uses_model_template:
        day = {} if job.base.date is None else {f"{template}.template.date": job.base.date}
        inputs |= {f"{template}.template.from": job.base.template, **day}
    return inputs


def files_of(job: Job, stage: str) -> Inputs:
    """Return the hashes of what a stage reads next to its data; None of a file that is not here."""
    files = {key: job.kept_path(path) for key, path in job.section(stage).files.items()}
    return {f"{k}.sha256": sha256_file(f) if f.is_file() else None for k, f in files.items()}


def _fields_of_rows(job: Job, stage: str) -> Inputs:
    """Return the fields of a stage that decide its rows of conversations."""
    names = tuple(f"{stage}.{name}" for name in _DECIDE_ROWS)
    fields = covered_fields(job.section(stage), stage)
    return {path: value for path, value in fields.items() if path.startswith(names)}


def tokenizer_inputs(job: Job) -> Inputs:
    """Return what decides token ids. That of a model to start from is named by its content."""
    if job.base is not None:
        return {"tokenizer.from": job.base.tokenizer}
    return {} if job.tokenizer is None else covered_fields(job.tokenizer, "tokenizer")


def model_inputs(config: ModelConfig) -> Inputs:
    """Return the settings of a model by their paths, those of its parts included."""
    inputs: Inputs = {}
    for name, value in config.to_dict().items():
        parts = value if isinstance(value, dict) else {}
        below = {f"model.{name}.{key}": part for key, part in parts.items()}
        inputs |= below or {f"model.{name}": value}
    return inputs


@dataclass(frozen=True)
class Difference:
    """One field that two jobs disagree on."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} → {_shown(self.new)}"


def differences(old: Inputs, new: Inputs, before: Inputs) -> list[Difference]:
    """Return the fields that differ, except digests of inputs.

    A later field that either side leaves out has its value in `before`.
    """
    old, new = before | old, before | new
    paths = [p for p in sorted(old.keys() | new.keys()) if not p.startswith("input.")]
    return [Difference(p, old.get(p), new.get(p)) for p in paths if old.get(p) != new.get(p)]


def _shown(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)
