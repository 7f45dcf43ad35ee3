"""The tokenizer of an exported model, as the entries of a GGUF file.

llama.cpp has the regular expressions that cut a text before BPE in its own code
(src/llama-vocab.cpp), and a file names one of them as `tokenizer.ggml.pre`. With a wrong name the
model runs and is worse, without a word. So a tokenizer is refused unless llama.cpp gives its ids:
tests/pion/formats/gguf/test_convert_engine.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

from pion.data.chat.template_source import find_template
from pion.data.tokens.safe_cuts import LOOKING_FLAGS, known_pre_tokenizer
from pion.data.tokens.special_tokens import GENERATION_CONFIG
from pion.data.tokens.token_names import read_optional, token_names
from pion.data.tokens.tokenizer import Tokenizer
from pion.data.tokens.tokenizer_json import parse, steps_of
from pion.errors import BadInput
from pion.generation.bounds import published_sampling
from pion.untrusted import LARGEST_TOKENIZER, read_file

# Where a GGUF file keeps the ids that end an answer: llama.cpp has no list of them.
_STOPS = ("eos", "eot", "eom")
# By the name in generation_config.json, that in GGUF, of a number.
_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
# Said of a tokenizer that puts texts into NFC. Counted were the messages of installed programs.
OF_NFC = (
    "llama.cpp does not put a text into NFC, and this tokenizer does. A text that is in NFC has "
    "the same ids there. Of 1,791,073 messages in 167 languages, 8,442 are not in NFC: 8 to 28 % "
    "of those in Bengali, Punjabi, Assamese and Burmese, and 1 in 3,000 of all others"
)
# What llama.cpp calls the known pre-tokenizers; "smollm" takes each digit for itself.
_PRE_TOKENIZERS = {
    "GPT-2": "gpt-2",
    "digits": "smollm",
    "Llama 3": "llama-bpe",
    "Qwen": "qwen2",
}


class Kind(IntEnum):
    """What llama.cpp does with a token (llama_token_type)."""

    NORMAL = 1
    CONTROL = 3  # never found in plain text
    USER_DEFINED = 4  # found in plain text before anything else
    UNUSED = 5


def vocabulary(folder: Path, rows: int) -> dict[str, Any]:
    """Return the entries of the tokenizer in `folder`, with the chat template if it has one.

    `rows` is the number of embedding rows; those without a token become unused tokens. Raises
    BadInput for a tokenizer to which llama.cpp gives other ids, and for damaged files.
    """
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(path)  # refuses a missing or damaged file
    settings = _settings(path)
    tokens, kinds = _tokens(settings, rows)
    entries = {
        "tokenizer.ggml.model": "gpt2",  # byte-level BPE
        "tokenizer.ggml.pre": pre_tokenizer(settings),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": _merges(settings),
        **_special_ids(folder, tokenizer),
    }
    template = find_template(folder)
    return entries if template is None else {**entries, "tokenizer.chat_template": template}


def sampling(folder: Path) -> dict[str, Any]:
    """Return the entries of the sampling defaults in generation_config.json.

    `min_p` and the penalty of repetitions are there even where the folder has none: llama.cpp's
    own defaults would change the model's answers.
    """
    settings = published_sampling(folder / GENERATION_CONFIG)
    settings = {"min_p": 0.0, "repetition_penalty": 1.0, **settings}
    return {f"general.sampling.{_SAMPLING[ours]}": value for ours, value in settings.items()}


def _tokens(settings: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return the text and the kind of each id from 0 to `rows` − 1."""
    texts: dict[int, tuple[str, Kind]] = {
        number: (text, Kind.NORMAL) for text, number in settings["model"]["vocab"].items()
    }
    for token in settings["added_tokens"]:
        kind = Kind.CONTROL if token["special"] else Kind.USER_DEFINED
        texts[token["id"]] = (token["content"], kind)
    every = [texts.get(number, (f"[PAD{number}]", Kind.UNUSED)) for number in range(rows)]
    return [text for text, _ in every], [int(kind) for _, kind in every]


