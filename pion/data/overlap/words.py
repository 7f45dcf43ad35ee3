"""The words of a text as bytes, and the hashes of runs of words.

A word is a run of ASCII letters, digits and bytes of 0x80 or more, in lower case (only ASCII has a
lower case here). Typographic punctuation (“ ” ’ – … and the no-break space, all of U+0080 to U+00BF
and U+2000 to U+207F) is between words, as ASCII punctuation is: the same text is often found with
the one in one place and with the other in another. A text without spaces, such as Chinese, has long
words, and few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeVar, cast

import numpy as np

T = TypeVar("T")

# The most bytes whose words are hashed at once. Arrays of this many uint64 fit a core's cache.
MOST_BYTES = 2**18

_WORD = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyz") | frozenset(range(0x80, 0x100))
_LOWER = bytes(byte if byte in _WORD else 0 for byte in (bytes([b]).lower()[0] for b in range(256)))
# The bases of polynomials mod 2**64. An odd number has an inverse, and where a number is 3 mod 8,
# few of its powers are close to 1 mod 2**64.
_BASE = 0x9E3779B97F4A7C13
_INVERSE = pow(_BASE, -1, 2**64)
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_HALF = np.uint64(32)


def together(
    texts: Iterable[T], bytes_of: Callable[[T], bytes] = lambda text: cast(bytes, text)
) -> Iterator[list[T]]:
    """Yield as many texts as `words_of` takes at once, with a byte between two of them, or a single
    text that is longer. `bytes_of` returns the bytes of a text."""
    some: list[T] = []
    size = 0
    for text in texts:
        text_size = len(bytes_of(text))
        if some and size + text_size + 1 > MOST_BYTES:
            yield some
            some, size = [], 0
        some.append(text)
        size += text_size + 1
    if some:
        yield some


@dataclass(frozen=True)
class Words:
    """The words of at most MOST_BYTES bytes of text.

    Attributes:
        starts: (N,) where each word begins, in bytes.
        sums: (N + 1,) uint64: sums over words of hash · base^place, from which the hash of any run
            of words follows by one subtraction.
    """

    starts: np.ndarray
    sums: np.ndarray

    def run_hashes(self, places: np.ndarray | slice, length: int) -> np.ndarray:
        """Return the uint64 hash of the run of `length` words that begins at each place.

        No run may reach beyond the last word. Equal runs have equal hashes in all texts.
        """
        first, last = self.sums[:-length], self.sums[length:]
        return _mixed((last[places] - first[places]) * _powers(_INVERSE)[: len(first)][places])


def words_of(text: bytes) -> Words:
    """Return the words of a text of at most MOST_BYTES bytes."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"{len(text):,} bytes at once; at most {MOST_BYTES:,}")
    lower = word_bytes(text)
    inside = np.zeros(len(lower) + 2, dtype=bool)
    inside[1:-1] = lower != 0
    starts = np.flatnonzero(inside[1:] != inside[:-1])[::2]
    powers, inverses = _powers(_BASE), _powers(_INVERSE)
    # Bytes between words are zero, so they add nothing to the word before them.
    polynomials = np.add.reduceat(lower * powers[: len(lower)], starts)
    hashes = _mixed(polynomials * inverses[starts])
    sums = np.zeros(len(starts) + 1, dtype=np.uint64)
    np.cumsum(hashes * powers[: len(hashes)], out=sums[1:])
    return Words(starts, sums)


def word_bytes(text: bytes) -> np.ndarray:
    """Return the bytes of the text's words in lower case, and 0 for each byte between words."""
    lower = np.frombuffer(text.translate(_LOWER), dtype=np.uint8)
    if b"\xc2" not in text and b"\xe2" not in text:
        return lower
    lower = lower.copy()
    # No UTF-8 character has one of these first bytes inside.
    latin = np.flatnonzero((lower[:-1] == 0xC2) & (lower[1:] >= 0x80))
    general = np.flatnonzero((lower[:-2] == 0xE2) & (lower[1:-1] & 0xFE == 0x80) & (lower[2:] != 0))
    for places, size in ((latin, 2), (general, 3)):
        for offset in range(size):
            lower[places + offset] = 0
    return lower


def split_words(text: bytes) -> list[bytes]:
    """Return the words of a text of any length."""
    return word_bytes(text).tobytes().replace(b"\0", b" ").split()


@cache
def _powers(base: int) -> np.ndarray:
    """Return base^0, base^1, … mod 2**64, as many as `Words` may need."""
    powers = np.full(MOST_BYTES + 1, base, dtype=np.uint64)
    powers[0] = 1
    np.multiply.accumulate(powers, out=powers)
    powers.flags.writeable = False
    return powers


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Return the hashes with every bit depending on all bits (MurmurHash3), in the same array."""
    hashes ^= hashes >> _HALF
    hashes *= _MIX_1
    hashes ^= hashes >> _HALF
    hashes *= _MIX_2
    hashes ^= hashes >> _HALF
    return hashes
