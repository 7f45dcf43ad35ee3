"""Near-copies of documents, as they are found on the web: changed a little by somebody."""

import random
from collections.abc import Callable, Sequence

# The white space that takes the place of other white space.
SPACES = ("\n", "\t", "  ", "\n\n    ", " ")


def other_words(text: str, draw: random.Random, vocabulary: Sequence[str]) -> str:
    """Replace 5 % of the words, as a whole number of words."""
    words = text.split(" ")
    places = [n for n, word in enumerate(words) if word.strip()]
    for place in draw.sample(places, round(0.05 * len(places))):
        words[place] = draw.choice(vocabulary)
    return " ".join(words)


def other_case(text: str, draw: random.Random, vocabulary: Sequence[str]) -> str:
    """Write everything in capitals, or in small letters."""
    return text.upper() if draw.random() < 0.5 else text.lower()


def other_space(text: str, draw: random.Random, vocabulary: Sequence[str]) -> str:
    """Break the lines elsewhere."""
    words = text.split()
    return "".join(f"{word}{draw.choice(SPACES)}" for word in words[:-1]) + words[-1]


def cut_tenth(text: str, draw: random.Random, vocabulary: Sequence[str]) -> str:
    """Take away a tenth of the words, at the beginning or at the end."""
    words = text.split(" ")
    tenth = len(words) // 10
    return " ".join(words[tenth:] if draw.random() < 0.5 else words[: len(words) - tenth])


Change = Callable[[str, random.Random, Sequence[str]], str]
CHANGES: dict[str, tuple[Change, ...]] = {
    "5 % of the words replaced": (other_words,),
    "other case": (other_case,),
    "other white space": (other_space,),
    "a tenth cut off": (cut_tenth,),
    "all four": (other_words, cut_tenth, other_case, other_space),
}


def near_copy(text: str, change: str, draw: random.Random, vocabulary: Sequence[str]) -> str:
    """Return a text with one of CHANGES."""
    for step in CHANGES[change]:
        text = step(text, draw, vocabulary)
    return text


def plant(
    texts: Sequence[str], share: float, change: str, seed: int = 0
) -> list[tuple[str, int | None]]:
    """Return the texts with a near-copy of a `share` of them at random places.

    Each text comes with the number of the text that it is a copy of, or None. Texts and copies are
    mixed, so a copy may come before its original.
    """
    draw = random.Random(seed)
    vocabulary = sorted({word for text in texts for word in text.split(" ") if word.isalpha()})
    mixed: list[tuple[str, int | None]] = [(text, None) for text in texts]
    for number in draw.sample(range(len(texts)), round(share * len(texts))):
        mixed.append((near_copy(texts[number], change, draw, vocabulary), number))
    draw.shuffle(mixed)
    return mixed
