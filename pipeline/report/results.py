"""The results of finished stages in a run's HEAD, with the types that reports rely on.

A store may hold what others wrote, so a number that is not a number is damaged and not formatted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypeVar

from typing_extensions import TypedDict

from pipeline.state.head import Head
from pipeline.state.record_json import Count, Number, Sha256, build, open_record


class Choices(TypedDict):
    """How many multiple-choice questions were answered right. `_sem` is a standard error."""

    accuracy: NotRequired[Number]
    accuracy_sem: NotRequired[Number]
    chance: NotRequired[Number]
    questions: Count


class CalibrationExample(TypedDict):
    """The tokens whose likeliest id has a probability of about 70 %."""

    confidence: Number
    accuracy: Number
    accuracy_sem: Number
    tokens: Count


class Calibrated(TypedDict):
    """How far the largest probability can be trusted. `_sem` is a standard error."""

    ece: Number
    ece_sem: Number
    brier: Number
    brier_sem: Number
    confidence: Number
    confidence_sem: Number
    accuracy: Number
    accuracy_sem: Number
    near_70: CalibrationExample | None
    tokens: Count


class DraftedTexts(TypedDict):
    """How many passes a draft block saved; see pion/evaluation/drafting.py."""

    texts: Count
    tokens_per_pass: Number
    tokens_per_pass_sem: Number | None
    right: Number | None


class Drafts(TypedDict):
    """Of the likeliest tokens, and of tokens drawn at a temperature of 0.8."""

    greedy: NotRequired[DraftedTexts]
    drawn: NotRequired[DraftedTexts]


class CoreTask(TypedDict):
    """How a model answered a task of CORE; see `TaskResult` in pion/evaluation/core/result.py."""

    label: str
    task_type: str
    items: Count
    of_items: Count
    accuracy: Number
    sem: Number
    baseline: float
    centred: Number
    centred_sem: Number
    cropped: float
    unscored: Count
    odd_items: Count
    joined_tokens: Count
    ties: Count
    commonest: Number
    commonest_place: Count | None
    not_finite: Count


class Core(TypedDict):
    """The CORE of a model; see `CoreResult` in pion/evaluation/core/result.py."""

    rule: str
    name: str
    not_core: Sequence[str]
    value: Number
    sem: Number
    value_v2: Number
    sem_v2: Number
    limit: Count | None
    context: Count
    dtype: str
    cropped_tasks: Sequence[str]
    bundle_digest: Sha256
    tasks: Sequence[CoreTask]


class OfText(TypedDict):
    """What was measured on the text that has nothing to do with the run."""

    loss: NotRequired[Number]
    loss_sem: NotRequired[Number]
    perplexity: NotRequired[Number]
    bits_per_byte: NotRequired[Number]
    bits_per_byte_sem: NotRequired[Number]
    tokens: NotRequired[Count]
    bytes: NotRequired[Count]
    rows: NotRequired[Count]
    calibration: NotRequired[Calibrated]


class Measured(TypedDict):
    """What was measured of one model. `_sem` is a standard error."""

    loss: NotRequired[Number]
    loss_sem: NotRequired[Number]
    perplexity: NotRequired[Number]
    bits_per_byte: NotRequired[Number]
    bits_per_byte_sem: NotRequired[Number]
    tokens: NotRequired[Count]
    bytes: NotRequired[Count]
    rows: NotRequired[Count]
    response_loss: NotRequired[Number]
    response_loss_sem: NotRequired[Number]
    stop_accuracy: NotRequired[Number]
    stop_accuracy_sem: NotRequired[Number]
    false_stop_rate: NotRequired[Number]
    ends: NotRequired[Count]
    others: NotRequired[Count]
    continuations: NotRequired[Choices | None]
    packs: NotRequired[Mapping[str, Choices | None]]
    core: NotRequired[Core]
    text: NotRequired[OfText]
    calibration: NotRequired[Calibrated]
    drafts: NotRequired[Drafts]


class Agreement(TypedDict):
    """How often the chosen answer is ahead, in all pairs and by which answer is longer."""

    accuracy: NotRequired[Number]
    accuracy_sem: NotRequired[Number]
    where_longer: NotRequired[Number]
    where_longer_sem: NotRequired[Number]
    where_shorter: NotRequired[Number]
    where_shorter_sem: NotRequired[Number]
    length_bias: NotRequired[Number]
    length_bias_sem: NotRequired[Number]


class Agreements(TypedDict):
    """By the sums of answers, by their means over tokens, and by what the loss compares."""

    raw: NotRequired[Agreement]
    normalized: NotRequired[Agreement]
    margin: NotRequired[Agreement]


class Moved(TypedDict):
    """How much likelier a token of the answers of a side has become, in nats."""

    chosen: NotRequired[Number]
    chosen_sem: NotRequired[Number]
    rejected: NotRequired[Number]
    rejected_sem: NotRequired[Number]


class Rules(TypedDict):
    """How right it is to take the longer answer of a pair, and how many pairs have one."""

    longer_wins: Number
    longer_wins_sem: Number
    shorter_wins: Number
    shorter_wins_sem: Number
    longer: Count
    shorter: Count


class AnswersOf(TypedDict):
    """What the answers of a model are like; see pion/evaluation/greedy_answers.py."""

    tokens: Number
    tokens_sem: Number
    stopped: Number
    stopped_sem: Number
    distinct: Number
    distinct_sem: Number


class ShownAnswer(TypedDict):
    """A held-out prompt, and its answers before and after training."""

    prompt: str
    before: str
    after: str


class Answers(TypedDict):
    """What the answers to held-out prompts are like, before and after training."""

    prompts: Count
    most_tokens: Count
    before: AnswersOf
    after: AnswersOf
    change: AnswersOf
    shown: Sequence[ShownAnswer]


class Preferences(TypedDict):
    """What learning from preferences has changed; see pipeline/stages/preferences.py."""

    start: str
    kind: str
    items: Count
    prompts: Count
    of_means: bool
    with_reference: bool
    before: Agreements
    after: Agreements
    change: Agreements
    moved: Moved
    reference: NotRequired[str]
    rules: NotRequired[Rules]
    desired: NotRequired[Number]
    answers: NotRequired[Answers]


class Preferred(Measured):
    """What was measured of a model that has learned from preferences."""

    accuracy: NotRequired[Number]
    accuracy_sem: NotRequired[Number]
    text_change: NotRequired[Number]
    text_change_sem: NotRequired[Number]
    response_change: NotRequired[Number]
    response_change_sem: NotRequired[Number]
    preferences: NotRequired[Preferences]


class Counted(Measured):
    """What was measured of the n-gram baseline, with n and the tokens that it counted."""

    order: Count
    train_tokens: NotRequired[Count | None]


class Wilson(TypedDict):
    """A share, with Wilson's interval of 95 %."""

    share: float
    low: float
    high: float


