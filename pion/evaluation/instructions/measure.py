"""Put the built-in instructions to a model, in its own chat format, and score its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pion.data.chat.chat_format import ChatFormat
from pion.errors import BadInput
from pion.evaluation.instructions.prompts import Instruction
from pion.evaluation.instructions.score import Answer, Score, score
from pion.evaluation.likeliest import likeliest_answers
from pion.model.decoder import Decoder

MOST_TOKENS = 256
# With less, hardly an answer would be finished.
LEAST_TOKENS = 64


def measure(
    model: Decoder,
    chat_format: ChatFormat,
    asked: Sequence[Instruction],
    on_answer: Callable[[int], None],
) -> Score:
    """Return the score of the model's answers. Each prompt is a separate conversation.

    An answer takes the likeliest tokens, and has at most as many as `room` returns.
    `on_answer` is called after each answer, with the number of answers so far.

    Raises BadInput if the model's context has no room for prompts and answers, if its chat template
    refuses them, or if it predicts NaN or infinity.
    """
    prompts = [chat_format.prompt_ids([{"role": "user", "content": one.prompt}]) for one in asked]
    most = room(model.config.seq_len, max(map(len, prompts)))
    new = likeliest_answers(model, chat_format, prompts, most, on_answer)
    answers = [Answer(chat_format.tokenizer.decode(ids), len(ids) < most) for ids in new]
    return score(asked, answers, most)


def room(seq_len: int, longest_prompt: int) -> int:
    """Return the most tokens of an answer: 256, or what the context has left for all prompts.

    Raises BadInput if these are fewer than 64.
    """
    left = seq_len - longest_prompt
    if left < LEAST_TOKENS:
        raise BadInput(
            f"the model's context of {seq_len:,} tokens is too short for instructions: the longest "
            f"prompt has {longest_prompt:,} tokens, and an answer needs {LEAST_TOKENS}. Measure a "
            f"model with a context of at least {longest_prompt + LEAST_TOKENS:,} tokens"
        )
    return min(MOST_TOKENS, left)
