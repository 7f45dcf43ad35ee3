"""Texts to look for overlap in: made-up prose, famous public-domain passages, boilerplate."""

import random

from pion.data.overlap.found import Found, nothing_found
from pion.data.overlap.index import Index, build_index
from pion.data.overlap.items import Item, ItemSet
from pion.data.overlap.search import search

GETTYSBURG = """Four score and seven years ago our fathers brought forth on this continent, a new
nation, conceived in Liberty, and dedicated to the proposition that all men are created equal. Now
we are engaged in a great civil war, testing whether that nation, or any nation so conceived and so
dedicated, can long endure. We are met on a great battle-field of that war. We have come to dedicate
a portion of that field, as a final resting place for those who here gave their lives that that
nation might live. It is altogether fitting and proper that we should do this. But, in a larger
sense, we can not dedicate -- we can not consecrate -- we can not hallow -- this ground. The brave
men, living and dead, who struggled here, have consecrated it, far above our poor power to add or
detract. The world will little note, nor long remember what we say here, but it can never forget
what they did here. It is for us the living, rather, to be dedicated here to the unfinished work
which they who fought here have thus far so nobly advanced. It is rather for us to be here dedicated
to the great task remaining before us -- that from these honored dead we take increased devotion to
that cause for which they gave the last full measure of devotion -- that we here highly resolve that
these dead shall not have died in vain -- that this nation, under God, shall have a new birth of
freedom -- and that government of the people, by the people, for the people, shall not perish from
the earth."""
DECLARATION = """When in the Course of human events, it becomes necessary for one people to dissolve
the political bands which have connected them with another, and to assume among the powers of the
earth, the separate and equal station to which the Laws of Nature and of Nature's God entitle them,
a decent respect to the opinions of mankind requires that they should declare the causes which impel
them to the separation. We hold these truths to be self-evident, that all men are created equal,
that they are endowed by their Creator with certain unalienable Rights, that among these are Life,
Liberty and the pursuit of Happiness. That to secure these rights, Governments are instituted among
Men, deriving their just powers from the consent of the governed, That whenever any Form of
Government becomes destructive of these ends, it is the Right of the People to alter or to abolish
it, and to institute new Government, laying its foundation on such principles and organizing its
powers in such form, as to them shall seem most likely to effect their Safety and Happiness."""
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