class SearchedSet(TypedDict):
    """How much of an evaluation set is in a text; see pion/evaluation/overlap/verdict.py."""

    name: str
    digest: Sha256
    items: Count
    unjudged: Count
    overlapped: Wilson | None
    with_answer: Wilson | None
    control: Wilson | None
    verdict: str


class ComparedText(TypedDict):
    """The text that has nothing to do with the run."""

    sha256: Sha256


class Checkpoint(TypedDict):
    """The evaluated checkpoint, if it was chosen for its held-out loss, next to the last one."""

    step: Count
    held_out_loss: Number
    last_step: Count
    last_held_out_loss: Number


@open_record
class Evaluated(TypedDict):
    """The result of the evaluate stage."""

    pretrain: NotRequired[Measured]
    sft: NotRequired[Measured]
    prefer: NotRequired[Preferred]
    base: NotRequired[Measured]  # the model that the run started from
    change: NotRequired[Measured]  # from `base` to the last model
    compared_text: NotRequired[ComparedText]
    checkpoint: NotRequired[Checkpoint]
    untrained: NotRequired[Measured]
    ngram: NotRequired[Counted]
    lm_eval: NotRequired[Mapping[str, Mapping[str, Any]]]
    normalization: NotRequired[str]  # how the tokenizer changes a text before it is encoded


@open_record
class Published(TypedDict):
    """The result of the publish stage."""

    parameters: NotRequired[Count]
    url: NotRequired[str | None]
    path: NotRequired[str | None]
    card: NotRequired[str | None]
    commit: NotRequired[str]  # of the repository
    sha256: NotRequired[Sha256]  # of the weights in the folder


Result = TypeVar("Result")


def result_of(kind: type[Result], head: Head, stage: str, run: str) -> Result:
    """Return the result of a stage of the run at the address `run`; empty before the stage is done.

    Raises `Damaged`.
    """
    record = head.stages.get(stage)
    found = {} if record is None else record.result
    return build(kind, found, f"{run}/HEAD.json", under=f"stages.{stage}.result")
