"""Cache the keys and values of earlier tokens, for generation: a row for each text.

A pass over tokens (B, T) adds T tokens to each of B rows that stand next to each other. The rows
may have different lengths. `cut` makes a row shorter again: so drafts are taken back, a text is
read next to longer ones, and the next turn of a conversation keeps what the turn before has read.

A layer with a window keeps the keys that a later token can still see, in a ring: the token at
position p has the entry p mod `room`. Masks are made of positions, never of entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.model.attention.extra_entries import ExtraEntries, RowBuffers
from pion.model.attention.reach import Reach, reach_of, window_tokens
from pion.model.attention.slot_cache import ExtraSlots

# By the name of a part: how a cache keeps what the part has behind each text.
EXTRA_ENTRIES: dict[str, Callable[[Any], ExtraEntries]] = {"slots": ExtraSlots}

# A cache for more tokens than this starts with room for this many, and doubles when it is full.
SMALLEST_ROOM = 4096
# So many tokens of a row in a ring can be taken back, and a pass with more of them copies the ring.
SPARE = 64


@dataclass(frozen=True)
class Place:
    """Where the tokens of one pass are: `count` tokens of each row from `first` on.

    Attributes:
        starts: how many tokens each row had before.
        positions: (B, T), where rows have different lengths; else None.
        extra: what the pass has of entries behind the text.
    """

    first: int
    starts: tuple[int, ...]
    count: int
    positions: Tensor | None
    extra: Any = None
    _entries: dict[int, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def end(self) -> int:
        """The length of the longest row after the pass."""
        return max(self.starts) + self.count

    def token_positions(self, device: torch.device) -> Tensor:
        """Return the position of each token, (B or 1, T)."""
        if self.positions is not None:
            return self.positions
        return torch.arange(max(self.starts), self.end, device=device)[None]

    @cached_property
    def rows(self) -> slice:
        return slice(self.first, self.first + len(self.starts))

    def entries(self, room: int) -> tuple[Tensor, Tensor]:
        """Return the rows (B, 1) of the pass, and the entries (B, T) of its tokens in each.

        Layers with as many entries share these. Only for rows of different lengths.
        """
        assert self.positions is not None
        if room not in self._entries:
            rows = torch.arange(self.rows.start, self.rows.stop, device=self.positions.device)
            self._entries[room] = rows[:, None], self.positions % room
        return self._entries[room]


class KVCache:
    """The keys and values of texts in every layer.

    `max_tokens` is the most tokens of a text, by default the model's context. With `rows`, there is
    room for that many texts from the first token on. Without, the first pass decides, and the room
    grows with the texts.

    Attributes:
        lengths: the number of cached tokens of each row.
        layers: what each layer keeps; nothing of a layer without attention.
        extra: how entries behind the text are kept; None: the model has none.
    """

    def __init__(
        self, config: ModelConfig, max_tokens: int | None = None, rows: int | None = None
    ) -> None:
        self.max_tokens, self.rows = max_tokens or config.seq_len, rows
        self.lengths = [0] * (rows or 0)
        # The most tokens that each row has had since it was empty.
        self._reached = [0] * (rows or 0)
        every = [reach_of(config, layer) for layer in range(config.n_layers)]
        self._rooms = {
            reach: Room(self.max_tokens, window_tokens(config, reach)) for reach in set(every)
        }
        kinds = (EXTRA_ENTRIES[n](part) for n, part in config.parts() if n in EXTRA_ENTRIES)
        self.extra = extra = next(kinds, None)
        self.layers = [
            LayerCache(
                self._rooms[reach],
                rows,
                None if extra is None else extra.layer(self.max_tokens, rows),
            )
            for reach in every
        ]
        extras = (layer.extra for layer in self.layers)
        self._buffers = [*self.layers, *(each for each in extras if each is not None)]

    def place(self, first: int, batch: int, count: int, device: torch.device) -> Place:
        """Make room for `count` more tokens of each of `batch` rows; return where they are.

        Raises ValueError if there is no such row, or not so much room.
        """
        starts = self.grow(first, batch, count)
        positions = None
        if len(set(starts)) > 1:
            begins = torch.tensor(starts).to(device, non_blocking=True)
            positions = begins[:, None] + torch.arange(count, device=device)
        extra = self.extra and self.extra.place(starts, count, device)
        return Place(first, starts, count, positions, extra)

    def grow(self, first: int, batch: int, count: int) -> tuple[int, ...]:
        """Count `count` more tokens of each of `batch` rows; return how many each had before.

        Raises what `place` raises.
        """
        rows = range(first, first + batch)
        if self.rows is not None and rows.stop > self.rows:
            raise ValueError(f"there is no row {rows.stop - 1} in a cache of {self.rows}")
        missing = rows.stop - len(self.lengths)
        starts = (*self.lengths[first : rows.stop], *[0] * missing)
        end = max(starts) + count
        if end > self.max_tokens:
            raise ValueError(f"{end} tokens don't fit a cache of {self.max_tokens}")
        self.lengths += [0] * missing
        self._reached += [0] * missing
        for row, start in zip(rows, starts):
            self.lengths[row] = start + count
            self._reached[row] = max(self._reached[row], start + count)
        return starts

    def key_positions(self, reach: Reach, place: Place, device: torch.device) -> Tensor | None:
        """Return the positions (1 or B, keys) of the keys that layers of a reach show to a pass.

        Negative ones are of no text. None: the rows are equally long, and their keys are in order
        from position 0 to the last.
        """
        room = self._rooms[reach]
        if max(place.starts) == 0 or not room.wraps(place):  # the keys are in order
            same = place.positions is None
            return None if same else torch.arange(place.end, device=device)[None]
        if place.positions is None:
            # `torch.tensor(…, device=…)` would wait for the GPU.
            ends = torch.full((1, 1), place.end, device=device)
        else:
            ends = place.positions[:, -1:] + 1
        if not room.copies(place):
            return room.positions(ends)
        new = torch.arange(place.count, device=device)
        return torch.cat([room.positions(ends - place.count), ends - place.count + new], dim=1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the keys and values. Something has been written."""
        return next(layer.both.dtype for layer in self.layers if layer.both is not None)

    @property
    def most_together(self) -> int:
        """The most tokens of texts of different lengths that can be read together."""
        return min(room.most for room in self._rooms.values())

    def can_cut(self, row: int, length: int) -> bool:
        """Return whether the row still has all that its first `length` tokens need."""
        reached = self._reached[row]
        full = reached > self.most_together
        return length == 0 or not full or length >= reached - SPARE

    def cut(self, row: int, length: int) -> None:
        """Forget all tokens of a row but the first `length`. Raises ValueError if it can't."""
        if length > self.lengths[row] or not self.can_cut(row, length):
            raise ValueError(f"row {row} of {self.lengths[row]} tokens can't be cut to {length}")
        self.lengths[row] = length
        if length == 0:
            self._reached[row] = 0

    def swap(self, one: int, other: int) -> None:
        """Let the texts of two rows change places."""
        if one == other:
            return
        tokens = max(self._reached[one], self._reached[other])
        for buffers in self._buffers:
            buffers.swap(one, other, tokens)
        for lengths in (self.lengths, self._reached):
            lengths[one], lengths[other] = lengths[other], lengths[one]

    def copy(self, source: int, row: int, length: int) -> None:
        """Give a row the first `length` tokens of another, if `can_cut` says that it has them."""
        for buffers in self._buffers:
            buffers.copy(source, row, length)
        self.lengths[row], self._reached[row] = length, self._reached[source]

    def clear(self, row: int) -> None:
        """Overwrite a row with zeros: a mask does not hide NaN, because 0 · NaN is NaN."""
        for buffers in self._buffers:
            buffers.clear(row)
        self.lengths[row] = self._reached[row] = 0

    def bytes_per_row(self) -> int:
        """Return the bytes of a row of every layer that was written to, at its largest."""
        return sum(buffers.bytes_per_row() for buffers in self._buffers)


