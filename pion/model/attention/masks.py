"""Which tokens see which: one mask for each reach of attention, built once per forward pass.

A layer with a `full` reach sees every earlier token. With windows (pion/config/parts.py), other
layers see the blocks of their `long` or `short` window. What each block of queries visits is
decided once, as a table: the boolean masks of a CPU and flex attention's block masks on CUDA come
from the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from pion.config.model_config import ModelConfig
from pion.model.attention.cache import KVCache, Place
from pion.model.attention.reach import Reach, reaches, window_blocks

Masks = dict[Reach, "Mask"]


# Whether this process uses flex attention. Its kernels are compiled, which can fail.
_flex = SimpleNamespace(used=True)
Kernel = Literal["dense", "flex", "documents"]

# Flex attention's CUDA kernels need heads of at least this width, and blocks of a multiple of this
# many tokens.
FLEX_MIN_HEAD_DIM = 16
FLEX_BLOCK = 128

# On a CPU, documents in rows of more than this many tokens attend one after another. In shorter
# rows, one mask for all of them is faster than many small kernels.
LONGEST_MASKED_ROW = 512


@dataclass(frozen=True)
class Mask:
    """Which keys each query sees. With nothing set, every query sees every key.

    Attributes:
        causal: queries and keys are the same tokens; each token sees itself and the tokens before.
        allowed: boolean, broadcastable to (B, 1, queries, keys): true where the query sees the key;
            or numbers to add to scores: 0 where the query sees the key, −∞ elsewhere.
        blocks: `allowed` as flex attention's BlockMask.
        documents: `document_lengths`; each token sees itself and those before it in its document.
    """

    causal: bool = False
    allowed: Tensor | None = None
    blocks: Any = None
    documents: list[int] | None = None


def build_masks(
    config: ModelConfig,
    tokens: Tensor,
    keys: int,
    documents: Tensor | None,
    window: int | None = None,
    *,
    kernel: Kernel = "dense",
) -> Masks:
    """Return the mask of each reach for `tokens` (B, T), the last of `keys` tokens.

    `window` is the long window in tokens, if it differs from the model's: training begins with
    short windows. Documents (B, T) are numbered in the order of the row. `kernel` says how
    rows are masked: "flex" by flex attention, "documents" by attending within each document.
    """
    windows = config.windows
    if windows is None:
        if kernel == "documents" and documents is not None:
            return {"full": Mask(documents=document_lengths(documents))}
        return {"full": build_mask(config, tokens, keys, documents, flex=kernel == "flex")}
    masks: Masks = {
        reach: _window_mask(config, count, tokens, keys, documents, flex=kernel == "flex")
        for reach, count in window_blocks(windows, window).items()
        if reach in reaches(config)
    }
    if "full" in reaches(config):
        masks["full"] = build_mask(config, tokens, keys, documents, flex=kernel == "flex")
    return masks


def build_cache_masks(config: ModelConfig, tokens: Tensor, place: Place, cache: KVCache) -> Masks:
    """Return the mask of each reach for `tokens` (B, T), which a cache has at `place`."""
    masks = Masks()
    for reach in sorted(reaches(config)):
        if (key := cache.key_positions(reach, place, tokens.device)) is not None:
            masks[reach] = _mask_by_positions(config, reach, place, key, cache.dtype)
        elif config.windows is None or reach == "full":
            masks[reach] = build_mask(config, tokens, place.end, None)
        else:  # the rows are equally long, and all their keys are there, in order
            count = window_blocks(config.windows)[reach]
            masks[reach] = _window_mask(config, count, tokens, place.end, None, flex=False)
    return masks


def _mask_by_positions(
    config: ModelConfig, reach: Reach, place: Place, key: Tensor, dtype: torch.dtype
) -> Mask:
    """Return the mask for keys of a dtype at these positions (1 or B, keys). Negative ones are of
    no text."""
    key, query = key[:, None], place.token_positions(key.device)[:, :, None]
    seen = (key <= query) & (key >= 0)
    if config.windows is not None and reach != "full":
        count = window_blocks(config.windows)[reach]
        seen = seen & _in_window(key, query, count, config.windows.block)
    if config.softcap is None:
        # Attention adds such numbers to scores, and would make them of booleans in each layer.
        seen = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))
    return Mask(allowed=seen[:, None])


def flexible(config: ModelConfig, device: str) -> bool:
    """Return whether flex attention can mask whole rows on a device."""
    block = FLEX_BLOCK if config.windows is None else config.windows.block
    aligned = block == 1 or block % FLEX_BLOCK == 0
    wide = config.head_dim >= FLEX_MIN_HEAD_DIM
    return bool(_flex.used) and device == "cuda" and aligned and wide


def use_flex(used: bool) -> None:
    """Let this process mask whole rows by flex attention where it can, or never."""
    _flex.used = used


def masked_by_flex(config: ModelConfig, device: torch.device, *, documents: bool) -> bool:
    """Return whether flex attention masks whole rows on a device: by more than causality."""
    masked = documents or config.hides or config.softcap is not None
    return masked and flexible(config, device.type)


def attends_by_document(config: ModelConfig, device: str, tokens: int, *, compiled: bool) -> bool:
    """Return whether the documents in rows of `tokens` tokens attend one after another."""
    # Compiled code has the same operations for all rows, wherever their documents are.
    long = device == "cpu" and not compiled and tokens > LONGEST_MASKED_ROW
    return long and config.softcap is None and not config.hides


def document_lengths(documents: Tensor) -> list[int]:
    """Return how many tokens each document has in the rows (B, T) one after another."""
    starts = _begins(documents).flatten().nonzero().flatten()
    return starts.diff(append=torch.tensor([documents.numel()])).tolist()


def _begins(documents: Tensor) -> Tensor:
    """Return whether a token is the first of its document, (B, T); padding is a document, too."""
    return pad(documents.diff() != 0, (1, 0), value=True)


def build_mask(
    config: ModelConfig,
    tokens: Tensor,
    keys: int,
    documents: Tensor | None,
    branches: Tensor | None = None,
    *,
    flex: bool = False,
) -> Mask:
    """Return the mask for `tokens` (B, T), the last of the `keys` tokens of each row.

    Each token sees itself and the tokens before it. With documents (B, T), it sees only the tokens
    of the same document, and the documents are those of all keys. Documents may have
    branches (B, T), whose numbers rise along a document: the token then sees the tokens of branch 0
    and of its own branch. `flex`: masked by flex attention.
    """
    queries, device = tokens.shape[1], tokens.device
    if queries == 1:  # all keys are earlier tokens of its own document, and in its window
        return Mask()
    if documents is None and config.softcap is None and queries == keys:
        return Mask(causal=True)
    if queries == keys and flex:
        return Mask(blocks=block_mask(queries, documents, device, branches))
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if documents is not None:
        allowed = allowed & (documents[:, None, :, None] == documents[:, None, None, :])
    if branches is not None:
        allowed = allowed & _share(branches[:, None, :, None], branches[:, None, None, :])
    return Mask(allowed=allowed)


def _share(query: Tensor, key: Tensor) -> Tensor:
    """Return whether a query sees keys of its document, by the branches of both."""
    return (key == 0) | (key == query)


def block_mask(
    tokens: int,
    documents: Tensor | None,
    device: torch.device,
    branches: Tensor | None = None,
    window: int | None = None,
) -> Any:
    """Return the causal mask, within documents and branches (B, T) if given, as flex attention's
    BlockMask. A token sees `window` tokens, itself included; None: all before it.

    It is the one that `create_block_mask` makes from booleans for each pair of tokens, which take
    12 GB for a row of 65,536 tokens. This one is made from the documents in each block.
    """
    if documents is None:
        numbers = torch.zeros(1, tokens, dtype=torch.int64, device=device)
    else:
        # Padding stands at the end. With the highest number there, numbers rise along the row, and
        # a block that begins the padding shares nothing with blocks further back.
        numbers = documents.where(documents >= 0, torch.iinfo(documents.dtype).max)
    blocks = -(-tokens // FLEX_BLOCK), FLEX_BLOCK
    full, partial = visited_blocks(numbers, *blocks)
    if documents is not None and branches is not None:
        # A block of another branch is visited for the tokens of branch 0 in it.
        lowest, _ = ranges_of_blocks(branches, FLEX_BLOCK)
        of_prompts = (full | partial) & (lowest == 0)[:, None]
        pieces = (_begins(documents) | _begins(branches)).cumsum(dim=1)
        full, partial = visited_blocks(pieces, *blocks)
        partial = partial | (of_prompts & ~full)
    first = None
    if window is not None:
        block = torch.arange(full.shape[1], device=device)
        # How far back blocks of keys begin. The whole of a block is near if its first key is in the
        # window of the last query, and some of it if its last key is in that of the first query.
        back = (block[:, None] - block) * FLEX_BLOCK
        within, near = back + FLEX_BLOCK <= window, back - FLEX_BLOCK + 1 < window
        full, partial = full & within, near & (partial | (full & ~within))
        # A number that changes from step to step would compile the kernels again.
        first = torch.arange(1 - window, tokens + 1 - window, device=device)
    return to_block_mask(full, partial, visible(documents, branches, first), tokens, FLEX_BLOCK)


def visible(
    documents: Tensor | None, branches: Tensor | None = None, first: Tensor | None = None
) -> Any:
    """Return the `mask_mod` of documents and branches (B, T), which says what a token sees.

    It sees no keys before its `first` (T,).
    """

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key
        if first is not None:
            seen = seen & (key >= first[query])
        if documents is not None:
            seen = seen & (documents[batch, query] == documents[batch, key])
        if branches is not None:
            seen = seen & _share(branches[batch, query], branches[batch, key])
        return seen

    return sees


# ---------------------------------------------------------------- windows


def _window_mask(
    config: ModelConfig,
    count: int,
    tokens: Tensor,
    keys: int,
    documents: Tensor | None,
    *,
    flex: bool,
) -> Mask:
    """Return the mask of a window of `count` blocks."""
    assert config.windows is not None
    block, queries, device = config.windows.block, tokens.shape[1], tokens.device
    window = max(count, 1) * block
    if documents is None and window >= keys:
        return build_mask(config, tokens, keys, None, flex=flex)
    if flex and block == 1:
        return Mask(blocks=block_mask(keys, documents, device, window=window))
    if queries < keys or block == 1:
        # Cached tokens are of one document, and so are blocks of one token: its blocks are the
        # window's.
        key = torch.arange(keys, device=device)
        query = key[keys - queries :, None]
        allowed = (key <= query) & _in_window(key, query, count, block)
        if documents is not None:
            allowed = (allowed & (documents[:, :, None] == documents[:, None]))[:, None]
        return Mask(allowed=allowed)
    single = torch.zeros(1, keys, dtype=torch.int64, device=device)
    numbers = single if documents is None else documents
    full, partial = visited_blocks(numbers, count, block)
    if flex:
        return Mask(blocks=to_block_mask(full, partial, visible(documents), keys, block))
    return Mask(allowed=expand(full | partial, numbers, block))


def _in_window(key: Tensor, query: Tensor, count: int, block: int) -> Tensor:
    """Return whether a key's block is among the last `count` blocks up to the query's."""
    return key // block > query // block - max(count, 1)


def visited_blocks(documents: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
    """Return the blocks of keys that each block of queries visits, each (B, n, n) boolean.

    `documents` is (B, T), and `count` the number of blocks in the window. The first result has the
    full blocks: earlier blocks, with the same one document as the block of queries. The second has
    the partial blocks: the block of the queries, and blocks that share a document with it. A window
    has at most `count` − 1 full blocks. Partial blocks take what full blocks leave of it, at
    least one. The most recent blocks come first. (Daisy-Wee's rule, as in modded-nanogpt.)
    """
    low, high = ranges_of_blocks(documents, block)
    place = torch.arange(low.shape[1], device=documents.device)
    past, here = place[:, None] > place, place[:, None] >= place
    equal = (low[:, :, None] == high[:, None]) & (high[:, :, None] == low[:, None])
    touching = (low[:, :, None] <= high[:, None]) & (high[:, :, None] >= low[:, None])
    full = past & equal
    partial = here & touching & ~full
    left = (count - full.sum(dim=-1, keepdim=True)).clamp(min=1)
    return full & (_recency(full) < count), partial & (_recency(partial) <= left)


def expand(visited: Tensor, documents: Tensor, block: int) -> Tensor:
    """Return what each token sees in the visited blocks: (B, 1, T, T) boolean."""
    tokens = documents.shape[1]
    per_token = visited.repeat_interleave(block, dim=1).repeat_interleave(block, dim=2)
    same = documents[:, :, None] == documents[:, None]
    return (per_token[:, :tokens, :tokens] & same).tril()[:, None]


def to_block_mask(full: Tensor, partial: Tensor, sees: Any, tokens: int, block: int) -> Any:
    """Return the visited blocks of rows of `tokens` tokens as flex attention's BlockMask.

    One table may be that of all rows. The kernel asks `sees` about tokens in partial blocks only.
    """
    from torch.nn.attention.flex_attention import BlockMask

    if tokens % block:  # the last queries do not fill a block, so none of their blocks is full
        last = torch.arange(full.shape[1], device=full.device)[:, None] == full.shape[1] - 1
        full, partial = full & ~last, partial | (full & last)
    return BlockMask.from_kv_blocks(
        *listed_blocks(partial),
        *listed_blocks(full),
        BLOCK_SIZE=block,
        mask_mod=sees,
        seq_lengths=(tokens, tokens),
    )


def listed_blocks(visited: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks are visited, (B, 1, n), and their numbers, (B, 1, n, n)."""
    counts = visited.sum(dim=-1)
    numbers = visited.int().argsort(dim=-1, descending=True, stable=True)
    return counts[:, None].int(), numbers[:, None].int()


def ranges_of_blocks(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest of the values (B, T) in each block, each (B, n)."""
    batch, tokens = values.shape
    missing = -tokens % block
    if missing:
        values = torch.cat((values, values[:, -1:].expand(batch, missing)), dim=1)
    blocks = values.view(batch, -1, block)
    return blocks.amin(dim=-1), blocks.amax(dim=-1)


def _recency(chosen: Tensor) -> Tensor:
    """Return each chosen block's place among its row's chosen blocks, the most recent having 1."""
    return chosen.int().flip(-1).cumsum(dim=-1).flip(-1)


# ---------------------------------------------------------------- costs


def mean_keys(config: ModelConfig, reach: Reach, seq_len: int) -> float:
    """Return how many keys a token sees on average, in a row that is one document."""
    for _, part in config.parts():
        if (keys := part.keys_seen(seq_len)) is not None:
            return keys
    if reach == "full" or config.windows is None:
        return seq_len / 2
    block = config.windows.block
    visited = max(1, window_blocks(config.windows)[reach]) * block
    if visited >= seq_len:
        return seq_len / 2
    # Without a window a token sees half of the row. A block of queries does not see the blocks
    # before its window.
    hidden = sum(range(block, seq_len - visited + block, block))
    return seq_len / 2 - hidden * block / seq_len
