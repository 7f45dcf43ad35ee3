"""The bytes of each token. A byte-level vocabulary spells bytes as letters. A vocabulary of pieces
has "▁" for a space, and a token such as `<0x0A>` for each byte.

A byte-level vocabulary may lack some of the 256 bytes, so it can't spell some characters. SmolLM2's
was trained on text without six control characters, and lacks these bytes. The tokenizers library
then writes the unknown token, which is SmolLM2's end of a document, or nothing. So these characters
are replaced before a text is encoded, and `prepare` counts them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

# What a character becomes if the vocabulary can't spell the character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# The control characters that are not white space.
_CONTROLS = frozenset([*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])
# Bytes that are in no UTF-8, and the first bytes of planes 4 to 11, which have no characters yet.
_NEVER = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])
_UNASSIGNED = {0xF1: "\U00040000-\U0007ffff", 0xF2: "\U00080000-\U000bffff"}
_PIECE = re.compile("<0x([0-9A-F]{2})>")
# How many places are named.
MOST_NAMED = 3


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


def bytes_of_piece(piece: str) -> bytes:
    """Return the bytes of a piece: `▁fox` is " fox", and `<0x0A>` is a newline."""
    byte = _PIECE.fullmatch(piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()


def missing_bytes(vocab: Collection[str]) -> frozenset[int]:
    """Return the bytes that have no entry in the vocabulary of a byte-level tokenizer."""
    return frozenset(byte for letter, byte in byte_of_letter().items() if letter not in vocab)


def missing_in_pieces(vocab: Collection[str]) -> frozenset[int]:
    """Return the bytes that have no token such as `<0x0A>` in a vocabulary of pieces."""
    return frozenset(byte for byte in range(256) if f"<0x{byte:02X}>" not in vocab)


def needed_bytes(missing: frozenset[int]) -> frozenset[int]:
    """Return the missing bytes that texts need: those of characters that people write."""
    return missing - _CONTROLS - _NEVER - _UNASSIGNED.keys()


def unspelled(missing: frozenset[int]) -> re.Pattern[str] | None:
    """Return what finds each character that has a missing byte; None if there is none."""
    ranges = [re.escape(chr(byte)) for byte in sorted(missing & _CONTROLS)]
    ranges += [_UNASSIGNED[byte] for byte in sorted(missing & _UNASSIGNED.keys())]
    return re.compile(f"[{''.join(ranges)}]") if ranges else None


class ReplacedCharacters:
    """Counts the characters that become REPLACEMENT in texts, and notes where the first ones are.

    Attributes:
        count: the characters so far.
        places: the first MOST_NAMED texts that have some: where, and the first of them.
    """

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern
        self.count = 0
        self.places: list[str] = []

    def look(self, value: Any, where: str) -> None:
        """Count those of a text, or of all texts in a list or dict, which is from `where`."""
        if self._pattern is None:
            return
        for text in _texts(value):
            characters = self._pattern.findall(text)
            if characters and len(self.places) < MOST_NAMED:
                line = text.count("\n", 0, text.index(characters[0])) + 1
                within = f", line {line:,} of this text" if "\n" in text else ""
                self.places.append(f"{where}{within} (U+{ord(characters[0]):04X})")
            self.count += len(characters)

    def add(self, count: int, places: Collection[str]) -> None:
        """Add what was counted elsewhere, in later texts."""
        self.count += count
        self.places = [*self.places, *places][:MOST_NAMED]

    def in_words(self) -> str:
        """Return what was replaced and where, or "" if nothing was."""
        if not self.count:
            return ""
        more = "the first: " if self.count > len(self.places) else ""
        some = f"{self.count:,} characters are" if self.count > 1 else "1 character is"
        return (
            f"{some} not in the model's vocabulary and became U+FFFD: {more}"
            f"{'; '.join(self.places)}"
        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
