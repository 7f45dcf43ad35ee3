"""Low-rank additions to a frozen model's projections (Hu et al. 2022, "LoRA").

A projection with an addition computes y = W x + b + (alpha / rank) · B A x. W and the bias b, if
there is one, are frozen, and A and B are trained. A is drawn as peft draws it, and B is 0, so that
training starts from the base's own results. Merging writes W + (alpha / rank) · B A in place of W,
computed in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pion.config.lora import ATTENTION, Lora
from pion.errors import BadInput
from pion.later_fields import shown
from pion.model.decoder import ROLES_IN_FP32, Decoder
from pion.model.norm_and_projection import Projection, project
from pion.model.parameters import parameter_roles, require_finite, round_to_bfloat16

A, B = "lora_a", "lora_b"


class LoraProjection(Projection):
    """A frozen projection of (…, in) -> (…, out) with a low-rank addition.

    The parameters `weight` (out, in) and `bias` (out), if there is one, are those of `base` and
    keep their names. `lora_a` is (rank, in) and `lora_b` (out, rank), in fp32.
    """

    def __init__(self, base: Projection, lora: Lora) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features)
        self.weight, self.bias = base.weight, base.bias
        self.scale = lora.scale
        # A base without values gets its own later, and the additions are small.
        device = "cpu" if base.weight.is_meta else base.weight.device
        self.lora_a = nn.Parameter(torch.empty(lora.rank, base.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, lora.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out). Where `lora_b` is 0, the result is the base's."""
        low = project(x, self.lora_a.to(x.dtype))
        return super().forward(x) + project(low, self.lora_b.to(x.dtype)) * self.scale

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Return W + (alpha / rank) · B A, (out, in) in fp32. Where B A is 0, W keeps its bits."""
        return merged_weight(self.weight, self.lora_a, self.lora_b, self.scale)


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return W + scale · B A in fp32, for W (out, in). Where B A is 0, W keeps its bits."""
    weight = weight.float()
    added = (b.float() @ a.float()) * scale
    return torch.where(added == 0, weight, weight + added)


def adapted(
    base: Decoder,
    lora: Lora,
    *,
    seed: int,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor] | None = None,
) -> Decoder:
    """Return a decoder that trains LoRA's additions to `base` by products in `dtype`.

    The additions begin as `tensors`; None: as new ones, drawn with the `seed`. The frozen weights
    are stored in bfloat16 if products read them in bfloat16 and that has their exact values, and
    otherwise in fp32. If the settings ask for bfloat16, the values are rounded, whatever the
    products. `base` may not be used afterwards. Raises BadInput as `add_lora` does, and for tensors
    that are not the additions of these settings.
    """
    lora.targets_of(base.config)  # before weights are copied
    if lora.base_dtype == "bfloat16":
        round_to_bfloat16(base, weights_of_products(base))
    if dtype == torch.bfloat16 and is_bfloat16(base):
        base = Decoder.from_state(base.config, base.state_dict(), torch.bfloat16)
    add_lora(base, lora, seed, tensors)
    return base


def add_lora(
    model: Decoder, lora: Lora, seed: int, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Freeze all parameters of `model`, and give its target projections trained additions.

    They are `tensors`. If this is None, A is drawn from `seed`, uniform within ±1 / √in as in peft,
    and B is 0. Raises BadInput if the settings don't fit the model, and for tensors that are not
    the additions of these settings.
    """
    targets = lora.targets_of(model.config)
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for block in model.layers:
        for name in targets:
            parent = block.attention if name in ATTENTION else block.feedforward
            if parent is not None:  # a layer may have no attention
                added = LoraProjection(getattr(parent, name), lora)
                drawn = torch.empty(added.lora_a.shape, device="cpu")
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                with torch.no_grad():
                    added.lora_a.copy_(drawn)
                setattr(parent, name, added)
    if tensors is not None:
        copy_additions(tensors, model)


def additions(model: Decoder) -> dict[str, Tensor]:
    """Return the tensors of all additions by their names in the state dict, as live references."""
    return {name: t for name, t in model.state_dict().items() if name.endswith((f".{A}", f".{B}"))}


def merge(model: Decoder) -> Decoder:
    """Return a decoder in fp32 without additions, whose weights are the merged ones, copied."""
    added = additions(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in added}
    state |= {
        f"{path}.weight": part.merged()
        for path, part in model.named_modules()
        if isinstance(part, LoraProjection)
    }
    return Decoder.from_state(model.config, state)


@torch.no_grad()
def copy_additions(source: Mapping[str, Tensor], model: Decoder) -> None:
    """Overwrite the additions of a model. Raises BadInput for tensors that are not these."""
    target = additions(model)
    for name in sorted(target.keys() ^ source.keys()):
        problem = "there is no tensor" if name in target else "unexpected tensor"
        raise BadInput(f"{problem} {shown(name)} of LoRA")
    require_finite(source)
    for name, tensor in source.items():
        if tensor.shape != target[name].shape:
            raise BadInput(
                f"{name} has shape {tuple(tensor.shape)}; the settings of LoRA need "
                f"{tuple(target[name].shape)}"
            )
        target[name].copy_(tensor)


def is_bfloat16(model: Decoder) -> bool:
    """Return whether bfloat16 has the exact value of every weight that products read."""
    state = model.state_dict()
    return all(has_bfloat16_values(state[name]) for name in weights_of_products(model))


def has_bfloat16_values(tensor: Tensor) -> bool:
    """Return whether bfloat16 has the exact value of every number."""
    return torch.equal(tensor, tensor.bfloat16().to(tensor.dtype))


def weights_of_products(model: Decoder) -> list[str]:
    """Return the names of the matrices, the embeddings and the head, to which `Decoder.from_state`
    gives a dtype."""
    return [name for name, role in parameter_roles(model).items() if role not in ROLES_IN_FP32]
