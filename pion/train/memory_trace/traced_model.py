"""The model, the batch and the objective of a traced step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pion.config.model_config import OTHER_ROLES
from pion.data.sequences import Sequences, columns_for
from pion.data.stream import Batch
from pion.model import decoder
from pion.model.decoder import Decoder
from pion.model.lora_projections import add_lora
from pion.model.parameters import freeze
from pion.train.memory_trace.request import Traced
from pion.train.memory_trace.shards import kept_whole
from pion.train.memory_trace.stand_ins import replaced
from pion.train.objective import CrossEntropy, Objective, OfPreferences
from pion.train.preference import Preference
from pion.train.preference_losses import METRICS


def model_of(what: Traced) -> Decoder:
    """Return the model, with the gradients that an earlier micro-batch of the step has left.

    If ranks keep parts of the weights, blocks have their weights as they are gathered, without
    gradients: each rank has its part of these elsewhere.
    """
    with torch.device(what.device), replaced(decoder, "draw_weights", lambda *a, **k: None):
        model = Decoder(what.config)
        if what.lora is not None:
            if what.lora.base_dtype == "bfloat16" and what.bf16:
                model = Decoder.from_state(what.config, model.state_dict(), torch.bfloat16)
            add_lora(model, what.lora, seed=0)
        if what.only_apart:
            freeze(model, OTHER_ROLES)
        if what.sharded and what.bf16:
            whole = {id(weight) for weight in kept_whole(model)}
            for weight in model.blocks.parameters():
                if id(weight) not in whole:
                    weight.data = weight.data.to(torch.bfloat16)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        if what.sharded:
            drop_gradients(model.blocks, model)
    return model


def drop_gradients(module: nn.Module, model: Decoder) -> None:
    """Drop the gradients of a module of the model, but those of weights that each rank has whole:
    their gradients are there in all micro-batches."""
    whole = {id(weight) for weight in kept_whole(model)}
    for weight in module.parameters():
        if id(weight) not in whole:
            weight.grad = None


def batch_of(what: Traced, rows: int) -> Batch:
    """Return rows of zeros."""
    tokens = torch.zeros(rows, what.seq_len, dtype=torch.int64)
    given = [torch.zeros_like(tokens) if what.documents else None for _ in range(2)]
    sequences = None
    if what.sequences:
        numbers = torch.zeros(rows, columns_for(what.sequences, paired=True), dtype=torch.float64)
        sequences = Sequences(numbers, numbers.long(), numbers.to(torch.int8))
    return Batch(tokens, torch.zeros_like(tokens), given[0], given[1], sequences)


def objective_of(what: Traced) -> Objective:
    """Return what the step minimizes. All losses of preferences need about the same."""
    if not what.sequences:
        return CrossEntropy(torch.ones(()))
    counts: dict[str, Tensor] = {
        name: torch.ones((), dtype=torch.float64) for name in set(METRICS.values())
    }
    return OfPreferences(Preference(), counts)
