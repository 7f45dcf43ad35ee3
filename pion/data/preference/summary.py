"""What preferences are like, before money is spent: sizes, lengths, what is left out, and why not.

Two mistakes of data sets teach a model something else than what is better. If the chosen answers
are longer than the rejected ones, it learns to write longer. If long pairs are left out, it learns
from short ones only. So both are measured, and said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Predicate

from pion.data.chat.packing import BUCKET, item_length, row_that_holds
from pion.data.preference.layouts import Pair, Preference
from pion.data.preference.rendering import (
    LONGER_THAN_CONTEXT,
    LONGER_THAN_ROW,
    REASONS,
    Outcome,
    Refused,
    Usable,
)
from pion.data.row_flags import Sequences, sequences_of
from pion.errors import BadInput

# Above these shares, the data are refused, or there is a warning.
MOST_DROPPED, MANY_DROPPED = 0.5, 0.05
MOST_SWAPPED = 0.01
MANY_LONGER = 0.65
# A longer row is advised for so many of the pairs that are not longer than the context.
KEPT = 0.99
# With fewer pairs, the share of longer ones says little.
FEWEST_COMPARED = 20

Kind = Literal["pairs", "labels"]
Count = Annotated[int, Ge(0)]
Counts = dict[str, Count]


# ---------------------------------------------------------------- counts


@dataclass
class Tally:
    """Counts of preferences.

    Attributes:
        read: all of them.
        refused: malformed ones, and those that the chat template refuses.
        early: usable pairs whose sides differ from an earlier answer on.
        tokens: of the usable ones.
        scored: pairs with scores.
        swapped: pairs whose chosen answer has the lower score.
        first_swapped: file and line of the first of these, or "".
        seen: of usable ones, what `Examples` counts, by the names in COUNTS.
        dropped: by reason, how many are left out.
        dropped_encoded: how many of these have a known length.
        dropped_tokens: the sum of these lengths.
        too_long: lengths of those longer than a row, by the next multiple of BUCKET.
    """

    read: Count
    refused: Count = 0
    early: Count = 0
    tokens: Count = 0
    scored: Count = 0
    swapped: Count = 0
    first_swapped: str = ""
    seen: Counts = field(default_factory=dict)
    dropped: Annotated[Counts, Predicate(frozenset(REASONS).issuperset)] = field(
        default_factory=dict
    )
    dropped_encoded: Counts = field(default_factory=dict)
    dropped_tokens: Counts = field(default_factory=dict)
    too_long: Counts = field(default_factory=dict)

    def add(self, preference: Preference | str, outcome: Outcome) -> None:
        """Count a preference, or what can't be read as one, and what became of it."""
        self.read += 1
        if isinstance(preference, Pair):
            self.scored += preference.scores is not None
            if preference.swapped:
                self.swapped += 1
                self.first_swapped = self.first_swapped or preference.chosen.where
        if isinstance(outcome, Refused):
            self.refused += 1
        elif isinstance(outcome, Usable):
            self.early += outcome.early
            self.tokens += item_length(outcome.item)
            _add_up(self.seen, outcome.seen)
        else:
            self._drop(outcome.reason, outcome.tokens)

    def _drop(self, reason: str, tokens: int | None) -> None:
        _add_up(self.dropped, {reason: 1})
        if tokens is not None:
            _add_up(self.dropped_encoded, {reason: 1})
            _add_up(self.dropped_tokens, {reason: tokens})
            if reason == LONGER_THAN_ROW:
                _add_up(self.too_long, {str(-(-tokens // BUCKET) * BUCKET): 1})


def tally_of(preferences: Sequence[Preference | str], outcomes: Sequence[Outcome]) -> Tally:
    """Return the counts of preferences, or of what can't be read, with what became of each."""
    tally = Tally(0)
    for preference, outcome in zip(preferences, outcomes, strict=True):
        tally.add(preference, outcome)
    return tally


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of all."""
    sums = Tally(0)
    for tally in tallies:
        for name, value in vars(tally).items():
            before = getattr(sums, name)
            if isinstance(value, dict):
                _add_up(before, value)
            else:
                setattr(sums, name, (before or value) if isinstance(value, str) else before + value)
    return sums


def _add_up(counts: Counts, more: Mapping[str, int]) -> None:
    for name, n in more.items():
        counts[name] = counts.get(name, 0) + n


# ---------------------------------------------------------------- a summary


@dataclass(frozen=True)
class Targets:
    """How many tokens are learned of the answers on one side."""

    mean: float
    median: float


@dataclass(frozen=True)
class Part:
    """The training part of the rows, or the held-out part.

    Attributes:
        items: pairs, or answers with a label.
        tokens: of all sequences, prompts too.
        preferred: of the chosen or desired answers; None without any.
        other: of the rejected or undesired answers; None without any.
        chosen_longer: the share of pairs whose chosen answer has more targets; None for labels.
        longer_wins: the accuracy of the rule that the longer answer is chosen, where answers of
            the same length count half; None for labels. "The shorter wins" has the rest.
    """

    items: int
    rows: int
    tokens: int
    preferred: Targets | None
    other: Targets | None
    chosen_longer: float | None = None
    longer_wins: float | None = None


@dataclass(frozen=True)
class Summary:
    """What the rows of one data set hold, and what is not in them.

    Attributes:
        seq_len: tokens in a row.
        keeps_most: the row length that keeps 99 % of the items that no shorter row is needed for.
    """

    kind: Kind
    seq_len: int
    train: Part
    held_out: Part
    tally: Tally
    keeps_most: int

    def record(self) -> dict[str, Any]:
        """Return the summary as JSON."""
        return asdict(self)

    def check(self, where: str) -> None:
        """Raise BadInput if nobody should train on these; `where` names the data."""
        tally, dropped, what = self.tally, self._dropped, self.what
        if tally.swapped > MOST_SWAPPED * tally.scored:
            raise BadInput(
                f"{where}: in {tally.swapped:,} of {tally.scored:,} pairs with scores, the chosen "
                f"answer has the lower score (the first: {tally.first_swapped}): chosen and "
                "rejected seem to be swapped. Nothing was trained. Swap them, or remove the scores"
            )
        if dropped > MOST_DROPPED * tally.read:
            raise BadInput(
                f"{where}: {dropped:,} of {tally.read:,} {what} are left out, more than "
                f"{MOST_DROPPED:.0%}: {self.reasons}. Nothing was trained. {self._advice}"
            )
        if not self.train.items:
            raise BadInput(
                f"{where}: none of {tally.read:,} {what} is left to train on: "
                f"{self.held_out.items:,} are held out, {dropped:,} left out"
                f"{f' ({self.reasons})' if dropped else ''}. Nothing was trained. Give more "
                f"{what}, or lower prefer.held_out"
            )

    def warnings(self) -> list[str]:
        """Return a sentence for each thing that will probably disappoint."""
        warnings = []
        if self._dropped > MANY_DROPPED * self.tally.read:
            share = self._dropped / self.tally.read
            warnings.append(
                f"{share:.1%} of the {self.what} are left out: {self.reasons}. {self._advice}"
            )
        longer = self.train.chosen_longer
        if longer is not None and longer > MANY_LONGER and self.train.items >= FEWEST_COMPARED:
            warnings.append(
                f"the chosen answer is the longer one in {longer:.0%} of the pairs: the model will "
                "learn to write longer. With loss dpo, use dpo-norm, which divides by the length"
            )
        if self.kind == "labels" and self.train.items:
            for side, name in ((self.train.preferred, "true"), (self.train.other, "false")):
                if side is None:
                    warnings.append(f"no label is {name}: there is nothing to compare with")
        return warnings

    def in_words(self) -> list[str]:
        """Return what `check` shows, a line each."""
        train, held_out = self.train, self.held_out
        names = ("chosen", "rejected") if self.kind == "pairs" else ("desired", "undesired")
        lines = [
            f"{train.items:,} {self.what} in {train.rows:,} rows of {self.seq_len:,} tokens; "
            f"{held_out.items:,} more are held out, in {held_out.rows:,} rows",
            "target tokens: "
            + "; ".join(
                f"{name} {side.mean:,.0f} on average, median {side.median:,.0f}"
                for name, side in zip(names, (train.preferred, train.other))
                if side is not None
            ),
        ]
        if train.chosen_longer is not None:
            lines.append(f"the chosen answer is longer in {train.chosen_longer:.0%} of the pairs")
        if held_out.longer_wins is not None:
            lines.append(
                f'held-out pairs by rule: "the longer wins" is right for {held_out.longer_wins:.0%}'
                f', "the shorter wins" for {1 - held_out.longer_wins:.0%}: a model must do better'
            )
        if self.tally.early:
            lines.append(
                f"{self.tally.early:,} pairs differ from an earlier answer on; their later "
                "questions are only read"
            )
        return lines + self.left_out()

    def left_out(self) -> list[str]:
        """Return a line on how many are left out, and why; none if all are used."""
        return [f"left out: {self.reasons}"] if self._dropped else []

    @property
    def what(self) -> str:
        """What the items are, in words."""
        return "pairs" if self.kind == "pairs" else "labelled answers"

    @property
    def _dropped(self) -> int:
        return sum(self.tally.dropped.values())

    @property
    def reasons(self) -> str:
        """How many are left out, why, and how long they are; empty if none are."""
        parts = []
        for reason in REASONS:
            if count := self.tally.dropped.get(reason):
                encoded = self.tally.dropped_encoded.get(reason)
                mean = self.tally.dropped_tokens[reason] / encoded if encoded else 0
                long = f" (on average {mean:,.0f} tokens)" if encoded else ""
                why = "they are longer than a row" if reason == LONGER_THAN_ROW else reason
                parts.append(f"{count:,}, because {why}{long}")
        return "; ".join(parts)

    @property
    def _advice(self) -> str:
        """What would keep more of them: a longer row, a longer context, other data."""
        few = (1 - KEPT) * self.tally.read
        if self.tally.dropped.get(LONGER_THAN_ROW, 0) > few:
            return (
                f"prefer.seq_len={self.keeps_most} keeps {KEPT:.0%} of those that fit the context"
            )
        if self.tally.dropped.get(LONGER_THAN_CONTEXT, 0) > few:
            return "No prefer.seq_len keeps these: use a model with a longer context, or other data"
        return "Correct them, or use other data"


def summarize(
    kind: Kind, flags: Mapping[str, list[np.ndarray]], seq_len: int, tally: Tally
) -> Summary:
    """Return the summary of rows.

    Args:
        flags: of "train" and of "held_out", arrays uint8 ``(rows, seq_len)``.
        tally: what was counted while the rows were written.
    """
    split = {name: _joined(arrays) for name, arrays in flags.items()}
    rows = {name: sum(map(len, arrays)) for name, arrays in flags.items()}
    size = 2 if kind == "pairs" else 1
    lengths = np.concatenate(
        [sequences.tokens.reshape(-1, size).sum(axis=1) for sequences in split.values()]
    )
    return Summary(
        kind,
        seq_len,
        _part(kind, split["train"], rows["train"]),
        _part(kind, split["held_out"], rows["held_out"]),
        tally,
        _keeping(lengths, tally, seq_len),
    )


def _part(kind: Kind, sequences: Sequences, rows: int) -> Part:
    chosen, rejected = (
        sequences.targets[sequences.preferred],
        sequences.targets[~sequences.preferred],
    )
    items = len(sequences.tokens) // (2 if kind == "pairs" else 1)
    longer = wins = None
    if kind == "pairs" and items:
        longer = float((chosen > rejected).mean())
        wins = longer + float((chosen == rejected).mean()) / 2
    return Part(
        items, rows, int(sequences.tokens.sum()), _targets(chosen), _targets(rejected), longer, wins
    )


def _targets(counts: np.ndarray) -> Targets | None:
    return Targets(float(counts.mean()), float(np.median(counts))) if len(counts) else None


def _keeping(lengths: np.ndarray, tally: Tally, seq_len: int) -> int:
    """Return the row length that keeps KEPT of the items, kept or too long now."""
    longer = [int(length) for length, count in tally.too_long.items() for _ in range(count)]
    every = np.concatenate([lengths, np.array(longer, dtype=np.int64)])
    return max(seq_len, row_that_holds(KEPT, every))


def _joined(flags: list[np.ndarray]) -> Sequences:
    """Return the sequences of several arrays. Their rows are numbered within each array."""
    parts = [sequences_of(shard_flags) for shard_flags in flags] or [
        sequences_of(np.zeros((0, 1), np.uint8))
    ]
    return Sequences(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("rows", "tokens", "targets", "preferred")
        )
    )
