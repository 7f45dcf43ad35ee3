"""The text of a proposed job: short, each choice with its reason as a comment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import yaml

from pion.data.records.layouts import TEXT
from pion.later_fields import shown
from pion.rewards.builtin import is_formula, unjudgeable
from pipeline.console.formats import short_amount
from pipeline.job.stages import TRAINING
from pipeline.new.base import LookedUp
from pipeline.new.data_set import Content, DataSet
from pipeline.new.options import NewOptions, name_of
from pipeline.new.rules import (
    SMALLEST,
    Amount,
    FineTuning,
    FromRandom,
    Pretraining,
    Stage,
    StartModel,
)

_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@=+ -]*(?<! )")
# GSM8K's mark, LaTeX's, nothing but a number, or a short formula without words.
_CHECKED = re.compile(
    r"####|\\boxed\{|^\s*\W?[\d.,]+\W?\s*$|^(?=.*\\[A-Za-z]).{1,40}$"
    r"|^(?!.*(?<![\\A-Za-z])[A-Za-z]{3})(?=.*[\d^√π]).{1,40}$"
)
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
REWARDS = "pion help rewards"
# The page on preferences.
PREFERENCES = "pion help preferences"


@dataclass(frozen=True)
class Proposal:
    """A whole job for what was seen: what it starts from, reads and trains, and its price in words.

    `texts` are for pretraining, and `others` for the stage after it. `sources` are by stage.
    Without a `base` it starts from random weights; `start` is what the rules know of the base.
    """

    options: NewOptions
    data_sets: Sequence[DataSet]
    texts: Amount
    others: Amount
    base: LookedUp | None
    sources: Mapping[str, Sequence[Mapping[str, object]]]
    prompt: str | None
    start: StartModel | None = None
    pretraining: Pretraining | None = None
    tuning: FineTuning | None = None
    price: str = ""

    @property
    def last(self) -> str:
        """The last stage that trains."""
        return [stage for stage in TRAINING if self.sources[stage]][-1]

    @property
    def learned(self) -> list[DataSet]:
        """What the last stage learns from."""
        return [data for data in self.data_sets if data.stage == self.last]


class Line(NamedTuple):
    """A line of a job, and why. A choice has a name and a value, too, by which the terminal shows
    it, there with `advice`, or else with `why`."""

    yaml: str
    why: str = ""
    name: str = ""
    value: str = ""
    advice: str = ""


def source_of(data: DataSet, path: Path, job_folder: Path) -> dict[str, object]:
    """Return the source of a job that reads what was looked at at `path`: the files, or a copy."""
    relative = os.path.relpath(path.absolute(), job_folder)
    name = str(path.absolute()) if relative.startswith("../..") else relative
    source: dict[str, object] = {"kind": "jsonl" if data.copied else data.group.kind}
    source["path"] = name
    if data.paragraphs:
        source["split"] = "paragraph"
    column = next(iter(data.columns), TEXT)
    if data.stage == "pretrain" and not data.copied and column != TEXT:
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
    name, prefers = name_of(p.options.target), p.last == "prefer"
    budget = Line(f"# budget: {{dollars: {p.options.dollars:g}}}", _BUDGET)
    return [
        Line(f"# Written by: {p.options.command}"),
        *map(Line, _HEAD_OF_PREFERENCES if prefers else _HEAD),
        Line(f"name: {scalar(name)}"),
        *_model(p),
        *([] if p.pretraining is None else _pretrain(p, p.pretraining)),
        *([] if p.tuning is None else _TUNE[p.tuning.name](p, p.tuning)),
        *([] if p.prompt is None else _evaluate(p.prompt)),
        Line("publish:"),
        Line(f"  to: {scalar(f'models/{name}')}", "a folder, or hf://user/name"),
        *([] if prefers else [budget]),
    ]


_HEAD = (
    "# `pion help new-rules` explains the rules behind these numbers. Change what you like, then",
    "# run `pion check`. `pion help jobs` has all other fields.",
)
_HEAD_OF_PREFERENCES = (
    f"# `{PREFERENCES}` says when this is worth it, and what to change. Change what you",
    "# like, then run `pion check`. `pion help jobs` has all other fields.",
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
    runs_in, why, advice = "pion, transformers", _MAX, _RUNS_IN
    if p.options.stock:
        runs_in, why, advice = "llama.cpp, vLLM", _STOCK, _STOCK
    return [
        Line("model:", why, "runs in", runs_in, advice),
        Line(f"  preset: {stage.preset}", size, "size", stage.preset),
        Line(f"  vocab_size: {entries}"),
        Line("tokenizer:"),
        Line(f"  train: {{vocab_size: {entries}}}", suits, "vocabulary", f"{entries:,}"),
    ]


def _pretrain(p: Proposal, stage: Pretraining) -> list[Line]:
    steps, batch, rate = stage.steps, stage.global_batch, stage.lr
    passes = f"{stage.epochs:.1%} of the text"
    if stage.epochs >= 1:
        passes = f"the text is read {stage.epochs:.2g} times"
    tokens = f"{short_amount(stage.tokens)} tokens: {passes}"
    in_step = f"rows in a step: {short_amount(batch * stage.seq_len)} tokens"
    kept_out = "share of the documents that is kept out of training, to measure on"
    apart = Line("  documents: true", "no token sees the document before its own")
    recipe = "optimizer, rates and schedule of Pion 2: pion help recipes"
    warm_up = f"  warmup_steps: {max(1, min(1000, steps // 20))}"
    return [
        Line("data:"),
        _row(stage, ""),
        _held_out(stage, "held out", kept_out),
        *([apart] if p.base is None else []),
        *_sources(p.sources["pretrain"]),
        Line("pretrain:"),
        *([Line("  recipe: pion2", recipe, "recipe", "pion2")] if rate is None else []),
        # Raced with 2, 3, 4 and 6 passes: better from 3 on (docs/sizing.md).
        *(
            [Line("  weight_decay: 0.1", "so that less is learned by heart")]
            if rate is None and stage.epochs >= 3
            else []
        ),
        Line(f"  steps: {steps}", tokens, "steps", f"{steps:,}"),
        Line(f"  global_batch: {batch}", in_step, "batch", f"{batch}"),
        *_rate(stage, "rate", "low, so that the model forgets little"),
        *([] if rate is None else [Line(warm_up), Line("  schedule: cosine")]),
    ]


def _conversations(p: Proposal, stage: FineTuning) -> list[Line]:
    shows = "share of the conversations that shows whether the model only repeats"
    return [
        Line("sft:"),
        *_rows(stage, "rows in a step: at most 16, and at least 30 steps", "chat "),
        *_passes(stage, shows, "chats held out", "chat rate"),
        *_sources(p.sources["sft"]),
        *_rewards(p, stage),
    ]


def _preferences(p: Proposal, stage: FineTuning) -> list[Line]:
    loss, means = "apo-zero", "learns from single answers"
    if stage.sides == 2:
        loss, means = "dpo-norm", "means over tokens, so longer answers have no advantage"
    per_step = p.others.count / stage.rows * stage.global_batch
    return [
        Line("prefer:"),
        Line(f"  loss: {loss}", means, "loss", loss),
        *_rows(stage, f"rows in a step: about {per_step:,.0f} preferences"),
        *_passes(stage, _OF_PROMPTS),
        *_sources(p.sources["prefer"]),
    ]


def _prompts(p: Proposal, stage: FineTuning) -> list[Line]:
    kind, why = reward_for([content for data in p.learned for content in data.contents])
    means = f"1 if {RIGHT[kind]}; {why}others: {REWARDS}"
    return [
        Line("reinforce:", "it must give right answers sometimes: see `pion check`"),
        Line(f"  rewards: [{kind}]", means, "reward", kind),
        *_passes(stage, _OF_PROMPTS),
        *_sources(p.sources["reinforce"]),
    ]


_TUNE = {"sft": _conversations, "prefer": _preferences, "reinforce": _prompts}
_OF_PROMPTS = "share of the prompts that is kept out of training, to measure on"


def _rows(stage: FineTuning, many: str, chat: str = "") -> list[Line]:
    return [
        _row(stage, chat),
        Line(
            f"  global_batch: {stage.global_batch}", many, f"{chat}batch", f"{stage.global_batch}"
        ),
    ]


def _passes(
    stage: FineTuning, shows: str, held_out: str = "held out", rate: str = "rate"
) -> list[Line]:
    """Return the passes, what is held out, and the weights that learn, and how fast."""
    steps = f"passes over about {stage.rows:,} rows: about {stage.steps:,} steps"
    frozen = "a model of this size is frozen; small additions are trained"
    return [
        Line(f"  epochs: {stage.epochs:g}", steps, "passes", f"{stage.epochs:g}"),
        _held_out(stage, held_out, shows),
        *([Line("  lora: {}", frozen, "LoRA", "yes")] if stage.lora else []),
        *_rate(stage, rate, "a small model needs more than the default"),
    ]


def _row(stage: Stage, chat: str) -> Line:
    tokens = f"{stage.seq_len:,} tokens"
    return Line(f"  seq_len: {stage.seq_len}", stage.why_rows, f"{chat}rows", tokens)


def _held_out(stage: Stage, name: str, why: str) -> Line:
    return Line(f"  held_out: {stage.held_out:g}", why, name, f"{stage.held_out:.3g}")


def _rate(stage: Stage, name: str, why: str) -> list[Line]:
    rate = stage.lr
    if rate is None:
        return []
    return [Line(f"  lr: {rate:g}", why, name, f"{rate:g}"), Line(f"  min_lr: {rate / 10:g}")]


def _sources(sources: Sequence[Mapping[str, object]]) -> list[Line]:
    return [
        Line("  sources:"),
        *(
            Line("  - {" + ", ".join(f"{k}: {scalar(str(v))}" for k, v in source.items()) + "}")
            for source in sources
        ),
    ]


def _rewards(p: Proposal, stage: FineTuning) -> list[Line]:
    """Return a stage of rewards as comments, if all answers have what can be checked."""
    contents = [one for data in p.learned for one in data.contents]
    if not all(_CHECKED.search(one.answer or "") for one in contents):
        return []
    (kind, _), count = reward_for(contents), p.others.count
    return [
        Line("# reinforce:", f"the {NAMES[kind]} of the answers can be checked: {REWARDS}"),
        Line(f"#   rewards: [{kind}]"),
        Line(f"#   epochs: {replace(stage, name='reinforce').of_rows(count, count).epochs:g}"),
        Line(f"#   held_out: {stage.held_out:g}"),
        *(Line(f"# {line.yaml}") for line in _sources(p.sources["sft"])),
    ]


def reward_for(contents: Sequence[Content]) -> tuple[str, str]:
    """Return the reward that compares with all of these right answers, and in words which of them
    the others can't compare with."""
    without = [one for one in contents if unjudgeable("number", one.answer) is not None]
    if not without:
        return "number", ""
    no_formula = [one for one in without if not is_formula(one.answer)]
    kind, odd, lacks = "math", without, "number"
    if no_formula:
        kind, odd, lacks = "exact", no_formula, "number or formula"
    first = f"{odd[0].where}: {shown(odd[0].answer)}"
    return kind, f"{len(odd):,} right answers have no {lacks}, the first at {first}; "


def _evaluate(prompt: str) -> list[Line]:
    own = Line(f"{'':<{COLUMN}}# asked during training; write your own")
    return [Line("evaluate:"), Line(f"  prompts: [{quoted(prompt)}]"), own]


# ---------------------------------------------------------------- YAML


def quoted(text: str) -> str:
    """Return a text as YAML in quotes, in a line."""
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9)).strip()


def scalar(text: str) -> str:
    """Return a text as YAML in a line."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return quoted(text)
