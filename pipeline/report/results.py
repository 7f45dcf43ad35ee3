"""The results of finished stages in a run's HEAD, with the types that reports rely on.

A store may hold what others wrote, so a number that is not a number is damaged and not formatted.
What is measured has its fields from pion/measures.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import GenericAlias
from typing import Any, Literal, NotRequired, Required, TypeVar

from pion.config.model_config import RESULTS
from pion.measures import (
    AGREEMENT,
    ANSWERS,
    CALIBRATION,
    CHECKPOINT,
    CHOICES,
    ELSEWHERE,
    HELD_OUT,
    LONG_CONTEXT,
    MOVED,
    NEAR_70,
    RESPONSES,
    REWARDS,
    RULES,
    SAVED,
    WORTH,
    Measure,
    columns,
)
from pipeline.job.stages import WORDS
from pipeline.state.head import Head
from pipeline.state.record_json import (
    Amount,
    Count,
    Number,
    Sha256,
    build,
    open_record,
    record_type,
)

Result = TypeVar("Result")


def list_of(kind: Any) -> Any:
    """Return the type of a list in a record."""
    return GenericAlias(list, (kind,))


def _fields(measures: Mapping[str, Measure]) -> dict[str, Any]:
    """Return the types of these numbers and of their standard errors, by their names in a record.

    A number that was not finite is null; a count always is one.
    """
    fields: dict[str, Any] = {}
    for name, measure in measures.items():
        fields[name] = Count if measure.form == "count" else Number
        if measure.error:
            fields[f"{name}_sem"] = Number
    return fields


def _record(measures: Mapping[str, Measure], **others: Any) -> Any:
    """Return the type of a record that has all of these numbers."""
    return record_type(**_fields(measures), **others)


def _part_of(measures: Mapping[str, Measure], **others: Any) -> Any:
    """Return the type of a record that has some of these numbers."""
    return record_type(total=False, **{**_fields(measures), **others})


# The models of results, the last one first, and what tables call them.
TRAINED = {stage: words.after for stage, words in reversed(WORDS.items())} | {"pretrain": "base"}
_CHOICES = _part_of(CHOICES, questions=Required[Count]) | None
_CALIBRATION = _record(CALIBRATION, near_70=_record(NEAR_70) | None)
# A task of CORE, and the mean of all tasks; see pion/evaluation/core/measure.py.
_CORE_TASK: dict[str, Any] = {
    "label": str,
    "task_type": str,
    **dict.fromkeys(("shots", "items", "of_items"), Count),
    **dict.fromkeys(("accuracy", "sem"), Number),
    **dict.fromkeys(("baseline", "baseline_v2"), float),
    **dict.fromkeys(("centred", "centred_sem", "centred_v2", "centred_v2_sem"), Number),
    "cropped": float,
    **dict.fromkeys(("unscored", "odd_items", "joined_tokens", "ties"), Count),
    "commonest": Number,
    **dict.fromkeys(("commonest_place", "passages"), Count | None),
    "not_finite": Count,
    "data_digest": str,
}
_CORE = record_type(
    dict.fromkeys(("value", "sem", "value_v2", "sem_v2"), Number),
    rule=str,
    name=str,
    not_core=list_of(str),
    limit=Count | None,
    context=Count,
    dtype=str,
    cropped_tasks=list_of(str),
    bundle_digest=Sha256,
    tasks=list_of(record_type(_CORE_TASK)),
)
# What was measured of a model.
_MODEL = {
    **_fields(HELD_OUT),
    "sources": Mapping[str, _part_of(HELD_OUT)],  # type: ignore[misc]
    **_fields(RESPONSES),
    "continuations": _CHOICES,
    "packs": Mapping[str, _CHOICES],  # type: ignore[valid-type]
    "long_context": _part_of(
        LONG_CONTEXT,
        by_distance=Mapping[str, _record(WORTH)],  # type: ignore[misc]
        copies=Mapping[str, _record(SAVED)],  # type: ignore[misc]
    ),
    "core": _CORE,
    "text": _part_of(HELD_OUT, calibration=_CALIBRATION),
    "calibration": _CALIBRATION,
    **{
        part.name: record_type(total=False, **dict.fromkeys(part.entries, _record(part.measures)))
        for part in RESULTS.values()
    },
}
MODEL = record_type(total=False, **_MODEL)

# By the sums of answers, and by their means over tokens.
_BY_SUMS_AND_MEANS = dict.fromkeys(("raw", "normalized"), _part_of(AGREEMENT))
SIDES = ("before", "after", "change")
_SHOWN = list_of(record_type(prompt=str, before=str, after=str))
# What learning from preferences has changed; see pipeline/stages/evaluate_preferences.py.
PREFERENCES = record_type(
    start=str,
    kind=Literal["pairs", "labels"],
    items=Count,
    prompts=Count,
    of_means=bool,
    with_reference=bool,
    before=record_type(total=False, **_BY_SUMS_AND_MEANS),
    after=record_type(total=False, **_BY_SUMS_AND_MEANS, margin=Required[_part_of(AGREEMENT)]),
    change=record_type(total=False, **_BY_SUMS_AND_MEANS),
    moved=_part_of(MOVED),
    reference=NotRequired[str],
    rules=NotRequired[_record(RULES)],
    desired=NotRequired[Number],
    # What the answers to held-out prompts are like.
    answers=NotRequired[
        record_type(
            prompts=Count,
            most_tokens=Count,
            **dict.fromkeys(SIDES, _record(ANSWERS)),
            shown=_SHOWN,
        )
    ],
)
PREFERRED = record_type(
    total=False,
    **_MODEL,
    **_fields(columns(AGREEMENT, "accuracy") | ELSEWHERE),
    preferences=PREFERENCES,
)
# What learning from rewards has changed; see pipeline/stages/evaluate_rewards.py.
REWARDED = record_type(
    total=False,
    **_MODEL,
    **_fields(columns(REWARDS, "reward", "pass") | ELSEWHERE),
    rewards=record_type(
        start=str,
        prompts=Count,
        answers=Count,
        **dict.fromkeys(SIDES, _record(REWARDS)),
        shown=_SHOWN,
    ),
)
# How lm-eval asked a task; see pipeline/stages/lm_eval_results.py. Its metrics are next to `asked`.
_ASKED = record_type(
    total=False,
    form=Literal["chat", "text"],
    shots=Count | None,
    version=str | float | None,
    lm_eval=str,
    fewshot_seed=Count,
    questions=Count,
    of=Count,
    cropped=Number,
    until=list_of(str),
    max_gen_toks=Count,
    cut_off=Number,
)
_TASK = open_record(record_type(total=False, asked=_ASKED, skipped=str))
# The result of the evaluate stage. `base` is the model that the run started from, `change` is from
# `base` to the last model, and `normalization` says how the tokenizer changes a text first.
Evaluated: type[Mapping[str, Any]] = open_record(
    record_type(
        total=False,
        pretrain=MODEL,
        sft=MODEL,
        prefer=PREFERRED,
        reinforce=REWARDED,
        base=MODEL,
        change=MODEL,
        compared_text=record_type(sha256=Sha256),
        checkpoint=_record(CHECKPOINT),
        untrained=MODEL,
        ngram=record_type(total=False, **_MODEL, order=Required[Count], train_tokens=Count | None),
        lm_eval=Mapping[str, _TASK],  # type: ignore[valid-type]
        normalization=str,
    )
)
# How much of an evaluation set is in a text; see pipeline/data/cleaning/receipt.py.
_SHARE = record_type(share=float, low=float, high=float) | None
SEARCHED_SET = record_type(
    dict.fromkeys(("overlapped", "with_answer", "control"), _SHARE),
    name=str,
    digest=Sha256,
    items=Count,
    unjudged=Count,
    verdict=str,
)


# ---------------------------------------------------------------- prepare

# A document: the number of its source, where it is there, and the beginning of its text.
_DOCUMENT: dict[str, Any] = {"source": Count, "document": str, "text": str}
# A document that was left out: the document that it is like, the item that it holds.
_EXAMPLE = record_type(
    **_DOCUMENT, like=NotRequired[record_type(**_DOCUMENT)], item=NotRequired[str]
)
# The documents that a rule left out.
_DROPPED = record_type(rule=str, documents=Count, examples=list_of(_EXAMPLE))
# How many documents a source has, and how many of them are kept.
_OF_SOURCE = record_type(documents=Count, kept=Count)
# What was kept of all documents, and what was left out.
_CLEANED = record_type(
    documents=Count,
    kept=Count,
    bytes=Count,
    sources=list_of(_OF_SOURCE),
    dropped=list_of(_DROPPED),
    sets=list_of(SEARCHED_SET),
    seconds=Amount,
)
_SOURCE = record_type(total=False, name=str)
# What prepare reported of the text, and the result of the prepare stage.
_PREPARED_TEXT = open_record(record_type(total=False, sources=list_of(_SOURCE), cleaned=_CLEANED))
Prepared: type[Mapping[str, Any]] = open_record(record_type(total=False, pretrain=_PREPARED_TEXT))


# The result of the publish stage.
Published: type[Mapping[str, Any]] = open_record(
    record_type(
        total=False,
        parameters=Count,
        url=str | None,
        path=str | None,
        card=str | None,
        commit=str,  # of the repository
        sha256=Sha256,  # of the weights in the folder
    )
)


def result_of(kind: type[Result], head: Head, stage: str, run: str) -> Result:
    """Return the result of a stage of the run at the address `run`; empty before the stage is done.

    Raises `Damaged`.
    """
    record = head.stages.get(stage)
    result = {} if record is None else record.result
    return build(kind, result, f"{run}/HEAD.json", under=f"stages.{stage}.result")


def numbers_of(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return dotted name → value of every number in nested results. NaN: it was not finite."""
    numbers: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            numbers |= numbers_of(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            number = math.nan if value is None else float(value)
            numbers[f"{prefix}{key}"] = number if math.isfinite(number) else math.nan
    return numbers
