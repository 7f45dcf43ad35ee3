"""Text that the model in training writes after the job's prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pion.data.tokenizer import Tokenizer
    from pion.model.decoder import Decoder

SAMPLE_TOKENS = 48


def prompt_ids(model: Decoder, tokenizer: Tokenizer, prompt: str, *, chat: bool) -> list[int]:
    """Return the ids that the model continues; with `chat`, the prompt is a user's message.

    Raises BadInput if the prompt is too long for the model.
    """
    from pion.data.conversation import Turn, tokenize
    from pion.generate import checked_prompt

    if chat:
        turns = [Turn("user", prompt)]
        ids = tokenize(tokenizer, turns, add_generation_prompt=True).ids.tolist()
    else:
        ids = tokenizer.prompt(prompt)
    return checked_prompt(ids, model.config)


def sample_texts(
    model: Decoder, tokenizer: Tokenizer, prompts: list[list[int]], *, on_token: Callable[[], None]
) -> list[str]:
    """Return the model's continuation of each of the prompts.

    `on_token` is called after each token. Raises BadInput if the model predicts NaN or infinity.
    """
    from pion.generate_batch import generate_batch

    new: list[list[int]] = [[] for _ in prompts]
    for number, token in generate_batch(
        model,
        prompts,
        stop_ids=(tokenizer.end_of_text,),
        vocab_size=tokenizer.vocab_size,
        max_tokens=SAMPLE_TOKENS,
        seed=0,
    ):
        if token is not None:
            new[number].append(token)
            on_token()
    return [tokenizer.decode(ids) for ids in new]
