"""The special ids of a model that its files name: what ends an answer, and what fills a text.

For Pion's own models all of these come from tokenizer.json. A model of others has them in several
files, and they differ: SmolLM2 and Qwen separate documents with ``<|endoftext|>`` while their
``eos_token`` is the end of a turn, ``<|im_end|>``. Llama 3 separates documents with
``<|end_of_text|>``, ends turns with ``<|eot_id|>`` and starts texts with ``<|begin_of_text|>``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pion.data.tokens.token_names import read_optional, token_names
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.later_fields import shown

GENERATION_CONFIG = "generation_config.json"
# No model has nearly as many ends.
_MOST_STOPS = 64


@dataclass(frozen=True)
class SpecialTokens:
    """The special ids of a model.

    Attributes:
        stop_ids: the ids that end a generated text, in the order in which they were found.
        pad: fills unused tails.
        note: that the files name another pad, which is no token; "" if not.
    """

    stop_ids: tuple[int, ...]
    pad: int
    note: str = ""


def read_special_tokens(
    folder: str | Path, tokenizer: Tokenizer, end_of_turn: int | None = None
) -> SpecialTokens:
    """Return the special ids of the model in `folder`.

    The model stops at every `eos_token_id` of its generation_config.json and at `end_of_turn`, the
    end of a turn in its chat template. Without either, it stops at the `eos_token` of its
    tokenizer_config.json, and at last at the separator. Files may be absent.

    Raises:
        BadInput: a file is damaged, or an id or a token that ends a text is none of the
            tokenizer's.
    """
    names = token_names(folder)

    stops = _generation_stops(Path(folder), tokenizer)
    if end_of_turn is not None:
        stops.append(end_of_turn)
    if not stops:
        stops.append(_id_of(names.get("eos_token", tokenizer.end_of_text_token), tokenizer))
    pad, ids = names.get("pad_token", ""), tokenizer.special_ids
    note = f"its pad_token {shown(pad)} is no special token of tokenizer.json, and is not needed"
    return SpecialTokens(
        tuple(dict.fromkeys(stops)),
        ids.get(pad, tokenizer.pad),
        note if pad and pad not in ids else "",
    )


def _generation_stops(folder: Path, tokenizer: Tokenizer) -> list[int]:
    path = folder / GENERATION_CONFIG
    value = read_optional(path).get("eos_token_id")
    if value is None:
        return []
    stops = list(value) if isinstance(value, list) else [value]
    for stop in stops:
        if isinstance(stop, bool) or not isinstance(stop, int):
            raise BadInput(
                f"{path}: key eos_token_id must be an id or a list of ids: {shown(stop)} is no id"
            )
    if len(stops) > _MOST_STOPS:
        raise BadInput(f"{path}: key eos_token_id has {len(stops):,} ids; at most {_MOST_STOPS}")
    for stop in stops:
        if not 0 <= stop < tokenizer.vocab_size:
            raise BadInput(
                f"{path}: key eos_token_id: {stop:,} is none of the tokenizer's ids, 0 to "
                f"{tokenizer.vocab_size - 1:,}. Is tokenizer.json from the same model?"
            )
    return stops


def _id_of(token: str, tokenizer: Tokenizer) -> int:
    token_id = tokenizer.special_ids.get(token)
    if token_id is None:
        raise BadInput(
            f"tokenizer_config.json names the token {token!r}, but tokenizer.json has no "
            "special token of this text. Are both files from the same model?"
        )
    return token_id
