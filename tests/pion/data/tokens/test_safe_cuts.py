"""A text that is cut at safe places has the ids of the whole text, for each known kind."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.tokens.safe_cuts import PIECE_CHARS, SAFE_CUT, SPLITS, may_cut, pieces
from pion.data.tokens.tokenizer_json import parse
from tests.support.tokenizer_kinds import (
    BYTES,
    DIGITS,
    KINDS,
    added,
    sequence,
    settings_of,
    split,
    tokenizer_of,
)

TOKENIZERS = {kind: tokenizer_of(kind) for kind in KINDS}
LIBRARY = {kind: tokenizers.Tokenizer.from_str(json.dumps(settings_of(kind))) for kind in KINDS}
# What makes trouble: whitespace, digits, apostrophes, marks, letters that NFC changes, tokens.
HARD = (
    *(" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u2003", "\u3000", "\x0b", "\x85", "\x1c"),
    *("1", "12", "1234", "٣", "²", "Ⅷ", "'", "'s", "'LL", "'ſ", "don't", "_", "a_", "__"),
    *("e\u0301", "\u0301", "\u0958", "क\u093c", "\u1100\u1161\u11a8", "\uac00\u11a8", "\u212a"),
    *(
        "か\u3099",
        "\uf900",
        "東京",
        "。",
        "ไทย",
        "word",
        "Ünïcode",
        "☕",
        "👩‍👩‍👧",
        "!",
        "...",
        "<",
    ),
    *("<think>", "</tool_call>", "<|endoftext|>", "<|im_end|>", "|>"),
)
ADVERSARIAL = st.lists(
    st.sampled_from(HARD) | st.characters(exclude_categories=["Cs"]), max_size=24
)


def as_settings(**changes):
    return parse(json.dumps(settings_of("qwen", **changes)), "x")


def words(kind, text):
    """Return the parts of a text that BPE encodes one by one.

    Equal parts have equal ids in every vocabulary, so this shows more than a tiny vocabulary's ids.
    """
    library = LIBRARY[kind]
    normal = library.normalizer.normalize_str(text) if library.normalizer else text
    return [word for word, _ in library.pre_tokenizer.pre_tokenize_str(normal)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(parts=ADVERSARIAL)
def test_every_safe_cut_leaves_the_ids_as_they_are(kind, parts):
    tokenizer, text = TOKENIZERS[kind], "".join(parts)
    whole, ids = words(kind, text), tokenizer.encode(text)
    for cut in SAFE_CUT.finditer(text):
        left, right = text[: cut.start()], text[cut.start() :]
        assert words(kind, left) + words(kind, right) == whole, (left, right)
        assert tokenizer.encode(left) + tokenizer.encode(right) == ids, (left, right)


@pytest.mark.parametrize(
    ("kind", "left", "right"),
    [
        ("llama3", "a_", "\nb"),  # an underscore takes the newlines after it
        ("qwen", "\u0958", "\nb"),  # NFC makes a letter and a mark of it, which takes newlines
        ("gpt2", "a ", "  b"),
        ("smollm2", "a", "b"),
        ("llama3", "12", "34"),
        ("qwen", "e", "\u0301"),
    ],
)
def test_the_check_finds_cuts_that_are_not_safe(kind, left, right):
    assert words(kind, left) + words(kind, right) != words(kind, left + right)
    assert len(left) not in [cut.start() for cut in SAFE_CUT.finditer(left + right)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_document_of_a_known_kind_is_cut_and_keeps_its_ids(kind):
    text = "".join(f"{word} it's {n}\n" for n in range(1200) for word in ("été", "東京", "f(x_)"))
    assert may_cut(parse(json.dumps(settings_of(kind)), "x"))
    assert len(pieces(text)) > 2
    assert "".join(pieces(text)) == text
    whole, _ = TOKENIZERS[kind].encode_with_offsets(text)  # this one never cuts
    assert TOKENIZERS[kind].encode(text) == whole


def test_a_text_without_a_safe_place_stays_whole():
    text = "!" * 5 * PIECE_CHARS
    assert pieces(text) == [text]


UNKNOWN = {
    "another expression": {"pre_tokenizer": sequence(split(r"\s+"), {**BYTES, "use_regex": False})},
    "the expression inverted": {
        "pre_tokenizer": sequence(split(SPLITS["Qwen"]) | {"invert": True}, BYTES)
    },
    "two expressions": {"pre_tokenizer": sequence(split(SPLITS["Qwen"]), BYTES)},
    "a space before the text": {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
    "digits after the expression": {"pre_tokenizer": sequence(BYTES, DIGITS)},
    "NFKC": {"normalizer": {"type": "NFKC"}},
    "NFC and lower case": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    },
    "an added token with a safe place": {"added_tokens": [added("a b", 400, special=False)]},
    "an added token that takes spaces": {
        "added_tokens": [added("<x>", 400, special=False) | {"rstrip": True}]
    },
    "an added token that is a word": {
        "added_tokens": [added("abc", 400, special=False) | {"single_word": True}]
    },
    "a special token that hides an added one": {
        "added_tokens": [added("<a b>", 400), added("b>", 401, special=False)]
    },
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_text_for_an_unknown_kind_is_not_cut(what):
    assert may_cut(as_settings())
    assert not may_cut(as_settings(**UNKNOWN[what]))


def test_a_special_token_alone_forbids_no_cut():
    assert may_cut(as_settings(added_tokens=[added("<a b>", 400)]))
