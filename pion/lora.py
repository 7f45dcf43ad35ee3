"""The settings of LoRA: which projections of a model get a low-rank addition, and of which rank.

LoRA (Hu et al. 2022, "LoRA: Low-rank adaptation of large language models") freezes a base model and
trains two small matrices next to some of its projections. Without torch, so that a job is read
fast; the maths is in pion/model/lora_projections.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.later_fields import closest, shown
from pion.part_fields import is_number, is_whole

ALL_LINEAR: Literal["all-linear"] = "all-linear"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Lora:
    """What LoRA adds to a model: y = base(x) + (alpha / rank) · B(A(x)).

    Attributes:
        rank: the rows of A and the columns of B.
        alpha: the addition is scaled by alpha / rank.
        targets: "all-linear", or the names of projections, such as `q_proj`. The projections of
            these names get an addition in each layer. The head never gets one.
        base_dtype: of the values of the frozen base. None: the base's own; bfloat16: rounded.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: Literal["all-linear"] | tuple[str, ...] = ALL_LINEAR
    base_dtype: Literal["bfloat16"] | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.rank) or self.rank < 1:
            raise BadInput(f"rank: {shown(self.rank)} must be a whole number of at least 1")
        if not is_number(self.alpha, above=0):
            raise BadInput(f"alpha: {shown(self.alpha)} must be a finite number above 0")
        if self.base_dtype not in (None, "bfloat16"):
            raise BadInput(f"base_dtype: {shown(self.base_dtype)} must be bfloat16, or left out")
        if self.targets == ALL_LINEAR:
            return
        if not isinstance(self.targets, tuple) or not self.targets:
            raise BadInput(f"targets: {shown(self.targets)} must be all-linear or a list of names")
        if len(set(self.targets)) < len(self.targets):
            raise BadInput(f"targets: {shown(list(self.targets))} names a projection twice")

    @property
    def scale(self) -> float:
        """The factor alpha / rank of B(A(x))."""
        return self.alpha / self.rank

    def targets_of(self, config: ModelConfig) -> tuple[str, ...]:
        """Return the names of the projections of this model that get an addition.

        Raises BadInput, beginning with the name of the wrong field, for a target that the model
        does not have or that can't have an addition, and for a rank above a projection's smaller
        side.
        """
        shapes = target_shapes(config)
        names = self._names(config, shapes)
        narrowest = min(names, key=lambda name: min(shapes[name]))
        if self.rank > (side := min(shapes[narrowest])):
            raise BadInput(f"rank: {self.rank} is above {side}, the smaller side of {narrowest}")
        return names

    def _names(self, config: ModelConfig, known: Collection[str]) -> tuple[str, ...]:
        if self.targets == ALL_LINEAR:
            kind = _not_linear(config)
            if kind is not None:
                raise BadInput(
                    f"targets: all-linear can't reach the {kind} of this model's feed-forward "
                    f"layers. Name projections of attention: [{', '.join(known)}]"
                )
            return tuple(known)
        for name in self.targets:
            if name not in known:
                raise BadInput(
                    f"targets: the model has no projection {shown(name)} that LoRA can adapt"
                    f"{closest(name, known)}; it has {', '.join(known)}"
                )
        return tuple(name for name in known if name in self.targets)


def target_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shapes (out, in) of the projections that LoRA can adapt, by their names.

    These are attention's projections, and those of dense feed-forward layers. The matrices of
    experts and primitives are no projections.
    """
    query, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes = {
        "q_proj": (query, config.d_model),
        "k_proj": (kv, config.d_model),
        "v_proj": (kv, config.d_model),
        "o_proj": (config.d_model, query),
    }
    if _not_linear(config) is None:
        up, down = (config.d_ff, config.d_model), (config.d_model, config.d_ff)
        gate = {"gate_proj": up} if config.activation == "swiglu" else {}
        shapes |= {**gate, "up_proj": up, "down_proj": down}
    return shapes


def _not_linear(config: ModelConfig) -> str | None:
    """Return what the feed-forward layers have in place of projections; None if projections."""
    if config.primitives is not None:
        return "primitives"
    return None if config.experts is None else "experts"
