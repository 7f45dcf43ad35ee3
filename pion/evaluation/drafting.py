"""How many passes a model's draft block saves (pion/model/draft_block.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from pion.generation.decoding import Decoding
from pion.generation.drafts import DraftedDecoding
from pion.generation.text import Settings, Text
from pion.model.decoder import Decoder
from pion.model.draft_block import block_of

NEW_TOKENS = 64


def drafted(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    vocab_size: int,
    on_pass: Callable[[], None],
) -> dict[str, Any] | None:
    """Continue each prompt with as many drafts as the model's block has learned; return the
    measures of `Draft.result`.

    A text is drawn with its number as the seed, to NEW_TOKENS or the end of the context; an end of
    text ends nothing. None: the model has no block, or no prompt has room. `on_pass` is called
    after each pass.
    """
    block = block_of(model)
    if block is None:
        return None
    settings = Settings(
        stop_ids=(), max_tokens=NEW_TOKENS, temperature=temperature, vocab_size=vocab_size
    )
    shares: list[float] = []
    tried = hits = 0
    for number, prompt in enumerate(prompts):
        # Texts of one seed would be drawn by the same random numbers, and their error too small.
        text = Text(model, prompt, replace(settings, seed=number))
        decoding = DraftedDecoding(model, 1, text.room, block.steps)
        text.draw(decoding.read_alone(text)[0])
        begin = len(text.ids)
        passes = _passes(decoding, text, on_pass)
        tried, hits = tried + text.counts["drafted"], hits + text.counts["accepted"]
        if passes:
            shares.append((len(text.ids) - begin) / passes)
    if not shares:
        return None
    error = float(np.std(shares, ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else None
    return {
        "texts": len(shares),
        "tokens_per_pass": float(np.mean(shares)),
        "tokens_per_pass_sem": error,
        "right": hits / tried if tried else None,
    }


def _passes(decoding: Decoding, text: Text, on_pass: Callable[[], None]) -> int:
    """Continue a text to its end; return how many passes this took."""

    def draw(rows: Sequence[int], logits: Tensor) -> list[int | None]:
        return [None if text.ended else text.draw(logits[0])]

    passes = 0
    while not text.ended:
        decoding.step(draw)
        passes += 1
        on_pass()
    return passes
