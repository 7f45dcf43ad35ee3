"""A Pion without softcap is stock Qwen3, and any plain Qwen3 is a Pion."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.errors import BadInput
from pion.formats.huggingface.architectures import (
    config_from_transformers,
    from_transformers,
    to_transformers,
)
from tests.support.capped_models import scrambled
from tests.support.tiny_config import tiny_config

transformers = pytest.importorskip("transformers")

CONFIG = tiny_config(n_heads=6, head_dim=8, vocab_size=61, init_std=0.2)
TOKENS = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(1))


def stock(hf_config, hf_state):
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**hf_config)).eval()
    missing = model.load_state_dict(hf_state, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if hf_config["tie_word_embeddings"] else [])
    model.tie_weights()
    return model


@settings(max_examples=6, deadline=None)
@given(
    heads=st.sampled_from([(6, 2, 8), (6, 2, 16), (4, 4, 8), (4, 1, 8), (10, 2, 8)]),
    tied=st.booleans(),
    theta=st.sampled_from([10_000.0, 1e6]),
)
@torch.inference_mode()
def test_logits_are_transformers_own(heads, tied, theta):
    n_heads, n_kv_heads, head_dim = heads
    ours = scrambled(
        replace(
            CONFIG,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            tie_embeddings=tied,
            rope_theta=theta,
        )
    )
    theirs = stock(*to_transformers(ours.config, ours.state_dict()))
    assert (ours(TOKENS) - theirs(TOKENS).logits).abs().max() <= 1e-5


def test_rows_the_tokenizer_lacks_are_dropped_without_changing_the_other_logits():
    ours = scrambled(CONFIG)
    hf_config, hf_state = to_transformers(CONFIG, ours.state_dict(), vocab_size=50)
    theirs = stock(hf_config, hf_state)
    assert hf_state["model.embed_tokens.weight"].shape == (50, 32)
    torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS)[..., :50], rtol=0, atol=1e-5)


def test_more_rows_than_the_model_has_are_refused():
    with pytest.raises(BadInput, match="has 61 embedding rows, not 62"):
        to_transformers(CONFIG, {}, vocab_size=62)


def test_a_capped_model_is_not_stock():
    with pytest.raises(BadInput, match="as qwen3: Qwen3 does not support softcap 30"):
        to_transformers(replace(CONFIG, softcap=30.0), {}, model_type="qwen3")


@pytest.mark.parametrize("tied", [True, False])
def test_the_way_back_is_the_inverse(tied):
    ours = scrambled(replace(CONFIG, tie_embeddings=tied))
    config, state = from_transformers(*to_transformers(ours.config, ours.state_dict()))
    assert config == replace(ours.config, imported=True)
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_transformers_saved_is_read(tmp_path, tied):
    from pion.formats.load import load_decoder

    torch.manual_seed(0)
    hf_config, _ = to_transformers(replace(CONFIG, tie_embeddings=tied, rope_theta=1e6), {})
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**hf_config)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path)
    assert ours.config.rope_theta == 1e6
    assert (ours(TOKENS) - theirs(TOKENS).logits).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'; only 'qwen3'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": ["yarn"]}, r"rope_parameters is \['yarn'\]; it must be an object"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "linear"}, "rope_parameters": None}, "rope_type is 'linear'"),
    ],
)
def test_unsupported_settings_are_refused(change, message):
    hf_config, _ = to_transformers(CONFIG, {})
    with pytest.raises(BadInput, match=message):
        config_from_transformers(hf_config | change)


def test_a_missing_setting_and_a_foreign_tensor_are_named():
    hf_config, hf_state = to_transformers(CONFIG, scrambled(CONFIG).state_dict())
    with pytest.raises(BadInput, match="has no 'hidden_size'"):
        config_from_transformers({k: v for k, v in hf_config.items() if k != "hidden_size"})
    with pytest.raises(BadInput, match=r"unexpected tensor model.layers.0.mlp.experts.weight"):
        from_transformers(
            hf_config, hf_state | {"model.layers.0.mlp.experts.weight": torch.zeros(1)}
        )
