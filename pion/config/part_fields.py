"""How the fields of a model's parts (parts.py) are declared and checked."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from pion.errors import BadInput
from pion.later_fields import BEFORE, shown

MEANING = "meaning"
# The largest whole number that JSON carries exactly, and the largest number that is sure to fit
# fp32.
LARGEST_WHOLE, LARGEST_NUMBER = 2**53, 1e30
# Matrix products are fast, and grouped ones possible, if rows of bf16 are a multiple of this many
# bytes.
ROW_BYTES = 16


def setting(meaning: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field of a part that a job can set; `meaning` is for the job's reference."""
    return dataclasses.field(default=default, metadata={MEANING: meaning})


def later_setting(meaning: str, default: Any, *, before: Any) -> Any:
    """Declare a field that a part gained after runs had recorded it; see later_fields.py."""
    return dataclasses.field(default=default, metadata={MEANING: meaning, BEFORE: before})


def imported(default: Any) -> Any:
    """Declare a field of a part that only an importer sets, to compute what a seed computed."""
    return dataclasses.field(default=default)


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number that any setting could have."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE


def is_number(value: object, above: float = -LARGEST_NUMBER) -> bool:
    """Return whether a value is a number above `above` that any setting could have."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and above < value <= LARGEST_NUMBER  # type: ignore[operator]


def require_whole(name: str, value: Any, least: int) -> None:
    if not is_whole(value) or value < least:
        raise BadInput(f"{name} is {shown(value)}; it must be a whole number of at least {least}")


def require_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise BadInput(f"{name} is {shown(value)}; it must be true or false")


def require_one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise BadInput(f"{name} is {shown(value)}; it must be {' or '.join(known)}")


def require_weight(name: str, value: object) -> None:
    if not is_number(value) or value < 0:  # type: ignore[operator]
        raise BadInput(f"{name} is {shown(value)}; it must be a number of at least 0")


def require_list(name: str, value: object) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise BadInput(f"{name} is {shown(value)}; it must be a list")
    return value


def layer_numbers(name: str, value: object) -> tuple[int, ...]:
    """Return layer numbers as a tuple: a record has a list."""
    layers = require_list(name, value)
    for layer in layers:
        require_whole(name, layer, least=0)
    return tuple(layers)


class SomeExperts(Protocol):
    """What other parts need to know of a model's experts."""

    @property
    def n(self) -> int: ...
    @property
    def shared(self) -> int: ...


class Core(Protocol):
    """The fields of a model that its parts must fit: a ModelConfig has them."""

    @property
    def d_model(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def positions(self) -> str: ...
    @property
    def activation(self) -> str: ...
    @property
    def attention_layers(self) -> Sequence[int]: ...
    @property
    def experts(self) -> SomeExperts | None: ...
    @property
    def feedforward(self) -> str: ...


class FeedForwardPart(ABC):
    """What the core asks of the settings of a part that computes feed-forward layers.

    `roles` are those that only parameters of this part have.
    """

    roles: ClassVar[tuple[str, ...]] = ()

    def modules(self, model: Core) -> int:
        """Return the number of modules inside a layer of the model."""
        return 0

    @abstractmethod
    def least_elements(self, model: Core) -> Iterator[tuple[str, int]]:
        """Yield the sizes of the largest tensors that the part needs, by what they are."""

    @property
    def packed(self) -> bool:
        """Whether the weights are packed, as in a published model. Then they can't be trained."""
        return False

    @property
    def unlike_dense(self) -> str | None:
        """What dense layers can't compute; None: the part can be multiplied out to dense layers."""
        return None

    @property
    def phase_sizes(self) -> dict[str, int]:
        """The sizes that a phase of training may change, and the largest of each."""
        return {}

    def matrices(self, *, multiplied_out: bool) -> str | None:
        """Say in a few words what the matrices of a layer are mixed of; None: they are not mixed.

        With `multiplied_out`, a file has the products instead.
        """
        return None

    @property
    def groups(self) -> int:
        """The number of groups of layers, of which a phase may train only some."""
        return 0
