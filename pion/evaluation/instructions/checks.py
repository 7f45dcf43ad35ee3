"""Decide whether an answer does what an instruction asks: pure functions of the answer's text.

Each takes the answer first, then what the instruction asks for. None looks at what the answer says
about its topic. Texts are compared in Unicode's composed form, and Windows' ends of lines are read
as all others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from pion.errors import BadInput
from pion.evaluation.instructions.units import bullets, has_words, one_line_ends, sentences, words
from pion.untrusted import parse_json

# Also those of Arabic, Chinese and Japanese.
COMMAS = frozenset(",،，、﹐︐")
_FENCE = re.compile(r"```[ \t]*(?:json|JSON)?[ \t]*\n(?P<inside>.*)\n[ \t]*```", re.DOTALL)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}


def at_most_words(answer: str, most: int) -> bool:
    """Return whether the answer has from 1 to `most` words."""
    return 1 <= words(answer) <= most


def at_least_words(answer: str, least: int) -> bool:
    """Return whether the answer has `least` words or more."""
    return words(answer) >= least


def exact_sentences(answer: str, count: int) -> bool:
    """Return whether the answer has exactly `count` sentences."""
    return sentences(answer) == count


def exact_bullets(answer: str, count: int) -> bool:
    """Return whether the answer has exactly `count` bullets. Lines before or after may be there."""
    return bullets(answer) == count


def json_keys(answer: str, *keys: str) -> bool:
    """Return whether the answer is one JSON object that has these keys and no other.

    The object may stand in a code fence. Its values may be anything. A key that is given twice with
    different values is an error.
    """
    text = _clean(answer)
    fenced = _FENCE.fullmatch(text)
    try:
        found = parse_json(fenced["inside"] if fenced else text, "the answer")
    except BadInput:
        return False
    return isinstance(found, dict) and found.keys() == set(keys)


def lower_case(answer: str) -> bool:
    """Return whether the answer has small letters and no capital."""
    capitals = any(letter.isupper() or letter.istitle() for letter in answer)
    return not capitals and any(map(_is_small, answer))


def capitals(answer: str) -> bool:
    """Return whether the answer has capitals and no small letter."""
    return not any(map(_is_small, answer)) and any(letter.isupper() for letter in answer)


def word_times(answer: str, word: str, times: int) -> bool:
    """Return whether the answer has `word` exactly so many times, in any case.

    Only whole words count: `rivers` is not `river`, `river's` and `river-bank` have it.
    """
    return _times(answer, word) == times


def without_word(answer: str, word: str) -> bool:
    """Return whether the answer has words, but nowhere `word`, in any case, as a whole word."""
    return has_words(answer) and _times(answer, word) == 0


def starts_with(answer: str, phrase: str) -> bool:
    """Return whether the answer begins with the phrase, in any case. A quote may be before it."""
    text = _folded(answer).lstrip("\"'“‘«").lstrip()
    phrase = _folded(phrase)
    return text.startswith(phrase) and not text[len(phrase) :][:1].isalnum()


def ends_with(answer: str, phrase: str) -> bool:
    """Return whether the answer ends with the phrase, in any case.

    Only a full stop, an exclamation mark and quotes may be after it.
    """
    text = _folded(answer).rstrip(".!\"'”’» \n")
    before = text.removesuffix(_folded(phrase))
    return before != text and not before[-1:].isalnum()


def no_comma(answer: str) -> bool:
    """Return whether the answer has words, but no comma of any script, not even in a number."""
    return has_words(answer) and COMMAS.isdisjoint(answer)


def one_option(answer: str, *options: str) -> bool:
    """Return whether the answer is one of the options, in any case, and nothing else.

    Quotes around the option and a full stop are no matter.
    """
    return _bare(_folded(answer)) in {_folded(option) for option in options}


def repeats(answer: str, text: str) -> bool:
    """Return whether the answer is `text`, letter for letter, and nothing else.

    Quotes around the text are no matter.
    """
    return _unquoted(_clean(answer)) == _clean(text)


def loose_forms(answer: str) -> Sequence[str]:
    """Return the forms of an answer of which a loose score needs one to be right.

    These are the answer, the answer without its first line, its last line, or both (`Sure, here it
    is:`, `Let me know …`), and each of these without `*` (markdown's bold).
    """
    lines = one_line_ends(answer).split("\n")
    parts = ("\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1]))
    kept = [part for part in dict.fromkeys(parts) if has_words(part)]
    return list(dict.fromkeys([*kept, *(part.replace("*", "").strip() for part in kept)]))


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", one_line_ends(text))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", _clean(text).casefold())


def _is_small(letter: str) -> bool:
    return letter.islower() and letter.upper() != letter  # º is "lower", and has no capital


def _times(answer: str, word: str) -> int:
    whole = rf"(?<![^\W_]){re.escape(_folded(word))}(?![^\W_])"
    return len(re.findall(whole, _folded(answer)))


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and _QUOTES.get(text[0]) == text[-1]
    return text[1:-1].strip() if quoted else text


def _bare(text: str) -> str:
    """Return a text without quotes around it, and without a full stop in or after the quotes."""
    return _unquoted(text.removesuffix(".")).removesuffix(".").strip()
