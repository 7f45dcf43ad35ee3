"""Feed-forward layers of two matrices, or of primitives without norms, are stock Arcee."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface.architectures import (
    architecture_of,
    from_transformers,
    to_transformers,
)
from pion.formats.load import load_decoder
from pion.model.decoder import Decoder
from tests.support.capped_models import scrambled
from tests.support.tiny_config import tiny_config

transformers = pytest.importorskip("transformers")

PRIMITIVES = {"n": 6, "rank": 4, "top_k": 3, "bands": [[0, 1]]}
TOKENS = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(1))
MODELS: dict[str, dict[str, Any]] = {
    "relu2": {"activation": "relu2"},
    "gelu, tied": {"activation": "gelu", "tie_embeddings": True},
    "primitives": {"activation": "gelu", "primitives": PRIMITIVES},
    "primitives, all": {"activation": "relu2", "primitives": PRIMITIVES | {"top_k": 6}},
}


def config_of(**changes: Any) -> ModelConfig:
    return tiny_config(heads={"qk_norm": False}, **({"tie_embeddings": False} | changes))


def stock(decoder: Decoder) -> Any:
    hf_config, hf_state = to_transformers(decoder.config, decoder.state_dict())
    model = transformers.ArceeForCausalLM(transformers.ArceeConfig(**hf_config)).eval()
    missing = model.load_state_dict(hf_state, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if hf_config["tie_word_embeddings"] else [])
    model.tie_weights()
    return model


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@torch.inference_mode()
def test_logits_are_transformers_own(changes: dict[str, Any]) -> None:
    ours = scrambled(config_of(**changes))
    assert architecture_of(ours.config).model_type == "arcee"
    assert (ours(TOKENS) - stock(ours)(TOKENS).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@torch.inference_mode()
def test_what_is_read_back_computes_the_same(changes: dict[str, Any]) -> None:
    ours = scrambled(config_of(**changes))
    config, state = from_transformers(*to_transformers(ours.config, ours.state_dict()))
    again = Decoder.from_state(config, state)
    assert (again(TOKENS) - ours(TOKENS)).abs().max() <= 1e-5
    if "primitives" not in changes:
        assert config == replace(ours.config, imported=True)
        assert all(torch.equal(tensor, state[n]) for n, tensor in ours.state_dict().items())
    else:
        assert config.primitives is None
        assert config.feedforward_bias
        assert state["blocks.0.feedforward.up_bias"].any()


def test_a_model_transformers_saved_is_read(tmp_path: Path) -> None:
    hf_config, _ = to_transformers(config_of(activation="relu2"), {})
    torch.manual_seed(0)
    changes = {"mlp_bias": True, "head_dim": None}
    theirs = transformers.ArceeForCausalLM(transformers.ArceeConfig(**hf_config | changes)).eval()
    with torch.no_grad():
        theirs.model.layers[1].mlp.up_proj.bias.normal_()
    theirs.save_pretrained(tmp_path)
    with torch.inference_mode():
        assert (load_decoder(tmp_path)(TOKENS) - theirs(TOKENS).logits).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"activation": "swiglu"}, "Arcee has two matrices in a feed-forward layer, not three"),
        ({"n_heads": 6, "head_dim": 8}, "Arcee needs a d_model that is a multiple of n_heads"),
        ({"heads": {"qk_norm": True}}, "Arcee does not normalize queries and keys"),
        ({"heads": {"qk_norm": False, "value_norm": True}}, "Arcee does not support heads"),
        ({"positions": "learned"}, "Arcee does not support positions learned"),
        ({"gates": True}, "Arcee does not support gates True"),
        (
            {"primitives": PRIMITIVES | {"ternary": True}},
            "Arcee does not support primitives with norms",
        ),
    ],
)
def test_what_arcee_can_not_compute_is_said(changes: dict[str, Any], reason: str) -> None:
    config = ModelConfig.of(config_of(activation="relu2").to_dict() | changes)
    with pytest.raises(BadInput, match=f"can't be exported as arcee: {reason}"):
        architecture_of(config, "arcee")
    assert architecture_of(config).model_type != "arcee"


def test_no_id_of_the_config_is_beyond_the_vocabulary() -> None:
    hf_config, _ = to_transformers(config_of(activation="relu2"), {})
    loaded = transformers.ArceeConfig(**hf_config)
    ids = [value for name, value in loaded.to_dict().items() if name.endswith("_token_id")]
    assert all(value is None or value < loaded.vocab_size for value in ids if value != 128_001)
    assert loaded.bos_token_id is None


def test_another_activation_is_refused() -> None:
    hf_config, _ = to_transformers(config_of(activation="relu2"), {})
    with pytest.raises(BadInput, match="hidden_act is 'silu'; only 'relu2' and 'gelu' are"):
        from_transformers(hf_config | {"hidden_act": "silu"}, {})


def test_biases_without_two_matrices_are_refused() -> None:
    with pytest.raises(BadInput, match="only feed-forward layers of two matrices have biases"):
        config_of(activation="swiglu", feedforward_bias=True)
