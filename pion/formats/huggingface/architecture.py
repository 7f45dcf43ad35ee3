"""What an architecture of transformers is, and how a field of its config is refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.model_tensors import Rows
from pion.later_fields import shown

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = "dict[str, Tensor]"
# Entries of a config.json.
Fields: TypeAlias = Mapping[str, Any]

HEAD = "lm_head.weight"


class Architecture(ABC):
    """A model class of transformers, and how our models become its models and back.

    Attributes:
        name: the name of the class.
        model_type: its name in a config.json.
        stock: whether it is part of transformers; the export of any other has modelling files.
    """

    name: str
    model_type: str
    stock = True

    @property
    def short_name(self) -> str:
        """The name without what every class's name ends with."""
        return self.name.removesuffix("ForCausalLM")

    def misfit(self, config: ModelConfig) -> str | None:
        """Return why the class can't compute the model; None if it can."""
        lacks = self.lacks(config)
        return f"{self.short_name} does not support {', '.join(lacks)}" if lacks else None

    @abstractmethod
    def lacks(self, config: ModelConfig) -> list[str]:
        """Return which settings of the model the class does not have."""

    @abstractmethod
    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict."""

    @abstractmethod
    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        """Return our settings for config fields. Raises BadInput."""

    @abstractmethod
    def rename(self, config: ModelConfig, hf_state: State) -> State:
        """Return the tensors by our names. Raises BadInput."""

    @abstractmethod
    def sources(self, config: ModelConfig, ours: Iterable[str]) -> dict[str, list[Rows]]:
        """Return of which rows of its tensors each of `ours` is made: of one, or of a stack."""


def require(hf_config: Fields, name: str, allowed: tuple[Any, ...]) -> None:
    """Raise BadInput if a field has none of the allowed values. It may be missing."""
    value = hf_config.get(name, allowed[0])
    if value not in allowed:
        verb = "is" if len(allowed) == 1 else "are"
        raise BadInput(
            f"config.json: {name} is {shown(value)}; only {' and '.join(map(repr, allowed))} {verb}"
            " supported"
        )
