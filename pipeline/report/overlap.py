"""Whether the questions of evaluation sets are in the training rows, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console.formats import number_or_dash, short_amount
from pipeline.report.results import SearchedSet, Wilson
from pipeline.report.values import percent_with_error

COLUMNS = (
    "questions",
    "items",
    "can't be judged",
    "in a training row",
    "with the answer",
    "held-out text in a training row",
    "verdict",
)
ACCURACIES = ("questions", "model", "all", "not in the training rows", "in them", "difference")
NO_SIGN = "no sign"
NOT_MEASURED = "Whether the questions are in the training data was not measured."
MEANS = (
    "A question counts as in a training row if one row has half or more of its runs of 13 words. "
    "Held-out text shows how much of this the duplicates in the data yield without any leak. "
    "Paraphrases and translations are not found, and questions that are in the rows may just be "
    "easier."
)


def overlap_in_words(results: Mapping[str, Any], *, asked: bool) -> str:
    """Return the verdict in a line; "" if no questions of evaluation sets were `asked`."""
    overlap = results.get("overlap")
    if overlap is None:
        return NOT_MEASURED if asked else ""
    sets = overlap["sets"]
    signs = [one for one in sets if not one["verdict"].startswith(NO_SIGN)]
    clean = f"no sign in {len(sets) - len(signs)} of {len(sets)} sets of questions"
    named = [f"{one['name']}: {one['verdict']}" for one in signs]
    words = (
        f"Evaluation questions in the training rows (rule {overlap['rule']}, "
        f"{_searched(overlap)}): {'; '.join([clean, *named])}."
    )
    if overlap["start_unknown"]:
        words += " The training data of the model that the run started from is unknown."
    return words


def set_rows(sets: Sequence[SearchedSet]) -> Sequence[Sequence[str]]:
    """Return the rows of COLUMNS."""
    return [
        (
            one["name"],
            f"{one['items']:,}",
            f"{one['unjudged']:,}",
            *map(_share, (one["overlapped"], one["with_answer"], one["control"])),
            one["verdict"],
        )
        for one in sets
    ]


def clean_core_in_words(results: Mapping[str, Any], models: Sequence[tuple[str, str]]) -> str:
    """Return CORE over the questions that are not in the training rows; "" if it is not known."""
    clean = (results.get("overlap") or {}).get("clean_core") or {}
    known = []
    for name, title in models:
        core = (results.get(name) or {}).get("core")
        if core and clean.get(name) is not None:
            whole = number_or_dash(core["value"], 4)
            known.append(f"{title} {clean[name]:.4f} (all questions: {whole})")
    if not known:
        return ""
    return f"{_core_name(results, models)} over the questions that are not in them: " + (
        f"{', '.join(known)}."
    )


def _core_name(results: Mapping[str, Any], models: Sequence[tuple[str, str]]) -> str:
    """Return what the mean of the tasks is called: CORE, or `mean of 3 tasks`."""
    cores = ((results.get(name) or {}).get("core") for name, _ in models)
    return next(core["name"] for core in cores if core)


def accuracy_rows(overlap: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    """Return the rows of ACCURACIES, of the sets with items in the training rows."""
    return [
        (
            one["name"],
            model,
            *(percent_with_error(found, name) for name in ("all", "clean", "overlapped")),
            percent_with_error(found, "clean_less_all"),
        )
        for one in overlap["sets"]
        for model, found in one["accuracy"].items()
        if "clean_less_all" in found
    ]


def examples_in_words(overlap: Mapping[str, Any]) -> list[str]:
    """Return, for the sets that show more than held-out text does, the most overlapped items."""
    return [
        f"{one['name']}, {example['held']} of {example['ngrams']} runs of words in row "
        f"{example['row']:,} ({example['source']}): the question “{example['item']}”; the row has "
        f"“{example['row_has']}”"
        for one in overlap["sets"]
        if not one["verdict"].startswith(NO_SIGN)
        for example in one["examples"]
    ]


def _searched(overlap: Mapping[str, Any]) -> str:
    tokens, total = overlap["tokens"], overlap["of_tokens"]
    if tokens >= total:
        return f"all {short_amount(total)} tokens searched"
    share = f"{100 * tokens / total:.0f} %"
    return f"{short_amount(tokens)} of {short_amount(total)} tokens searched, {share}"


def _share(found: Wilson | None) -> str:
    if found is None:
        return "–"
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['share']:.1f} % (95 %: {low:.1f} to {high:.1f})"
