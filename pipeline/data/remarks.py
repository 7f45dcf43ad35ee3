"""What is worth saying about the records and texts of a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pion.data.chat.messages import Seen
from pion.data.chat.template import COUNTS
from pion.data.records.layouts import MEANINGFUL
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.later_fields import shown

# So many keys that are not read are named.
NAMED = 12


@dataclass
class Remarks:
    """What is worth saying about the records and texts of a source.

    Attributes:
        replaced: the characters that the vocabulary lacks.
        left_out: why files of the source are not read.
        roles: the other names of roles, and the role that each was read as.
        layouts: how many records have their question and answer in which columns.
        unread: how many records have a key that is not read.
        records: how many records there are.
        blank: how many records have no text, or a blank one.
        counts: system messages, thoughts and tools, by the names in COUNTS.
    """

    replaced: ReplacedCharacters
    left_out: tuple[str, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
    layouts: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    records: int = 0
    blank: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)

    def note(self, seen: Seen, texts: Any, where: str) -> None:
        """Note the texts of a record, and what else it has."""
        self.replaced.look(texts, where)
        self.records += 1
        self.roles |= dict(seen.roles)
        self.layouts.update(filter(None, [seen.layout]))
        self.unread.update(seen.unread)

    def note_blank(self) -> None:
        """Note a record without text."""
        self.blank += 1

    def note_counts(self, report: Mapping[str, Any]) -> None:
        """Note what was counted in both splits while the rows were written."""
        self.counts = {n: report[f"train_{n}"] + report[f"held_out_{n}"] for n in COUNTS}

    def report(self, warnings: Sequence[str] = ()) -> dict[str, list[str]]:
        """Return what the report of a source says of it, with more `warnings`, if there are any."""
        said = {"remarks": self.in_words(), "warnings": [*self.warnings(), *warnings]}
        return {name: words for name, words in said.items() if words}

    def in_words(self) -> list[str]:
        """Return a sentence for each remark that is no warning."""
        read = ", ".join(f"{shown(name)} as {role}" for name, role in sorted(self.roles.items()))
        remarks = (
            *self.left_out,
            f"{self.blank:,} records have no text and are left out" if self.blank else "",
            self.replaced.in_words(),
            read and f"roles with other names: {read}",
            *(f"{words} ({self._share(count)})" for words, count in self.layouts.most_common()),
            self._not_read([key for key in self.unread if key not in MEANINGFUL]),
        )
        return [words for words in remarks if words]

    def warnings(self) -> list[str]:
        """Return a sentence for each thing that the data have and the model will not learn."""
        found = [self._not_read([key for key in MEANINGFUL if key in self.unread]), *self._lost()]
        return [words for words in found if words]

    def _not_read(self, keys: list[str]) -> str:
        named = [f"{shown(key)} ({self._share(self.unread[key])})" for key in keys[:NAMED]]
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        return f"not read: {', '.join(named)}{more}" if keys else ""

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
