"""Guess the language of a text, roughly: by its letters, and by frequent words of ten languages."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# So many characters of a text are looked at.
LOOKED_AT = 2000
# Of shorter texts, several are guessed together.
ENOUGH = 300
# With a smaller share of frequent words, a text in Latin letters is of no language we know.
LEAST_FREQUENT = 0.08
# Words that are frequent in one language and rare in the others.
FREQUENT = {
    "English": "the and of to is in that it for you with was are this be not have on",
    "German": "der die und das ist nicht ein eine zu den mit von auf für im sich wie auch",
    "French": "le la les des et est que une dans pour qui sur pas au avec vous ce sont",
    "Spanish": "el la los las que y en del una por con para es se no lo como su",
    "Italian": "il che di la e per non una sono con del della gli si anche come più nel",
    "Portuguese": "o que de não uma para com os em do da se por mais as dos ao você",
    "Dutch": "de het een en van is dat niet op te zijn voor met die aan er ook maar",
    "Swedish": "och att det som en på är av för med den till inte har om ett jag",
    "Polish": "nie się w na jest że do to z jak co po ale od za tak przez czy",
    "Turkish": "bir ve bu için da de ne ile çok olarak daha gibi ben var mı kadar",
}
# The first word of a letter's Unicode name, and the languages written with it.
SCRIPTS = {
    "CYRILLIC": "Russian or another language in Cyrillic",
    "ARABIC": "Arabic or Persian",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "DEVANAGARI": "Hindi",
    "BENGALI": "Bengali",
    "THAI": "Thai",
    "HANGUL": "Korean",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "CJK": "Chinese",
}
ENGLISH = "English"
OTHER = "another or none (code, tables)"
# What `language_of` may return, apart from OTHER.
LANGUAGES = (*FREQUENT, *dict.fromkeys(SCRIPTS.values()))
_WORDS = re.compile(r"[^\W\d_]+")
# Single letters are also names in code.
_BY_WORD = {
    name: frozenset(word for word in words.split() if len(word) > 1)
    for name, words in FREQUENT.items()
}


def language_of(text: str) -> str:
    """Return the name of a language, or OTHER. Short texts are often wrong."""
    beginning = text[:LOOKED_AT]
    letters = [c for c in beginning if c.isalpha()]
    if not letters:
        return OTHER
    some = letters[:: max(1, len(letters) // 200)]
    scripts = Counter(unicodedata.name(letter, "NONE").split()[0] for letter in some)
    if scripts["HIRAGANA"] + scripts["KATAKANA"] and scripts["CJK"]:
        return SCRIPTS["HIRAGANA"]
    script = scripts.most_common(1)[0][0]
    if script != "LATIN":
        return SCRIPTS.get(script, OTHER)
    first_words = _WORDS.findall(beginning.lower())
    hits = {
        name: sum(word in frequent for word in first_words) for name, frequent in _BY_WORD.items()
    }
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] >= max(1, LEAST_FREQUENT * len(first_words)) else OTHER


def in_words(found: Counter[str]) -> str:
    """Return `English 92 %, German 5 %`, the most frequent first."""
    total = sum(found.values())
    shares = [(name, count / total) for name, count in found.most_common(3)]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.01)
