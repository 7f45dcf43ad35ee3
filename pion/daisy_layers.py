"""Which layers of a Daisy-Wee have attention, value tables and skips, by its number of layers."""

from __future__ import annotations

import math

# Small models list their layers with attention instead of spreading them.
FEW_LAYERS = {4: (0, 1, 3), 6: (0, 1, 3, 5)}
ATTENTION_STRIDE = 8
# The README's vintage: how many value tables serve the first, and again the last layers.
OLD_TABLES = 3


def attention_layers(n_layers: int) -> tuple[int, ...]:
    """Return the layers with attention: at least 2 + log2(n_layers), spread evenly."""
    if n_layers in FEW_LAYERS:
        return FEW_LAYERS[n_layers]
    least = max(math.ceil(n_layers / ATTENTION_STRIDE), math.ceil(2 + math.log2(n_layers)))
    return _spread(range(n_layers), min(n_layers, least))


def value_layers(n_layers: int) -> tuple[int, ...]:
    """Return the layers with a value table: 60 % of those with attention, from 4 to 10."""
    layers = attention_layers(n_layers)
    wanted = max(4, min(10, round(0.6 * len(layers))))
    return _spread(layers, min(len(layers), wanted))


def skips(n_layers: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs (to, from): layers after the middle read layers before it."""
    count, middle = max(1, int(math.log2(n_layers)) - 1), n_layers // 2
    stride = max(1, middle // (count + 1))
    return tuple((middle + t, middle - t * stride) for t in range(1, count + 1))


def old_skips(n_layers: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs (to, from) of the README's vintage: layers up to the middle read others."""
    count, middle = max(1, n_layers // 8), n_layers // 2
    stride = max(1, n_layers // (2 * (count + 1)))
    pairs = ((middle - count + t - 1, t) for t in range(1, count + 1))
    return tuple((to, to - t * stride) for to, t in pairs)


def old_value_layers(n_layers: int) -> dict[str, tuple[int, ...]]:
    """Return the README vintage's layers with a table, and the table of each."""
    first = tuple(range(OLD_TABLES))
    return {"layers": (*first, *range(n_layers - OLD_TABLES, n_layers)), "tables": (*first, *first)}


def _spread(items: range | tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return `count` of the items at even distances, with the first and the last."""
    if count == 1:
        return (items[0],)
    return tuple(items[round(i * (len(items) - 1) / (count - 1))] for i in range(count))
