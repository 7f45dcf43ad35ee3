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
from pion.data.overlap.words import MOST_BYTES, together, words_of

_LENGTHS = (SHINGLE_WORDS, NGRAM_WORDS)


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
    parts = ((number, part) for number, text in enumerate(texts) for part in _parts(text.encode()))
    words = np.zeros(len(texts), dtype=np.int64)
    # For each length, the hashes of all runs of so many words, and their documents.
    runs = {n: [(np.zeros(0, np.uint64), np.zeros(0, np.int64))] for n in _LENGTHS}
    for some in together(parts, lambda one: one[1]):
        part_words = words_of(b"\n".join(part for _, part in some))
        sizes = np.array([len(part) + 1 for _, part in some])
        places = np.searchsorted(np.cumsum(sizes) - sizes, part_words.starts, side="right") - 1
        owners = np.array([number for number, _ in some])[places]
        words += np.bincount(owners, minlength=len(texts))
        for length in _LENGTHS:
            if len(places) >= length:
                inside = places[: len(places) - length + 1] == places[length - 1 :]
                hashes = part_words.run_hashes(slice(None), length)[inside]
                runs[length].append((hashes, owners[: len(inside)][inside]))
    shingles, ngrams = ([np.concatenate(part) for part in zip(*runs[n])] for n in _LENGTHS)
    return MeasuredText(
        words,
        np.array([_hash_of(text) for text in texts], dtype=np.uint64),
        _signatures(words, *shingles),
        _repeated(len(texts), *ngrams),
    )


def _hash_of(text: str) -> int:
    """Return a hash of a text in lower case, with one space for any white space."""
    same = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(same.encode(), digest_size=8).digest(), "little")


def _parts(text: bytes) -> Iterator[bytes]:
    """Yield a text in parts that `words_of` takes, cut between words where there is white space.

    Runs of words across the borders of parts are left out.
    """
    cuts = [0]
    while len(text) - cuts[-1] > MOST_BYTES:
        end = cuts[-1] + MOST_BYTES
        space = max(text.rfind(byte, cuts[-1], end) for byte in (b" ", b"\n", b"\t"))
        cuts.append(space if space > cuts[-1] else end)
    for begin, end in pairwise([*cuts, len(text)]):
        yield text[begin:end]


def _signatures(words: np.ndarray, shingles: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return the signatures of documents of so many words, whose shingles are in their order."""
    counts = np.bincount(owners, minlength=len(words))
    # A long text of which each part is one word has words, and no pairs.
    enough = (words >= LEAST_WORDS) & (counts > 0)
    result = np.zeros((len(words), HASHES), dtype=np.uint16)
    if enough.any():
        result[enough] = signatures(shingles[enough[owners]], counts[enough])
    return result


def _repeated(documents: int, hashes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return the share of runs that came earlier in the same document."""
    # Runs of different documents are never equal after this.
    keys = hashes ^ (owners.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    order = np.argsort(keys)
    again = keys[order[1:]] == keys[order[:-1]]
    repeated = np.bincount(owners[order[1:]][again], minlength=documents)
    shares: np.ndarray = repeated / np.maximum(np.bincount(owners, minlength=documents), 1)
    return shares
