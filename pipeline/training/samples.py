"""Text that the model in training writes after the job's prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pion.data.chat_format import ChatFormat
    from pion.model.decoder import Decoder

SAMPLE_TOKENS = 48


def prompt_ids(model: Decoder, chat_format: ChatFormat, prompt: str, *, chat: bool) -> list[int]:
    """Return the ids that the model continues; with `chat`, the prompt is a user's message.

    Raises BadInput if the prompt is too long for the model, or if its chat template refuses it.
    """
    from pion.generate import checked_prompt

    if chat:
        ids = chat_format.prompt_ids([{"role": "user", "content": prompt}])
    else:
        ids = chat_format.tokenizer.prompt(prompt)
    return checked_prompt(ids, model.config)


def sample_texts(
    model: Decoder,
    chat_format: ChatFormat,
    prompts: list[list[int]],
    *,
    chat: bool,
    on_token: Callable[[], None],
) -> list[str]:
    """Return the model's continuation of each of the prompts: with `chat`, its answers.

    `on_token` is called after each token. Raises BadInput if the model predicts NaN or infinity.
    """
    from pion.generate_batch import generate_batch

    tokenizer = chat_format.tokenizer
    new: list[list[int]] = [[] for _ in prompts]
    for number, token in generate_batch(
        model,
        prompts,
        stop_ids=chat_format.stop_ids if chat else (tokenizer.end_of_text,),
        vocab_size=tokenizer.vocab_size,
        max_tokens=SAMPLE_TOKENS,
        seed=0,
    ):
        if token is not None:
            new[number].append(token)
            on_token()
    return [tokenizer.decode(ids) for ids in new]
