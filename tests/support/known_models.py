"""Decoders with known predictions, and a decoder on a GPU with little memory."""

import math

import torch

from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder

VOCAB, SEQ_LEN = 12, 16


def decoder(
    vocab_size: int = VOCAB, seq_len: int = SEQ_LEN, seed: int = 0, tied: bool = True
) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(
        ModelConfig(
            d_model=16,
            n_layers=1,
            n_heads=2,
            n_kv_heads=1,
            d_ff=16,
            vocab_size=vocab_size,
            seq_len=seq_len,
            init_std=0.5,
            tie_embeddings=tied,
        )
    )


def constant(log_odds: list[float], seq_len: int = SEQ_LEN) -> Decoder:
    """Return a model whose logits are always `log_odds`, because every hidden state is the same."""
    model = decoder(len(log_odds), seq_len, tied=False)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.embed.weight.zero_()[:, 0] = 1000.0
        model.norm.weight.fill_(1 / math.sqrt(model.config.d_model))  # RMS norm makes it √d_model
        model.lm_head.weight.zero_()[:, 0] = torch.tensor(log_odds)
    return model


class OnSmallGpu:
    """A decoder on a card with room for `limit` sequences."""

    def __init__(self, model: Decoder, limit: int) -> None:
        self.model, self.limit = model, limit
        self.seen: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def hidden(self, tokens: torch.Tensor, **rest: object) -> torch.Tensor:
        self.seen.append(len(tokens))
        if len(tokens) > self.limit:
            raise torch.cuda.OutOfMemoryError("tried to allocate 3.00 GiB")
        return self.model.hidden(tokens, **rest)
