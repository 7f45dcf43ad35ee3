"""What learning from preferences has changed, in sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Required

from pion.config.part_fields import Measure
from pion.data.preference.summary import Summary
from pion.measures import AGREEMENT, ANSWERS, MOVED, RULES
from pipeline.job import Job
from pipeline.job.prefer_section import Prefer
from pipeline.job.stages import WORDS
from pipeline.report.blocks import (
    Block,
    Table,
    change_table,
    changed_elsewhere,
    measured_table,
    shown_answers,
    written,
)
from pipeline.report.results import SIDES, list_of, numbers_of, result_of
from pipeline.state.head import Head
from pipeline.state.record_json import closed_record, open_record, record_type
from pipeline.state.shared.folder import WITH_ADDITIONS

LABELS_ONLY = "This is agreement with these labels, and not with people."
WHAT = {"pairs": "pairs", "labels": "single answers"}
# What prepare reported of each source of preferences.
_SOURCE = record_type(total=False, preferences=Required[closed_record(Summary)])
_PREPARED: type[Mapping[str, Any]] = open_record(
    record_type(total=False, prefer=record_type(total=False, sources=list_of(_SOURCE)))
)

Result = Mapping[str, Any]


def preference_blocks(results: Result, *, brief: bool) -> list[Block]:
    """Return what the evaluation says of preferences; empty if it measured none.

    `brief` leaves out the texts of answers.
    """
    tuned: Result = results.get("prefer", {})
    record: Result | None = tuned.get("preferences")
    if record is None:
        return []
    blocks: list[Block] = [_agreement_in_words(record)]
    if record["kind"] == "pairs":
        blocks += [_agreement_table(record), *_length_blocks(record)]
    blocks += [_moved_in_words(record), changed_elsewhere(tuned)]
    if answers := record.get("answers"):
        blocks += [
            f"Answers to {answers['prompts']:,} held-out prompts, of the likeliest tokens and at "
            f"most {answers['most_tokens']:,} of them, before and after training:",
            change_table([answers[side] for side in SIDES], ANSWERS),
        ]
        if not brief:
            blocks += ["The first of these answers:", shown_answers(answers["shown"])]
    return [block for block in blocks if block]


def preferences_in_brief(tuned: Result) -> str:
    """Return a line for the summary of a run; empty if there is nothing to say."""
    record = tuned.get("preferences")
    if record is None:
        return ""
    line = f"{written(tuned, 'accuracy', AGREEMENT['accuracy'])} right of {record['items']:,}"
    if answers := record.get("answers"):
        before, after = (written(answers[s], "tokens", ANSWERS["tokens"]) for s in SIDES[:2])
        line += f"; answers {before} → {after} tokens"
    return line


# ---------------------------------------------------------------- agreement with labels


def _agreement_in_words(record: Result) -> str:
    margin = written(record["after"]["margin"], "accuracy", AGREEMENT["accuracy"])
    of = f"{record['items']:,} held-out {WHAT[record['kind']]} to {record['prompts']:,} prompts"
    if record["kind"] == "pairs":
        return f"Of {of}, the model has {margin} right by what it was trained for. {LABELS_ONLY}"
    return (
        f"Of {of}, {margin} have become likelier if they are desired, and less likely if they are "
        f"not; {100 * record['desired']:.1f} % are desired. {LABELS_ONLY}"
    )


def _agreement_table(record: Result) -> Table:
    """Return how often the chosen answer is ahead. By what the loss compares, only the trained
    model can say it."""
    compares = "means" if record["of_means"] else "sums"
    if record["with_reference"]:
        compares = f"{compares}, less those of the reference"
    titles = {
        "normalized": "the chosen answer is likelier, by the mean over its tokens",
        "raw": "the chosen answer is likelier, by the sum over its tokens",
        "margin": f"it is ahead by what the loss compares ({compares})",
    }
    measures = {f"{by}.accuracy": Measure(title, "share") for by, title in titles.items()}
    return change_table([numbers_of(record[side]) for side in SIDES], measures)


def _length_blocks(record: Result) -> list[Block]:
    """Return how good the rules of length are, and how much the length of answers decides."""
    rules = record.get("rules")
    if rules is None:
        return []
    wins, loses, longer, shorter = (written(rules, name, RULES[name]) for name in RULES)
    of_rules = (
        f'Of the same pairs, the rule "the longer answer is better" has {wins} right, and "the '
        f'shorter answer is better" {loses}. A model has to do better.'
    )
    if not rules["longer"] or not rules["shorter"]:
        which, other = ("longer", "shorter") if rules["longer"] else ("shorter", "longer")
        return [
            of_rules,
            f"In no pair the chosen answer is the {other} one ({rules[which]:,} times it is the "
            f"{which} one), so nobody can tell whether the model judges answers or their lengths.",
        ]
    by, total_kind = ("normalized", "mean") if record["of_means"] else ("raw", "sum")
    models = {
        f"before training, by the {total_kind}": record["before"].get(by),
        f"after training, by the {total_kind}": record["after"].get(by),
        "after training, by what the loss compares": record["after"]["margin"],
    }
    measures = dict(AGREEMENT)
    head = measures.pop("accuracy").title
    return [
        of_rules,
        f"The chosen answer is longer in {longer} of the pairs, and shorter in {shorter}. The "
        "difference says how much length decides:",
        measured_table((head,), [((title,), of) for title, of in models.items() if of], measures),
    ]


def _moved_in_words(record: Result) -> str:
    """Return in a sentence how much likelier the answers have become."""
    names = ("chosen", "rejected") if record["kind"] == "pairs" else ("desired", "undesired")
    changes = [
        f"of the {name} answers by {written(record['moved'], side, measure)}"
        for name, (side, measure) in zip(names, MOVED.items(), strict=True)
        if record["moved"].get(side) is not None
    ]
    if not changes:
        return ""
    return (
        f"Training changed the log-probability of a token {' and '.join(changes)} nats on average."
    )


# ---------------------------------------------------------------- how it was trained


def preference_training(job: Job, results: Mapping[str, Any], head: Head, url: str) -> str:
    """Return how the stage was trained, for the card: loss, reference, and which data were used.

    Raises Damaged if what prepare reported can't be read.
    """
    section = job.prefer
    if section is None:
        return ""
    sentences = [f"Preferences: the loss is {_loss_in_words(section)}, {_reference(job, results)}."]
    prepared = result_of(_PREPARED, head, "prepare", url).get("prefer", {})
    for summary in (source["preferences"] for source in prepared.get("sources", [])):
        left_out = f"; left out: {summary.reasons}" if summary.reasons else ""
        sentences.append(
            f"{summary.train.items:,} {WHAT[summary.kind]} were trained on, and "
            f"{summary.held_out.items:,} held out{left_out}."
        )
    return " ".join(sentences)


def _loss_in_words(section: Prefer) -> str:
    name = "λ" if section.loss == "orpo" else "β"
    sentence = f"`{section.loss}` with {name} {section.learning.strength:g}"
    if section.learning.least_margin:
        sentence += f" and γ {section.learning.least_margin:g}"
    if section.label_smoothing:
        sentence += f", label smoothing {section.label_smoothing:g}"
    if section.sft_weight:
        sentence += f", plus {section.sft_weight:g} × the cross-entropy of the chosen answers"
    return sentence


def _reference(job: Job, results: Mapping[str, Any]) -> str:
    assert job.prefer is not None
    if not job.prefer.needs_reference:
        return "without a reference"
    before = job.stage_before("prefer")
    whose = "the model that it starts from"
    if before is not None:
        whose = f"the {WORDS[before].after} model"
    tuned: Result = results.get("prefer") or {}
    sha256 = (tuned.get("preferences") or {}).get("reference")
    if sha256 is None:
        return f"and the reference is {whose}"
    base, _, added = sha256.partition(WITH_ADDITIONS)
    hashed = f"whose tensors have the SHA-256 `{base}`"
    if added:  # by LoRA
        hashed = f"with additions (SHA-256 `{added}`) to a base {hashed}"
    return f"and the reference is {whose}, {hashed}"
