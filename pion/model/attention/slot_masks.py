"""The masks of a model with slots (slot_entries.py): of whole rows, and of passes with a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pion.config.slots import Slots
from pion.model.attention.cache import KVCache, Place
from pion.model.attention.masks import FLEX_BLOCK, Mask, listed_blocks, ranges_of_blocks
from pion.model.attention.slot_cache import cached_entries, pass_entries
from pion.model.attention.slot_entries import Entries, visible


def mask_of_rows(slots: Slots, entries: Entries, *, flex: bool) -> Mask:
    """Return the mask of whole rows with these entries; with `flex`, as flex attention's."""
    if flex:
        return Mask(blocks=slot_block_mask(slots, entries))
    return Mask(allowed=visible(entries, entries, slots.window))


def mask_of_pass(
    slots: Slots, place: Place, cache: KVCache, device: torch.device
) -> tuple[Mask, Entries]:
    """Return the mask of a pass with a cache, and the pass's entries."""
    key = cache.key_positions("full", place, device)
    if key is None:
        key = torch.arange(place.end, device=device)[None]
    query = pass_entries(slots, place.token_positions(device), place.extra)
    seen = cached_entries(slots, key, place.extra.shown)
    return Mask(allowed=visible(query, seen, slots.window)), query


def visited_by_slots(slots: Slots, entries: Entries, block: int) -> Tensor:
    """Return which blocks of keys a block of queries may see something of: (B, n, n) boolean.

    It follows from the ranges of what decides visibility, so it never looks at pairs of entries.
    """
    first, last = ranges_of_blocks(entries.order, block)
    low, high = ranges_of_blocks(entries.document, block)
    # A block with slots is near: their segment is −1, and text further back has smaller numbers.
    of_text, nearest = ranges_of_blocks(entries.segment, block)
    earliest, _ = ranges_of_blocks(entries.queried, block)
    earlier = first[:, None] <= last[:, :, None]
    together = (low[:, :, None] <= high[:, None]) & (high[:, :, None] >= low[:, None])
    near = (of_text < 0)[:, None] | (earliest[:, :, None] - nearest[:, None] < slots.window)
    return earlier & together & near


def slot_block_mask(slots: Slots, entries: Entries) -> Any:
    """Return what the entries see as flex attention's BlockMask, from the ranges of blocks."""
    from torch.nn.attention.flex_attention import BlockMask

    tokens, window = entries.order.shape[1], slots.window
    order, segment = entries.order, entries.segment
    queried, document = entries.queried, entries.document
    # Inductor can't lower an index into a row that all rows share, such as `batch * 0`.
    shared = len(order) == 1
    if shared:
        order, segment, queried, document = order[0], segment[0], queried[0], document[0]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        q, k = (query, key) if shared else ((batch, query), (batch, key))
        near = (segment[k] < 0) | (queried[q] - segment[k] < window)
        return (order[k] <= order[q]) & near & (document[q] == document[k])

    return BlockMask.from_kv_blocks(
        *listed_blocks(visited_by_slots(slots, entries, FLEX_BLOCK)),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=sees,
        seq_lengths=(tokens, tokens),
    )
