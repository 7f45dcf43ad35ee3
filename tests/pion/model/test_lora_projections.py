"""LoRA's additions leave the base as it is, until B is no longer 0, and can be merged."""

import pytest
import torch

from pion.config.lora import Lora
from pion.errors import BadInput
from pion.model.forward_pass import StepOptions
from pion.model.lora_projections import (
    LoraProjection,
    adapted,
    add_lora,
    additions,
    is_bfloat16,
    merge,
)
from tests.pion.config.test_lora import EXPERTS, PRIMITIVES
from tests.support.tiny_config import drawn, tiny_config

BIASES = {"heads": {"qkv_bias": True}}
TINY = tiny_config(**BIASES)
SMALL = Lora(rank=4, alpha=8)
MODELS = {
    "tied": (TINY, SMALL),
    "untied": (tiny_config(tie_embeddings=False), SMALL),
    "two matrices": (tiny_config(activation="relu2", feedforward_bias=True), SMALL),
    "experts": (tiny_config(**EXPERTS, **BIASES), Lora(rank=4, targets=("q_proj", "o_proj"))),
    "primitives": (tiny_config(**PRIMITIVES), Lora(rank=4, targets=("v_proj",))),
    "slots": (tiny_config(slots={"per_segment": 2, "segment": 8, "window": 2}), SMALL),
    "one layer with attention": (tiny_config(wiring={"attention_layers": [1]}), SMALL),
}
TOKENS = torch.arange(48).view(2, 24) % 64


@pytest.fixture(params=MODELS)
def pair(request):
    """Return a base, and the same base with additions."""
    config, lora = MODELS[request.param]
    return drawn(config), with_additions(config, lora)


def with_additions(config=TINY, lora=SMALL):
    model = drawn(config)
    add_lora(model, lora, seed=3)
    return model


def scramble(model):
    """Give B values, as training does."""
    torch.manual_seed(1)
    for name, tensor in additions(model).items():
        if name.endswith("lora_b"):
            tensor.normal_(std=0.1)


def test_before_training_the_logits_are_the_bases_bit_for_bit(pair):
    base, model = pair
    assert torch.equal(base(TOKENS), model(TOKENS))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(base(TOKENS), model(TOKENS))


def test_before_training_the_merged_tensors_are_the_bases_bit_for_bit(pair):
    base, model = pair
    merged = merge(model).state_dict()
    assert merged.keys() == base.state_dict().keys()
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor.view(torch.int32), merged[name].view(torch.int32)), name


def test_a_negative_zero_of_the_base_survives_a_merge():
    model = drawn(TINY)
    model.state_dict()["blocks.0.attention.q_proj.weight"][0, 0] = -0.0
    add_lora(model, SMALL, seed=0)
    merged = merge(model).state_dict()["blocks.0.attention.q_proj.weight"]
    assert torch.signbit(merged[0, 0])


def test_after_training_the_merged_model_computes_what_the_additions_compute(pair):
    base, model = pair
    scramble(model)
    torch.testing.assert_close(merge(model)(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(base(TOKENS), model(TOKENS), atol=1e-3)


def test_a_merge_is_the_formula_in_fp32():
    model = with_additions()
    scramble(model)
    part = model.blocks[1].feedforward.down_proj
    expected = part.weight + (8 / 4) * (part.lora_b @ part.lora_a)
    assert torch.equal(merge(model).blocks[1].feedforward.down_proj.weight, expected)


def test_only_additions_learn_and_nothing_else_gets_a_gradient(pair):
    _, model = pair
    scramble(model)
    model.loss(TOKENS, TOKENS).backward()
    learned = {name for name, param in model.named_parameters() if param.grad is not None}
    assert learned == additions(model).keys()
    assert all(param.grad.any() for param in model.parameters() if param.grad is not None)


def test_a_is_drawn_as_peft_draws_it_and_by_the_seed_alone():
    one, other = with_additions(), with_additions()
    a = additions(one)["blocks.0.feedforward.down_proj.lora_a"]
    assert torch.equal(a, additions(other)["blocks.0.feedforward.down_proj.lora_a"])
    bound = 48**-0.5
    assert 0.9 * bound < float(a.abs().max()) <= bound
    assert not any(t.any() for n, t in additions(one).items() if n.endswith("lora_b"))


def test_recomputation_gives_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        model = with_additions()
        scramble(model)
        model.loss(TOKENS, TOKENS, options=StepOptions(recompute=recompute)).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_projections_with_additions_are_not_joined_silently():
    with pytest.raises(ValueError, match="merge them first"):
        with_additions().joined()
    merge(with_additions()).joined()


# ---------------------------------------------------------------- how the base is stored


def in_bfloat16():
    """Return a base whose weights have values of bfloat16, in fp32."""
    model = drawn(TINY)
    for parameter in model.parameters():
        parameter.data = parameter.bfloat16().float()
    return model


def stored(model):
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


def test_a_base_is_stored_in_bf16_where_that_is_lossless_and_products_are_in_bf16():
    model = adapted(in_bfloat16(), SMALL, seed=0, dtype=torch.bfloat16)
    found = stored(model)
    assert found["embed.weight"] == found["blocks.0.attention.q_proj.weight"] == torch.bfloat16
    assert found["norm.weight"] == torch.float32
    assert {found[name] for name in additions(model)} == {torch.float32}
    exact = in_bfloat16()
    add_lora(exact, SMALL, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(TOKENS), exact(TOKENS))


@pytest.mark.parametrize("lossless", [True, False])
def test_a_base_stays_in_fp32_for_products_in_fp32_and_where_bf16_would_round(lossless):
    base = in_bfloat16() if lossless else drawn(TINY)
    dtype = torch.float32 if lossless else torch.bfloat16
    assert set(stored(adapted(base, SMALL, seed=0, dtype=dtype)).values()) == {torch.float32}


def test_a_base_is_rounded_if_asked_for_any_products():
    asked = Lora(rank=4, base_dtype="bfloat16")
    in_fp32 = adapted(drawn(TINY), asked, seed=0, dtype=torch.float32)
    in_bf16 = adapted(drawn(TINY), asked, seed=0, dtype=torch.bfloat16)
    assert is_bfloat16(merge(in_fp32))
    assert stored(in_bf16)["embed.weight"] == torch.bfloat16
    for name, tensor in in_fp32.state_dict().items():
        assert torch.equal(tensor, in_bf16.state_dict()[name].float()), name
    assert not torch.equal(in_fp32.embed.weight, drawn(TINY).embed.weight)


def test_a_base_in_bf16_can_generate_outside_autocast():
    model = adapted(in_bfloat16(), SMALL, seed=0, dtype=torch.bfloat16)
    scramble(model)
    assert model(TOKENS).isfinite().all()


def test_a_misfit_is_refused_before_the_base_is_touched():
    model = drawn(TINY)
    with pytest.raises(BadInput, match="rank: 40 is above 16"):
        adapted(model, Lora(rank=40, base_dtype="bfloat16"), seed=0, dtype=torch.float32)
    assert torch.equal(model.embed.weight, drawn(TINY).embed.weight)
    assert not any(isinstance(part, LoraProjection) for part in model.modules())
