"""What learning from preferences has changed, in sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Required

from pion.data.preference.summary import Summary
from pipeline.console.formats import beginning
from pipeline.job import Job
from pipeline.job.prefer_section import Prefer
from pipeline.job.stages import AFTER
from pipeline.report.blocks import Block, Table, percent_with_error, signed, value_with_error
from pipeline.report.results import SIDES, list_of, result_of
from pipeline.state.head import Head
from pipeline.state.record_json import closed_record, open_record, record_type
from pipeline.state.shared.folder import WITH_ADDITIONS

LABELS_ONLY = "This is agreement with these labels, and not with people."
COMPARED = ("", "before", "after", "difference")
LENGTHS = (
    "share of pairs that are right",
    "where the chosen answer is longer",
    "where it is shorter",
    "difference",
)
SHOWN = ("prompt", "before", "after")
WHAT = {"pairs": "pairs", "labels": "single answers"}
# What a stage that tunes answers changes elsewhere: what it is, and its unit.
ELSEWHERE = {
    "text_change": ("text", "bits per byte"),
    "response_change": ("responses in held-out conversations", "nats per token"),
}
# A text in a table.
MOST_CHARACTERS = 400
# What prepare reported of each source of preferences.
_SOURCE = record_type(total=False, preferences=Required[closed_record(Summary)])
_PREPARED: type[Mapping[str, Any]] = open_record(
    record_type(total=False, prefer=record_type(total=False, sources=list_of(_SOURCE)))
)

Result = Mapping[str, Any]


def preference_blocks(results: Mapping[str, Any], *, brief: bool) -> list[Block]:
    """Return what the evaluation says of preferences; empty if it measured none.

    `brief` leaves out the texts of answers.
    """
    tuned: Result = results.get("prefer") or {}
    found: Result | None = tuned.get("preferences")
    if found is None:
        return []
    blocks: list[Block] = [_agreement_in_words(found)]
    if found["kind"] == "pairs":
        blocks += [Table(COMPARED, _agreement_rows(found)), *_length_blocks(found)]
    blocks += [_moved_in_words(found), text_change_in_words(tuned)]
    if answers := found.get("answers"):
        blocks += [
            f"Answers to {answers['prompts']:,} held-out prompts, of the likeliest tokens and at "
            f"most {answers['most_tokens']:,} of them, before and after training:",
            Table(COMPARED, answer_rows(answers)),
        ]
        if not brief:
            blocks += ["The first of these answers:", shown_answers(answers["shown"])]
    return [block for block in blocks if block]


def preferences_in_brief(tuned: Result) -> str:
    """Return a line for the summary of a run; empty if there is nothing to say."""
    found = tuned.get("preferences")
    if found is None:
        return ""
    line = f"{percent_with_error(tuned, 'accuracy')} right of {found['items']:,}"
    if answers := found.get("answers"):
        before, after = (value_with_error(answers[s], "tokens", 1) for s in ("before", "after"))
        line += f"; answers {before} → {after} tokens"
    return line


# ---------------------------------------------------------------- agreement


def _agreement_in_words(found: Result) -> str:
    margin = percent_with_error(found["after"]["margin"], "accuracy")
    of = f"{found['items']:,} held-out {WHAT[found['kind']]} to {found['prompts']:,} prompts"
    if found["kind"] == "pairs":
        return f"Of {of}, the model has {margin} right by what it was trained for. {LABELS_ONLY}"
    return (
        f"Of {of}, {margin} have become likelier if they are desired, and less likely if they are "
        f"not; {100 * found['desired']:.1f} % are desired. {LABELS_ONLY}"
    )


def _agreement_rows(found: Result) -> list[tuple[str, ...]]:
    """Return (what is compared, before, after, difference) of the chosen answer being ahead."""
    titles = {
        "normalized": "the chosen answer is likelier, by the mean over its tokens",
        "raw": "the chosen answer is likelier, by the sum over its tokens",
    }
    rows = [
        (
            title,
            *compared([found[s].get(name) or {} for s in SIDES], percent_with_error, "accuracy"),
        )
        for name, title in titles.items()
    ]
    after = percent_with_error(found["after"]["margin"], "accuracy")
    return [
        *rows,
        (f"it is ahead by what the loss compares ({_loss_compares(found)})", "–", after, "–"),
    ]


def _loss_compares(found: Result) -> str:
    means = "means" if found["of_means"] else "sums"
    return f"{means}, less those of the reference" if found["with_reference"] else means


def _length_blocks(found: Result) -> list[Block]:
    """Return how good the rules of length are, and how much the length of answers decides."""
    rules = found.get("rules")
    if rules is None:
        return []
    longer, shorter = (percent_with_error(rules, f"{side}_wins") for side in ("longer", "shorter"))
    of_rules = (
        f'Of the same pairs, the rule "the longer answer is better" has {longer} right, and "the '
        f'shorter answer is better" {shorter}. A model has to do better.'
    )
    if not rules["longer"] or not rules["shorter"]:
        which, other = ("longer", "shorter") if rules["longer"] else ("shorter", "longer")
        return [
            of_rules,
            f"In no pair the chosen answer is the {other} one ({rules[which]:,} times it is the "
            f"{which} one), so nobody can tell whether the model judges answers or their lengths.",
        ]
    by, what = ("normalized", "mean") if found["of_means"] else ("raw", "sum")
    sides = [
        (f"before training, by the {what}", found["before"].get(by)),
        (f"after training, by the {what}", found["after"].get(by)),
        ("after training, by what the loss compares", found["after"]["margin"]),
    ]
    rows = [
        (
            title,
            percent_with_error(side, "where_longer"),
            percent_with_error(side, "where_shorter"),
            signed(percent_with_error(side, "length_bias")),
        )
        for title, side in sides
        if side
    ]
    return [
        of_rules,
        f"The chosen answer is longer in {rules['longer']:,} of the pairs, and shorter in "
        f"{rules['shorter']:,}. The difference says how much length decides:",
        Table(LENGTHS, rows),
    ]


def _moved_in_words(found: Result) -> str:
    """Return in a sentence how much likelier the answers have become."""
    names = ("chosen", "rejected") if found["kind"] == "pairs" else ("desired", "undesired")
    changes = [
        f"of the {name} answers by {signed(value_with_error(found['moved'], side))}"
        for name, side in zip(names, ("chosen", "rejected"))
        if found["moved"].get(side) is not None
    ]
    if not changes:
        return ""
    return (
        f"Training changed the log-probability of a token {' and '.join(changes)} nats on average."
    )


# ---------------------------------------------------------------- answers and text


def shown_answers(shown: Sequence[Mapping[str, str]]) -> Table:
    """Return a table of prompts, and of the answers before and after training."""
    texts = (
        [beginning(" ".join(one[name].split()), MOST_CHARACTERS) for name in SHOWN] for one in shown
    )
    return Table(SHOWN, [*texts], len(SHOWN))


def text_change_in_words(tuned: Result) -> str:
    """Return in a sentence what the preferences have cost elsewhere; empty if it is not known."""
    changes = [
        f"of {title} by {signed(value_with_error(tuned, name))} {unit}"
        for name, (title, unit) in ELSEWHERE.items()
        if tuned.get(name) is not None
    ]
    if not changes:
        return ""
    return f"Its loss on other things changed, too: {' and '.join(changes)} (less is better)."


def answer_rows(answers: Result) -> list[tuple[str, ...]]:
    """Return (what, before, after, difference) of written answers."""
    sides = [answers[side] for side in SIDES]
    return [
        ("tokens of an answer", *compared(sides, partial(value_with_error, digits=1), "tokens")),
        ("answers that end by themselves", *compared(sides, percent_with_error, "stopped")),
        (
            "different ones among the sequences of 4 tokens of an answer",
            *compared(sides, percent_with_error, "distinct"),
        ),
    ]


def compared(sides: Sequence[Result], words: Any, name: str) -> tuple[str, str, str]:
    """Return a number before and after training, and the difference with its sign, in words."""
    before, after, change = (words(side, name) for side in sides)
    return before, after, signed(change)


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
    words = f"`{section.loss}` with {name} {section.preference.strength:g}"
    if section.preference.least_margin:
        words += f" and γ {section.preference.least_margin:g}"
    if section.label_smoothing:
        words += f", label smoothing {section.label_smoothing:g}"
    if section.sft_weight:
        words += f", plus {section.sft_weight:g} × the cross-entropy of the chosen answers"
    return words


def _reference(job: Job, results: Mapping[str, Any]) -> str:
    assert job.prefer is not None
    if not job.prefer.needs_reference:
        return "without a reference"
    before = job.stage_before("prefer")
    whose = "the model that it starts from"
    if before is not None:
        whose = f"the {AFTER[before]} model"
    tuned: Result = results.get("prefer") or {}
    sha256 = (tuned.get("preferences") or {}).get("reference")
    if sha256 is None:
        return f"and the reference is {whose}"
    base, _, added = sha256.partition(WITH_ADDITIONS)
    hashed = f"whose tensors have the SHA-256 `{base}`"
    if added:  # by LoRA
        hashed = f"with additions (SHA-256 `{added}`) to a base {hashed}"
    return f"and the reference is {whose}, {hashed}"
