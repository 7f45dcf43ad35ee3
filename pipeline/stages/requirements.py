"""The conditions of publish.require: which names there are, and whether they are met."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, get_args, get_origin

from typing_extensions import get_type_hints, is_typeddict

from pion.errors import BadInput
from pion.later_fields import closest
from pion.measures import RESPONSES
from pipeline.job import REQUIREMENT, Job, Publish
from pipeline.report.results import Evaluated, numbers_of
from pipeline.report.worse import made_worse

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# What is measured of a published model only if the run learned conversations.
OF_CONVERSATIONS = (*RESPONSES, "response_change")
# Types of numbers in records of results; None stands for one that is not finite.
_NUMBERS = {int, float, NoneType}
# The types of results, by name.
KINDS = get_type_hints(Evaluated)


def check_requirements(job: Job, publish: Publish, results: Mapping[str, Any], safe: str) -> None:
    """Raise BadInput for a model that training made worse, unless publish.even_if_worse, and unless
    every condition of publish.require is met.

    A name is looked up first in the published model's results, then in all results
    (`ngram.bits_per_byte`). `safe` says what is not lost.
    """
    if (worse := made_worse(results)) and not publish.even_if_worse:
        stage = worse[0].partition(" ")[0]
        raise BadInput(
            f"publish: {'; '.join(worse)}. Nothing was published, and {publish.to} was not "
            f"changed. {safe} Lower the rates in {stage} and run the same command again with "
            f"--redo {stage}. To publish the model nevertheless: publish.even_if_worse=true"
        )
    measured = numbers_of(results) | numbers_of(results.get(job.train_stages[-1], {}))
    missed = []
    for condition in publish.require:
        name, comparison, limit = _parse(condition)
        if name not in measured:
            raise BadInput(
                f"publish.require: {condition!r}: there is no result {name!r}"
                f"{closest(name, measured)}; there are {', '.join(sorted(measured))}. {safe} "
                "Nothing was published. Correct publish.require and run the same command again."
            )
        if not COMPARE[comparison](measured[name], limit):
            missed.append(f"{condition.strip()} (measured: {measured[name]:.4g})")
    if missed:
        raise BadInput(
            f"publish.require is not met: {'; '.join(missed)}. Nothing was published, and "
            f"{publish.to} was not changed. {safe} Train longer or change publish.require, "
            "then run the same command again."
        )


def _parse(condition: str) -> tuple[str, str, float]:
    match = REQUIREMENT.match(condition)
    assert match is not None  # the job's validator has checked it
    try:
        return match[1], match[2], float(match[3])
    except ValueError:
        raise BadInput(f"publish.require: {condition!r}: {match[3]} is not a number.") from None


def check_names(job: Job, publish: Publish) -> None:
    """Raise BadInput before training for a name in publish.require that will not exist after it."""
    before = ("untrained",) if job.base is None else ("base", "change")
    models = [*job.train_stages, *before, "ngram", "lm_eval"]
    for condition in publish.require:
        path = _parse(condition)[0].split(".")
        model, rest = (path[0], path[1:]) if path[0] in models else (job.train_stages[-1], path)
        measures = _measures(job, model) if model in job.train_stages else []
        if measures and rest and rest[0] not in measures:
            raise BadInput(
                f"publish.require: {condition!r}: nothing called {rest[0]!r} will be measured"
                f"{closest(rest[0], [*measures, *models])}; there are "
                f"{', '.join(n for n in measures if not n.endswith('_sem'))} of the {model} "
                f"model, and the results of {', '.join(models)} (ngram.loss). Nothing was started."
            )
        # lm-eval has its own names of metrics.
        is_metric = model == "lm_eval" and len(rest) > 1
        problem = None if is_metric else _no_number(KINDS[model], [model, *rest])
        if problem is not None:
            raise BadInput(f"publish.require: {condition!r}: {problem}. Nothing was started.")


def _no_number(kind: Any, path: Sequence[str]) -> str | None:
    """Return why a path is not the name of a number, or None. `kind` is the record that is called
    `path[0]`."""
    name, *rest = path
    kind = _table(kind) or kind
    if get_origin(kind) is Mapping:
        # A name in a table may have dots, too.
        below = [_no_number(get_args(kind)[1], rest[dots:]) for dots in range(len(rest))]
        if not below:
            return f"{name!r} is a table: name a number in it"
        return None if None in below else below[0]
    if not is_typeddict(kind):
        return None if {*(get_args(kind) or (kind,))} <= _NUMBERS else f"{name!r} is not a number"
    fields = get_type_hints(kind)
    if not rest:
        return f"{name!r} is a table: name a number in it. It has {_has(fields)}"
    problem = f"nothing called {rest[0]!r} will be measured{closest(rest[0], fields)}"
    if rest[0] in fields:
        below = fields[rest[0]]
        if len(rest) == 1 or _table(below) or _no_number(below, rest):
            return _no_number(below, rest)
        problem = f"{rest[0]!r} is a number, and nothing in it has a name"
    return f"{problem}; {name!r} has {_has(fields)}"


def _has(fields: Mapping[str, Any]) -> str:
    """Return the names of the numbers and tables of a record, in words."""
    numbers = [name for name, kind in fields.items() if not _no_number(kind, [name])]
    kinds = {"numbers": numbers, "tables": [name for name, kind in fields.items() if _table(kind)]}
    return " and ".join(f"the {what} {', '.join(names)}" for what, names in kinds.items() if names)


def _table(kind: Any) -> Any | None:
    """Return the record or the mapping that values of this type are, if not None."""
    options = get_args(kind) if NoneType in get_args(kind) else (kind,)
    return next((one for one in options if is_typeddict(one) or get_origin(one) is Mapping), None)


def _measures(job: Job, stage: str) -> list[str]:
    """Return the names of what is measured of the model of `stage`."""
    needs = {
        **dict.fromkeys(OF_CONVERSATIONS, job.sft),
        "text": job.base,
        "sources": job.mixes,
        "long_context": any(phase.length > 1 for phase in job.mix_phases[-1:]),
    }
    names = get_type_hints(KINDS[stage])
    return [name for name in names if needs.get(name.removesuffix("_sem"), True)]
