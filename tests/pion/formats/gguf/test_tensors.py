"""Which models GGUF can express."""

import pytest

from pion.errors import BadInput
from pion.formats.gguf.tensors import require_expressible
from tests.families.families import FAMILIES
from tests.support.gguf_models import EXPRESSIBLE, config_of
from tests.support.tiny_config import tiny_config

SCALED = {"factor": 8.0, "original_max_position_embeddings": 32}

IMPORTED = {"heads": {"qk_norm": False}, "imported": True}


def test_a_mistral_without_windows_is_a_llama_there():
    assert require_expressible(tiny_config(**IMPORTED, came_as="mistral")).name == "llama"


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_a_stock_architecture_is_expressible(name):
    assert require_expressible(config_of(name)).name == EXPRESSIBLE[name][0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"softcap": 15.0}, "Qwen3 does not support softcap 15.0"),
        (FAMILIES["daisy"].model, "Qwen3 does not support"),
        (FAMILIES["pilon"].model, "Arcee does not support positions learned"),
        ({"gates": True}, "Qwen3 does not support gates"),
        (FAMILIES["lepton"].model, "Qwen3 does not support slots"),
        ({"rope_scaling": SCALED}, "qwen3 in llama.cpp has no scaled rotary positions"),
        (
            {"heads": {"qk_norm": False}, "activation": "gelu"},
            "arcee in llama.cpp has the activation relu2, not gelu",
        ),
        (
            {"heads": {"qk_norm": False}, "activation": "relu2", "feedforward_bias": True},
            "arcee in llama.cpp has no biases",
        ),
        (
            IMPORTED
            | {"came_as": "mistral", "windows": {"tokens": 8, "block": 1, "full_layers": ()}},
            "llama in llama.cpp sees all tokens",
        ),
        (IMPORTED | {"activation": "geglu"}, "has the activation swiglu, not geglu"),
        (IMPORTED | {"rope_scaling": SCALED | {"kind": "yarn"}}, "no scaled rotary positions"),
        (IMPORTED | {"came_as": "seed_oss"}, "Pion does not write SeedOssForCausalLM"),
    ],
)
def test_what_llama_cpp_can_not_compute_is_refused_with_what_else_works(changes, reason):
    with pytest.raises(BadInput, match=f"GGUF can't express this model: .*{reason}") as refused:
        require_expressible(tiny_config(**changes))
    assert "pion export MODEL FOLDER" in str(refused.value)


def test_the_own_code_of_a_model_that_qwen3_computes_is_refused_too():
    with pytest.raises(BadInput, match="exported with its own code"):
        require_expressible(tiny_config(), "pion")
