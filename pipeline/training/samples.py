"""Text that the model in training writes after a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pion.data.tokenizer import Tokenizer
    from pion.model.decoder import Decoder

SAMPLE_TOKENS = 48


def sample_text(
    model: Decoder, tokenizer: Tokenizer, prompt: str, *, chat: bool, on_piece: Callable[[], None]
) -> str:
    """Return the model's continuation of `prompt`, or with `chat` its answer.

    `on_piece` is called after each token. Raises BadInput if the prompt is too long for the model.
    """
    from pion.data.conversation import Turn, render
    from pion.generate import generate_text

    text = prompt
    if chat:
        text, _ = render(tokenizer, [Turn("user", prompt)], add_generation_prompt=True)
    pieces = []
    for piece in generate_text(model, tokenizer, text, max_tokens=SAMPLE_TOKENS, seed=0):
        pieces.append(piece)
        on_piece()
    return "".join(pieces)
