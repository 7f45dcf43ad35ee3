"""The likeliest answers of a model to prompts, continued together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pion.data.chat.chat_format import ChatFormat
from pion.generation.generate import generate_batch
from pion.model.decoder import Decoder


def likeliest_answers(
    model: Decoder,
    chat_format: ChatFormat,
    prompts: Sequence[Sequence[int]],
    most: int,
    on_answer: Callable[[int], None],
) -> list[list[int]]:
    """Return the ids of an answer to each prompt (of ids), `most` ids at most, without the stop id.
    An answer that a stop id has ended is shorter than `most`.

    `on_answer` is called after each answer, with the number of answers so far, and may end the
    work. Raises BadInput if the model predicts NaN or infinity.
    """
    new: list[list[int]] = [[] for _ in prompts]
    answered = 0
    for number, token in generate_batch(
        model,
        prompts,
        stop_ids=chat_format.stop_ids,
        vocab_size=chat_format.tokenizer.vocab_size,
        max_tokens=most,
        temperature=0,
    ):
        if token is not None:
            new[number].append(token)
            continue
        answered += 1
        on_answer(answered)
    return new
