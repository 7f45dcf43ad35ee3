"""Remember in this process what a compiled block needs: models of other depths have the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pion.model.block import Block
from pion.model.forward_pass import BlockInputs
from pion.train.memory_trace.block_memory import Measured
from pion.train.memory_trace.request import Traced

# What a block does not depend on, or only by its weights and inputs, which its structure has.
OF_THE_MODEL = ("n_layers", "vocab_size")

# By all that decides what a block needs. One is a few kilobytes.
_KNOWN: dict[tuple[str, str, Any], list[Measured]] = {}
MOST_KNOWN = 256


def structure_of(block: Block, tensors: list[Tensor], inputs: BlockInputs) -> Any:
    """Return what equal blocks have in common."""
    leaves, spec = tree_flatten(inputs)
    weights = tuple((n, p.shape, p.dtype, p.requires_grad) for n, p in block.named_parameters())
    given = tuple((tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in tensors)
    modules = [leaf for leaf in leaves if isinstance(leaf, nn.Module)]
    shared = tuple((p.shape, p.dtype, p.requires_grad) for m in modules for p in m.parameters())
    return repr(block), weights, given, shared, str(spec)


def remembered_block(
    what: Traced, structure: Any, measure: Callable[[], list[Measured]]
) -> list[Measured]:
    """Return what `measure` returns for a block. It is called only for a block that is new.

    To measure a block takes most of the time of a trace. `structure` is of its weights and inputs.
    """
    # The structure has the sequences of a row in the inputs, if a block reads them.
    rest = _all_but(what, "config", "sequences")
    key = _all_but(what.config, *OF_THE_MODEL), rest, structure
    if key not in _KNOWN:
        if len(_KNOWN) >= MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[key] = measure()
    return _KNOWN[key]


def _all_but(value: Any, *left_out: str) -> str:
    """Return the fields of a dataclass but these, as text."""
    names = [field.name for field in fields(value) if field.name not in left_out]
    return repr([(name, getattr(value, name)) for name in names])


def forget_blocks() -> None:
    """Forget all blocks."""
    _KNOWN.clear()
