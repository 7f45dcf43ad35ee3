"""What the parts of a model state as their cost, compared with the model itself."""

from dataclasses import replace

import pytest
import torch

from pion.config.lora import Lora, lora_cost
from pion.config.model_config import ModelConfig
from pion.config.parts import Experts
from pion.model.attention.masks import mean_keys
from pion.model.decoder import Decoder
from pion.model.lora_projections import add_lora
from pion.model.params_and_flops import cost_of, flops_per_token, token_flops

TINY = ModelConfig(
    d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=96, vocab_size=200, seq_len=64
)


def test_the_roles_tell_matrices_tables_and_gains_apart():
    gains = 3 * (2 * 32 + 2 * 8) + 32
    matrices = 3 * 32 * (2 * 32 + 2 * 16 + 3 * 96)
    absent = dict.fromkeys(("head", "router", "primitive", "recipe", "gate", "draft"), 0)
    tied = {"matrix": matrices, "embedding": 200 * 32, "vector": gains} | absent
    assert cost_of(TINY).params == tied
    untied = cost_of(replace(TINY, tie_embeddings=False)).params
    assert untied == tied | {"head": 200 * 32}


def test_biases_are_counted_as_vectors_and_multiply_nothing():
    plain_config, biased_config = (
        ModelConfig.of(TINY.to_dict() | {"heads": {"qk_norm": False, "qkv_bias": bias}})
        for bias in (False, True)
    )
    plain, biased = cost_of(plain_config), cost_of(biased_config)
    biases = 3 * (32 + 2 * 16)
    assert biased.params["vector"] == plain.params["vector"] + biases
    assert biased.active_params == plain.active_params + biases
    assert biased.macs_per_token == plain.macs_per_token


def test_flops_per_token_are_six_per_multiplied_weight_and_causal_attention():
    """Pion-small: 102,967,168 weights, all but the gains in matrix products (the head is tied)."""
    small = ModelConfig.preset("pion-small")
    gains = 16 * (2 * 640 + 2 * 64) + 640
    attention = 6 * 16 * 640 * 2048
    expected = 6 * (102_967_168 - gains) + attention
    assert flops_per_token(small, 2048) == expected


def test_a_token_pays_for_the_experts_it_uses():
    config = replace(TINY, experts=Experts(n=4, top_k=2, d_shared=40))
    dense = cost_of(replace(TINY, d_ff=2 * 96 + 40))
    router = 3 * 4 * 32
    assert cost_of(config).macs_per_token == dense.macs_per_token + router
    assert cost_of(config).active_params == dense.all_params + router


def counted_products(config, lora):
    """Return the FLOPs of products that torch counts in a training step over a row, per token."""
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = Decoder(config), torch.zeros(1, config.seq_len, dtype=torch.int64)
    if lora is not None:
        add_lora(model, lora, seed=0)
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).backward()
    return float(counter.get_flop_counts()["Global"][torch.ops.aten.mm]) / config.seq_len


def stated_products(config, lora):
    """Return the FLOPs that the cost states, without those of attention's scores and values."""
    additions = None if lora is None else lora_cost(config, lora).params
    reached = cost_of(config).macs_per_key.items()
    of_attention = 6 * sum(
        macs * mean_keys(config, reach, config.seq_len) for reach, macs in reached
    )
    return token_flops(config, config.seq_len, additions).total - of_attention


@pytest.mark.parametrize(
    ("lora", "of_input"),
    [
        (None, 0),
        # Only compiled code computes the gradient of the first layer's input.
        (Lora(rank=4), 2 * 32 * (32 + 2 * 16 + 3 * 4)),
        (Lora(rank=4, targets=("q_proj", "v_proj")), 2 * 32 * (32 + 2 * 16 + 2 * 4)),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_flops_of_training_are_those_that_torch_counts(lora, of_input, tied):
    config = replace(TINY, tie_embeddings=tied)
    assert counted_products(config, lora) == stated_products(config, lora) - of_input


def test_lora_takes_about_two_thirds_of_the_arithmetic_of_all_weights():
    config = ModelConfig.preset("pion-large")
    whole = token_flops(config, 2048)
    lora = token_flops(config, 2048, lora_cost(config, Lora()).params)
    assert whole.total == flops_per_token(config, 2048)
    assert lora.forward > whole.forward, "the additions come on top"
    assert 2 / 3 < lora.total / whole.total < 0.75


def test_recomputation_costs_lora_a_larger_share():
    whole = token_flops(TINY, 64)
    lora = token_flops(TINY, 64, lora_cost(TINY, Lora(rank=1)).params)
    assert whole.share_if_recomputed == 6 / 8
    assert 4 / 6 < lora.share_if_recomputed < 6 / 8
