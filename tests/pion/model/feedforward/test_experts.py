"""Routing to experts: the maths written out, gradients, padding, and compilation in one graph."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import silu

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts as Settings
from pion.errors import BadInput
from pion.model.decoder import Decoder
from pion.model.feedforward.expert_products import mix_experts, product_path
from pion.model.feedforward.experts import Experts
from pion.model.parameters import draw_weights
from tests.support.operations import Operations
from tests.support.tiny_config import tiny_config

NEEDS_GROUPED_PRODUCTS = pytest.mark.skipif(
    not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped products"
)

CONFIG = tiny_config(d_model=16, d_ff=24, experts=Settings(n=5, top_k=2, shared=1, d_shared=8))


def layer(seed=0):
    torch.manual_seed(seed)
    experts = Experts(CONFIG)
    draw_weights(experts, "normal", 0.3, tied=False)
    return experts


def written_out(experts, x):
    """Return what the layer computes for (tokens, d_model), one token and one expert at a time."""
    rows = []
    for token in x:
        probabilities = (experts.router @ token).softmax(dim=0)
        chosen = probabilities.argsort(descending=True)[:2]
        total, _ = experts.shared[0](token)
        for e in chosen:
            hidden = silu(experts.gate_proj[e] @ token) * (experts.up_proj[e] @ token)
            weight = probabilities[e] / probabilities[chosen].sum()
            total = total + weight * (experts.down_proj[e] @ hidden)
        rows.append(total)
    return torch.stack(rows)


def test_each_token_gets_its_experts_and_the_shared_one():
    experts, x = layer(), torch.randn(2, 7, 16)
    result, _ = experts(x)
    torch.testing.assert_close(result.view(14, 16), written_out(experts, x.view(14, 16)))


def test_gradients_are_those_of_the_maths_written_out():
    experts, x = layer(), torch.randn(1, 9, 16)
    direction = torch.randn(9, 16)
    (experts(x)[0][0] * direction).sum().backward()
    ours = {name: p.grad for name, p in experts.named_parameters()}
    experts.zero_grad()
    (written_out(experts, x[0]) * direction).sum().backward()
    for name, parameter in experts.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, msg=name)


def test_an_expert_without_tokens_gets_a_gradient_of_zero():
    x, weights = torch.randn(3, 4), torch.ones(3, 1)
    matrices = [torch.randn(3, *shape, requires_grad=True) for shape in ((6, 4), (6, 4), (4, 6))]
    ends = torch.tensor([2, 2, 3], dtype=torch.int32)  # no token chose the second expert
    mix_experts(x, matrices, weights, torch.arange(3), ends).sum().backward()
    for matrix in matrices:
        assert not matrix.grad[1].any()
        assert matrix.grad[0].any()


def mixture_gradients(dtype):
    """Return a mixture of 4 experts for 150 tokens, and its gradients."""
    torch.manual_seed(0)
    # Drawn in fp32: older versions of torch draw other numbers in bf16.
    x = torch.randn(150, 32).to(dtype).requires_grad_()
    matrices = [torch.randn(4, *shape) / 6 for shape in ((48, 32), (48, 32), (32, 48))]
    probabilities, chosen = torch.randn(150, 4).softmax(dim=1).topk(2, dim=1)
    inputs = [x, *matrices, probabilities]
    for given in inputs[1:]:
        given.requires_grad_()
    experts, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(experts, torch.arange(4), right=True).to(torch.int32)
    mixed = mix_experts(x, matrices, probabilities, order, ends)
    mixed.backward(torch.randn(150, 32).to(dtype))
    return [mixed, *(given.grad for given in inputs if given.grad is not None)]


def test_in_bf16_rows_that_fill_up_a_product_add_nothing():
    precise, padded = mixture_gradients(torch.float32), mixture_gradients(torch.bfloat16)
    assert len(precise) == len(padded) == 6
    for expected, found in zip(precise, padded, strict=True):
        assert (found - expected).norm() <= 0.02 * expected.norm()


def test_reports_are_in_the_same_order_in_each_process(monkeypatch):
    """Ranks add their reports up one by one, and Python orders sets of text by chance."""
    names = [f"report {n}" for n in range(8)]
    report = {name: torch.zeros(()) for name in ("aux", *names)}
    monkeypatch.setattr("pion.model.feedforward.experts.routing_report", lambda *_: report)
    tokens = torch.arange(24).view(1, 24)
    assert list(Decoder(CONFIG).losses(tokens, tokens).stats) == names


def test_a_router_that_prefers_nobody_has_the_least_loss():
    experts = layer()
    with torch.no_grad():
        experts.router.zero_()
    settings = replace(CONFIG.experts, z_weight=0.0, balance_weight=1.0)
    experts.settings = settings
    _, report = experts(torch.randn(1, 40, 16))
    assert report["aux"].item() == pytest.approx(1.0)
    assert report["entropy"].item() == pytest.approx(torch.tensor(5.0).log().item())


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "path"),
    [
        pytest.param("cuda", (9, 0), torch.bfloat16, "grouped", marks=NEEDS_GROUPED_PRODUCTS),
        pytest.param("cuda", (10, 3), torch.bfloat16, "grouped", marks=NEEDS_GROUPED_PRODUCTS),
        ("cuda", (9, 0), torch.float32, "sliced"),
        ("cuda", (8, 6), torch.bfloat16, "sliced"),
        ("cuda", (12, 0), torch.bfloat16, "sliced"),
        ("cpu", None, torch.bfloat16, "sliced"),
    ],
)
def test_each_device_takes_its_path(device, capability, dtype, path):
    assert product_path(device, capability, dtype) == path


def test_a_torch_without_grouped_products_computes_slices(monkeypatch):
    monkeypatch.setattr("pion.model.feedforward.expert_products._grouped_mm", None)
    assert product_path("cuda", (9, 0), torch.bfloat16) == "sliced"


@NEEDS_GROUPED_PRODUCTS
def test_grouped_products_compute_what_sliced_ones_do(monkeypatch):
    """Grouped products need a GPU to be fast. Their operations run on a CPU too."""
    sliced = mixture_gradients(torch.bfloat16)
    monkeypatch.setattr("pion.model.feedforward.expert_products.product_path", lambda *_: "grouped")
    grouped, precise = mixture_gradients(torch.bfloat16), mixture_gradients(torch.float32)
    assert len(sliced) == len(grouped) == 6
    for expected, found, exact in zip(sliced, grouped, precise, strict=True):
        assert (found - expected).norm() <= 0.02 * exact.norm()
        assert (found - exact).norm() <= 0.02 * exact.norm()


@NEEDS_GROUPED_PRODUCTS
def test_no_gradient_of_grouped_products_is_added_up_by_place(monkeypatch):
    """On a GPU that is slow, and the order of the sums changes from run to run."""
    monkeypatch.setattr("pion.model.feedforward.expert_products.product_path", lambda *_: "grouped")
    with Operations() as seen:
        mixture_gradients(torch.float32)
    assert "_grouped_mm" in {operation.name for operation in seen.calls}
    assert [operation.name for operation in seen.calls if operation.adds_by_place] == []


@NEEDS_GROUPED_PRODUCTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_grouped_products_have_the_gradients_of_plain_indexing_bit_by_bit(monkeypatch, dtype):
    monkeypatch.setattr("pion.model.feedforward.expert_products.product_path", lambda *_: "grouped")
    ours = mixture_gradients(dtype)
    plainly = {
        "_RowsOfChoices": lambda x, order, top_k: x[order // top_k],
        "_InOrderOfTokens": lambda parts, order: parts[order.argsort()],
    }
    for name, by_index in plainly.items():
        monkeypatch.setattr(f"pion.model.feedforward.expert_products.{name}.apply", by_index)
    plain = mixture_gradients(dtype)
    assert len(ours) == len(plain) == 6
    for found, expected in zip(ours, plain, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("path", ["sliced", pytest.param("grouped", marks=NEEDS_GROUPED_PRODUCTS)])
def test_a_block_compiles_to_one_graph(monkeypatch, path):
    monkeypatch.setattr("pion.model.feedforward.expert_products.product_path", lambda *_: path)
    torch.manual_seed(0)
    model = Decoder(CONFIG)
    tokens = torch.arange(24).view(1, 24)
    # Products are grouped in bf16 only, and torch 2.10 can't trace them otherwise.
    precision = torch.autocast("cpu", torch.bfloat16, enabled=path == "grouped")
    with precision:
        expected = model.losses(tokens, tokens)
    (expected.ce + expected.aux).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for block in model.blocks:
        block.compile(fullgraph=True, backend="eager")
    with precision:
        compiled = model.losses(tokens, tokens)
    (compiled.ce + compiled.aux).backward()
    assert torch.equal(compiled.ce, expected.ce)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2, "top_k": 3, "shared": 0}, "top_k 3 is more than experts.n 2"),
        ({"n": 2, "shared": 1}, "give the width of the shared experts"),
        ({"n": 2, "shared": 0, "z_weight": -1.0}, "z_weight is -1.0"),
        ({"n": 2.0, "shared": 0}, "experts.n is 2.0"),
        (
            {"n": 2, "shared": 0, "top": 1},
            "unknown model field 'experts.top'; did you mean 'top_k'",
        ),
        ({"shared": 0}, "missing experts.n"),
    ],
)
def test_settings_that_can_not_be_are_named(change, message):
    with pytest.raises(BadInput, match=message):
        ModelConfig.of({**CONFIG.to_dict(), "experts": change})
