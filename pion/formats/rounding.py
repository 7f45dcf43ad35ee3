"""Round a model to bfloat16 for publishing, and measure what the rounding costs.

bfloat16 has 8 bits of precision, so it swallows changes of a weight below 0.4 %. LoRA's additions
are often that small. So whoever publishes a rounded model says what it lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pion.config import ModelConfig
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.formats.huggingface.architectures import architecture_of
from pion.model.decoder import Decoder


@dataclass(frozen=True)
class RoundingCost:
    """What rounding changes, on the same text before and after it.

    Attributes:
        logits: the greatest absolute difference of two logits.
        before, after: bits per byte of the text.
        tokens: the tokens that were predicted.
    """

    logits: float
    before: float
    after: float
    tokens: int


def require_roundable(config: ModelConfig) -> None:
    """Raise BadInput for a model that needs its own code: that code keeps weights in fp32."""
    architecture = architecture_of(config)
    if not architecture.stock:
        raise BadInput(
            f"dtype: bfloat16 is for stock architectures, and this model is published as "
            f"{architecture.name}, with its code. Publish it in float32"
        )


def rounded(model: Decoder) -> Decoder:
    """Return a decoder in fp32 whose weights, gains included, have values of bfloat16, copied."""
    state = {
        name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    return Decoder.from_state(model.config, state)


@torch.inference_mode()
def rounding_cost(
    model: Decoder, after: Decoder, tokenizer: Tokenizer, texts: Sequence[str]
) -> RoundingCost:
    """Return what differs between `model` and the rounded `after` on the beginning of each text.

    Both compute in fp32. Raises BadInput if no text has two tokens.
    """
    size, vocab_size = model.config.seq_len, tokenizer.vocab_size
    sizes = tokenizer.token_bytes()
    worst, nats, tokens, length = 0.0, [0.0, 0.0], 0, 0
    for text in texts:
        ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(text)][: size + 1]])
        given, targets = ids[:, :-1], ids[0, 1:]
        if not len(targets):
            continue
        logits: list[Tensor] = [m(given)[0, :, :vocab_size].float() for m in (model, after)]
        worst = max(worst, float((logits[0] - logits[1]).abs().max()))
        for number, found in enumerate(logits):
            nats[number] += float(cross_entropy(found, targets, reduction="sum"))
        tokens += len(targets)
        length += int(sizes[targets.numpy()].sum())
    if not length:
        raise BadInput("there is no text to measure the rounding on")
    before, rounded_bits = (total / math.log(2) / length for total in nats)
    return RoundingCost(worst, before, rounded_bits, tokens)
