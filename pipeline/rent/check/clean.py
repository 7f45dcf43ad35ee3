"""Check that the job's text can be cleaned as `data.clean` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pipeline.console.formats import counted
from pipeline.data.cleaning.sets import read_sets
from pipeline.job import Job
from pipeline.job.data_section import OF_EVALUATE, Clean
from pipeline.rent.check import CheckRow
from pipeline.rent.check.job import is_prepared

NAME = "data.clean"


# By the rule of `data.clean`, what it leaves out.
LEFT_OUT: dict[str, Callable[[Any], str]] = {
    "exact": lambda _: "exact copies",
    "near": lambda similarity: f"near-copies (similarity {similarity:g})",
    "min_words": lambda words: f"documents of fewer than {counted(words, 'word')}",
    "max_words": lambda words: f"documents of more than {counted(words, 'word')}",
    "max_repetition": lambda share: f"documents of which more than {100 * share:g} % is repeated",
    "languages": lambda names: f"documents that are not in {' or '.join(names)}",
}


def check_clean(job: Job) -> Iterator[CheckRow]:
    """Say what is left out of the text, and warn of evaluation sets that may be in it.

    Raises BadInput for an evaluation set that can't be read.
    """
    clean = job.data.clean
    if clean is None or is_prepared(job):
        return
    sets = read_sets(job)
    rules = _in_words(clean)
    if sets:
        items = counted(sum(len(one.items) for one in sets), "item")
        rules.append(f"text with any of {items} of {counted(len(sets), 'evaluation set')}")
    yield CheckRow(NAME, True, f"leaves out {', '.join(rules)}")
    if missing := _not_removed(job):
        yield CheckRow(
            NAME,
            None,
            f"{', '.join(missing)}: not in data.clean.decontaminate, so their items may be in the "
            f"text. To leave such text out, set data.clean.decontaminate=[{OF_EVALUATE}]",
        )


def _in_words(clean: Clean) -> list[str]:
    given = {name: getattr(clean, name) for name in LEFT_OUT}
    return [LEFT_OUT[n](v) for n, v in given.items() if v is not False and v not in (None, [])]


def _not_removed(job: Job) -> list[str]:
    """Return the keys of the sets that the evaluation asks and the text is not cleaned of."""
    removed = {job.input_path(path) for _, path in job.removed_sets}
    asked = job.evaluate.sets.items()
    return [key for key, path in asked if job.input_path(path) not in removed]
