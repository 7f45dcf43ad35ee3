"""Cut a long text into pieces that encode, one by one, to the ids of the whole text.

The tokenizers library encodes a whole document on one core and tracks all of it; that takes four
times as long. So a long document is cut, and its pieces are encoded on all cores. Where a text may
be cut depends on the pre-tokenizer. Known are:

* GPT-2's: ``ByteLevel`` with its regular expression (Radford et al. 2019, also Pion's own);
* digits apart: ``Digits``, then GPT-2's (SmolLM2, StarCoder);
* Llama 3's (also GPT-4's cl100k), Qwen's, GPT-4o's (o200k) and Tekken's: ``Split`` by one of
  ``SPLITS``, then ``ByteLevel`` without an expression.

The normalizer may be NFC or none. A text for any other tokenizer is not cut.

Why ``SAFE_CUT`` is safe for all of these. It cuts between a letter or number and a space or
newline. No expression has an alternative that continues from a letter or number into whitespace,
so a match always ends there. The expressions never look back, so what follows does not depend on
what was before. They look ahead only after whitespace, and only at one character: a piece ends in
no whitespace. NFC never composes a space or newline with the character before it. But NFC can turn
one letter into a letter and a mark (U+0958), and Llama 3's and Qwen's expressions join a mark with
the newlines after it. So a newline is cut off only after letters that NFC never changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pion.data.tokens.tokenizer_json import steps_of

# Long documents are encoded in pieces of about this many characters.
PIECE_CHARS = 8192
# Of the letters that NFC never changes: ASCII, hiragana, katakana, Han and Hangul.
_STABLE = "0-9A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"
SAFE_CUT = re.compile(rf"(?<=[^\W_]) |(?<=[{_STABLE}])\n")

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A word has capital letters, then small ones. Other letters and marks are both.
_BEFORE, _UPPER = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = _UPPER.replace(r"\p{Lu}\p{Lt}", r"\p{Ll}")
_CASED = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+SHORT|{_BEFORE}{_UPPER}+{_LOWER}*SHORT|NUMBER"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# The regular expressions of Llama 3 and GPT-4, of Qwen 2, 2.5 and 3, of GPT-4o and Phi-4-mini, and
# of Mistral's Tekken.
SPLITS = {
    "Llama 3": _SPLIT.replace("NUMBER", r"\p{N}{1,3}"),
    "Qwen": _SPLIT.replace("NUMBER", r"\p{N}"),
    "GPT-4o": _CASED.replace("SHORT", _SHORT).replace("NUMBER", r"\p{N}{1,3}"),
    "Tekken": _CASED.replace("SHORT", "").replace("NUMBER", r"\p{N}"),
}
_WHOLE = (("Isolated", False), ("Removed", True))
# An added token with one of these flags takes characters next to it, or looks at them.
LOOKING_FLAGS = ("lstrip", "rstrip", "single_word")


def may_cut(settings: Mapping[str, Any]) -> bool:
    """Return whether ``pieces`` is right for the tokenizer with this checked tokenizer.json.

    Added tokens that are not special are found in plain text, before anything else. So a text is
    not cut if a cut could be within such a token, or within a special token that hides it.
    """
    plain_text = all(
        not SAFE_CUT.search(token["content"]) and not any(token.get(flag) for flag in LOOKING_FLAGS)
        for token in settings["added_tokens"]
    )
    only_special = all(token["special"] for token in settings["added_tokens"])
    normalizers = [step.get("type") for step in steps_of(settings.get("normalizer"))]
    supported = normalizers in ([], ["NFC"]) and known_pre_tokenizer(settings) is not None
    return (plain_text or only_special) and supported


def pieces(text: str) -> list[str]:
    """Return the pieces of a text: itself if the text is short, or has no safe place to cut."""
    parts, start = [], 0
    while len(text) - start > 2 * PIECE_CHARS and (
        cut := SAFE_CUT.search(text, start + PIECE_CHARS)
    ):
        parts.append(text[start : cut.start()])
        start = cut.start()
    return [*parts, text[start:]]


def known_pre_tokenizer(settings: Mapping[str, Any]) -> str | None:
    """Return which pre-tokenizer a tokenizer.json has: "GPT-2", "digits", or a name in `SPLITS`.

    None: another one.
    """
    match steps_of(settings.get("pre_tokenizer")):
        case [{"type": "ByteLevel"} as level]:
            name, use_regex = "GPT-2", True
        case [{"type": "Digits"}, {"type": "ByteLevel"} as level]:
            name, use_regex = "digits", True
        case [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior} as split,
            {"type": "ByteLevel"} as level,
            # Without what the expression does not match: it matches all characters.
        ] if (behavior, bool(split.get("invert"))) in _WHOLE and expression in SPLITS.values():
            name = next(name for name, pattern in SPLITS.items() if pattern == expression)
            use_regex = False
        case _:
            return None
    plain = level.get("use_regex", True) == use_regex and not level.get("add_prefix_space", True)
    return name if plain else None
