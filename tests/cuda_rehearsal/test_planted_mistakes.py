"""The rehearsal finds mistakes that planted.py makes, each by the right kind of finding."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cuda_rehearsal.planted import PLANTED
from tests.cuda_rehearsal.report import Kind, Report

Reports = dict[str, Report]

# By the mistake's name: the kind of finding, and what its operation and its line contain.
FOUND_AS: dict[str, tuple[Kind, str, str]] = {
    "a norm reads a value": ("host_sync", "_local_scalar_dense", "norm_that_reads"),
    "the rotary table is on the host": ("wrong_device", "aten.mul", "pion/model/attention/rope.py"),
    "positions look up a table on the host": (
        "wrong_device",
        "aten.index",
        "pion/model/attention/rope.py",
    ),
    "the mask is on the host": ("wrong_device", "attention", "pion/model/attention/attention.py"),
    "rope computes in fp64": ("fp64", "aten.mul", "pion/model/attention/rope.py"),
    "a norm has an fp64 constant": ("fp64", "aten.mul", "norm_with_fp64_scale"),
    "AdamW counts its steps on the host": ("wrong_device", "_fused_adamw_", "optimizer.py"),
    "AdamW has a moment on the host": ("wrong_device", "_fused_adamw_", "optimizer.py"),
    "Muon reads a norm": ("host_sync", "_local_scalar_dense", "step_that_reads"),
    "the optimizer waits for the card": ("host_sync", "synchronize", "step_that_waits"),
    "a save waits for its copies": ("host_sync", "synchronize", "step_that_waits"),
    "a save is not page-locked": ("host_sync", "not page-locked", "pion/train/side_copy.py"),
    "the copy of a batch blocks": ("host_sync", "_to_copy", "planted.py"),
    "batches are not page-locked": ("unpinned_copy", "_to_copy", "pion/data/stream.py"),
    "experts group products where torch has no kernel": (
        "host_sync",
        "_grouped_mm",
        "expert_products.py",
    ),
    "the operation of experts reads a value": (
        "host_sync",
        "_local_scalar",
        "row_multiple_if_small",
    ),
    "a window reads the documents": ("host_sync", "_local_scalar", "visited_after_reading"),
    "the router looks up which experts are used": ("host_sync", "nonzero", "with_tokens_counted"),
    "evaluation indexes by a mask": ("host_sync", "index_put_", "token_nll_by_mask"),
    "evaluation indexes by a list": ("host_sync", "_to_copy", "token_nll_by_list"),
    "generation copies a token with torch.tensor": ("host_sync", "_to_copy", "by_tensor"),
    "the cache is on the host": ("host_sync", "copy_", "pion/model/attention/cache.py"),
}
# By the mistake's name: a tensor that is not on the card afterwards.
ON_THE_HOST = {
    "AdamW counts its steps on the host": "steps",
    "AdamW has a moment on the host": "exp_avg_sqs",
    "a layer keeps a tensor on the host": "scale",
}
IN_FP32 = {"a layer multiplies in fp32"}
# By the mistake's name: why the step is no graph.
NOT_CAPTURED = {
    "a captured step reads a value": "_local_scalar_dense",
    "a captured step copies from the host": "_to_copy",
}


pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def reports(on_pretended_card: Callable[[str], Reports]) -> Reports:
    return on_pretended_card("tests.cuda_rehearsal.planted")


@pytest.mark.parametrize("name", FOUND_AS)
def test_a_mistake_is_found(reports: Reports, name: str) -> None:
    kind, operation, line = FOUND_AS[name]
    found = reports[name].findings
    assert [f for f in found if f.kind == kind and operation in f.operation and line in f.where]
    if PLANTED[name].scenario.startswith("train"):  # without the mistake it has no finding
        assert {finding.kind for finding in found} == {kind}


@pytest.mark.parametrize("name", ON_THE_HOST)
def test_a_tensor_on_the_host_is_found(reports: Reports, name: str) -> None:
    assert reports[name].error is None
    on_host = [tensor for tensor, place in reports[name].tensors.items() if "cpu" in place]
    assert on_host
    assert all(ON_THE_HOST[name] in tensor for tensor in on_host)


@pytest.mark.parametrize("name", IN_FP32)
def test_a_product_in_the_wrong_dtype_is_found(reports: Reports, name: str) -> None:
    assert reports[name].error is None
    assert "torch.float32" in reports[name].matmuls


@pytest.mark.parametrize("name", NOT_CAPTURED)
def test_a_step_that_is_no_graph_is_found(reports: Reports, name: str) -> None:
    error = str(reports[name].error)
    assert "operation not permitted when stream is capturing" in error
    assert NOT_CAPTURED[name] in error


def test_every_mistake_is_checked() -> None:
    checked = FOUND_AS.keys() | ON_THE_HOST.keys() | NOT_CAPTURED.keys() | IN_FP32
    assert PLANTED.keys() == checked
