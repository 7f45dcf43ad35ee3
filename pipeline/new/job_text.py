"""The text of a proposed job: short, each choice with its reason as a comment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pion.rewards.builtin import is_formula, unjudgeable
from pipeline.console.formats import short_amount
from pipeline.new.base import LookedUp
from pipeline.new.layouts import TextColumn
from pipeline.new.look import Look, Reading
from pipeline.new.options import NewOptions, name_of
from pipeline.new.rules import SMALLEST, Amount, FineTuning, FromRandom, Pretraining

_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@=+ -]*(?<! )")
# GSM8K's mark, LaTeX's, or nothing but a number.
_CHECKED = re.compile(r"####|\\boxed\{|^\s*\W?[\d.,]+\W?\s*$|^(?=.*\\[A-Za-z]).{1,40}$")
# What a reward compares, and what a right answer is.
NAMES = {"number": "numbers", "math": "formulas", "exact": "ends"}
RIGHT = {
    "number": "the last number of the answer is the right one",
    "math": "the last formula of the answer has the right value",
    "exact": "the answer is the right one, letter by letter",
}
# Comments begin in this column, if the line is shorter.
COLUMN = 34
# The text that comes with Python.
BUILT_IN: Mapping[str, object] = {"kind": "python-docs"}
# The page on rewards.
REWARDS = "docs/reinforce.md"
# The page on preferences.
PREFERENCES = "docs/fine-tune.md#preferences"


@dataclass(frozen=True)
class Proposal:
    """A whole job for what was seen: what it starts from, reads and trains, and its price in words.

    `chats` may be preferences. `sources` are by stage. Without a `base` it starts from random
    weights.
    """

    options: NewOptions
    looks: Sequence[Look]
    texts: Amount
    chats: Amount
    base: LookedUp | None
    sources: Mapping[str, Sequence[Mapping[str, object]]]
    prompt: str | None
    pretraining: Pretraining | None = None
    tuning: FineTuning | None = None
    price: str = ""

    @property
    def prefers(self) -> Look | None:
        """The preferences that are learned; None: conversations or text."""
        return self.looks[0] if self.sources["prefer"] else None


class Line(NamedTuple):
    """A line of a job, and why. A choice has a name and a value, too, by which the terminal shows
    it, there with what is `said`, or else with `why`."""

    yaml: str
    why: str = ""
    name: str = ""
    value: str = ""
    said: str = ""


def source_of(
    reading: Reading, path: Path, job_folder: Path, split: str = "file"
) -> dict[str, object]:
    """Return the source of a job that reads `path`: the files themselves, or a copy of them."""
    kind = reading.group.kind if reading.direct else "jsonl"
    relative = os.path.relpath(path.absolute(), job_folder.absolute())
    name = str(path.absolute()) if relative.startswith("../..") else relative
    source: dict[str, object] = {"kind": kind, "path": name}
    if kind == "text" and split != "file":
        source["split"] = split
    column = reading.layout.column if isinstance(reading.layout, TextColumn) else "text"
    if reading.direct and column != "text":
        source["field"] = column
    return source


def job_text(lines: Iterable[tuple[str, ...]]) -> str:
    """Return the YAML of a job's lines, each with its comment, if it has one.

    A space is before each comment: without the space, YAML reads the comment as part of the value.
    A line that is only a comment stays one line, whatever a person has called a file.
    """
    text = (f"{line:<{COLUMN - 1}} # {_plain(why)}" if why else line for line, why, *_ in lines)
    return "".join(_plain(line) + "\n" if line.startswith("#") else line + "\n" for line in text)


def _plain(comment: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in comment)


def lines_of(p: Proposal) -> list[Line]:
    """Return the lines of a job."""
    name = name_of(p.options.target)
    stages: list[Line] = []
    if p.pretraining is not None:
        stages += [*_data(p, p.pretraining), *_pretrain(p.pretraining)]
    if p.tuning is not None:
        write = {"prefer": _prefer, "reinforce": _reinforce}.get(p.looks[0].stage, _sft)
        stages += write(p, p.tuning)
    return [
        Line(f"# Written by: {p.options.command}"),
        *map(Line, _HEAD if p.prefers is None else _HEAD_OF_PREFERENCES),
        Line(f"name: {scalar(name)}"),
        *_model(p),
        *stages,
        *(_evaluate(p, p.prompt) if p.prompt else ()),
        Line("publish:"),
        Line(f"  to: {scalar(f'models/{name}')}", "a folder, or hf://user/name"),
        *([] if p.prefers else [Line(f"# budget: {{dollars: {p.options.dollars:g}}}", _BUDGET)]),
    ]


_HEAD = (
    "# docs/own-data.md explains the rules behind these numbers. Change what you like, then",
    "# run `pion check`. docs/jobs.md has all other fields.",
)
_HEAD_OF_PREFERENCES = (
    f"# {PREFERENCES} says when this is worth it, and what to change. Change what you",
    "# like, then run `pion check`. docs/jobs.md has all other fields.",
)
_MAX = "needs Pion's modelling files; without -max, llama.cpp and vLLM run it"
_STOCK = "exported as Qwen3; with -max, it learns more, and only Pion and transformers run it"
_RUNS_IN = "not llama.cpp or vLLM: --runs-in llama.cpp or --runs-in vllm proposes what they run"
_BUDGET = "saves and stops there, on a rented machine; at home, give dollars_per_hour too"


def _model(p: Proposal) -> list[Line]:
    if p.base is not None:
        kept = "its size, vocabulary and context stay as they are"
        source = p.base.source
        return [Line(f"model: {{from: {scalar(source)}}}", "", "start", source, kept)]
    stage = p.pretraining
    assert isinstance(stage, FromRandom)
    ratio, entries = stage.tokens / stage.parameters, stage.vocab_size
    size = f"{short_amount(stage.parameters)} parameters, {ratio:.3g} tokens for each (20 are best)"
    if ratio <= 19.5 and stage.preset.endswith(SMALLEST.removeprefix("pion2-max")):
        size += "; the smallest preset"
    suits = f"suits {short_amount(stage.own_tokens)} tokens of text and this model"
    where, why, said = "pion, transformers", _MAX, _RUNS_IN
    if p.options.stock:
        where, why, said = "llama.cpp, vLLM", _STOCK, _STOCK
    return [
        Line("model:", why, "runs in", where, said),
        Line(f"  preset: {stage.preset}", size, "size", stage.preset),
        Line(f"  vocab_size: {entries}"),
        Line("tokenizer:"),
        Line(f"  train: {{vocab_size: {entries}}}", suits, "vocabulary", f"{entries:,}"),
    ]


def _data(p: Proposal, stage: Pretraining) -> list[Line]:
    kept_out = "share of the documents that is kept out of training, to measure on"
    apart = Line("  documents: true", "no token sees the document before its own")
    return [
        Line("data:"),
        Line(f"  seq_len: {stage.seq_len}", stage.why_rows, "rows", f"{stage.seq_len:,} tokens"),
        Line(f"  held_out: {stage.held_out:g}", kept_out, "held out", f"{stage.held_out:.3g}"),
        *([apart] if p.base is None else []),
        *_sources(p.sources["pretrain"]),
    ]


def _sources(sources: Sequence[Mapping[str, object]]) -> list[Line]:
    return [
        Line("  sources:"),
        *(
            Line("  - {" + ", ".join(f"{k}: {scalar(str(v))}" for k, v in source.items()) + "}")
            for source in sources
        ),
    ]


def _pretrain(stage: Pretraining) -> list[Line]:
    steps, batch, rate = stage.steps, stage.global_batch, stage.lr
    passes = f"{stage.epochs:.1%} of the text"
    if stage.epochs >= 1:
        passes = f"the text is read {stage.epochs:.2g} times"
    tokens = f"{short_amount(stage.tokens)} tokens: {passes}"
    in_step = f"rows in a step: {short_amount(batch * stage.seq_len)} tokens"
    lines = [
        Line(f"  steps: {steps}", tokens, "steps", f"{steps:,}"),
        Line(f"  global_batch: {batch}", in_step, "batch", f"{batch}"),
    ]
    if rate is None:
        recipe = "optimizer, rates and schedule of Pion 2: docs/recipes.md"
        return [Line("pretrain:"), Line("  recipe: pion2", recipe, "recipe", "pion2"), *lines]
    return [
        Line("pretrain:"),
        *lines,
        Line(f"  lr: {rate:g}", "low, so that the model forgets little", "rate", f"{rate:g}"),
        _least_rate(rate),
        Line(f"  warmup_steps: {max(1, min(1000, steps // 20))}"),
        Line("  schedule: cosine"),
    ]


def _sft(p: Proposal, stage: FineTuning) -> list[Line]:
    seq_len, batch, held_out = stage.seq_len, stage.global_batch, stage.held_out
    repeats = "share of the conversations that shows whether the model only repeats"
    in_step = "rows in a step: at most 16, and at least 30 steps"
    large = "a base of this size is frozen; small additions are trained"
    stays = "the base is large; it stays as it is, and small additions are trained"
    return [
        Line("sft:"),
        Line(f"  seq_len: {seq_len}", stage.why_rows, "chat rows", f"{seq_len:,} tokens"),
        _passes(stage),
        Line(f"  global_batch: {batch}", in_step, "chat batch", f"{batch}"),
        Line(f"  held_out: {held_out:g}", repeats, "chats held out", f"{held_out:.3g}"),
        *([Line("  lora: {}", large, "LoRA", "yes", stays)] if stage.lora else []),
        *_rate(stage, "chat rate"),
        *_sources(p.sources["sft"]),
        *_rewards(p, held_out),
    ]


def _rewards(p: Proposal, held_out: float) -> list[Line]:
    """Return a stage of rewards as comments, if all answers have what can be checked."""
    answers = [content.answer for look in p.looks for content in look.few if content.answer]
    if not all(map(_CHECKED.search, answers)):
        return []
    kind = _comparing(answers)
    return [
        Line("# reinforce:", f"the {NAMES[kind]} of the answers can be checked: {REWARDS}"),
        Line(f"#   rewards: [{kind}]"),
        Line(f"#   held_out: {held_out:g}"),
        *(Line(f"# {line.yaml}") for line in _sources(p.sources["sft"])),
    ]


def _comparing(answers: Sequence[Any]) -> str:
    """Return the reward that compares with all of these right answers."""
    if all(unjudgeable("number", answer) is None for answer in answers):
        return "number"
    return "math" if all(map(is_formula, answers)) else "exact"


def _reinforce(p: Proposal, stage: FineTuning) -> list[Line]:
    kind = _comparing([content.answer for content in p.looks[0].few])
    right = RIGHT[kind]
    return [
        Line("reinforce:", "it must give right answers sometimes: see `pion check`"),
        Line(f"  rewards: [{kind}]", f"1 if {right}; others: {REWARDS}", "reward", kind),
        *_common(p, stage),
    ]


def _prefer(p: Proposal, stage: FineTuning) -> list[Line]:
    look = p.looks[0]
    seq_len, batch = stage.seq_len, stage.global_batch
    loss, means = "apo-zero", "learns from single answers"
    if look.paired:
        loss, means = "dpo-norm", "means over tokens, so longer answers have no advantage"
    in_step = "rows in a step"
    items = f"{in_step}: about {look.all_records / stage.rows * batch:,.0f} {look.what}s"
    return [
        Line("prefer:"),
        Line(f"  loss: {loss}", means, "loss", loss),
        Line(f"  seq_len: {seq_len}", stage.why_rows, "rows", f"{seq_len:,} tokens"),
        Line(f"  global_batch: {batch}", in_step, "batch", f"{batch}", items),
        *_common(p, stage),
    ]


def _common(p: Proposal, stage: FineTuning) -> list[Line]:
    """Return what preferences and rewards have in common."""
    kept_out = "share of the prompts that is kept out of training, to measure on"
    large = "a model of this size is frozen; small additions are trained"
    return [
        _passes(stage),
        Line(f"  held_out: {stage.held_out:g}", kept_out, "held out", f"{stage.held_out:.3g}"),
        *([Line("  lora: {}", large, "LoRA", "yes")] if stage.lora else []),
        *_rate(stage, "rate"),
        *_sources(p.sources[p.looks[0].stage]),
    ]


def _rate(stage: FineTuning, name: str) -> list[Line]:
    if stage.lr is None:
        return []
    why = "a small model needs more than the default"
    return [Line(f"  lr: {stage.lr:g}", why, name, f"{stage.lr:g}"), _least_rate(stage.lr)]


def _least_rate(rate: float) -> Line:
    return Line(f"  min_lr: {rate / 10:g}")


def _passes(stage: FineTuning) -> Line:
    words = f"passes over about {stage.rows:,} rows: about {stage.steps:,} steps"
    return Line(f"  epochs: {stage.epochs:g}", words, "passes", f"{stage.epochs:g}")


def _evaluate(p: Proposal, prompt: str) -> list[Line]:
    own = Line(f"{'':<{COLUMN}}# asked during training; write your own")
    prompts = Line(f"  prompts: [{quoted(prompt)}]")
    return [Line("evaluate:"), prompts, *([] if p.prefers else [own])]


# ---------------------------------------------------------------- YAML


def quoted(text: str) -> str:
    """Return a text as YAML in quotes, in a line."""
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9)).strip()


def scalar(text: str) -> str:
    """Return a text as YAML in a line."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return quoted(text)
