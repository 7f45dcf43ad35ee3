"""The models of the training comparisons: Pion's, and its peers' with the same weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.formats.huggingface.swiglu import Qwen3
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.model.loss import IGNORED

# Returns the mean loss of rows of tokens and their targets, both (B, T).
LossOf = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Trainee:
    """A model, and how its users compute the loss."""

    model: nn.Module
    loss: LossOf


@dataclass(frozen=True)
class Shape:
    """A model, and the rows of a training step."""

    config: ModelConfig
    batch: int
    seq_len: int

    @property
    def tokens(self) -> int:
        """Return the number of input tokens of a step."""
        return self.batch * self.seq_len


# Pion-nano, 28.7M parameters.
NANO = Shape(ModelConfig.preset("pion-nano"), batch=4, seq_len=256)
# For --quick: everything runs, but the numbers mean nothing.
TINY = Shape(
    ModelConfig(
        d_model=64, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=128, vocab_size=512, seq_len=256
    ),
    batch=2,
    seq_len=32,
)


def decoder_of(config: ModelConfig, seed: int = 0) -> Decoder:
    """Return Pion's model with the weights of a seed."""
    torch.manual_seed(seed)
    return Decoder(config)


def pion(config: ModelConfig, *, compiled: bool = False, seed: int = 0) -> Trainee:
    """Return Pion's model."""
    decoder = decoder_of(config, seed)
    options = StepOptions(compiled=compiled)
    return Trainee(decoder, functools.partial(decoder.loss, options=options))


def qwen3(config: ModelConfig, *, seed: int = 0) -> Trainee:
    """Return transformers' Qwen3 at its defaults. It shifts the tokens to targets by itself."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hf_config, state = Qwen3().write(config, decoder_of(config, seed).state_dict())
    model = Qwen3ForCausalLM(Qwen3Config(**hf_config))
    model.load_state_dict(state, strict=False)  # a tied head is not in the state
    model.train()

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = model(input_ids=tokens, labels=tokens).loss
        return value

    return Trainee(model, loss)


def plain_torch(config: ModelConfig, *, seed: int = 0) -> Trainee:
    """Return the plain PyTorch model, compiled as a whole with its loss."""
    from benchmarks.plain_torch import PlainDecoder

    model = PlainDecoder(config)
    model.load_state_dict(decoder_of(config, seed).state_dict())
    return Trainee(model, torch.compile(model))


def random_rows(shape: Shape, seed: int = 0) -> Tensor:
    """Return the rows of one step, with random ids."""
    randomness = torch.Generator().manual_seed(seed)
    size = (shape.batch, shape.seq_len)
    return torch.randint(0, shape.config.vocab_size, size, generator=randomness)


def targets_of(tokens: Tensor) -> Tensor:
    """Return the next token of each token. The last token of a row has no target."""
    return torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], IGNORED)), dim=1)


def stepper(trainee: Trainee, *, bf16: bool, lr: float = 3e-4) -> Callable[[Tensor, Tensor], float]:
    """Return a function that trains one step on tokens and targets, and returns the loss.

    A step is forward, backward, clipping to norm 1 and fused AdamW, the same for every model.
    """
    model = trainee.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)

    def step(tokens: Tensor, targets: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = trainee.loss(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step
