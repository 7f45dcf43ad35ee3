"""Which documents are copies of earlier ones, exactly or nearly.

A document is a copy if any earlier document is equal or similar enough, also one that is left out
as a copy itself: of a chain of similar documents, the first is kept. The result depends only on the
documents and their order. Memory, besides the signatures: some 50 bytes for each document, and
BAND_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pion.clean.signature import HASHES, band_keys, rows_of_band, similarity

# Signatures are read, and compared, so many at a time: 4 MB.
AT_ONCE = 16_384
# Keys of so many bytes are in memory: as many bands as fit are read in one pass over the file.
BAND_BYTES = 2**28
# Of documents with an equal band, each is compared with so many before it.
COMPARED_WITH = 32
NONE = -1


def exact_copies(hashes: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the first document with the same hash, or NONE, for each of N documents, (N,) int64.

    Only documents that are `kept` are compared.
    """
    originals = np.full(len(hashes), NONE, dtype=np.int64)
    places = np.flatnonzero(kept)
    order = places[np.argsort(hashes[places], kind="stable")]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = hashes[order[1:]] != hashes[order[:-1]]
    firsts = order[begins][np.cumsum(begins) - 1]
    originals[order[~begins]] = firsts[~begins]
    return originals


def near_copies(
    signatures: np.ndarray,
    kept: np.ndarray,
    threshold: float,
    on_band: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Return an earlier document that is at least so similar, or NONE, for each of N documents,
    (N,) int64.

    `signatures` is uint16 (N, HASHES), and may be mapped from a file. Only documents that are
    `kept` and have a signature are compared. Of documents with the same
    band as many others, only the COMPARED_WITH before it are compared. `on_band` is called after
    each band with the bands done and their number.
    """
    originals = np.full(len(signatures), NONE, dtype=np.int64)
    kept = kept.copy()
    for places in _chunks(signatures):
        kept[places] &= signatures[places].any(axis=1)
    numbers = np.flatnonzero(kept)
    if len(numbers) < 2:
        return originals
    rows = rows_of_band(threshold)
    bands = HASHES // rows
    together = max(1, BAND_BYTES // (8 * len(numbers)))
    for first in range(0, bands, together):
        some = range(first, min(first + together, bands))
        for band, keys in zip(some, _keys(signatures, kept, some, rows)):
            _compare(signatures, numbers, keys, threshold, originals)
            on_band(band + 1, bands)
    return originals


def _chunks(signatures: np.ndarray) -> list[slice]:
    """Return the places of all signatures in order, AT_ONCE at a time."""
    return [slice(first, first + AT_ONCE) for first in range(0, len(signatures), AT_ONCE)]


def _keys(signatures: np.ndarray, kept: np.ndarray, bands: range, rows: int) -> list[np.ndarray]:
    """Return the keys of some bands of all kept documents."""
    keys = [np.empty(np.count_nonzero(kept), dtype=np.uint64) for _ in bands]
    done = 0
    for places in _chunks(signatures):
        chosen = signatures[places][kept[places]]
        for of_band, band in zip(keys, bands):
            of_band[done : done + len(chosen)] = band_keys(chosen, band, rows)
        done += len(chosen)
    return keys


def _compare(
    signatures: np.ndarray,
    numbers: np.ndarray,
    keys: np.ndarray,
    threshold: float,
    originals: np.ndarray,
) -> None:
    """Note the copies among the documents whose keys are equal."""
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order]
    for distance in range(1, COMPARED_WITH + 1):
        later = np.flatnonzero(keys[distance:] == keys[:-distance]) + distance
        if not len(later):
            return
        later = later[originals[numbers[later]] == NONE]
        for first in range(0, len(later), AT_ONCE):
            here = later[first : first + AT_ONCE]
            copies, before = numbers[here], numbers[here - distance]
            similar = similarity(signatures[copies], signatures[before]) >= threshold
            originals[copies[similar]] = before[similar]
