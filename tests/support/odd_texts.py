"""Texts on which tokenizers differ: code, many scripts, emoji, odd spaces, contractions, digits."""

import random
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

_PARTS = (
    *("it's", "IT'S", "we'LL", "they've", "'d", "don’t", "x's y'r"),
    *(" ", "  ", "   ", "\n", "\n\n", " \n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b"),
    *("1", "12", "1234567", "3.14", "٣٤", "²½", "Ⅷ", "①", "0x1F", "१२"),
    *("naïve", "cafe\u0301", "東京タワー", "한국어", "كتاب", "हिन्दी", "ไทย", "Ελλάς", "Ğüzel", "ǅ"),
    *("🙂", "👩‍👩‍👧", "🏳️‍🌈", "e\u0308\u0323", "\u0958", "ﬁ", "\ufeff", "\x00", "\x7f", "\u2028"),
    *("def f(x):", "    return", "!=", "->", "...", "_a_b", "#!", "«»", "—", "¿?", "$€", "```"),
    *("Hello", "world", "the", "ABC", "camelCase", "a", "I"),
)


def odd_texts(specials: Sequence[str] = (), count: int = 700) -> list[str]:
    """Return `count` texts, the same in each call. Some spell out `specials`."""
    chance = random.Random(0)
    parts = [*_PARTS, *specials]
    texts = ["".join(chance.choices(parts, k=chance.randint(1, 24))) for _ in range(count // 3)]
    texts += [_any_characters(chance) for _ in range(count // 3)]
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    while len(texts) < count:
        source = chance.choice(sources).read_text(encoding="utf-8", errors="replace")
        start = chance.randrange(max(1, len(source) - 300))
        texts.append(source[start : start + chance.randint(20, 300)])
    return texts


def _any_characters(chance: random.Random) -> str:
    """Return a word of characters from anywhere in Unicode, with some ASCII between them."""
    numbers = (chance.randrange(1, sys.maxunicode) for _ in range(chance.randint(1, 30)))
    whole = [chr(number) for number in numbers if not 0xD800 <= number < 0xE000]
    near = [chr(chance.randrange(32, 0x3000)) for _ in range(chance.randint(1, 30))]
    mixed = [*whole[: chance.randint(0, 4)], *near, *chance.choices(" \n'a1", k=6)]
    chance.shuffle(mixed)
    return "".join(mixed)
