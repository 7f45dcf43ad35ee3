"""Read the objects of a JSON list, as Alpaca and ShareGPT are published, without all in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pion.errors import BadInput
from pion.untrusted import parse_json

# Characters that are read at once.
PART = 1 << 16
# So many parts may be blank.
BLANK_PARTS = 256
_CHARACTER = re.compile(r"[^ \t\r\n]")


class _Text:
    """The text of a stream that was read so far, from `at` on not used, and the line of `at`."""

    def __init__(self, stream: BinaryIO, file: Path) -> None:
        self._stream, self._file = stream, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def more(self, size: int = PART) -> None:
        """Read the next part, and drop what is used. Raises BadInput if it is not UTF-8."""
        part = self._stream.read(size)
        self.ended = not part
        self.text, self.at = self.text[self.at :], 0
        try:
            self.text += self._decoder.decode(part, self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n") + part.count(b"\n", 0, error.start)
            raise BadInput(
                f"{self._file}:{line}: not UTF-8 text; convert it with: iconv -f ENCODING -t UTF-8"
            ) from None

    def use(self, end: int) -> str:
        """Return the text up to `end`, which is used then."""
        used = self.text[self.at : end]
        self.line += used.count("\n")
        self.at = end
        return used

    def next_character(self) -> str:
        """Return the next character that is not a space; "" at the end.

        Raises BadInput for too many spaces: a small packed file can have billions of them.
        """
        for _ in range(BLANK_PARTS):
            found = _CHARACTER.search(self.text, self.at)
            self.use(len(self.text) if found is None else found.start())
            if found is not None or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()
        raise BadInput(f"{self._file}:{self.line}: more than {BLANK_PARTS * PART:,} spaces")


def json_list(stream: BinaryIO, file: Path, longest: int) -> Iterator[tuple[str, Any, int]]:
    """Yield `file:line`, the value, and the characters of each item of a JSON list.

    Raises BadInput for a file that is no list, for an item that is not JSON or has more than
    `longest` characters, and for a list that does not end.
    """
    text = _Text(stream, file)
    if text.next_character() != "[":
        raise BadInput(f"{file}:{text.line}: expected a list of objects: [{{…}}, {{…}}]")
    text.use(text.at + 1)
    first = True
    while (character := text.next_character()) != "]":
        if character == "":
            raise BadInput(f"{file}:{text.line}: the list does not end: the file was cut off")
        if not first:
            if character != ",":
                raise BadInput(f"{file}:{text.line}: expected a comma between two items")
            text.use(text.at + 1)
            text.next_character()
        where = f"{file}:{text.line}"
        item = text.use(_end_of_item(text, where, longest))
        yield where, parse_json(item, where, strict=False), len(item)
        first = False


def _end_of_item(text: _Text, where: str, longest: int) -> int:
    """Return where in the text the next item ends."""
    decoder, size = json.JSONDecoder(), PART
    while True:
        try:
            _, end = decoder.raw_decode(text.text, text.at)
            if end < len(text.text) or text.ended:  # else a number may go on
                return end
        except RecursionError:
            raise BadInput(f"{where} is not valid JSON (nested too deep)") from None
        except json.JSONDecodeError as error:
            if text.ended:
                raise _broken(text, where, error) from None
            if len(text.text) - text.at > longest:
                raise BadInput(
                    f"{where}: this item is not valid JSON, or has more than {longest:,} characters"
                ) from None
        text.more(size)
        size *= 2  # each try reads the item again


def _broken(text: _Text, where: str, error: json.JSONDecodeError) -> BadInput:
    if error.pos >= len(text.text.rstrip()) or "Unterminated" in error.msg:
        return BadInput(f"{where}: this item does not end: the file was cut off")
    line = text.line + text.text.count("\n", text.at, error.pos)
    file = where.rpartition(":")[0]
    return BadInput(
        f"{file}:{line}: not valid JSON ({error.msg.removesuffix(' at')}), "
        f"in the item that begins at {where}"
    )
