"""From drawn tokens to text that can be sent: whole characters, and never a part of a stop string.

A character may have several tokens, and a stop string may begin in one token and end in a later
one. So text is held back as long as the next token could change what it means.
"""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from pion.data.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """Text to send.

    Attributes:
        text: what follows the text of the last piece; it may be empty.
        tokens: the numbers, counted from 0, of the drawn tokens that begin in this text.
    """

    text: str
    tokens: range


class TextStream:
    """The text of one answer, while its tokens are drawn.

    Attributes:
        stopped: whether a stop string was found. Nothing follows then.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        marks: Sequence[str] = (),
        continues: bool = False,
    ) -> None:
        """Begin a text that ends before the first of `stops`, which have a character or more.

        Of the special tokens, those that are in `marks` are part of the text. Only a text that
        `continues` another one keeps the space that the tokenizer strips from a text.
        """
        self._strips = tokenizer.strips and not continues
        self._tokenizer = tokenizer
        specials = tokenizer.special_ids.items() if marks else ()
        self._shown = {id: text.encode() for text, id in specials if any(text in m for m in marks)}
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded and not sent: perhaps the beginning of a stop string
        self._decoded = 0  # characters so far, the held ones too
        self._starts: list[int] = []  # the character at which each token begins
        self._sent = 0  # tokens in earlier pieces
        self.stopped = False

    def push(self, token: int) -> Piece:
        """Return the text that can be sent after another token. Once stopped, there is none."""
        if self.stopped:
            return Piece("", range(0))
        self._starts.append(self._decoded)
        self._decode(self._shown.get(token) or self._tokenizer.bytes_of(token))
        held = (
            0 if self.stopped else max((beginning(self._held, s) for s in self._stops), default=0)
        )
        return self._take(len(self._held) - held)

    def end(self) -> Piece:
        """Return the rest, when no token follows. Bytes of no whole character are U+FFFD."""
        if self.stopped:
            return Piece("", range(0))
        self._decode(b"", final=True)
        piece = self._take(len(self._held))
        if self.stopped:
            return piece
        # Special tokens at the end have no text.
        return Piece(piece.text, range(piece.tokens.start, len(self._starts)))

    def _decode(self, data: bytes, *, final: bool = False) -> None:
        """Add the characters of `data` to the held text, and cut it before a stop string."""
        new = self._decoder.decode(data, final)
        if self._strips and new:
            new, self._strips = new.removeprefix(" "), False
        self._decoded += len(new)
        self._held += new
        stop_positions = [
            position for stop in self._stops if (position := self._held.find(stop)) >= 0
        ]
        if stop_positions:
            self.stopped = True
            self._decoded -= len(self._held) - min(stop_positions)
            self._held = self._held[: min(stop_positions)]

    def _take(self, length: int) -> Piece:
        """Return the first characters of the held text, with the tokens that begin in them."""
        text, self._held = self._held[:length], self._held[length:]
        end = self._decoded - len(self._held)
        first, self._sent = self._sent, bisect_left(self._starts, end, self._sent)
        return Piece(text, range(first, self._sent))


def beginning(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`, but is not all of it."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if stop.startswith(text[-length:])), 0)
