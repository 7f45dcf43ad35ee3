"""Read a tokenizer.json: check that it is a BPE of bytes or of pieces, and build the library's
tokenizer.

A BPE of pieces writes a space as "▁", and a character that is in no piece as its bytes (Gemma,
Llama 2). Its steps are known exactly, because others could lose a part of a text.

A tokenizer changes a text in steps before it encodes the text, and in further steps when it decodes
ids. An honest step keeps the text's length, or nearly so. A hostile file can have steps that
multiply: twenty times "replace a with aa" make a million letters of one. Such a file is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tokenizers

from pion.data.tokens.token_bytes import missing_bytes, missing_in_pieces, needed_bytes
from pion.errors import BadInput, is_panic
from pion.later_fields import shown
from pion.untrusted import parse_json

# Steps with which pieces write spaces as "▁".
_SPACES = ("Metaspace", "Prepend", "Replace")
_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
# After _SPACE there is no space to split at.
_SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_TEXT = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
# Takes the space that a tokenizer puts before each text.
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
# The most that all steps together may multiply a text by, and the most characters that they may
# put before it. A usual tokenizer needs 18 · 4 for Unicode's NFKC and bytes written as characters.
MOST_GROWTH, MOST_PREFIX = 1000.0, 256
# The most steps. Tokenizers of large models have up to ten.
MOST_STEPS = 64

# By type of step, the most characters that it makes of one. Steps that are not here keep the
# length, or remove characters.
_GROWTH = {
    "BertNormalizer": 3.0,
    "ByteLevel": 4.0,
    "CTC": 2.0,
    "Lowercase": 3.0,
    "Metaspace": 2.0,
    "NFC": 3.0,
    "NFD": 4.0,
    "NFKC": 18.0,
    "NFKD": 18.0,
    "Nmt": 2.0,
}
# The keys of steps that have others inside.
_INSIDE = ("normalizers", "pretokenizers", "decoders")


@contextmanager
def library(where: str) -> Iterator[None]:
    """Raise BadInput, naming `where`, for what goes wrong inside the tokenizers library.

    The library raises bare Exceptions, and for a mistake in its own code a PanicException.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise BadInput(
            f"{where}: the tokenizers library can't use this tokenizer ({shown(str(error))})"
        ) from None


def parse(source: str, where: str) -> dict[str, Any]:
    """Return the settings in the text of a tokenizer.json, with a list of `added_tokens`.

    Raises BadInput, naming `where`, if the tokenizer is no BPE of bytes or of pieces.
    """
    try:
        settings = parse_json(source, "it")
        model, vocab = settings["model"]["type"], settings["model"]["vocab"]
        added = settings.get("added_tokens") or []
    except (BadInput, KeyError, TypeError) as error:
        raise BadInput(
            f"{where}: not a tokenizer in the tokenizer.json format ({shown(error)})"
        ) from None
    pieces = in_pieces(settings)
    if reason := "key model.type is Unigram" if model == "Unigram" else _other_step(settings):
        raise BadInput(
            f"{where}: a SentencePiece-style tokenizer ({reason}). Pion reads byte-level BPE, and "
            "BPE of pieces with exactly the steps of Gemma, Llama 2 or Mistral. With other steps "
            "the ids might not give the text back. Choose a model with a tokenizer that Pion "
            "reads, such as SmolLM2, Qwen or Llama 3."
        )
    if model != "BPE" or not isinstance(vocab, dict) or not (pieces or _is_byte_level(settings)):
        raise BadInput(
            f"{where}: not a byte-level BPE tokenizer: key model.type must be BPE (it is "
            f"{shown(model)}), and a text must pass a ByteLevel step before BPE and after it"
        )
    if needed := missing_in_pieces(vocab) if pieces else needed_bytes(missing_bytes(vocab)):
        some = ", ".join(f"{byte:02x}" for byte in sorted(needed)[:8])
        raise BadInput(
            f"{where}: key model.vocab lacks {len(needed)} of the 256 bytes ({some}"
            f"{', …' if len(needed) > 8 else ''}), so some texts have no ids. It may lack bytes of "
            "control characters and of no character"
        )
    return {**settings, "added_tokens": added}


