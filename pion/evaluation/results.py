"""What is measured of a model. Reports read these records without numpy and torch.

A number that is not finite is null in a record. `report/results.py` makes the types of records from
these dataclasses, so a field that is added, renamed or retyped here changes what can be read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

# A number that is always finite, and the SHA-256 of a content.
Finite = Annotated[float, "finite"]
Digest = Annotated[str, "SHA-256"]
# An interval of 95 % has so many standard errors on each side.
Z = 1.96
# Of a task of CORE.
TaskType = Literal["multiple_choice", "schema", "language_modeling"]
# Of a result, what its record leaves out: the answers to single items.
OF_ITEMS = ("credits", "choices")


def record_of(found: Any) -> dict[str, Any]:
    """Return the record of a result, without the answers to single items."""
    return dataclasses.asdict(
        found, dict_factory=lambda pairs: {k: v for k, v in pairs if k not in OF_ITEMS}
    )


@dataclass(frozen=True)
class HeldOut:
    """How well a model predicts text. Losses are in nats; a sem is a standard error of the mean."""

    loss: float  # mean over target tokens
    loss_sem: float
    perplexity: float
    bits_per_byte: float  # comparable between tokenizers
    bits_per_byte_sem: float
    tokens: int
    bytes: int  # of the target tokens' text
    rows: int


@dataclass(frozen=True)
class Responses:
    """How well a model predicts the learned tokens of conversations, and whether its turns end."""

    response_loss: float  # mean over learned tokens, nats
    response_loss_sem: float
    stop_accuracy: float  # the share of ends of turns where end-of-text is the likeliest token
    stop_accuracy_sem: float
    false_stop_rate: float  # the share of other learned tokens where end-of-text is the likeliest
    ends: int  # of turns
    others: int  # learned tokens that are no ends


@dataclass(frozen=True)
class Example:
    """The tokens whose likeliest id has a probability of about 70 % (66.7 % to 73.3 %)."""

    confidence: float  # the mean
    accuracy: float  # how often the likeliest id was right
    accuracy_sem: float
    tokens: int


@dataclass(frozen=True)
class Calibration:
    """How far a model's largest probability can be trusted. A sem is a standard error of the mean.

    Attributes:
        ece: the expected calibration error: the mean over target tokens of the distance between
            `confidence` and `accuracy` of the token's bin, in 15 bins of equal width (Guo et al.
            2017). Chance alone makes it larger than 0, the more so the fewer tokens there are.
        brier: the mean of (confidence − right)², where right is 0 or 1.
        confidence: the mean probability of the likeliest id.
        accuracy: the share of targets that are the likeliest id.
        near_70: an example; None if there are no such tokens.
        tokens: target tokens.
    """

    ece: float
    ece_sem: float
    brier: float
    brier_sem: float
    confidence: float
    confidence_sem: float
    accuracy: float
    accuracy_sem: float
    near_70: Example | None
    tokens: int


@dataclass(frozen=True)
class MultipleChoice:
    """The share of questions answered correctly; `chance` is the share by guessing.

    `credits` has 1 for each question answered right, 1/k for a tie of k, and 0 for the others.
    """

    accuracy: float
    accuracy_sem: float
    chance: float
    questions: int
    credits: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class TaskResult:
    """How well a model answers a task. Shares and accuracies are from 0 to 1.

    Attributes:
        items: how many items were asked, the first of `of_items`.
        accuracy: the share of right answers; NaN if the model's logits were not finite.
        baseline: the accuracy by guessing (v1); `baseline_v2` as DCLM corrected it.
        centred: 0 at the baseline, and 1 if all answers are right; `centred_v2` by `baseline_v2`.
        cropped: the share of rows that lost their beginning to the model's context.
        unscored: items of which the context does not hold the answer. They count as wrong.
        odd_items, joined_tokens: items scored in another way than by nanochat; see `ItemRows`.
        ties: items with several best answers, which share the credit.
        commonest: of multiple_choice, the share of items that get the answer at the commonest
            place, `commonest_place` (from 0). Near 1, the model does not read the questions. None
            if no item has a single best answer.
        passages: of squad and coqa, the number of passages, which are the sample; otherwise None.
        not_finite: items whose logits were not finite.
        data_digest: sha256 of the file with the items.
        credits, choices: of each item, in its order; see `Answer` of `core.scoring`.
    """

    label: str
    task_type: TaskType
    shots: int
    items: int
    of_items: int
    accuracy: float
    sem: float
    baseline: Finite
    baseline_v2: Finite
    centred: float
    centred_sem: float
    centred_v2: float
    centred_v2_sem: float
    cropped: Finite
    unscored: int
    odd_items: int
    joined_tokens: int
    ties: int
    commonest: float | None
    commonest_place: int | None
    passages: int | None
    not_finite: int
    data_digest: str
    credits: tuple[float, ...] = ()
    choices: tuple[int, ...] = ()


@dataclass(frozen=True)
class CoreResult:
    """The mean of the centred accuracies of all tasks of a bundle.

    Attributes:
        name: `CORE`, or `mean of k tasks` if the bundle is not CORE's.
        not_core: what keeps the bundle from being CORE's; () if it is.
        value: the mean with baselines v1, `sem` its standard error; both with baselines v2 too.
        limit: how many items of each task were asked at most; None: all.
        context: the model's, in tokens. `cropped_tasks` lost more than a tenth of their rows'
            beginnings to it.
        dtype: of the model's products, such as `float32`. Logits are always fp32.
        bundle_digest: sha256 of the bundle's files.
    """

    rule: str
    name: str
    not_core: tuple[str, ...]
    value: float
    sem: float
    value_v2: float
    sem_v2: float
    limit: int | None
    context: int
    dtype: str
    cropped_tasks: tuple[str, ...]
    bundle_digest: Digest
    tasks: tuple[TaskResult, ...]


@dataclass(frozen=True)
class Share:
    """A share of cases, and Wilson's interval of 95 %: from `low` to `high`."""

    share: Finite
    low: Finite
    high: Finite

    @property
    def sem(self) -> float:
        """The standard error that belongs to the interval; never 0, as the binomial one can be."""
        return (self.high - self.low) / (2 * Z)


@dataclass(frozen=True)
class Overlap:
    """The overlap of one evaluation set with the rows that were searched.

    Attributes:
        name: the set's.
        digest: the sha256 of its texts.
        items: how many it has.
        unjudged: how many of these have too few words, or only words of a template.
        overlapped: the share of the judged items of which one row holds enough n-grams.
        with_answer: the share of those whose answer is in such a row, too.
        control: the share of overlapped excerpts of held-out rows.
        verdict: what this means, in words.

    A share is None if there is nothing to judge.
    """

    name: str
    digest: Digest
    items: int
    unjudged: int
    overlapped: Share | None
    with_answer: Share | None
    control: Share | None
    verdict: str
