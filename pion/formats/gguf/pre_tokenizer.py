"""What a GGUF file calls the way in which a tokenizer cuts a text before BPE.

llama.cpp has the regular expressions in its own code (src/llama-vocab.cpp), and a file names one of
them as `tokenizer.ggml.pre`. With a wrong name the model runs and is worse, without a word. So a
tokenizer is refused unless llama.cpp gives its ids: tests/pion/formats/gguf/test_convert_engine.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pion.data.tokens.safe_cuts import SPLITS
from pion.data.tokens.tokenizer_json import parse
from pion.data.tokens.tokenizer_steps import steps_of
from pion.errors import BadInput
from pion.untrusted import LARGEST_TOKENIZER, read_file

_SPLIT_NAMES = {SPLITS["Llama 3"]: "llama-bpe", SPLITS["Qwen"]: "qwen2"}
# Added tokens with one of these take characters next to them, or look at them.
_FLAGS = ("lstrip", "rstrip", "single_word")


def pre_tokenizer(settings: Mapping[str, Any]) -> str:
    """Return the `tokenizer.ggml.pre` of a tokenizer with this checked tokenizer.json.

    Raises BadInput with the reason for a tokenizer to which llama.cpp gives other ids.
    """
    reason = _refused_step(settings)
    name = _name(steps_of(settings.get("pre_tokenizer")))
    if reason is None and name is None:
        kinds = [str(step.get("type")) for step in steps_of(settings.get("pre_tokenizer"))]
        reason = f"llama.cpp has no such pre-tokenizer: {', '.join(kinds) or 'none'}"
    # llama.cpp takes a whole piece that is in the vocabulary before it merges, but only with this
    # pre-tokenizer.
    whole = bool(settings["model"].get("ignore_merges"))
    if reason is None and whole != (name == "llama-bpe"):
        reason = f"key model.ignore_merges is {str(whole).lower()}, which llama.cpp has otherwise"
    if reason is not None or name is None:
        raise BadInput(
            f"GGUF can't express this tokenizer: {reason}. The ids of some texts would differ, and "
            "the model would be worse without a word. `pion chat` and `pion serve` run the model, "
            "and `pion export MODEL FOLDER` writes a folder for transformers"
        )
    return name


def require_known(tokenizer_json: Path) -> None:
    """Raise BadInput if `pre_tokenizer` refuses the tokenizer in this file."""
    source = read_file(tokenizer_json, LARGEST_TOKENIZER).decode()
    pre_tokenizer(parse(source, str(tokenizer_json)))


def _refused_step(settings: Mapping[str, Any]) -> str | None:
    """Return which setting llama.cpp does not know, or None."""
    model = settings["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            return f"key model.{key} is set"
    normalizers = [str(step.get("type")) for step in steps_of(settings.get("normalizer"))]
    if normalizers:
        return f"llama.cpp does not normalize a text, and this tokenizer does ({normalizers[0]})"
    for token in settings["added_tokens"]:
        if flags := [flag for flag in _FLAGS if token.get(flag)]:
            return f"the added token {token['content']!r:.80} has {flags[0]}"
    return None


def _name(steps: list[Mapping[str, Any]]) -> str | None:
    match steps:
        case [{"type": "ByteLevel"} as level] if _is_plain(level, use_regex=True):
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"} as level]:
            return "smollm" if _is_plain(level, use_regex=True) else None
        case [{"type": "Split"} as split, {"type": "ByteLevel"} as level]:
            if split.get("behavior") != "Isolated" or split.get("invert"):
                return None
            expression = str((split.get("pattern") or {}).get("Regex"))
            return _SPLIT_NAMES.get(expression) if _is_plain(level, use_regex=False) else None
    return None


def _is_plain(level: Mapping[str, Any], *, use_regex: bool) -> bool:
    return level.get("use_regex", True) == use_regex and not level.get("add_prefix_space", True)
