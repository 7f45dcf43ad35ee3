"""Documents as numbers: how many words, which words, how repetitive, and a signature.

Words are those of the search for evaluation sets (`pion/data/overlap/words.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pion.clean.signature import HASHES, SHINGLE_WORDS, signatures
from pion.data.overlap.items import LEAST_WORDS
from pion.data.overlap.ngrams import NGRAM_WORDS
from pion.data.overlap.words import MOST_BYTES, Words, together, words_of


@dataclass(frozen=True)
class MeasuredText:
    """Numbers of some documents, in their order.

    Attributes:
        words: (D,) int64: how many words each has.
        hashes: (D,) uint64: of the text. Case and the amount of white space don't count.
        signatures: (D, HASHES) uint16: see `signature`. Of a document with fewer than LEAST_WORDS
            words it is zero: in so short a text, one different word is a different text.
        repeated: (D,) float64: the share of runs of NGRAM_WORDS words that the document has had
            before.
    """

    words: np.ndarray
    hashes: np.ndarray
    signatures: np.ndarray
    repeated: np.ndarray


def measure(texts: Sequence[str]) -> MeasuredText:
    """Return the numbers of documents. Memory is bounded by what they have in all.

    The numbers of a document don't depend on the other documents.
    """
    parts = [_numbers(_runs_of(some)) for some in together(text.encode() for text in texts)]
    hashes = np.array([_hash_of(text) for text in texts], dtype=np.uint64)
    if not parts:
        none, no_signatures = np.zeros(0), np.zeros((0, HASHES), dtype=np.uint16)
        return MeasuredText(none.astype(np.int64), hashes, no_signatures, none)
    words, own, repeated = (np.concatenate(part) for part in zip(*parts))
    return MeasuredText(words, hashes, own, repeated)


def _hash_of(text: str) -> int:
    """Return a hash of a text in lower case, with one space for any white space."""
    same = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(same.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class _Runs:
    """The words of some documents.

    Attributes:
        words: how many words each document has.
        runs: for each length, the hashes of all runs of so many words, one document after the
            other, and how many each document has.
    """

    words: np.ndarray
    runs: dict[int, tuple[np.ndarray, np.ndarray]]


_LENGTHS = (SHINGLE_WORDS, NGRAM_WORDS)


def _runs_of(texts: list[bytes]) -> _Runs:
    if len(texts) == 1 and len(texts[0]) > MOST_BYTES:
        return _of_parts([words_of(part) for part in _parts(texts[0])])
    sizes = np.array([len(text) + 1 for text in texts])
    return _of_words(words_of(b"\n".join(texts)), np.cumsum(sizes) - sizes)


def _of_words(words: Words, starts: np.ndarray) -> _Runs:
    """Return the runs of documents that begin at these bytes."""
    owners = np.searchsorted(starts, words.starts, side="right") - 1
    counts = np.bincount(owners, minlength=len(starts))
    runs = {}
    for length in _LENGTHS:
        if len(owners) < length:
            runs[length] = np.zeros(0, dtype=np.uint64), np.zeros(len(starts), dtype=np.int64)
            continue
        inside = owners[: len(owners) - length + 1] == owners[length - 1 :]
        hashes = words.run_hashes(slice(None), length)[inside]
        runs[length] = hashes, np.maximum(counts - length + 1, 0)
    return _Runs(counts, runs)


def _of_parts(parts: list[Words]) -> _Runs:
    """Return the runs of one document. Runs across the borders of its parts are left out."""
    runs = {}
    for length in _LENGTHS:
        hashes = [
            part.run_hashes(slice(None), length) for part in parts if len(part.starts) >= length
        ]
        joined = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
        runs[length] = joined, np.array([len(joined)])
    return _Runs(np.array([sum(len(part.starts) for part in parts)]), runs)


def _parts(text: bytes) -> Iterator[bytes]:
    """Yield a text in parts that `words_of` takes, cut between words where there is white space."""
    cuts = [0]
    while len(text) - cuts[-1] > MOST_BYTES:
        end = cuts[-1] + MOST_BYTES
        space = max(text.rfind(byte, cuts[-1], end) for byte in (b" ", b"\n", b"\t"))
        cuts.append(space if space > cuts[-1] else end)
    for begin, end in pairwise([*cuts, len(text)]):
        yield text[begin:end]


def _numbers(runs: _Runs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hashes, counts = runs.runs[SHINGLE_WORDS]
    # A long text of which each part is one word has words, and no pairs.
    enough = (runs.words >= LEAST_WORDS) & (counts > 0)
    own = np.zeros((len(counts), HASHES), dtype=np.uint16)
    if enough.any():
        own[enough] = signatures(hashes[np.repeat(enough, counts)], counts[enough])
    return runs.words, own, _repeated(*runs.runs[NGRAM_WORDS])


def _repeated(hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the share of runs that came earlier in the same document."""
    owners = np.repeat(np.arange(len(counts)), counts)
    # Runs of different documents are never equal after this.
    own = hashes ^ (owners.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    order = np.argsort(own)
    again = own[order[1:]] == own[order[:-1]]
    found = np.bincount(owners[order[1:]][again], minlength=len(counts))
    shares: np.ndarray = found / np.maximum(counts, 1)
    return shares
