"""What is worth saying about the records and texts of a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pion.data.chat.messages import Seen
from pion.data.chat.template import COUNTS
from pion.data.documents.file_to_documents import SPELLED, ZEROS
from pion.data.records.layouts import MEANINGFUL
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.later_fields import shown
from pipeline.console.formats import some

# So many keys that are not read are named.
NAMED = 12
# Above this share of dropped conversations, or this share of dropped and cut ones, is a warning.
MANY_DROPPED, MANY_CUT = 0.05, 0.5


@dataclass
class Remarks:
    """What is worth saying about the records and texts of a source.

    Attributes:
        replaced: the characters that the vocabulary lacks.
        left_out: why files of the source are not read.
        roles: the other names of roles, and the role that each was read as.
        said: how many records have their question and answer in which columns, or were changed.
        unread: how many records have a key that is not read.
        records: how many records there are.
        noted: what texts have that is not learned as it is there, in words: how many have it, and
            the first place.
        counts: system messages, thoughts and tools, by the names in COUNTS.
        apart: of how many conversations each answer is a separate example.
        shortened: what `shortened` says of both splits, and whether that is a warning.
    """

    replaced: ReplacedCharacters
    left_out: tuple[str, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    records: int = 0
    noted: dict[str, tuple[int, str]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    apart: int = 0
    shortened: tuple[str, bool] = ("", False)

    def note(self, seen: Seen, texts: Any, where: str) -> None:
        """Note the texts of a record, and what else it has."""
        self.replaced.look(texts, where)
        self.records += 1
        self.roles |= dict(seen.roles)
        self.said.update(filter(None, [seen.layout, *seen.notes]))
        self.unread.update(seen.unread)

    def note_text(self, words: str, where: str, count: int = 1) -> None:
        """Note what texts have, in words, of which the first is at `where`."""
        before, first = self.noted.get(words, (0, where))
        self.noted[words] = before + count, first

    def of_piece(self) -> dict[str, Any]:
        """Return, as JSON, what was noted of the texts of a piece. `add_piece` adds it."""
        replaced = {"replaced": self.replaced.count, "places": self.replaced.places}
        return replaced | {"noted": self.noted}

    def add_piece(self, noted: Mapping[str, Any]) -> None:
        """Add what was noted of the texts of a later piece."""
        self.replaced.add(noted["replaced"], noted["places"])
        for remark, (count, where) in noted["noted"].items():
            self.note_text(remark, where, count)

    def note_counts(self, report: Mapping[str, Any], seq_len: int) -> None:
        """Note what was counted in both splits while rows of `seq_len` tokens were written."""
        self.counts = {n: report[f"train_{n}"] + report[f"held_out_{n}"] for n in COUNTS}
        self.apart = report["train_split"] + report["held_out_split"]
        self.shortened = shortened(report, seq_len, "train", "held_out")

    def report(self, warnings: Sequence[str] = ()) -> dict[str, list[str]]:
        """Return what the report of a source says of it, with more `warnings`, if there are any."""
        report = {"remarks": self.in_words(), "warnings": [*self.warnings(), *warnings]}
        return {name: texts for name, texts in report.items() if texts}

    def in_words(self) -> list[str]:
        """Return a sentence for each remark that is no warning."""
        read = ", ".join(f"{shown(name)} as {role}" for name, role in sorted(self.roles.items()))
        remarks = (
            *self.left_out,
            *self._noted(warned=False),
            self.replaced.in_words(),
            read and f"roles with other names: {read}",
            *(f"{remark} ({self._share(count)})" for remark, count in self.said.most_common()),
            self._not_read([key for key in self.unread if key not in MEANINGFUL]),
            self.apart
            and "the template writes an answer differently once others follow, so each answer of "
            f"{self.apart:,} conversations is a separate example",
            "" if self.shortened[1] else self.shortened[0],
        )
        return [remark for remark in remarks if remark]

    def warnings(self) -> list[str]:
        """Return a sentence for each thing that the data have and the model will not learn."""
        warnings = [
            self._not_read([key for key in MEANINGFUL if key in self.unread]),
            *self._lost(),
        ]
        warnings += self._noted(warned=True)
        warnings.append(self.shortened[0] if self.shortened[1] else "")
        return [warning for warning in warnings if warning]

    def _noted(self, *, warned: bool) -> list[str]:
        return [
            f"{remark} ({count:,}, the first: {where})"
            for remark, (count, where) in self.noted.items()
            if (remark in (SPELLED, ZEROS)) == warned
        ]

    def _not_read(self, keys: list[str]) -> str:
        named = [f"{shown(key)} ({self._share(self.unread[key])})" for key in keys]
        return f"not read: {some(named, NAMED)}" if keys else ""

    def _share(self, count: int) -> str:
        return f"{count:,} of {self.records:,} records"

    def _lost(self) -> Iterator[str]:
        counts = Counter(self.counts)
        if counts["lost_systems"]:
            yield (
                f"{counts['lost_systems']:,} of {counts['systems']:,} system messages are not in "
                "the text, because the model's chat template leaves them out"
            )
        if counts["lost_thoughts"]:
            yield (
                f"the thoughts of {counts['lost_thoughts']:,} of {counts['thoughts']:,} answers "
                "that have some are not learned: the chat format has no place for them. Write "
                "them into the answers if the model shall learn them"
            )
        if counts["lost_tools"]:
            yield (
                f"the tools of {counts['lost_tools']:,} conversations, or calls and results, are "
                "not in the text, and answers are learned without them: the chat format has no "
                "place for them. Use a model whose chat template writes tools"
            )


def shortened(report: Mapping[str, Any], seq_len: int, *splits: str) -> tuple[str, bool]:
    """Return what rows of `seq_len` tokens leave out of the conversations of these splits, with the
    rows that hold most of them, "" if nothing is left out; and whether that is worth a warning."""
    uncut, dropped, cut = (
        sum(report[f"{split}_{name}"] for split in splits)
        for name in ("conversations", "dropped", "cut")
    )
    total, fits = uncut + dropped, max(report[f"{split}_fits"] for split in splits)
    sentences = {
        f"{dropped:,} of {total:,} conversations are dropped, because no answer begins within a "
        f"row of {seq_len:,} tokens": dropped,
        f"{cut:,} of {total:,} conversations are longer than a row of {seq_len:,} tokens and lose "
        "their end": cut,
        f"With sft.seq_len={fits}, {1 - MANY_DROPPED:.0%} of them are whole, and the model's "
        "context must be as long": fits > seq_len,
    }
    many = dropped > MANY_DROPPED * total or dropped + cut > MANY_CUT * total
    return ". ".join(sentence for sentence, count in sentences.items() if count), many