def build(settings: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """Return the library's tokenizer. Raises BadInput, naming `where`, for settings it refuses."""
    with library(where):
        built = tokenizers.Tokenizer.from_str(json.dumps(settings))
    check_steps(settings, where)
    return built


def first_token(built: tokenizers.Tokenizer, special_ids: dict[str, int], where: str) -> int | None:
    """Return the special id that the post-processor puts before a text, or None.

    What it puts after a text is not kept: the separator of documents takes that place. Raises
    BadInput, naming `where`, for several tokens, and for one that is not special.
    """
    if built.post_processor is None:
        return None
    with library(where):
        alone = built.encode("a", add_special_tokens=False).ids
        ids = built.encode("a", add_special_tokens=True).ids
    before = next((n for n in range(len(ids)) if ids[n : n + len(alone)] == alone), len(ids))
    if before == 0:
        return None
    if before > 1 or ids[0] not in special_ids.values():
        raise BadInput(
            f"{where}: key post_processor puts {before} tokens before a text. Pion can start a "
            "document with one special token, or with none"
        )
    return int(ids[0])


def _is_byte_level(settings: Mapping[str, Any]) -> bool:
    """Return whether the steps before BPE write bytes as letters, and those after it read them."""
    before = [*steps_of(settings.get("normalizer")), *steps_of(settings.get("pre_tokenizer"))]
    after = steps_of(settings.get("decoder"))
    return all(any(step.get("type") == "ByteLevel" for step in steps) for steps in (before, after))


def in_pieces(settings: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer writes spaces as "▁", and other characters as bytes."""
    steps = [*steps_of(settings.get("normalizer")), *steps_of(settings.get("pre_tokenizer"))]
    return bool(settings["model"].get("byte_fallback")) and any(
        step.get("type") in _SPACES for step in steps
    )


def _other_step(settings: Mapping[str, Any]) -> str | None:
    """Return which key of a tokenizer of pieces has other steps than the known ones, or None."""
    normal, before, after = (
        steps_of(settings.get(key)) for key in ("normalizer", "pre_tokenizer", "decoder")
    )
    checks = {
        "normalizer": normal in ([], [_SPACE], [{"type": "Prepend", "prepend": "▁"}, _SPACE]),
        "pre_tokenizer": before in ([], [_SPLIT])
        if normal
        else [(step.get("type"), step.get("replacement")) for step in before]
        == [("Metaspace", "▁")],
        "decoder": after in (_TEXT, [*_TEXT, STRIP]),
    }
    wrong = next((key for key in checks if not checks[key]), None) if in_pieces(settings) else None
    return wrong and f"key {wrong} is {shown(settings.get(wrong))}"


def check_steps(settings: Mapping[str, Any], where: str) -> None:
    """Raise BadInput, naming `where`, for steps that can make a short text very long.

    `settings` is a tokenizer.json that the tokenizers library could read.
    """
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        added = settings["model"].get(key)
        if isinstance(added, str) and len(added) > MOST_PREFIX:
            raise BadInput(
                f"{where}: key model.{key} has {len(added):,} characters; a tokenizer adds at most "
                f"{MOST_PREFIX} to a letter"
            )
    before = [*steps_of(settings.get("normalizer")), *steps_of(settings.get("pre_tokenizer"))]
    for steps in (before, steps_of(settings.get("decoder"))):
        growth, prefix = 1.0, 0
        for step in steps[: MOST_STEPS + 1]:
            growth *= _growth(step)
            prefix += len(str(step.get("prepend") or ""))
        if len(steps) > MOST_STEPS or growth > MOST_GROWTH or prefix > MOST_PREFIX:
            kinds = ", ".join(str(step.get("type")) for step in steps[:5])
            raise BadInput(
                f"{where}: this tokenizer could make a short text very long, so it is not used. "
                f"Its {len(steps):,} steps ({kinds}{', …' if len(steps) > 5 else ''}) may "
                f"multiply a text by {growth:.3g}, and put {prefix:,} characters before it; the "
                f"limits are {MOST_STEPS} steps, {MOST_GROWTH:g} and {MOST_PREFIX}"
            )


def steps_of(step: Any) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or decoder in order, nested ones flat."""
    if not isinstance(step, Mapping):
        return []
    inside = [key for key in _INSIDE if isinstance(step.get(key), list)]
    if not inside:
        return [step]
    return [inner for key in inside for part in step[key] for inner in steps_of(part)]


def _growth(step: Mapping[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Precompiled":
        return float("inf")  # its table is not readable, and can hold texts of any length
    if kind != "Replace":
        return _GROWTH.get(str(kind), 1.0)
    pattern, content = step.get("pattern"), len(str(step.get("content")))
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    if isinstance(text, str) and text:
        return max(1.0, content / len(text))
    return 1.0 + content  # a regular expression may match nothing, before each character