class Room:
    """The entries that layers of a reach have for a text: for each token, or a ring of them.

    `window` is the most keys that a token sees; None: every one. `most` is the number of entries.
    """

    def __init__(self, max_tokens: int, window: int | None) -> None:
        self.most = max_tokens if window is None else min(max_tokens, window + SPARE)

    def wraps(self, place: Place) -> bool:
        """Return whether tokens of the pass overwrite earlier ones."""
        return place.end > self.most

    def copies(self, place: Place) -> bool:
        """Return whether the pass has too many tokens to overwrite those that they see."""
        return self.wraps(place) and place.count > SPARE

    def positions(self, ends: Tensor) -> Tensor:
        """Return the position of each entry in rows of `ends` (B, 1) tokens: (B, entries)."""
        last = ends - 1
        return last - (last - torch.arange(self.most, device=ends.device)) % self.most


class LayerCache(RowBuffers):
    """One layer's keys and values, and the `extra` entries of a part behind the text, if any.

    The first write allocates the buffers, with the dtype and device of the written tensors. No
    gradient flows through them.
    """

    def __init__(self, room: Room, rows: int | None, extra: Any = None) -> None:
        super().__init__(room.most)
        self._room, self._rows, self.extra = room, rows, extra

    def entries_of(self, tokens: int) -> int:
        """Return the entries of so many tokens: all of a ring that is full, see `can_cut`."""
        return tokens + SPARE

    def extend(self, keys: Tensor, values: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, n_kv_heads, T, head_dim); return those that the pass sees.

        `KVCache.key_positions` says where they are. Those of no text have numbers of no meaning,
        which a mask must hide. Entries of a part stand behind the text.
        """
        if self.extra is None or place.extra is None:
            return self._extend_text(keys, values, place)
        count = place.count
        with torch.no_grad():
            seen = self._extend_text(keys[:, :, :count], values[:, :, :count], place)
            new = keys[:, :, count:], values[:, :, count:]
            extra = self.extra.extend(new, place.extra, place.rows)
        return torch.cat([seen[0], extra[0]], dim=2), torch.cat([seen[1], extra[1]], dim=2)

    def _extend_text(self, keys: Tensor, values: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            both = self._with_room(keys, place)
            copies, fresh = self._room.copies(place), max(place.starts) == 0
            seen = keys, values
            if copies and not fresh:
                old = both[:, place.rows]
                seen = torch.cat([old[0], keys], dim=2), torch.cat([old[1], values], dim=2)
            for buffer, new in zip(both, (keys, values)):
                _write(buffer, new, place, self.most)
            if not copies and not fresh:
                shown = min(place.end, self.most)
                seen = both[0, place.rows, :, :shown], both[1, place.rows, :, :shown]
        return seen

    def _with_room(self, keys: Tensor, place: Place) -> Tensor:
        """Return the buffers, with room for the tokens of the pass."""
        most, end = self.most, min(place.end, self.most)
        if self.both is not None and end <= self.both.shape[3]:
            return self.both
        entries = min(most, max(SMALLEST_ROOM, 2 * end)) if self._rows is None else most
        return self.grow(keys, self._rows or len(keys), entries)


def _write(buffer: Tensor, new: Tensor, place: Place, room: int) -> None:
    """Write the last tokens of a pass where their positions have their entries."""
    new = new[:, :, -room:]
    count = new.shape[2]
    if place.positions is not None:
        rows, entries = place.entries(room)
        buffer[rows, :, entries[:, -count:]] = new.transpose(1, 2)
        return
    begin = (place.end - count) % room
    first = min(count, room - begin)
    buffer[place.rows, :, begin : begin + first] = new[:, :, :first]
    if first < count:
        buffer[place.rows, :, : count - first] = new[:, :, first:]
