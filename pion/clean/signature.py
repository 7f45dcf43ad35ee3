"""MinHash: a few numbers of a document from which its similarity to any other follows.

The similarity of two documents is the share of pairs of neighbouring words that both have, of all
pairs that either has (the Jaccard index). Pairs are a set: how often a document has a pair does not
count. Case, white space and punctuation don't count either.

A.Z. Broder, "On the resemblance and containment of documents", 1997: two documents have the same
smallest hash with a chance equal to their similarity. With HASHES independent hashes, the share of
equal ones has a standard error of at most 0.044. Each smallest hash is kept in 16 bits, of which
different ones are equal with a chance of 1/65,536 (P. Li, A.C. König, "b-Bit minwise hashing",
2010).

To find similar documents without comparing all pairs, the hashes are cut into bands, and only
documents with an equal band are compared (J. Leskovec, A. Rajaraman, J.D. Ullman, "Mining of
Massive Datasets", section 3.4).
"""

from __future__ import annotations

from functools import cache

import numpy as np

# The words of a shingle. Pairs also recognize short documents: of ten words, one replaced word
# changes two pairs of nine, but three runs of three words of eight.
SHINGLE_WORDS = 2
HASHES = 128
# Documents at the threshold are compared with at least this chance.
COMPARED = 0.99


def signatures(shingles: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the signatures of documents, (documents, HASHES) uint16.

    `shingles` has the uint64 hashes of the shingles of all documents, one after the other, and
    `counts` how many each has: at least 1.
    """
    high = (shingles >> np.uint64(32)).astype(np.uint32)
    firsts = np.cumsum(counts) - counts
    hashed = np.empty_like(high)
    least = np.empty((HASHES, len(counts)), dtype=np.uint32)
    for number, (shift, factor) in enumerate(_functions()):
        np.bitwise_xor(high, shift, out=hashed)
        np.multiply(hashed, factor, out=hashed)
        np.minimum.reduceat(hashed, firsts, out=least[number])
    return np.ascontiguousarray(_in_16_bits(least).T)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the estimated similarity of pairs of signatures, (pairs,)."""
    shares: np.ndarray = np.count_nonzero(first == second, axis=1) / HASHES
    return shares


def rows_of_band(threshold: float) -> int:
    """Return how many hashes a band has: as many as still find similar documents.

    The chance that documents at the threshold have an equal band is then at least COMPARED, or the
    largest that there is.
    """
    for rows in range(2, HASHES + 1):
        if 1 - (1 - threshold**rows) ** (HASHES // rows) < COMPARED:
            return rows - 1
    return HASHES


def band_keys(some: np.ndarray, band: int, rows: int) -> np.ndarray:
    """Return a uint64 key of one band of each signature. Equal bands have equal keys; different
    ones have equal keys with a chance of 5e-20 or less."""
    keys = np.full(len(some), band, dtype=np.uint64)
    for column in range(band * rows, (band + 1) * rows):
        keys ^= some[:, column]
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


@cache
def _functions() -> list[tuple[np.uint32, np.uint32]]:
    """Return what each hash function adds and multiplies by: (any number, odd number)."""
    # Not numpy's generator: its numbers may change with its version, and these may not.
    state, functions = 1, []
    for _ in range(HASHES):
        drawn = []
        for _ in range(2):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            drawn.append(state >> 32)
        functions.append((np.uint32(drawn[0]), np.uint32(drawn[1] | 1)))
    return functions


def _in_16_bits(hashes: np.ndarray) -> np.ndarray:
    """Return 16 bits that depend on all bits of uint32 hashes, which are changed.

    The smallest hashes of a long document begin with many zeros.
    """
    for factor in (0x7FEB352D, 0x846CA68B):
        hashes ^= hashes >> np.uint32(16)
        hashes *= np.uint32(factor)
    hashes ^= hashes >> np.uint32(16)
    return hashes.astype(np.uint16)
