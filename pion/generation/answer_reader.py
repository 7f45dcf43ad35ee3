"""Read what a model says while it says it: its thoughts, its text, and the tools that it calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pion.data.chat.tool_call_form import Call, CallForm
from pion.generation.text_stream import beginning

THINKS, THOUGHT = "<think>", "</think>"
Place = Literal["text", "thought", "call"]


@dataclass(frozen=True)
class Reading:
    """What is looked for in an answer.

    Attributes:
        stops: the texts before which the answer ends.
        form: that of calls; None: there are none.
        thinks: whether the answer may begin with a thought.
        place: where it begins. A prompt may have begun a thought or a call.
        most: the most calls that are read; others are left out.
        continues: whether the answer continues a text, so that a space at its beginning stays.
    """

    stops: Sequence[str] = ()
    form: CallForm | None = None
    thinks: bool = False
    place: Place = "text"
    most: int = 1000
    continues: bool = False

    @property
    def marks(self) -> list[str]:
        """The texts around thoughts and calls."""
        calls = [self.form.opening, self.form.closing] if self.form else []
        return [THINKS, THOUGHT, *calls] if self.thinks else calls


class AnswerReader:
    """Divides the text of one answer, piece by piece.

    Text that may become a mark is held back, and so is a call until it is whole. What looks like a
    call and is none stays text. Spaces after a mark are left out.

    Attributes:
        called: whether there was a call.
    """

    def __init__(self, reading: Reading) -> None:
        self._form, self._place, self._most = reading.form, reading.place, reading.most
        self._opening = reading.form.opening.strip() if reading.form else ""
        # What may follow in a text. A call that nothing opens is a whole answer.
        self._marks: dict[str, Place] = {THINKS: "thought"} if reading.thinks else {}
        if reading.form:
            self._marks[self._opening or ("[" if reading.form.listed else "{")] = "call"
        self._held, self.called = "", False
        self._blank = reading.place != "text"  # a mark came last

    def push(self, text: str, *, end: bool = False) -> tuple[str, str, list[Call]]:
        """Return what a text adds to text, thoughts and calls. With `end`, nothing follows."""
        self._held += text
        parts: dict[Place, str] = {"text": "", "thought": ""}
        calls: list[Call] = []
        before = None
        while (place := self._place, self._held) != before:
            before = place, self._held
            if place == "call":
                calls += self._calls(end)
            else:
                parts[place] += self._words(end)
        calls = calls[: self._most]
        self._most -= len(calls)
        self.called = self.called or bool(calls)
        return parts["text"], parts["thought"], calls

    def _words(self, end: bool) -> str:
        """Return the text or thought up to the next mark, and follow the mark."""
        place, held = self._place, self._held.lstrip() if self._blank else self._held
        marks: dict[str, Place] = self._marks if place == "text" else {THOUGHT: "text"}
        always = (self._opening, THOUGHT)  # other marks only begin an answer
        places = [(held.find(m), m) for m in marks if m in held]
        places = [(at, m) for at, m in places if m in always or not held[:at].strip()]
        at, mark = min(places, default=(-1, ""))
        if mark:
            self._place = marks[mark]
        else:
            at = len(held) - max((0 if end else beginning(held, m) for m in marks), default=0)
        self._held = held[at:] if mark in "[{" else held[at + len(mark) :]
        self._blank = bool(mark) or (self._blank and not held[:at])
        if place == "text" and held[:at].strip():
            self._marks = {m: "call" for m in marks if m == self._opening}
        return held[:at]

    def _calls(self, end: bool) -> list[Call]:
        """Return the calls up to the next closing, if they are whole."""
        assert self._form is not None
        held, closing = self._held, self._form.closing
        # A text in a call may have the closing, too.
        ends = [match.start() for match in re.finditer(re.escape(closing) or "(?!)", held)]
        for at in [*ends, len(held)] if end else ends:
            if calls := self._form.calls(held[:at]):
                self._held, self._place, self._blank = held[at + len(closing) :], "text", True
                return calls
        if end:
            self._held, self._place, self._marks = self._opening + held, "text", {}
            self._blank = False
        return []
