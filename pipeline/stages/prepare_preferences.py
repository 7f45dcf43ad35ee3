"""prepare: the rows of a source of preferences, and what its report says of them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from pion.data.chat.chat_format import ChatFormat
from pion.data.preference.rendering import preference_format
from pion.data.preference.summary import Summary
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.console.messages import Say
from pipeline.data.documents_to_rows import RowFormat
from pipeline.data.preferences import kind_of_source, preferences
from pipeline.data.preferences_to_rows import PreferenceRows, write_preference_rows
from pipeline.data.remarks import Remarks
from pipeline.data.sources import Input
from pipeline.job import Job


def check_kinds(job: Job, inputs: list[Input]) -> None:
    """Let the job know whether its preferences are pairs or labels, before any work.

    Raises BadInput if the loss can't learn from them, for sources of both kinds, and for a first
    record that is no preference.
    """
    assert job.prefer is not None
    kinds = {found.key: kind_of_source(job, found) for found in inputs}
    for key, kind in kinds.items():
        first = next(iter(kinds))
        if kind != kinds[first]:
            raise BadInput(
                f"{key} has {_IN_WORDS[kind]}, but {first} has {_IN_WORDS[kinds[first]]}. A job "
                "learns from one of the two. Nothing was trained. Remove one of the sources"
            )
        job.prefer.know_kind(kind, key)


_IN_WORDS = {"pairs": "pairs", "labels": "single answers with labels"}


def write_preferences(
    job: Job, found: Input, tokenizer: Tokenizer, place: Path, rows: RowFormat, say: Say
) -> dict[str, Any]:
    """Write the rows of a source of preferences into the folder `place`; return its report.

    Raises BadInput as `write_preference_rows` does.
    """
    assert job.prefer is not None
    remarks = Remarks(tokenizer.replaced(), found.left_out)
    context = job.model_config_resolved().seq_len
    with closing(ChatFormat(place.parent / "tokenizer.json", tokenizer)) as written:
        how = PreferenceRows(
            tokenizer,
            preference_format(written, rows.seq_len, context),
            rows,
            job.prefer.held_out,
            job.seed,
            found.key,
        )
        read = preferences(job, found, remarks)
        summary, refusals = write_preference_rows(read, how, place, say)
    remarks.counts = summary.tally.seen
    return report_of(summary, refusals, remarks)


def report_of(summary: Summary, refusals: list[str], remarks: Remarks) -> dict[str, Any]:
    """Return the report of a source, with the names that the reports of conversations have."""
    return {
        "train_rows": summary.train.rows,
        "held_out_rows": summary.held_out.rows,
        "train_tokens": summary.train.tokens,
        "held_out_tokens": summary.held_out.tokens,
        "train_refused": summary.tally.refused,
        "held_out_refused": 0,
        "refusals": refusals,
        "preferences": summary.record(),
    } | remarks.report(summary.warnings())
