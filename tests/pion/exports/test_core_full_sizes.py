"""Models of published sizes, with random weights, have the logits of their classes.

`pytest -m soak` runs this, because each model takes gigabytes and up to a minute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pion.exports.table import to_transformers
from pion.load import load_decoder
from pion.model_files import INDEX
from tests.support.stock_models import apart, randomize, saved, tokens

pytestmark = pytest.mark.soak

Fields = dict[str, Any]


def sizes(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int) -> Fields:
    return {
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "intermediate_size": d_ff,
        "tie_word_embeddings": True,
    }


# The fields of the published config.json files, in the spelling of these files.
SMOLLM2 = {
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
}
QWEN = {
    "vocab_size": 151_936,
    "rope_theta": 1_000_000.0,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-6,
}
PUBLISHED: dict[str, tuple[str, Fields, int]] = {
    "SmolLM2-135M": ("Llama", sizes(576, 30, 9, 3, 1536) | SMOLLM2, 134_515_008),
    "SmolLM2-360M": ("Llama", sizes(960, 32, 15, 5, 2560) | SMOLLM2, 361_821_120),
    "Qwen2.5-0.5B": (
        "Qwen2",
        sizes(896, 24, 14, 2, 4864)
        | QWEN
        | {"max_position_embeddings": 32_768, "sliding_window": 32_768, "max_window_layers": 21},
        494_032_768,
    ),
    "Qwen3-0.6B": (
        "Qwen3",
        sizes(1024, 28, 16, 8, 3072)
        | QWEN
        | {"max_position_embeddings": 40_960, "head_dim": 128, "sliding_window": None}
        | {"max_window_layers": 28, "attention_bias": False, "rope_scaling": None},
        596_049_920,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_of_this_size_is_read_from_shards_and_written_again(
    name: str, tmp_path: Path
) -> None:
    kind, fields, parameters = PUBLISHED[name]
    settings = getattr(transformers, f"{kind}Config")(**fields)
    model = getattr(transformers, f"{kind}ForCausalLM")(settings).eval()
    randomize(model, std=0.03)
    # As the published file has them: without what transformers 5 adds.
    spelled = dict.fromkeys(("rope_parameters", "layer_types"), None)
    ours = load_decoder(saved(model, tmp_path, shard_size="500MB", **spelled | fields))
    assert (tmp_path / INDEX).exists() == (parameters > 125e6)
    assert ours.num_params() == parameters
    text = tokens(200, vocab_size=fields["vocab_size"])
    difference = apart(ours, model, text)
    with torch.inference_mode():
        spread = float(model(text[:, :8]).logits.std())
    print(f"{name}: {parameters:,} parameters, max |Δlogit| {difference:.1e}, σ {spread:.2f}")
    assert difference <= 1e-4
    assert spread > 0.1
    hf_config, hf_state = to_transformers(ours.config, ours.state_dict())
    assert hf_config["architectures"] == [type(model).__name__]
    theirs = model.state_dict()
    assert all(torch.equal(tensor, theirs[n]) for n, tensor in hf_state.items())
