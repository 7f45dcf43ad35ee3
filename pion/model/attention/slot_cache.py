"""Cache slots (slot_entries.py) next to the text of a row.

The text that a token still sees is in a ring, as in a model with windows. Slots are few and are
kept to the end: slot i of segment j has the entry j · m + i. A pass computes the slots of all
segments that its tokens fill, as its last entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pion.config.slots import Slots
from pion.model.attention.extra_entries import RowBuffers
from pion.model.attention.slot_entries import Entries


@dataclass(frozen=True)
class SlotPlace:
    """The slots of one pass.

    Attributes:
        segments: (B or 1, groups): the segments whose slots the pass computes. A row that fills
            fewer of them than another has −1.
        shown: how many entries of slots the pass sees.
    """

    segments: Tensor
    shown: int


class ExtraSlots:
    """How a cache keeps slots."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def layer(self, max_tokens: int, rows: int | None) -> SlotCache:
        """Return what a layer keeps of texts of at most so many tokens."""
        return SlotCache(self._slots, max_tokens, rows)

    def place(self, starts: Sequence[int], count: int, device: torch.device) -> SlotPlace:
        """Return the slots of a pass over `count` tokens after `starts` tokens of each row."""
        size = self._slots.segment
        same = len(set(starts)) == 1
        rows = [
            (start // size, (start + count) // size) for start in (starts[:1] if same else starts)
        ]
        groups = max(stop - first for first, stop in rows)
        filled = [
            [first + n if first + n < stop else -1 for n in range(groups)] for first, stop in rows
        ]
        segments = torch.tensor(filled, dtype=torch.int64).view(len(rows), groups)
        shown = self._slots.per_segment * max(stop for _, stop in rows)
        return SlotPlace(segments.to(device, non_blocking=True), shown)

    def filled(self, lengths: Sequence[int]) -> list[int]:
        """Return the segment that the next token of each row fills, or −1."""
        size = self._slots.segment
        return [at // size if (at + 1) % size == 0 else -1 for at in lengths]

    def place_of_step(self, filled: Tensor, tokens: int) -> SlotPlace:
        """Return the slots of a step whose rows, of at most so many tokens, fill these segments."""
        return SlotPlace(filled, self._slots.entries(tokens))


def pass_entries(slots: Slots, positions: Tensor, place: SlotPlace) -> Entries:
    """Return the entries of a pass: its tokens at `positions` (B or 1, T), and its slots.

    A slot that a row does not have is like a slot of the row's last token: it has no meaning, but
    sees some keys, because without any its numbers would be NaN.
    """
    segments = place.segments.repeat_interleave(slots.per_segment, dim=1)
    which = torch.arange(slots.per_segment, device=positions.device).repeat(place.segments.shape[1])
    end = torch.where(segments < 0, positions[:, -1:], (segments + 1) * slots.segment - 1)
    return _entries(slots, positions, end, which)


def cached_entries(slots: Slots, positions: Tensor, shown: int) -> Entries:
    """Return the entries that a pass sees: text at `positions` (B or 1, keys), and all slots.

    Text at a negative position is of no text, and nothing sees it.
    """
    number = torch.arange(shown, device=positions.device)[None]
    end = (number // slots.per_segment + 1) * slots.segment - 1
    entries = _entries(slots, positions, end, number[0] % slots.per_segment)
    document = torch.where(entries.positions < 0, -1, 0)
    return Entries(entries.order, entries.segment, entries.queried, document, entries.positions)


def _entries(slots: Slots, positions: Tensor, end: Tensor, which: Tensor) -> Entries:
    rows = max(len(positions), len(end))
    text, end = positions.expand(rows, -1), end.expand(rows, -1)
    each = slots.per_segment + 1
    time = torch.cat([text, end], dim=1)
    order = torch.cat([text * each, end * each + 1 + which], dim=1)
    segment = torch.cat([text // slots.segment, torch.full_like(end, -1)], dim=1)
    return Entries(order, segment, time // slots.segment, torch.zeros_like(time), time)


class SlotCache(RowBuffers):
    """One layer's keys and values of slots.

    The last entries are for slots that a row of a pass does not have.
    """

    def __init__(self, slots: Slots, max_tokens: int, rows: int | None) -> None:
        super().__init__(slots.entries(max_tokens) + slots.per_segment)
        self._slots, self._rows = slots, rows

    def extend(self, both: Sequence[Tensor], place: SlotPlace, rows: slice) -> list[Tensor]:
        """Store new keys and values (B, n_kv_heads, S, head_dim); return all that the pass sees."""
        buffers = self.both
        if buffers is None:
            buffers = self.grow(both[0], self._rows or rows.stop, self.most)
        if both[0].shape[2]:
            each = self._slots.per_segment
            which = torch.arange(each, device=both[0].device)
            segments = place.segments.clamp(min=-1)
            first = torch.where(segments < 0, self.most - each, segments * each)
            entries = (first[:, :, None] + which).flatten(1).expand(len(both[0]), -1)
            numbers = torch.arange(rows.start, rows.stop, device=entries.device)
            for buffer, new in zip(buffers, both):
                buffer[numbers[:, None], :, entries] = new.transpose(1, 2)
        return [buffer[rows, :, : place.shown] for buffer in buffers]

    def entries_of(self, tokens: int) -> int:
        """Return the number of slots of so many tokens."""
        return self._slots.entries(tokens)
