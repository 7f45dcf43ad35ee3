"""The operations that torch computes, with what each was given and what it made."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ADDING_BY_PLACE = ("index_add", "scatter_add", "scatter_reduce", "embedding")


@dataclass(frozen=True)
class Seen:
    """What is written down of a tensor. The tensor is not kept: autograd would then copy it."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    address: int = field(compare=False)
    stored: int = field(compare=False)  # elements of its storage

    @classmethod
    def of(cls, tensor: Tensor) -> "Seen":
        stored = tensor.untyped_storage().nbytes() // tensor.element_size()
        offset = int(tensor.storage_offset())
        return cls(tensor.shape, tensor.stride(), offset, tensor.data_ptr(), stored)


class Operation(NamedTuple):
    """One operation. `given` has the arguments, also those by name. Tensors are `Seen`."""

    func: Any
    given: tuple[Any, ...]
    result: Any

    @property
    def name(self) -> str:
        return str(self.func.overloadpacket.__name__)

    @property
    def adds_by_place(self) -> bool:
        """Whether a GPU adds up in an order that changes from run to run."""
        accumulates = "index_put" in self.name and any(value is True for value in self.given)
        return accumulates or any(adding in self.name for adding in ADDING_BY_PLACE)


class Operations(TorchDispatchMode):
    """Lists the operations of a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tree_map_only(Tensor, Seen.of, (*args, *(kwargs or {}).values()))
        result = func(*args, **(kwargs or {}))
        self.calls.append(Operation(func, given, tree_map_only(Tensor, Seen.of, result)))
        return result


def tensors_in(values: Any) -> list[Seen]:
    """Return the tensors in lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Seen)]
