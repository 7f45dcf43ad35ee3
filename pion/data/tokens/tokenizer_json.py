"""Read a tokenizer.json: check that it is byte-level BPE, and build the library's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tokenizers

from pion.data.tokens.missing_bytes import missing_bytes, needed_bytes
from pion.data.tokens.tokenizer_steps import check_steps, steps_of
from pion.errors import BadInput
from pion.later_fields import shown
from pion.rust_panic import is_panic
from pion.untrusted import parse_json

# Steps with which SentencePiece writes spaces as "▁".
_SPACES = ("Metaspace", "Prepend", "Replace")


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

    Raises BadInput, naming `where`, if the tokenizer is not byte-level BPE. SentencePiece-style
    tokenizers are refused with the reason.
    """
    try:
        settings = parse_json(source, "it")
        model, vocab = settings["model"]["type"], settings["model"]["vocab"]
        added = settings.get("added_tokens") or []
    except (BadInput, KeyError, TypeError) as error:
        raise BadInput(
            f"{where}: not a tokenizer in the tokenizer.json format ({shown(error)})"
        ) from None
    if reason := _sentencepiece(settings):
        raise BadInput(
            f"{where}: a SentencePiece-style tokenizer ({reason}). Pion uses byte-level BPE only: "
            "SentencePiece-style tokenizers write spaces as letters and change the beginning of a "
            "text, so its ids would not give the text back exactly. Choose a model with a "
            "byte-level tokenizer, such as SmolLM2, Qwen or Llama 3."
        )
    if model != "BPE" or not isinstance(vocab, dict) or not _is_byte_level(settings):
        raise BadInput(
            f"{where}: not a byte-level BPE tokenizer: key model.type must be BPE (it is "
            f"{shown(model)}), and a text must pass a ByteLevel step before BPE and after it"
        )
    if needed := needed_bytes(missing_bytes(vocab)):
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


def _sentencepiece(settings: Mapping[str, Any]) -> str | None:
    """Return what shows that the tokenizer is SentencePiece-style, or None."""
    model = settings["model"]
    if model["type"] == "Unigram":
        return "key model.type is Unigram"
    if model["type"] != "BPE" or not model.get("byte_fallback"):
        return None
    steps = [*steps_of(settings.get("normalizer")), *steps_of(settings.get("pre_tokenizer"))]
    found = [kind for step in steps if (kind := step.get("type")) in _SPACES]
    return f"key model.byte_fallback is true, with a {found[0]} step" if found else None
