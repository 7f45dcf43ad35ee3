"""Texts to look for overlap in: made-up prose, famous public-domain passages, boilerplate."""

import random

from pion.data.overlap.found import Found, nothing_found
from pion.data.overlap.index import Index, build_index
from pion.data.overlap.items import Item, ItemSet
from pion.data.overlap.search import search
from tests.paths import TESTS

GETTYSBURG = (TESTS / "fixtures/passages/gettysburg.txt").read_text()
DECLARATION = (TESTS / "fixtures/passages/declaration.txt").read_text()
LICENCE = """Permission is hereby granted, free of charge, to any person obtaining a copy of this
software and associated documentation files (the "Software"), to deal in the Software without
restriction. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED,
INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT."""

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo")


class Prose:
    """Makes texts of made-up words, common and rare ones, the same in each call for one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        words = ["".join(self.chance.choices(_SYLLABLES, k=n % 3 + 1)) for n in range(4000)]
        self._words = [*words, *("it's", "don't", "naïve", "Zoë", "x2", "3.14")]
        self._weights = [1 / (place + 20) for place in range(len(self._words))]

    def text(self, words: int) -> str:
        """Return a text of so many words; a few of them have an apostrophe or a point inside."""
        return " ".join(self.chance.choices(self._words, self._weights, k=words))

    def item(self, least: int = 8, most: int = 60) -> Item:
        """Return a question of `least` to `most` words, the answer's among them."""
        words = self.text(self.chance.randint(least, most)).split()
        cut = self.chance.randint(len(words) - 6, len(words) - 1)
        return Item(" ".join(words[:cut]), " ".join(words[cut:]))

    def row(self, inside: str = "", words: int = 150) -> str:
        """Return a row with a text somewhere inside."""
        before = self.chance.randint(0, words)
        return f"{self.text(before)}\n{inside}\n{self.text(words - before)}"

    def disguised(self, text: str) -> str:
        """Return a text with other case, punctuation and line breaks, as other sites print it."""
        change = self.chance.choice((str.upper, str.title, str.capitalize, str.swapcase))
        marks = (" ", "  ", "\n", "\r\n", "\n\n", ", ", "; ", " – ", "—", "… ", ".”\n“", "\u00a0")
        return "“" + "".join(
            change(word).replace("'", "’") + self.chance.choice(marks) for word in text.split()
        )


def text_of(item: Item) -> str:
    """Return the question and the answer as one text."""
    return f"{item.question} {item.answer}"


def searched(sets: list[ItemSet], rows: list[str]) -> tuple[Index, Found]:
    """Return the index of the sets, and what the rows, numbered from 0, hold of them."""
    index = build_index(sets)
    found = nothing_found(index)
    search(index, ((number, row.encode()) for number, row in enumerate(rows)), found)
    return index, found


def found_items(items: list[Item], rows: list[str]) -> list[bool]:
    """Return of which items one of the rows holds enough."""
    index, found = searched([ItemSet("set", items)], rows)
    return found.overlapped(index).tolist()
