"""What a model writes after held-out prompts: how long its answers are, and whether they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pion.data.chat.chat_format import ChatFormat
from pion.generation.generate import generate_batch
from pion.model.decoder import Decoder

# Prompts that are answered, and the most tokens of an answer.
PROMPTS, MOST_TOKENS = 64, 256
# A loop repeats sequences of so many tokens.
LONG = 4


def askable(prompts: Sequence[Sequence[int]], context: int) -> tuple[list[list[int]], int]:
    """Return the first prompts with room for an answer, and the most tokens of an answer.

    All answers have the same room: at most half of the context of so many tokens.
    """
    most = min(MOST_TOKENS, context // 2)
    fitting = [list(ids) for ids in prompts if len(ids) <= context - most]
    return fitting[:PROMPTS], most


def greedy_answers(
    model: Decoder,
    chat_format: ChatFormat,
    asked: Sequence[Sequence[int]],
    most: int,
    on_answer: Callable[[], None],
) -> dict[str, Any]:
    """Let the model answer prompts (of ids) by its likeliest tokens, `most` at most; see `askable`.

    The result has `most_tokens` and, in the order of the prompts: the `tokens` of each answer,
    without the end of the turn; whether each has `stopped` by itself; of the sequences of 4 tokens
    in each, the share of `distinct` ones, 1 for an answer that is too short for one; and `texts`,
    prompt and answer.

    `on_answer` is called after each answer, and may end the measurement. Raises BadInput if the
    model predicts NaN or infinity.
    """
    decode = chat_format.tokenizer.decode
    new: list[list[int]] = [[] for _ in asked]
    for number, token in generate_batch(
        model,
        asked,
        stop_ids=chat_format.stop_ids,
        vocab_size=chat_format.tokenizer.vocab_size,
        max_tokens=most,
        temperature=0,
    ):
        if token is None:  # the answer is at its end
            on_answer()
        else:
            new[number].append(token)
    return {
        "most_tokens": most,
        "tokens": [len(ids) for ids in new],
        "stopped": [len(ids) < most for ids in new],
        "distinct": [distinct_share(ids) for ids in new],
        "texts": [(decode(prompt), decode(ids)) for prompt, ids in zip(asked, new, strict=True)],
    }


def distinct_share(ids: Sequence[int]) -> float:
    """Return the share of different ones among the sequences of 4 ids: near 0 in a loop."""
    long = [tuple(ids[i : i + LONG]) for i in range(len(ids) - LONG + 1)]
    return len(set(long)) / len(long) if long else 1.0
