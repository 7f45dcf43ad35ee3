"""The memory plan: a traced model keeps for the backward pass what autograd keeps of a real one."""

import pytest
import torch

from pion.model.attention.attention import CPU_BF16_TOKENS
from pion.train.memory_trace.step import StepTrace
from pion.train.workload import Workload
from tests.families.families import FAMILIES, SEQ_LEN, often


def kept_by_autograd(model, rows, seq_len, *, bf16, many):
    """Return the bytes that a forward pass saves, without the parameters."""
    tokens = torch.zeros(rows, seq_len, dtype=torch.int64)
    documents = torch.zeros_like(tokens) if many else None
    positions = torch.zeros_like(tokens) if many else None
    given = {tensor.untyped_storage().data_ptr() for tensor in (tokens, *model.parameters())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage().data_ptr()
        if storage not in given:
            kept.setdefault(storage, tensor)
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        model.hidden(tokens, documents=documents, positions=positions)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# How far a trace may be over what autograd keeps. Of a dense model, no more than a tenth.
MOST = 1.15


@often("pion", "tachyon", "daisy", "lepton")
@pytest.mark.parametrize(
    ("seq_len", "dtype", "documents"),
    [
        pytest.param(SEQ_LEN, "bfloat16", False, id="short"),
        pytest.param(SEQ_LEN, "bfloat16", True, id="short, documents"),
        pytest.param(
            CPU_BF16_TOKENS + 64, "float32", True, id="long, documents", marks=pytest.mark.soak
        ),
    ],
)
def test_a_trace_keeps_what_autograd_keeps(family, seq_len, dtype, documents):
    """Of what two rows more keep, so that copies of the weights drop out."""
    model = family.decoder(seq_len=seq_len)
    trace = StepTrace(Workload(model.config, seq_len, dtype, "adamw", "cpu", documents).traced())
    few, more = (trace.peaks(rows, recompute=False).activations for rows in (2, 4))
    bf16 = dtype == "bfloat16"
    less, kept = (
        kept_by_autograd(model, rows, seq_len, bf16=bf16, many=documents) for rows in (2, 4)
    )
    most = 1.1 if family is FAMILIES["pion"] else MOST
    assert kept - less <= more - few <= most * (kept - less)
