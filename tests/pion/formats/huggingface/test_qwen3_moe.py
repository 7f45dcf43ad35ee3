"""A decoder with experts as stock Qwen3Moe: the same logits, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts
from pion.errors import BadInput
from pion.formats.huggingface.architectures import (
    config_from_transformers,
    from_transformers,
    to_transformers,
)
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

CONFIG = tiny_config(
    vocab_size=61, seq_len=40, experts=Experts(n=5, top_k=2, shared=2, d_shared=24)
)
TOKENS = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(0))


def decoder(config: ModelConfig = CONFIG) -> Decoder:
    torch.manual_seed(0)
    return Decoder(replace(config, init_std=0.2))


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_stock_transformers_computes_the_same_logits(shared: int) -> None:
    ours = decoder(replace(CONFIG, experts=Experts(n=5, shared=shared, d_shared=24)))
    hf_config, hf_state = to_transformers(ours.config, ours.state_dict())
    settings = transformers.Qwen3MoeConfig(**hf_config, attn_implementation="eager")
    theirs = transformers.Qwen3MoeForCausalLM(settings).eval()
    fused = dict(theirs.state_dict())
    for name in fused:
        layer = name.removesuffix(".experts.gate_up_proj").removesuffix(".experts.down_proj")
        if layer == name:
            fused[name] = hf_state.get(name, hf_state["model.embed_tokens.weight"])
            continue

        def every(matrix: str, layer: str = layer) -> torch.Tensor:
            rows = [hf_state[f"{layer}.experts.{e}.{matrix}.weight"] for e in range(5)]
            return torch.stack(rows)

        if name.endswith("down_proj"):
            fused[name] = every("down_proj")
        else:
            fused[name] = torch.cat([every("gate_proj"), every("up_proj")], dim=1)
    theirs.load_state_dict(fused)
    with torch.inference_mode():
        difference = (ours(TOKENS) - theirs(TOKENS).logits).abs().max()
    assert difference < 1e-5


def test_a_model_that_went_there_and_back_computes_the_same() -> None:
    ours = decoder()
    config, state = from_transformers(*to_transformers(ours.config, ours.state_dict()))
    assert config.experts == Experts(n=5, shared=0)
    assert config.d_ff == 48 + 2 * 24
    back = Decoder.from_state(config, state)
    torch.testing.assert_close(back(TOKENS), ours(TOKENS), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob is False; only True is supported"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers is"),
        ({"mlp_only_layers": 3}, "mlp_only_layers is 3"),
        ({"model_type": ["qwen3_moe"]}, "model_type is"),
        ({"tie_word_embeddings": "no"}, "tie_embeddings is 'no'; it must be true or false"),
        ({"num_experts_per_tok": 6}, "top_k 6 is more than experts.n 5"),
    ],
)
def test_other_mixtures_are_refused_by_name(change: dict[str, object], message: str) -> None:
    hf_config, _ = to_transformers(CONFIG, decoder().state_dict())
    with pytest.raises(BadInput, match=message):
        config_from_transformers(hf_config | change)


def test_experts_of_different_shapes_are_refused() -> None:
    hf_config, hf_state = to_transformers(CONFIG, decoder().state_dict())
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    with pytest.raises(BadInput, match=rf"{name} has shape \(1, 1\), unlike model"):
        from_transformers(hf_config, hf_state | {name: torch.zeros(1, 1)})


def test_a_missing_or_unexpected_tensor_is_named() -> None:
    hf_config, hf_state = to_transformers(CONFIG, decoder().state_dict())
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    with pytest.raises(BadInput, match=f"the weights have no {name}"):
        from_transformers(hf_config, {k: v for k, v in hf_state.items() if k != name})
    with pytest.raises(BadInput, match=r"unexpected tensor model\.layers\.0\.mlp\.shared"):
        from_transformers(hf_config, hf_state | {"model.layers.0.mlp.shared": torch.zeros(1)})
