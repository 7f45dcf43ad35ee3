"""Where slots are, and what they and the tokens see (Lepton's thoughts and memory, made causal).

A document is cut into segments of C tokens, counted from its start. When a segment is full, m slots
follow it. They are internal tokens: they have no id and no target, see the segment that is full and
the slots before it, and are seen by all later tokens. Of the text, a token sees its own segment and
the W − 1 before it. In memory, all slots of a row stand behind its tokens.

A text token at t has the time t, and slot i of segment j the time e = (j + 1) C − 1, both counted
from the document's start. One sees another of the same document if

    text ← text: t_k ≤ t_q and ⌊t_q / C⌋ − ⌊t_k / C⌋ < W,     text ← slot: e_k < t_q,
    slot ← text: t_k ≤ e_q and ⌊e_q / C⌋ − ⌊t_k / C⌋ < W,     slot ← slot: e_k < e_q,
                                                              or e_k = e_q and i_k ≤ i_q.

With the order o = t (m + 1) for text and e (m + 1) + 1 + i for slots, all four say: o_k ≤ o_q, and
text is not too far back. So every path into a token starts before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pion.config.slots import Slots


@dataclass(frozen=True)
class Entries:
    """Tokens and slots of rows, each field (B, entries) int64.

    Attributes:
        order: o, which sorts what a document's text and slots may see.
        segment: ⌊t / C⌋ of text, and of a slot −1: slots are never too far back.
        queried: ⌊t / C⌋ or ⌊e / C⌋, which decides how far back an entry sees.
        document: the number of the document; an unused slot has a number that nothing else has.
        positions: for the rotation: those of the tokens, and of the last token of a slot's segment.
    """

    order: Tensor
    segment: Tensor
    queried: Tensor
    document: Tensor
    positions: Tensor


def entries_of(
    slots: Slots, positions: Tensor | None, documents: Tensor | None, tokens: Tensor
) -> Entries:
    """Return the entries of whole rows `tokens` (B, T): their tokens, and S slots behind these.

    `positions` and `documents` are as in Decoder. Without documents, a row is one document, and
    without both, all rows have the same entries (1, T + S).
    """
    length, device = tokens.shape[1], tokens.device
    rows = len(tokens) if positions is not None or documents is not None else 1
    here = torch.arange(length, device=device).expand(rows, length)
    number = torch.zeros_like(here) if documents is None else documents
    time = here - _begins(number, here)
    places = here if positions is None else positions
    ends = (time + 1) % slots.segment == 0
    if documents is not None:
        ends = ends & (documents >= 0)
    groups = length // slots.segment
    last = _places_of(ends, groups)  # (rows, groups): the last token of each full segment, or −1
    used, last = last >= 0, last.clamp(min=0)
    each = slots.per_segment
    unused = -2 - torch.arange(groups * each, device=device)  # unused slots see themselves only
    slot_time = time.gather(1, last).repeat_interleave(each, dim=1)
    slot_number = number.gather(1, last).repeat_interleave(each, dim=1)
    which = torch.arange(each, device=device).repeat(groups)
    is_used = used.repeat_interleave(each, dim=1)
    return Entries(
        order=torch.cat([time * (each + 1), slot_time * (each + 1) + 1 + which], dim=1),
        segment=torch.cat([time // slots.segment, torch.full_like(slot_time, -1)], dim=1),
        queried=torch.cat([time, slot_time], dim=1) // slots.segment,
        document=torch.cat([number, torch.where(is_used, slot_number, unused)], dim=1),
        positions=torch.cat([places, places.gather(1, last).repeat_interleave(each, dim=1)], dim=1),
    )


def visible(query: Entries, key: Entries, window: int) -> Tensor:
    """Return what each query sees of the keys: (B, 1, queries, keys) boolean."""
    earlier = key.order[:, None] <= query.order[:, :, None]
    near = (key.segment < 0)[:, None] | (query.queried[:, :, None] - key.segment[:, None] < window)
    same = query.document[:, :, None] == key.document[:, None]
    return (earlier & near & same)[:, None]


def _begins(number: Tensor, here: Tensor) -> Tensor:
    """Return where each token's document begins in its row, (B, T)."""
    begins = torch.ones_like(number, dtype=torch.bool)
    begins[:, 1:] = number[:, 1:] != number[:, :-1]
    return torch.where(begins, here, 0).cummax(dim=1).values


def _places_of(chosen: Tensor, most: int) -> Tensor:
    """Return the places of the chosen tokens (B, T) of each row in order, then −1: (B, most)."""
    places = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.where(chosen.gather(1, places), places, -1)
