"""The bytes of each token of a byte-level tokenizer, whose vocabulary spells bytes as letters."""

from __future__ import annotations

from functools import cache


@cache
def byte_of_letter() -> dict[str, int]:
    """Return the byte that each letter of the byte-level alphabet stands for.

    From Radford et al. 2019, "Language models are unsupervised multitask learners": the printable
    letters of Latin-1 are themselves; all other bytes, in their order, are the letters from 256.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(256 + number): byte for number, byte in enumerate(others)}


def bytes_of(spelling: str) -> bytes:
    """Return the bytes of a vocabulary entry, such as `Ġfox` for " fox"."""
    letters = byte_of_letter()
    if not letters.keys() >= set(spelling):  # no spelling of bytes; decoders take it as it is
        return spelling.encode()
    return bytes(letters[letter] for letter in spelling)
