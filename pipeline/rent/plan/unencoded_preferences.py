"""What can be said of preferences before there is a tokenizer: layouts, and what is left out."""

from __future__ import annotations

from collections import Counter

from pion.data.preference.layouts import Pair
from pion.data.preference.rendering import reason_without_ids
from pion.data.preference.summary import Part, Summary, Tally
from pion.errors import BadInput
from pipeline.data.preferences import Read, preferences
from pipeline.data.sources import SAMPLED, find_input
from pipeline.job import Job
from pipeline.rent.plan.counted import keep_first_records


def unencoded_in_words(job: Job) -> list[str]:
    """Return lines on each source of `prefer`, whose tokenizer is trained later.

    Raises BadInput for preferences that can't be used, whatever the tokenizer is.
    """
    read = job.model_copy(deep=True)
    assert read.prefer is not None
    whole = keep_first_records(read.prefer.sources)
    lines = []
    for number, source in enumerate(read.prefer.sources):
        key = f"prefer.sources.{number}"
        summary = _summary(read, key, list(preferences(read, find_input(read, source, key))))
        read.prefer.know_kind(summary.kind, key)
        summary.check(key)
        what = "pairs" if summary.kind == "pairs" else "labelled answers"
        first = "" if whole else f"of the first {SAMPLED:,}: "
        lines.append(f"{key}: {first}{summary.train.items:,} {what} can be used, before lengths")
        lines += summary.left_out()
    lines.append(
        "their lengths, rows and steps are known once the tokenizer is trained: "
        "`pion run JOB --until prepare` counts exactly, and trains nothing"
    )
    return lines


def _summary(job: Job, key: str, read: list[Read]) -> Summary:
    """Return the summary of a source, without lengths."""
    assert job.prefer is not None
    kinds = [one.kind for one in read if one.kind is not None]
    if not kinds:
        raise BadInput(f"{key}: none of its records is a preference. Use another data set")
    found = [one.preference for one in read if not isinstance(one.preference, str)]
    dropped = Counter(filter(None, map(reason_without_ids, found)))
    scored = [one for one in found if isinstance(one, Pair) and one.scores is not None]
    swapped = [one for one in scored if one.swapped]
    tally = Tally(
        read=len(read),
        refused=len(read) - len(found),
        scored=len(scored),
        swapped=len(swapped),
        first_swapped=swapped[0].conversations[0].where if swapped else "",
        dropped=dict(dropped),
    )
    kept = len(found) - sum(dropped.values())
    seq_len = job.seq_len("prefer")
    train, none = (Part(items, 0, 0, None, None) for items in (kept, 0))
    return Summary(kinds[0], seq_len, train, none, tally, seq_len)
