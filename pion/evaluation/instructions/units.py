"""Count what instructions ask for: words, sentences and bullets of an answer."""

from __future__ import annotations

import re

# What ends a sentence, with the quotes and brackets that close after it.
_END = re.compile(r"(?:[.!?…]+|[。！？।])(?P<closed>[\"'”’»)\]*_]*)")
_ALONE = frozenset("。！？।")  # a space need not follow
# They end a sentence only if a capital follows.
_SHORT = frozenset(["etc", "e.g", "i.e", "vs", "approx", "no", "a.m", "p.m", "u.s", "u.k"])
_TITLES = frozenset(["mr", "mrs", "ms", "dr", "prof", "st", "mt"])  # a name follows
_BULLET = re.compile(r"^[ \t]*[-*+•][ \t]+\S", re.MULTILINE)


def one_line_ends(text: str) -> str:
    r"""Return `text` without white space around it, and with \n at the end of every line."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def has_words(text: str) -> bool:
    """Return whether a text has a letter or a digit of any script."""
    return any(character.isalnum() for character in text)


def words(text: str) -> int:
    """Return the number of words: parts between white space or dashes with a letter or digit.

    `well-known` and `don't` are one word each, and a bullet is none.
    """
    return sum(has_words(part) for part in re.split(r"\s+|[—–]", text))


def bullets(text: str) -> int:
    """Return the number of lines that begin with `-`, `*`, `+` or `•`, a space and some text.

    Bullets inside other bullets count. Numbered lines don't: `1. a` is no bullet.
    """
    return len(_BULLET.findall(one_line_ends(text)))


def sentences(text: str) -> int:
    """Return the number of sentences. A last part without a full stop is one, if it has a word.

    An empty line ends a sentence, too. Decimals, initials, usual abbreviations and numbers of a
    list (`1. `) end none.
    """
    paragraphs = re.split(r"\n[ \t]*\n", one_line_ends(text))
    return sum(_sentences(paragraph) for paragraph in paragraphs)


def _sentences(paragraph: str) -> int:
    count, begin = 0, 0
    for end in _END.finditer(paragraph):
        if _ends(paragraph, begin, end) and has_words(paragraph[begin : end.start()]):
            count, begin = count + 1, end.end()
    return count + has_words(paragraph[begin:])


def _ends(paragraph: str, begin: int, end: re.Match[str]) -> bool:
    """Return whether a sentence that began at `begin` ends with this match of `_END`."""
    following = paragraph[end.end() :]
    if not following.strip() or end.group()[0] in _ALONE:
        return True
    if not following[0].isspace():
        return False  # 3.5, example.org
    before = paragraph[begin : end.start()].split()
    last = before[-1].lstrip("\"'“‘«([*_") if before else ""
    lower = following.lstrip()[0].islower()
    if lower and (end["closed"] or end.group()[:3] in ("...", "…")):
        return False  # "Stop!" he said.
    if end.group()[0] != ".":
        return True
    if last.lower() in _TITLES or (len(last) == 1 and last.isupper() and last != "I"):
        return False
    if last.lower() in _SHORT:
        return not lower and not following.lstrip()[0].isdigit()
    line = paragraph[: end.start()].rpartition("\n")[2]
    return not line.strip().isdigit()  # 1. The first of a list
