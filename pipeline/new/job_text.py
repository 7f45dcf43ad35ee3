"""The text of a proposed job: short, each choice with its reason as a comment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.console.formats import short_amount
from pipeline.new.layouts import TextColumn, is_chat
from pipeline.new.look import Reading
from pipeline.new.proposal import SMALLEST, FineTuning, Pretraining

_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@=+ -]*(?<! )")
# Comments begin in this column, if the line is shorter.
COLUMN = 34
# Reasons that no number changes.
HELD_OUT = "share of the documents that is kept out of training, to measure on"
RECIPE = "optimizer, rates and schedule of Pion 2: docs/recipes.md"
MODEL = "needs Pion's modelling files; without -max, llama.cpp and vLLM run it"
LOW_RATE = "low, so that the model forgets little"
CHAT_BATCH = "rows in a step: at most 16, and at least 30 steps"
CHAT_HELD_OUT = "share of the conversations that shows whether the model only repeats"


@dataclass(frozen=True)
class Proposal:
    """A whole job: what it is called, starts from, reads, and trains."""

    name: str
    written_by: str
    base: str | None
    texts: Sequence[dict[str, object]]
    chats: Sequence[dict[str, object]]
    pretraining: Pretraining | None
    fine_tuning: FineTuning | None
    prompt: str | None
    dollars: float


def path_in_job(path: Path, job_folder: Path) -> str:
    """Return what a job in this folder calls a file or a folder."""
    relative = os.path.relpath(path.absolute(), job_folder.absolute())
    return str(path.absolute()) if relative.startswith("../..") else relative


def source_of(
    reading: Reading, path: Path, job_folder: Path, split: str = "file"
) -> dict[str, object]:
    """Return the source of a job that reads `path`: the files themselves, or a copy of them."""
    kind = reading.group.kind if reading.direct else "jsonl"
    source: dict[str, object] = {"kind": kind, "path": path_in_job(path, job_folder)}
    if kind == "text" and split != "file":
        source["split"] = split
    column = reading.layout.column if isinstance(reading.layout, TextColumn) else "text"
    if not is_chat(reading.layout) and kind != "text" and reading.direct and column != "text":
        source["field"] = column
    return source


def job_text(proposal: Proposal) -> str:
    """Return the YAML of a job."""
    return with_comments(_lines(proposal))


def with_comments(lines: Iterable[tuple[str, str]]) -> str:
    """Return the YAML of lines, each with its comment, if it has one.

    A space is before each comment: without the space, YAML reads the comment as part of the value.
    A line that is only a comment stays one line, whatever a person has called a file.
    """
    text = (f"{line:<{COLUMN - 1}} # {_plain(why)}" if why else line for line, why in lines)
    return "".join(_plain(line) + "\n" if line.startswith("#") else line + "\n" for line in text)


def _plain(comment: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in comment)


def _lines(p: Proposal) -> Iterator[tuple[str, str]]:
    yield f"# Written by: {p.written_by}", ""
    yield (
        "# docs/own-data.md explains the rules behind these numbers. Change what you like, then",
        "",
    )
    yield "# run `pion check`. docs/jobs.md has all other fields.", ""
    yield f"name: {scalar(p.name)}", ""
    yield from _model(p)
    if p.texts:
        yield from _data(p)
    if p.pretraining is not None:
        yield from _pretrain(p.pretraining)
    if p.fine_tuning is not None:
        yield from _sft(p, p.fine_tuning)
    if p.prompt:
        yield "evaluate:", ""
        yield f"  prompts: [{quoted(p.prompt)}]", ""
        yield "                                  # asked during training; write your own", ""
    yield "publish:", ""
    yield f"  to: {scalar(f'models/{p.name}')}", "a folder, or hf://user/name"
    if p.fine_tuning is not None or p.pretraining is not None:
        yield (
            f"# budget: {{dollars: {p.dollars:g}}}",
            "saves and stops there, on a rented machine; at home, give dollars_per_hour too",
        )


def _model(p: Proposal) -> Iterator[tuple[str, str]]:
    if p.base is not None:
        yield f"model: {{from: {scalar(p.base)}}}", ""
        return
    assert p.pretraining is not None
    vocab_size = p.pretraining.vocab_size
    yield "model:", MODEL
    yield f"  preset: {p.pretraining.preset}", model_reason(p.pretraining)
    yield f"  vocab_size: {vocab_size}", ""
    yield "tokenizer:", ""
    yield f"  train: {{vocab_size: {vocab_size}}}", vocabulary_reason(p.pretraining)


def _data(p: Proposal) -> Iterator[tuple[str, str]]:
    yield "data:", ""
    if p.pretraining is not None:
        yield f"  seq_len: {p.pretraining.seq_len}", p.pretraining.why_rows
        yield f"  held_out: {p.pretraining.held_out:g}", HELD_OUT
        if p.base is None:
            yield "  documents: true", "no token sees the document before its own"
    yield "  sources:", ""
    for source in p.texts:
        yield f"  - {flow(source)}", ""


def _pretrain(stage: Pretraining) -> Iterator[tuple[str, str]]:
    yield "pretrain:", ""
    if stage.lr is None:
        yield "  recipe: pion2", RECIPE
    yield f"  steps: {stage.steps}", steps_reason(stage)
    yield f"  global_batch: {stage.global_batch}", batch_reason(stage)
    if stage.lr is not None:
        yield f"  lr: {stage.lr:g}", LOW_RATE
        yield f"  min_lr: {stage.lr / 10:g}", ""
        yield f"  warmup_steps: {max(1, min(1000, stage.steps // 20))}", ""
        yield "  schedule: cosine", ""


def _sft(p: Proposal, stage: FineTuning) -> Iterator[tuple[str, str]]:
    yield "sft:", ""
    yield f"  seq_len: {stage.seq_len}", stage.why_rows
    yield f"  epochs: {stage.epochs:g}", epochs_reason(stage)
    yield f"  global_batch: {stage.global_batch}", CHAT_BATCH
    yield f"  held_out: {stage.held_out:g}", CHAT_HELD_OUT
    if stage.lora:
        yield "  lora: {}", "a base of this size is frozen; small additions are trained"
    if stage.lr is not None:
        yield f"  lr: {stage.lr:g}", "a small model of your own needs more than the default, 2e-5"
        yield f"  min_lr: {stage.lr / 10:g}", ""
    yield "  sources:", ""
    for source in p.chats:
        yield f"  - {flow(source)}", ""


# ---------------------------------------------------------------- reasons, one line each


def model_reason(stage: Pretraining) -> str:
    """Return why this size."""
    assert stage.parameters is not None
    ratio = stage.tokens / stage.parameters
    size = short_amount(stage.parameters)
    words = f"{size} parameters, {ratio:.3g} tokens for each (20 are best)"
    return words + ("" if ratio > 19.5 else "; the smallest preset" if _smallest(stage) else "")


def _smallest(stage: Pretraining) -> bool:
    return stage.preset == SMALLEST


def vocabulary_reason(stage: Pretraining) -> str:
    """Return why so many entries."""
    return f"suits {short_amount(stage.own_tokens)} tokens of text and this model"


def steps_reason(stage: Pretraining) -> str:
    """Return why so many steps."""
    read = f"{stage.epochs:.1%} of the text"
    if stage.epochs >= 1:
        read = f"the text is read {stage.epochs:.2g} times"
    return f"{short_amount(stage.tokens)} tokens: {read}"


def batch_reason(stage: Pretraining) -> str:
    """Return why so many rows."""
    return f"rows in a step: {short_amount(stage.global_batch * stage.seq_len)} tokens"


def epochs_reason(stage: FineTuning) -> str:
    """Return why so many passes."""
    return f"passes over about {stage.rows:,} rows: about {stage.steps:,} steps"


# ---------------------------------------------------------------- YAML


def quoted(text: str) -> str:
    """Return a text as YAML in quotes, in a line."""
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9)).strip()


def scalar(text: str) -> str:
    """Return a text as YAML in a line."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return quoted(text)


def flow(source: dict[str, object]) -> str:
    """Return a source as YAML in a line."""
    return "{" + ", ".join(f"{key}: {scalar(str(value))}" for key, value in source.items()) + "}"
