"""The results of finished stages in a run's HEAD, with the types that reports rely on.

A store may hold what others wrote, so a number that is not a number is damaged and not formatted.
What is measured has its fields from the dataclasses of pion/evaluation/results.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping
from types import GenericAlias, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from pion.config.model_config import RESULTS
from pion.evaluation import results as measured
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
# The types in a record of what has other types in memory.
_KEPT = {float: Number, int: Count, measured.Finite: float, measured.Digest: Sha256}


def _kept(kind: Any) -> Any:
    """Return the type in a record of what has the type `kind` in memory: null is NaN."""
    arguments = get_args(kind)
    if dataclasses.is_dataclass(kind):
        return record_type(**_fields(kind))
    if get_origin(kind) is tuple:
        return list_of(_kept(arguments[0]))
    if get_origin(kind) is UnionType:
        return functools.reduce(operator.or_, map(_kept, arguments))
    return str if get_origin(kind) is Literal else _KEPT.get(kind, kind)


def _fields(kind: Any) -> dict[str, Any]:
    """Return the types in a record of a dataclass's fields, without those of single items."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: _kept(own) for name, own in hints.items() if name not in measured.OF_ITEMS}


def list_of(kind: Any) -> Any:
    """Return the type of a list in a record."""
    return GenericAlias(list, (kind,))


def _with_errors(*names: str) -> dict[str, Any]:
    """Return the fields of these numbers and of their standard errors."""
    return {f"{name}{error}": Number for name in names for error in ("", "_sem")}


_CHOICES = {**_fields(measured.MultipleChoice), "questions": Required[Count]}
CHOICES = record_type(total=False, **_CHOICES) | None
CALIBRATION = _kept(measured.Calibration)
# What the context beyond data.seq_len is worth; see pion/evaluation/long_context.py.
_BITS = record_type(**_with_errors("bits"))
_LONG = record_type(
    total=False,
    **_with_errors("short_loss", "worth"),
    tokens=Count,
    by_distance=Mapping[str, _BITS],  # type: ignore[valid-type]
    copies=Mapping[str, _BITS],  # type: ignore[valid-type]
)
# What was measured of text, and of a model.
_TEXT = _fields(measured.HeldOut)
_MODEL = {
    **_TEXT,
    "sources": Mapping[str, record_type(total=False, **_TEXT)],  # type: ignore[misc]
    **_fields(measured.Responses),
    "continuations": CHOICES,
    "packs": Mapping[str, CHOICES],  # type: ignore[valid-type]
    "long_context": _LONG,
    "core": _kept(measured.CoreResult),
    "text": record_type(total=False, **_TEXT, calibration=CALIBRATION),
    "calibration": CALIBRATION,
    **{
        part.name: record_type(total=False, **dict.fromkeys(part.entries, _kept(part.record)))
        for part in RESULTS.values()
    },
}
MODEL = record_type(total=False, **_MODEL)

# How often the chosen answer is ahead, in all pairs and by which answer is longer: by the sums of
# answers, by their means over tokens, and by what the loss compares.
_AGREEMENT = record_type(
    total=False, **_with_errors("accuracy", "where_longer", "where_shorter", "length_bias")
)
_BY_SUMS_AND_MEANS = {"raw": _AGREEMENT, "normalized": _AGREEMENT}
# What the answers of a model are like; see pion/evaluation/greedy_answers.py.
_ANSWERS = record_type(**_with_errors("tokens", "stopped", "distinct"))
SIDES = ("before", "after", "change")
# The models of results, the last one first, and what tables call them.
TRAINED = {
    "reinforce": "reward-tuned",
    "prefer": "preference-tuned",
    "sft": "fine-tuned",
    "pretrain": "base",
}
# What learning from preferences has changed; see pipeline/stages/evaluate_preferences.py.
PREFERENCES = record_type(
    start=str,
    kind=Literal["pairs", "labels"],
    items=Count,
    prompts=Count,
    of_means=bool,
    with_reference=bool,
    before=record_type(total=False, **_BY_SUMS_AND_MEANS),
    after=record_type(total=False, **_BY_SUMS_AND_MEANS, margin=Required[_AGREEMENT]),
    change=record_type(total=False, **_BY_SUMS_AND_MEANS),
    # How much likelier a token of the answers of a side has become, in nats.
    moved=record_type(total=False, **_with_errors("chosen", "rejected")),
    reference=NotRequired[str],
    # How right it is to take the longer answer of a pair, and how many pairs have one.
    rules=NotRequired[
        record_type(**_with_errors("longer_wins", "shorter_wins"), longer=Count, shorter=Count)
    ],
    desired=NotRequired[Number],
    # What the answers to held-out prompts are like.
    answers=NotRequired[
        record_type(
            prompts=Count,
            most_tokens=Count,
            **dict.fromkeys(SIDES, _ANSWERS),
            shown=list_of(record_type(prompt=str, before=str, after=str)),
        )
    ],
)
PREFERRED = record_type(
    total=False,
    **_MODEL,
    **_with_errors("accuracy", "text_change", "response_change"),
    preferences=PREFERENCES,
)
_REWARDS = record_type(
    **_with_errors("reward", "pass", "pass_any", "unfinished", "answer_tokens", "nats")
)
# What learning from rewards has changed; see pipeline/stages/evaluate_rewards.py.
REWARDED = record_type(
    total=False,
    **_MODEL,
    **_with_errors("reward", "pass", "text_change", "response_change"),
    rewards=record_type(
        start=str,
        prompts=Count,
        answers=Count,
        **dict.fromkeys(SIDES, _REWARDS),
        shown=list_of(record_type(prompt=str, before=str, after=str)),
    ),
)
# The evaluated checkpoint, if it was chosen for its held-out loss, next to the last one.
CHECKPOINT = record_type(
    step=Count, held_out_loss=Number, last_step=Count, last_held_out_loss=Number
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
        checkpoint=CHECKPOINT,
        untrained=MODEL,
        ngram=record_type(total=False, **_MODEL, order=Required[Count], train_tokens=Count | None),
        lm_eval=Mapping[str, _TASK],  # type: ignore[valid-type]
        normalization=str,
    )
)
# How much of an evaluation set is in a text; see pipeline/data/cleaning/receipt.py.
SEARCHED_SET = _kept(measured.Overlap)


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
    found = {} if record is None else record.result
    return build(kind, found, f"{run}/HEAD.json", under=f"stages.{stage}.result")


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
