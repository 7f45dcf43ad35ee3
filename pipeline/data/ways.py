"""What prepare does with each part of the data, by the stage that learns from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pion.data.chat.chat_format import ChatFormat
from pipeline.console.messages import Say
from pipeline.data.conversations_to_rows import show_conversation, write_conversations
from pipeline.data.preferences import check_kinds
from pipeline.data.preferences_to_rows import show_preference, write_preferences
from pipeline.data.prompts import show_prompt, write_prompts
from pipeline.data.source_reading import SourceReading, write_text
from pipeline.data.sources import Input, Shown
from pipeline.data.splits import RowFormat
from pipeline.job import Job


@dataclass(frozen=True)
class Way:
    """How records of a kind become rows.

    Attributes:
        write: writes the rows of a source below a folder, and returns what was counted.
        few: what is said of fewer rows than a batch has, with `rows` and `seq_len`.
        held_out: one of what is held out.
        more: what else there is to do about too few rows.
        in_pieces: whether other processes may write pieces of a large source.
        check: looks at the sources before anything else is done. Raises BadInput.
        show: shows a record as the model will see it; None: it is not usable.
    """

    write: Callable[[SourceReading, ChatFormat, Path, RowFormat, Say], dict[str, Any]]
    few: str
    held_out: str = ""
    more: str = ""
    in_pieces: bool = False
    check: Callable[[Job, list[Input]], None] = lambda job, inputs: None
    show: Callable[[Job, Any, ChatFormat], Shown | None] | None = None


WAYS: Mapping[str, Way] = {
    "pretrain": Way(
        write_text,
        "the corpus is smaller than one batch: it has {rows:,} rows of {seq_len:,} ids",
        more=", a lower seq_len",
        in_pieces=True,
    ),
    "sft": Way(
        write_conversations,
        "the conversations are fewer than one batch: they fill {rows:,} rows of {seq_len:,} ids",
        held_out="conversation",
        in_pieces=True,
        show=show_conversation,
    ),
    "prefer": Way(
        write_preferences,
        "the preferences are fewer than one batch: they have {rows:,} rows of {seq_len:,} ids",
        held_out="prompt",
        check=check_kinds,
        show=show_preference,
    ),
    "reinforce": Way(
        write_prompts,
        "the prompts are fewer than one batch: they fill {rows:,} rows",
        held_out="prompt",
        show=show_prompt,
    ),
}