def _merges(settings: Mapping[str, Any]) -> list[str]:
    pairs = [
        merge.split(" ") if isinstance(merge, str) else merge
        for merge in settings["model"].get("merges") or []
    ]
    if any(len(pair) != 2 or " " in pair[0] + pair[1] for pair in pairs):
        raise BadInput("GGUF can't express this tokenizer: a merge has a space within a token")
    if not pairs:
        raise BadInput("GGUF can't express this tokenizer: it merges nothing, so ids are bytes")
    return [" ".join(pair) for pair in pairs]


def _special_ids(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    stops = read_optional(folder / GENERATION_CONFIG).get("eos_token_id", tokenizer.end_of_text)
    stops = stops if isinstance(stops, list) else [stops]
    if len(stops) > len(_STOPS):
        raise BadInput(
            f"GGUF can't express this tokenizer: {len(stops)} ids end an answer ({stops}), and a "
            f"GGUF file has room for {len(_STOPS)}"
        )
    named = tokenizer.special_ids.get(token_names(folder).get("bos_token", ""))
    first = tokenizer.before_document if named is None else named
    ids = {"bos": first if tokenizer.first is None else tokenizer.first}
    ids |= dict(zip(_STOPS, stops, strict=False))
    ids["padding"] = read_optional(folder / GENERATION_CONFIG).get("pad_token_id", tokenizer.pad)
    return {f"tokenizer.ggml.{name}_token_id": number for name, number in ids.items()} | {
        "tokenizer.ggml.add_bos_token": tokenizer.first is not None
    }


def pre_tokenizer(settings: Mapping[str, Any]) -> str:
    """Return the `tokenizer.ggml.pre` of a tokenizer with this checked tokenizer.json.

    Raises BadInput with the reason for a tokenizer to which llama.cpp gives other ids.
    """
    name = _PRE_TOKENIZERS.get(known_pre_tokenizer(settings) or "")
    steps = steps_of(settings.get("pre_tokenizer"))
    if name == "smollm" and steps[0].get("individual_digits") is not True:
        name = None
    kinds = ", ".join(str(step.get("type")) for step in steps) or "none"
    # llama.cpp takes a whole piece that is in the vocabulary before it merges, but only with
    # "llama-bpe". "dbrx" has the same regular expression.
    ignores_merges = bool(settings["model"].get("ignore_merges"))
    if name == "llama-bpe" and not ignores_merges:
        name = "dbrx"
    wrong_whole = (
        f"key model.ignore_merges is {str(ignores_merges).lower()}, which llama.cpp has otherwise"
    )
    reasons = (
        _refused_step(settings),
        f"llama.cpp has no such pre-tokenizer: {kinds}" if name is None else None,
        wrong_whole if ignores_merges != (name == "llama-bpe") else None,
    )
    reason = next((reason for reason in reasons if reason is not None), None)
    if reason is not None or name is None:
        raise BadInput(
            f"GGUF can't express this tokenizer: {reason}. The ids of some texts would differ, and "
            "the model would be worse without a word. `pion chat` and `pion serve` run the model, "
            "and `pion export MODEL FOLDER` writes a folder for transformers"
        )
    return name


def require_known(tokenizer_json: Path) -> None:
    """Raise BadInput if `pre_tokenizer` refuses the tokenizer in this file."""
    pre_tokenizer(_settings(tokenizer_json))


def _settings(path: Path) -> dict[str, Any]:
    return parse(read_file(path, LARGEST_TOKENIZER).decode(), str(path))


def _refused_step(settings: Mapping[str, Any]) -> str | None:
    """Return which setting llama.cpp does not know, or None."""
    model = settings["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            return f"key model.{key} is set"
    normalizers = [str(step.get("type")) for step in steps_of(settings.get("normalizer"))]
    if normalizers not in ([], ["NFC"]):
        return f"llama.cpp does not normalize a text, and this tokenizer does ({normalizers[0]})"
    for token in settings["added_tokens"]:
        if flags := [flag for flag in LOOKING_FLAGS if token.get(flag)]:
            return f"the added token {token['content']!r:.80} has {flags[0]}"
    return None
