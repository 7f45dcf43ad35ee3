"""Which architecture a model is exported as, and which rows of its tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface.architectures import (
    architecture_of,
    from_transformers,
    misfits,
    to_transformers,
)
from pion.model.decoder import Decoder
from tests.support.capped_models import DENSE, MIXED, MODELS, scrambled

STOCK = replace(DENSE, softcap=None)
TOKENS = torch.randint(0, 250, (2, 64), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("pion-nano", "Qwen3ForCausalLM"),
        ("pion2-nano", "Qwen3ForCausalLM"),
        ("pion2-max-nano", "PionForCausalLM"),
        ("tachyon-tiny", "Qwen3MoeForCausalLM"),
        ("daisy-pico", "PionForCausalLM"),
        ("daisy-350m", "PionForCausalLM"),
        ("pilon-48m", "PionForCausalLM"),
        ("pilon-48m-rope", "ArceeForCausalLM"),
        ("pilon-48m-dense", "PionForCausalLM"),
    ],
)
def test_the_first_architecture_that_fits_is_taken(preset: str, name: str) -> None:
    assert architecture_of(ModelConfig.preset(preset)).name == name


def test_what_no_stock_architecture_computes_gets_modelling_files() -> None:
    for config in MODELS.values():
        assert not architecture_of(config).stock
    assert misfits(DENSE) == [
        "Qwen3 does not support softcap 1.5",
        "Qwen3Moe needs experts",
        "Arcee has two matrices in a feed-forward layer, not three",
        "Llama does not normalize queries and keys",
        "Qwen2 does not normalize queries and keys",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("softcap", 30.0),
        ("logit_cap", 15.0),
        ("activation", "relu2"),
        ("activation", "gelu"),
        ("positions", "learned"),
        ("norm_gain", False),
        ("windows", MIXED.windows),
        ("heads", MIXED.heads),
        ("wiring", replace(MIXED.wiring, attention_layers=(0, 1), skips=())),  # type: ignore[type-var]
        ("values", replace(MIXED.values, layers=(0, 1))),  # type: ignore[type-var]
    ],
)
def test_no_setting_that_changes_the_result_is_lost_in_a_stock_architecture(
    field: str, value: object
) -> None:
    for stock, needs in (("qwen3", {}), ("qwen3_moe", {"experts": MIXED.experts})):
        plain = replace(STOCK, **needs)
        assert architecture_of(plain, stock).stock
        with pytest.raises(BadInput, match=f"exported as {stock}: .* does not support {field}"):
            architecture_of(replace(plain, **{field: value}), stock)


def test_an_architecture_can_be_asked_for() -> None:
    assert architecture_of(STOCK, "pion").name == "PionForCausalLM"
    with pytest.raises(BadInput, match="exported as qwen3_moe: Qwen3Moe needs experts"):
        architecture_of(STOCK, "qwen3_moe")
    with pytest.raises(BadInput, match=r"'qwen33'; did you mean 'qwen3'\?; the architectures are"):
        architecture_of(STOCK, "qwen33")


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_the_tokenizer_lacks_are_dropped_from_every_table(name: str) -> None:
    ours = scrambled(MODELS[name])
    config, state = from_transformers(*to_transformers(ours.config, ours.state_dict(), 250))
    back = Decoder.from_state(config, state)
    assert config.vocab_size == config.head_rows == 250
    assert not any(n in tensor.shape for tensor in state.values() for n in (287, 320))
    torch.testing.assert_close(back(TOKENS), ours(TOKENS)[..., :250], rtol=0, atol=1e-6)


def test_a_folder_of_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(
        BadInput,
        match="'gemma'; only 'qwen3', 'qwen3_moe', 'arcee', 'llama', 'qwen2' and 'pion' are",
    ):
        from_transformers({"model_type": "gemma"}, {})
