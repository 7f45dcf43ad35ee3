"""LoRA on a base that no process has whole: its weights are read, or merged, one by one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder
from pion.model.lora_projections import (
    A,
    B,
    add_lora,
    additions,
    has_bfloat16_values,
    merged_weight,
    weights_of_products,
)
from pion.model.saved_weights import Layout, Rounded, Saved, Tensors, without_values


def lazily_adapted(
    config: ModelConfig,
    base: Saved,
    lora: Lora,
    *,
    seed: int,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor] | None = None,
) -> tuple[Decoder, Saved]:
    """Return the decoder that `adapted` returns, and the weights of its base.

    The base's weights are on the device `meta`, in the dtype in which they are kept. What LoRA adds
    has its values. Raises BadInput as `adapted` does, and for weights of parts that do not
    fit each other.
    """
    lora.targets_of(config)  # before weights are read
    model = without_values(config)
    for part in model.shared_parts():
        part.check_weights(model.blocks, Tensors(base))
    names, in_bf16 = weights_of_products(model), dtype == torch.bfloat16
    if lora.base_dtype == "bfloat16":
        base = Rounded(base, names)
    elif in_bf16:
        every = Tensors(base)
        in_bf16 = all(has_bfloat16_values(every[name].float()) for name in names)
    if in_bf16:
        for name in names:
            weight = model.get_parameter(name)
            weight.data = weight.data.bfloat16()
    add_lora(model, lora, seed, tensors)
    return model, base


class LazyMerge:
    """The weights of `base` with LoRA's additions `tensors` merged into them, as `merge` merges
    them.

    Raises BadInput for tensors that are not the additions of these settings.
    """

    def __init__(
        self, config: ModelConfig, base: Saved, lora: Lora, tensors: Mapping[str, Tensor]
    ) -> None:
        lora.targets_of(config)
        model = without_values(config)
        if lora.base_dtype == "bfloat16":
            base = Rounded(base, weights_of_products(model))
        add_lora(model, lora, seed=0, tensors=tensors)
        self._base, self._weights, self._scale = base, Tensors(base), lora.scale
        self._added = additions(model)
        self._last: tuple[str, Tensor] | None = None

    def layout(self) -> Layout:
        """Return the shape and the dtype of each tensor, by name."""
        return {
            name: (shape, torch.float32 if dtype.is_floating_point else dtype)
            for name, (shape, dtype) in self._base.layout().items()
        }

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a flattened tensor."""
        path = name.removesuffix(".weight")
        if f"{path}.{A}" not in self._added:
            return self._base.part(name, start, stop)
        if self._last is None or self._last[0] != name:
            self._last = None  # its memory is needed
            a, b = (self._added[f"{path}.{part}"] for part in (A, B))
            self._last = name, merged_weight(self._weights[name], a, b, self._scale)
        return self._last[1].view(-1)[start:stop]
