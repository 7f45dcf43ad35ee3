"""A dense Pion is what it always was: initial weights and names, written out here.

A run's seed decides its weights, so a change of the initialization changes the result of every job.
"""

import hashlib

import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder

TINY = ModelConfig(
    d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=10, d_ff=40, vocab_size=51, seq_len=8
)
UNTIED = ModelConfig.of(TINY.to_dict() | {"tie_embeddings": False})


def block_shapes(config):
    """Return the shapes of a block's weights, in the order of the block's parts."""
    d_model, d_ff = config.d_model, config.d_ff
    query, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {
        "attention_norm.weight": (d_model,),
        "attention.q_proj.weight": (query, d_model),
        "attention.k_proj.weight": (kv, d_model),
        "attention.v_proj.weight": (kv, d_model),
        "attention.o_proj.weight": (d_model, query),
        "attention.q_norm.weight": (config.head_dim,),
        "attention.k_norm.weight": (config.head_dim,),
        "feedforward_norm.weight": (d_model,),
        "feedforward.gate_proj.weight": (d_ff, d_model),
        "feedforward.up_proj.weight": (d_ff, d_model),
        "feedforward.down_proj.weight": (d_model, d_ff),
    }


def shapes(config):
    """Return the names and shapes of all weights of a dense Pion."""
    table = (config.vocab_size, config.d_model)
    every = {"embed.weight": table}
    for layer in range(config.n_layers):
        block = block_shapes(config)
        every |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    every["norm.weight"] = (config.d_model,)
    return every if config.tie_embeddings else every | {"lm_head.weight": table}


def initial_weights(config, seed):
    """Return gains of 1, and everything else from N(0, 0.02²)."""
    torch.manual_seed(seed)
    for name, shape in shapes(config).items():
        # torch's Linear draws weights when it is made. These are not used, but the draws count.
        if name.endswith("_proj.weight") or name == "lm_head.weight":
            torch.empty(shape).uniform_()
    return {
        name: torch.ones(shape) if "norm" in name else torch.empty(shape).normal_(0.0, 0.02)
        for name, shape in shapes(config).items()
    }


@pytest.mark.parametrize("seed", [0, 1234])
@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
def test_a_seed_gives_the_weights_that_it_always_gave(config, seed):
    torch.manual_seed(seed)
    state = Decoder(config).state_dict()
    expected = initial_weights(config, seed)
    assert list(state) == list(expected)
    for name, weight in expected.items():
        assert torch.equal(state[name], weight), name


@pytest.mark.parametrize(
    "preset", ["pion-nano", "pion-micro", "pion-small", "pion-base", "pion-large", "pion-xl"]
)
def test_the_names_and_shapes_of_a_preset_are_those_of_its_checkpoints(preset):
    config = ModelConfig.preset(preset)
    with torch.device("meta"):
        state = Decoder(config).state_dict()
    assert {name: tuple(weight.shape) for name, weight in state.items()} == shapes(config)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch rounds normal numbers differently on a CPU without AVX2",
)
def test_pion_nano_begins_with_the_same_bytes():
    """The digest was computed with the last version that knew no other family."""
    torch.manual_seed(0)
    digest = hashlib.sha256()
    for name, weight in Decoder(ModelConfig.preset("pion-nano")).state_dict().items():
        digest.update(name.encode())
        digest.update(memoryview(weight.numpy()))
    assert digest.hexdigest() == "626c1a97595cf15e9c66600a3bc72c35de7bedb8bc701b2c65ce695794d76b88"
