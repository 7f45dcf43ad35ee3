"""The names of tensors in GGUF files, and which models GGUF can express."""

import pytest
from gguf import MODEL_ARCH, get_tensor_name_map

from pion.errors import BadInput
from pion.formats.gguf.tensors import BLOCK_NAMES, NAMES, require_expressible
from tests.families.families import FAMILIES
from tests.support.gguf_models import EXPRESSIBLE
from tests.support.tiny_config import tiny_config


def test_the_names_are_those_of_the_format():
    theirs = get_tensor_name_map(MODEL_ARCH.QWEN3, 2)
    dense = {theirs.get_name(name): short for name, short in NAMES.items()}
    assert all(found == short for found, short in dense.items())
    experts = get_tensor_name_map(MODEL_ARCH.QWEN3MOE, 2)
    for name, short in BLOCK_NAMES.items():
        table = experts if name == "mlp.gate" else theirs
        assert table.get_name(f"model.layers.1.{name}") == f"blk.1.{short}"


# ---------------------------------------------------------------- which models GGUF can express

SCALED = {"factor": 8.0, "original_max_position_embeddings": 32}


IMPORTED = {"heads": {"qk_norm": False}, "imported": True}


def test_a_mistral_without_windows_is_a_llama_there():
    assert require_expressible(tiny_config(**IMPORTED, came_as="mistral")) == "llama"


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_a_stock_architecture_is_expressible(name):
    architecture, changes = EXPRESSIBLE[name]
    assert require_expressible(tiny_config(**changes)) == architecture


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
        (IMPORTED | {"activation": "geglu"}, "its activation is silu"),
        (IMPORTED | {"rope_scaling": SCALED | {"kind": "yarn"}}, "rotary positions by YaRN or"),
        (IMPORTED | {"came_as": "phi3"}, "Pion does not write Phi3ForCausalLM as GGUF yet"),
    ],
)
def test_what_llama_cpp_can_not_compute_is_refused_with_what_else_works(changes, reason):
    with pytest.raises(BadInput, match=f"GGUF can't express this model: .*{reason}") as refused:
        require_expressible(tiny_config(**changes))
    assert "pion export MODEL FOLDER" in str(refused.value)


def test_the_own_code_of_a_model_that_qwen3_computes_is_refused_too():
    with pytest.raises(BadInput, match="exported with its own code"):
        require_expressible(tiny_config(), "pion")
