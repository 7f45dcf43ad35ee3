"""Small models that no stock architecture of transformers computes."""

from dataclasses import replace

import torch

from pion.config.parts import Experts, Heads, RopeScaling, Values, Windows, Wiring
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

DENSE = tiny_config(vocab_size=287, seq_len=64, softcap=1.5, init_std=0.2)
EXPERTS = replace(DENSE, tie_embeddings=False, experts=Experts(n=5, top_k=2, shared=1, d_shared=24))
# Daisy-Wee's parts together with experts, biases and scaled positions.
MIXED = replace(
    EXPERTS,
    n_layers=4,
    softcap=None,
    norm_gain=False,
    logit_cap=3.0,
    head_multiple=64,
    windows=Windows(tokens=16, block=8, long_every=3),
    heads=Heads(scale=0.12, value_norm=True, rotary="half", qkv_bias=True),
    rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=16),
    wiring=Wiring(
        attention_layers=(0, 1, 3),
        attention_norm=False,
        embed_norm=True,
        input_mix=True,
        skips=((3, 0),),
    ),
    values=Values(layers=(0, 3)),
)
MODELS = {"dense": DENSE, "experts": EXPERTS, "mixed": MIXED}


def scrambled(config):
    """Return a model whose weights, gains and scalars all differ from initial ones."""
    torch.manual_seed(0)
    model = Decoder(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()
