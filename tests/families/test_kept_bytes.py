"""The memory plan: what a block keeps for the backward pass is what the block says."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pion.model.decoder
from pion.model.attention.attention import CPU_BF16_TOKENS
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.model.params_and_flops import kept_bytes_per_token, kept_if_recomputed
from pion.model.pass_kind import PassKind
from tests.families.families import SEQ_LEN, Family, each_family


def kept_by_blocks(model: Decoder, rows: int, seq_len: int, at: PassKind) -> list[int]:
    """Return the bytes that autograd saves in each block, without the parameters."""
    tokens = torch.zeros(rows, seq_len, dtype=torch.int64)
    documents = torch.arange(seq_len).expand(rows, -1) * 3 // seq_len
    given = {tensor.untyped_storage().data_ptr() for tensor in (tokens, *model.parameters())}
    kept: dict[int, tuple[int, Tensor]] = {}  # by storage: the first block that saved it
    # What is saved between two blocks belongs to the later block.
    current = 0

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in given:
            kept.setdefault(storage, (current, tensor))
        return tensor

    def leave(*_: object) -> None:
        nonlocal current
        current += 1

    hooks = [block.register_forward_hook(leave) for block in model.blocks]
    if model.embed_norm is not None:
        current = -1
        hooks.append(model.embed_norm.register_forward_hook(leave))
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=at.width == 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), bf16:
        model.hidden(tokens, documents=documents if at.documents else None)
    for hook in hooks:
        hook.remove()
    bytes_of: dict[int, int] = defaultdict(int)
    for layer, tensor in kept.values():
        bytes_of[layer] += tensor.untyped_storage().nbytes()
    return [bytes_of[layer] for layer in range(len(model.blocks))]


@each_family
@pytest.mark.parametrize("documents", [False, True], ids=["text", "documents"])
@pytest.mark.parametrize("width", [2, 4], ids=["bf16", "fp32"])
@pytest.mark.parametrize("seq_len", [SEQ_LEN, CPU_BF16_TOKENS + 64], ids=["short", "long"])
def test_each_block_keeps_what_it_says_and_never_more(
    family: Family, seq_len: int, width: int, documents: bool
) -> None:
    """Of what one row more keeps, so that copies of the weights drop out."""
    model = family.decoder(seq_len=seq_len)
    entries = model.config.entries(seq_len)
    at = PassKind(width, entries, "cpu", documents)
    few, many = (kept_by_blocks(model, rows, seq_len, at) for rows in (1, 2))
    measured = [(more - less) / entries for less, more in zip(few, many, strict=True)]
    said = kept_bytes_per_token(model.config, at)
    if documents and model.config.slots is not None:  # each row has its own rotation, in block 0
        measured[0] -= 4 * model.config.head_dim
    for block, kept in zip(said, measured, strict=True):
        assert kept <= block <= 1.1 * kept


@each_family
def test_recomputed_blocks_keep_what_they_read(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family.decoder()
    given = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}
    checkpoint = pion.model.decoder.checkpoint

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    def watched(block: object, *arguments: object, **options: object) -> object:
        for leaf in tree_leaves(arguments):
            if isinstance(leaf, Tensor):
                keep(leaf)
        return checkpoint(block, *arguments, **options)

    monkeypatch.setattr(pion.model.decoder, "checkpoint", watched)

    def measured(rows: int) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.hidden(
                torch.zeros(rows, SEQ_LEN, dtype=torch.int64), options=StepOptions(recompute=True)
            )
        found = {at: tensor for at, tensor in kept.items() if at not in given}
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    one_row_more = (measured(2) - measured(1)) / model.config.entries(SEQ_LEN)
    # The norms before the first block and after the last one are not the blocks'.
    rest = 4 * model.config.d_model * 3
    said = sum(kept_if_recomputed(model.config, PassKind(4, SEQ_LEN)))
    assert one_row_more - rest <= said <= one_row_more
