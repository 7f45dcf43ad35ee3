"""What LoRA's additions (lora.py) cost in parameters and memory, from the settings alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pion.config import ModelConfig
from pion.lora import ATTENTION, Lora, target_shapes
from pion.model.pass_kind import PassKind


@dataclass(frozen=True)
class LoraCost:
    """The costs of the additions to a model.

    Attributes:
        params: the numbers in all A and B.
        tensors: how many A and B there are.
        layer: for each layer, the numbers in its A and B, and how many projections have additions.
        widest: the greatest sum of the inputs and the results of a target.
        result: the most results of a target.
    """

    params: int
    tensors: int
    layer: tuple[tuple[int, int], ...]
    widest: int
    result: int


@lru_cache(maxsize=16)
def lora_cost(config: ModelConfig, lora: Lora) -> LoraCost:
    """Return the costs of the additions. Raises BadInput if they don't fit the model."""
    shapes = target_shapes(config)
    targets = lora.targets_of(config)
    wiring = config.wiring
    layers = []
    for layer in range(config.n_layers):
        attends = wiring is None or wiring.attention_layers is None
        attends = attends or layer in wiring.attention_layers  # type: ignore[union-attr, operator]
        names = [name for name in targets if attends or name not in ATTENTION]
        layers.append((sum(lora.rank * sum(shapes[name]) for name in names), len(names)))
    return LoraCost(
        params=sum(params for params, _ in layers),
        tensors=sum(2 * projections for _, projections in layers),
        layer=tuple(layers),
        widest=max(sum(shapes[name]) for name in targets),
        result=max(shapes[name][0] for name in targets),
    )


def kept_by_additions(cost: LoraCost, lora: Lora, at: PassKind, layers: int) -> int:
    """Return the bytes of a token that the first `layers` layers keep: A x of each projection."""
    return sum(at.width * lora.rank * projections for _, projections in cost.layer[:layers])


def copies_of_additions(cost: LoraCost, at: PassKind) -> tuple[int, ...]:
    """Return the bytes of the copies of each layer's A and B that bf16 products read."""
    return tuple(0 if at.width == 4 else at.width * params for params, _ in cost.layer)


def passing_forward(cost: LoraCost, at: PassKind, tokens: int) -> int:
    """Return the most bytes that a projection has at once: its result, B A x, scaled, and the sum
    (which is kept)."""
    return 3 * at.width * cost.result * tokens


def passing_backward(cost: LoraCost, at: PassKind, tokens: int) -> int:
    """Return the most bytes that an addition adds to the backward pass of a projection: the scaled
    gradient of its result, and a gradient of its input next to the base's."""
    return at.width * cost.widest * tokens
