"""Build masks and decode on the pretended card, and print what that takes.

environment.py starts this program: `python -m tests.cuda_rehearsal.attention_peaks`.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from pion.config.model_config import ModelConfig
from pion.generation.decoding import cache_tokens
from pion.model import decoder
from pion.model.attention.cache import KVCache
from pion.model.attention.slot_entries import entries_of
from pion.model.attention.slot_masks import mask_of_rows
from pion.model.decoder import Decoder
from pion.model.forward_pass import AS_THE_MODEL, Given, _masks
from tests.cuda_rehearsal.live_bytes import LiveBytes
from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import hand_back, handed_back
from tests.cuda_rehearsal.watch import Operation, Watch

_LAYERS: dict[str, Any] = {"n_layers": 2, "vocab_size": 512, "seq_len": 65_536}
_DENSE = ModelConfig.preset("pion-small", **_LAYERS)
_CAPPED = replace(_DENSE, softcap=50.0)
_WINDOWS = ModelConfig.preset(
    "daisy-pico",
    **_LAYERS,
    wiring={"attention_layers": [0], "skips": [[1, 0]]},
    values={"layers": [0]},
)
_SLOTS = ModelConfig.preset("lepton-small", **_LAYERS)


@dataclass(frozen=True)
class Rows:
    """Whole rows, for which masks are built."""

    config: ModelConfig
    rows: int
    tokens: int
    documents: bool = True


BUILT = {
    "documents": Rows(_DENSE, 1, 8192),
    "conversations": Rows(_DENSE, 32, 2048),
    "documents in a long row": Rows(_DENSE, 1, 65_536),
    "capped scores": Rows(_CAPPED, 1, 65_536, documents=False),
    "windows": Rows(_WINDOWS, 1, 65_536),
    "slots": Rows(_SLOTS, 1, 8192),
}


@dataclass(frozen=True)
class Decoded:
    """A pass over the next tokens of texts of different lengths, which a cache has.

    Attributes:
        math: whether torch takes the kernel that it takes if no other kernel knows that query heads
            share keys. Before 2.15, this is so for all masked keys on a card.
    """

    config: ModelConfig
    new: int = 1
    math: bool = True
    rows: int = 16
    tokens: int = 2048

    @property
    def expanded(self) -> int:
        """The elements of a layer's keys, if each query head had its own."""
        return self.rows * self.config.n_heads * self.tokens * self.config.head_dim


DECODED = {
    "a token of each text": Decoded(_DENSE),
    "a token of each text by the usual kernel": Decoded(_DENSE, math=False),
    "a drafted pass": Decoded(_DENSE, new=5),
    "capped scores": Decoded(_CAPPED),
}


def built(live: LiveBytes, how: Rows) -> tuple[int, int]:
    """Return the most bytes at once while the masks are built, and the bytes that stay."""
    with torch.device("cuda"):
        tokens = torch.zeros(how.rows, how.tokens, dtype=torch.int64)
        documents = torch.zeros_like(tokens) if how.documents else None
    slots = how.config.slots
    entries = None if slots is None else entries_of(slots, None, documents, tokens)
    gc.collect()
    given = live.live
    live.start()
    masks: Any
    if slots is not None and entries is not None:
        masks = mask_of_rows(slots, entries, flex=True)
    else:
        masks = _masks(how.config, Given(tokens, documents=documents), AS_THE_MODEL)
    gc.collect()
    stays = live.live - given
    del masks
    return live.peak - given, stays


def largest_made(watch: Watch, how: Decoded) -> int:
    """Return the elements of the largest tensor that the pass makes."""
    with torch.device("cuda"):
        model = Decoder(how.config)
    cache = KVCache(how.config, how.tokens, how.rows)
    before = how.tokens - how.new
    cache_tokens(model, [[0] * before] * how.rows, cache)
    for row in range(how.rows):
        cache.cut(row, before - row)
    largest = 0

    def see(operation: Operation) -> None:
        nonlocal largest
        for leaf in tree_leaves(operation.result):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                # A view can have more elements than memory, and a cache has more than a pass reads.
                stored = leaf.untyped_storage().nbytes() // leaf.element_size()
                largest = max(largest, min(stored, leaf.numel()))

    only_math = mock.patch.object(decoder, "kernels_of_any_length", _only_math)
    with only_math if how.math else nullcontext(), mock.patch.object(watch, "seen", see):
        cache_tokens(model, [[0] * how.new] * how.rows, cache)
    return largest


def _only_math(_: torch.device) -> Any:
    return sdpa_kernel(SDPBackend.MATH)


def main() -> None:
    with pretended_card() as watch:
        live = LiveBytes(watch)
        masks = [built(live, how) for how in BUILT.values()]
        hand_back([masks, [largest_made(watch, how) for how in DECODED.values()]])


def read_attention_peaks(output: str) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Return what the program printed: `built` by name in BUILT, `largest_made` in DECODED."""
    masks, largest = handed_back(output)
    return (
        {name: (peak, stays) for name, (peak, stays) in zip(BUILT, masks, strict=True)},
        dict(zip(DECODED, largest, strict=True)),
    )


if __name__ == "__main__":
    main()
