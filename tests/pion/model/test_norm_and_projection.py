"""A projection adds its bias in every way in which it is computed."""

import pytest
import torch

from pion.model.norm_and_projection import (
    FEW_TOKENS,
    Projection,
    in_one_product,
    join,
    project,
    project_together,
)


def drawn(outputs, *, bias=True):
    projection = Projection(24, outputs, bias=bias)
    torch.nn.init.normal_(projection.weight)
    if projection.bias is not None:
        torch.nn.init.normal_(projection.bias)
    return projection


@pytest.mark.parametrize("tokens", [1, 2, FEW_TOKENS, FEW_TOKENS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_added_to_few_tokens_and_to_many(dtype, tokens):
    """A bias keeps fp32, and the result has the dtype of the weight."""
    torch.manual_seed(0)
    projection = drawn(16)
    x, weight = torch.randn(1, tokens, 24).to(dtype), projection.weight.to(dtype)
    found = project(x, weight, projection.bias)
    expected = x.float() @ weight.float().T + projection.bias
    assert found.dtype == dtype
    exact = dtype == torch.float32
    torch.testing.assert_close(
        found.float(), expected, rtol=1e-5 if exact else 0.02, atol=1e-4 if exact else 0.1
    )


def test_joined_projections_have_the_biases_of_all():
    torch.manual_seed(0)
    parts = [drawn(16), drawn(8), drawn(8)]
    x = torch.randn(2, 5, 24)
    expected = torch.cat([part(x) for part in parts], dim=-1)
    weight, bias = join(parts)
    torch.testing.assert_close(project(x, weight, bias), expected)
    assert join([drawn(16, bias=False), drawn(8, bias=False)])[1] is None


@pytest.mark.parametrize("bias", [False, True])
def test_projections_in_one_product_have_their_own_results_and_gradients(bias):
    torch.manual_seed(0)
    parts = [drawn(16, bias=bias), drawn(8, bias=bias), drawn(8, bias=bias)]
    weights = [weight for part in parts for weight in part.parameters()]
    x = torch.randn(2, 5, 24, requires_grad=True)
    factors = [torch.randn(2, 5, part.out_features) for part in parts]
    found = []
    for compute in (project_together, in_one_product):
        results = compute(x, parts)
        pairs = zip(results, factors, strict=True)
        total = sum((result * factor).sum() for result, factor in pairs)
        found.append([*results, *torch.autograd.grad(total, [x, *weights])])
    for separate, together in zip(*found, strict=True):
        torch.testing.assert_close(together, separate, rtol=1e-5, atol=1e-5)


def test_one_product_has_the_dtype_of_autocast():
    parts = [drawn(16), drawn(8)]
    with torch.autocast("cpu", torch.bfloat16):
        results = in_one_product(torch.randn(2, 24), parts)
    assert [result.dtype for result in results] == [torch.bfloat16] * 2
