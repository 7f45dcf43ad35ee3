"""What learning from preferences and from rewards has changed, in sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Required

from pion.config.part_fields import Measure
from pion.data.preference.summary import Summary
from pion.measures import AGREEMENT, ANSWERS, ELSEWHERE, MOVED, REWARDS, RULES
from pipeline.console.formats import beginning
from pipeline.job import Job
from pipeline.job.prefer_section import Prefer
from pipeline.job.reinforce_section import PythonReward
from pipeline.job.stages import WORDS
from pipeline.report.blocks import Block, Table, change_table, measured_table, written
from pipeline.report.results import SIDES, list_of, numbers_of, result_of
from pipeline.state.head import Head
from pipeline.state.record_json import closed_record, open_record, record_type
from pipeline.state.shared.folder import WITH_ADDITIONS

LABELS_ONLY = "This is agreement with these labels, and not with people."
SHOWN = ("prompt", "before", "after")
WHAT = {"pairs": "pairs", "labels": "single answers"}
# What a stage that tunes answers changes elsewhere.
CHANGED = {"text_change": "text", "response_change": "responses in held-out conversations"}
# A text in a table.
MOST_CHARACTERS = 400
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
    blocks += [_moved_in_words(record), _changed_elsewhere(tuned)]
    if answers := record.get("answers"):
        blocks += [
            f"Answers to {answers['prompts']:,} held-out prompts, of the likeliest tokens and at "
            f"most {answers['most_tokens']:,} of them, before and after training:",
            change_table([answers[side] for side in SIDES], ANSWERS),
        ]
        if not brief:
            blocks += ["The first of these answers:", _shown_answers(answers["shown"])]
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


def reward_blocks(results: Result, *, brief: bool) -> list[Block]:
    """Return what the evaluation says of rewards; empty if it measured none.

    `brief` leaves out the texts of answers.
    """
    tuned: Result = results.get("reinforce", {})
    record: Result | None = tuned.get("rewards")
    if record is None:
        return []
    blocks: list[Block] = [
        f"{record['answers']} answers to each of {record['prompts']:,} held-out prompts, sampled "
        "before and after training from the same random numbers:",
        change_table([record[side] for side in SIDES], REWARDS),
        "The difference in the last row estimates the KL divergence to the start: how far the "
        "model has moved on the answers that it gave before. Chance can make it less than 0.",
        _only_more_frequent(record),
        _changed_elsewhere(tuned),
    ]
    if not brief:
        blocks += ["Answers to the first of these prompts:", _shown_answers(record["shown"])]
    return [block for block in blocks if block]


def rewards_in_brief(tuned: Result) -> str:
    """Return a line for the summary of a run; empty if there is nothing to say."""
    record = tuned.get("rewards")
    if record is None:
        return ""
    before, after = (written(record[side], "reward", REWARDS["reward"]) for side in SIDES[:2])
    return f"{before} → {after} on average for {record['prompts']:,} prompts"


def _only_more_frequent(record: Result) -> str:
    """Say so where a model is right more often, but not to more prompts."""
    change = numbers_of(record["change"])
    real, real_any = (change[name] - 2 * change[f"{name}_sem"] for name in ("pass", "pass_any"))
    if real > 0 and real_any <= 0:
        return (
            "The model is right more often, but not to more prompts: training made answers "
            "frequent that the model gave before."
        )
    return ""


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
    by, what = ("normalized", "mean") if record["of_means"] else ("raw", "sum")
    models = {
        f"before training, by the {what}": record["before"].get(by),
        f"after training, by the {what}": record["after"].get(by),
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


# ---------------------------------------------------------------- answers and text


def _shown_answers(shown: Sequence[Mapping[str, str]]) -> Table:
    """Return a table of prompts, and of the answers before and after training."""
    rows = [
        [beginning(" ".join(answer[name].split()), MOST_CHARACTERS) for name in SHOWN]
        for answer in shown
    ]
    return Table(SHOWN, rows, len(SHOWN))


def _changed_elsewhere(tuned: Result) -> str:
    """Return in a sentence what the stage has cost elsewhere; empty if it is not known."""
    changes = [
        f"of {title} by {written(tuned, name, ELSEWHERE[name])} {ELSEWHERE[name].title}"
        for name, title in CHANGED.items()
        if tuned.get(name) is not None
    ]
    if not changes:
        return ""
    return f"Its loss on other things changed, too: {' and '.join(changes)} (less is better)."


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
    words = f"`{section.loss}` with {name} {section.learning.strength:g}"
    if section.learning.least_margin:
        words += f" and γ {section.learning.least_margin:g}"
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


def reward_training(job: Job) -> str:
    """Return how the stage was trained, for the card."""
    section = job.reinforce
    if section is None:
        return ""
    rewards = ", ".join(
        f"`{reward.function if isinstance(reward, PythonReward) else reward.kind}`"
        + (f" × {reward.weight:g}" if reward.weight != 1 else "")
        for reward in section.rewards
    )
    return (
        f"Rewards: {rewards}. {section.answers} answers to each prompt, of at most "
        f"{section.max_tokens} tokens; each step is one update by REINFORCE with the mean of a "
        "prompt's rewards as the baseline."
    )
