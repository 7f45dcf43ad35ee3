"""Fields that models of others need: each computes what a class of transformers computes."""

import copy
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pion.config.lora import Lora
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.model.lora_projections import add_lora
from tests.support.stock_models import randomize
from tests.support.tiny_config import tiny_config

TOKENS = torch.randint(4, 64, (2, 25), generator=torch.Generator().manual_seed(1))
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
NAMES = {
    "embed.": "model.embed_tokens.",
    "norm.": "model.norm.",
    "blocks.": "model.layers.",
    ".attention_norm.": ".input_layernorm.",
    ".attention.": ".self_attn.",
    ".feedforward_norm.": ".post_attention_layernorm.",
    ".feedforward.": ".mlp.",
}
AFTER = {
    ".attention_out_norm.": ".post_attention_layernorm.",
    ".feedforward_out_norm.": ".post_feedforward_layernorm.",
}
BOTH = AFTER | {".feedforward_norm.": ".pre_feedforward_layernorm."}
PLAIN = {"qk_norm": False}
FULL = {"layer_types": ["full_attention"] * 2}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
QUARTER = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
BIASES = {"heads": PLAIN | {"qkv_bias": True, "output_bias": True}, "feedforward_bias": True}
ROOT = {"scales": {"embeddings": 32**0.5}}
GEMMA = {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    **FULL,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


@dataclass(frozen=True)
class Case:
    """A class of transformers with its settings, ours, and names that differ from Llama's."""

    kind: str
    ours: dict[str, Any]
    theirs: dict[str, Any]
    names: dict[str, str] | None = None


FACTORS = {"factor": 4.0, "original_max_position_embeddings": 6}


def scaled(ours, theirs):
    """Return a Llama whose rotary positions are scaled."""
    theirs = FACTORS | {"rope_theta": 1e4} | theirs
    return Case(
        "Llama", {"heads": PLAIN, "rope_scaling": FACTORS | ours}, {"rope_parameters": theirs}
    )


def longrope(original):
    """Return a Llama whose frequencies have a factor each."""
    factors = [1.0, 1.5, 2.0, 3.0], [2.0, 3.0, 5.0, 7.0]
    own = dict(zip(("short_factors", "long_factors"), factors, strict=True))
    theirs = dict(zip(("short_factor", "long_factor"), factors, strict=True))
    context = {"original_max_position_embeddings": original}
    return scaled(
        {"kind": "longrope", "amplitude": 1.2, **context, **own},
        {"rope_type": "longrope", "attention_factor": 1.2, **context, **theirs},
    )


CASES = {
    "scales": Case(
        "Granite",
        {
            "scales": {"embeddings": 12.0, "residual": 0.22, "logits": 1 / 8},
            "heads": PLAIN | {"scale": 0.3},
        },
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "attention_multiplier": 0.3,
        },
    ),
    "norms after": Case("Exaone4", {"norms": "after"}, FULL | {"sliding_window": None}, AFTER),
    "norms on both sides, of 1 + w": Case(
        "Gemma2",
        {"norms": "both", "norm_offset": True, "heads": PLAIN, **ROOT},
        GEMMA | {"hidden_activation": "silu"},
        BOTH,
    ),
    "GEGLU and caps by tanh": Case(
        "Gemma2",
        {
            **{"norms": "both", "norm_offset": True, "heads": PLAIN, **ROOT},
            **{"activation": "geglu", "softcap": 3.0, "logit_cap": 5.0, "logit_cap_kind": "tanh"},
        },
        GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
        BOTH,
    ),
    "a norm over all heads": Case(
        "Olmo2", {"norms": "after", "heads": {"whole_norm": True}}, {}, AFTER
    ),
    "biases of all projections": Case("Llama", BIASES, {"attention_bias": True, "mlp_bias": True}),
    "layers without rotary positions": Case(
        "SmolLM3", {"heads": PLAIN | {"unrotated_layers": [0]}}, THETA | {"no_rope_layers": [0, 1]}
    ),
    "neighbours that rotate together, in half of a head": Case(
        "Glm4",
        {"norms": "both", "heads": PLAIN | {"rotary_pairs": True, "rotary_share": 0.5}},
        {"head_dim": 8, "attention_bias": False},
        {
            ".attention_out_norm.": ".post_self_attn_layernorm.",
            ".feedforward_out_norm.": ".post_mlp_layernorm.",
        },
    ),
    "positions scaled linearly": scaled({"kind": "linear"}, {"rope_type": "linear"}),
    "positions scaled by YaRN": scaled({"kind": "yarn"}, {"rope_type": "yarn"}),
    "YaRN with numbers of its own": scaled(
        {"kind": "yarn", "beta_fast": 3.0, "beta_slow": 0.5, "whole_dims": False, "amplitude": 1.3},
        {
            **{"rope_type": "yarn", "beta_fast": 3.0, "beta_slow": 0.5},
            **{"truncate": False, "attention_factor": 1.3},
        },
    ),
    "queries that grow beyond the original context": Case(
        "Ministral3",
        {"heads": PLAIN, "rope_scaling": FACTORS | {"kind": "yarn", "growth": 0.5}},
        {
            "head_dim": 8,
            "rope_parameters": FACTORS
            | {"rope_type": "yarn", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5},
        },
    ),
    "LongRoPE in a long context": longrope(6),
    "LongRoPE in a short context": longrope(32),
    "a window in tokens, and a layer that sees everything": Case(
        "Olmo3",
        {
            **{"norms": "after", "heads": {"whole_norm": True}, "rope_theta": 5e5},
            "windows": {"tokens": 7, "block": 1, "full_layers": [1]},
        },
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7},
        AFTER,
    ),
    "another base of rotary frequencies in layers with a window": Case(
        "Gemma3",
        {
            **{"norms": "both", "norm_offset": True, "activation": "geglu", **ROOT},
            "windows": {"tokens": 7, "block": 1, "full_layers": [1], "rope_theta": 100.0},
            "rope_scaling": FACTORS | {"kind": "linear"},
        },
        GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 7,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            },
        },
        BOTH,
    ),
    "LayerNorm between two matrices with GELU by tanh, all with biases": Case(
        "Starcoder2",
        {
            **{"norm": "layer", "activation": "gelu_tanh", **BIASES},
            "windows": {"tokens": 7, "block": 1, "full_layers": []},
        },
        THETA | {"norm_epsilon": 1e-6, "sliding_window": 7},
        {
            **{".up_proj.": ".c_fc.", ".up_bias": ".c_fc.bias"},
            **{".down_proj.": ".c_proj.", ".down_bias": ".c_proj.bias"},
        },
    ),
    "a feed-forward layer next to attention, with its own norm": Case(
        "GPTNeoX",
        {
            **{"norm": "layer", "activation": "gelu", "parallel": "two norms", "n_kv_heads": 4},
            **BIASES,
            "heads": BIASES["heads"] | {"rotary_share": 0.25},
        },
        {"layer_norm_eps": 1e-6, "use_parallel_residual": True, "rope_parameters": QUARTER},
        {
            **{"embed.": "gpt_neox.embed_in.", "norm.": "gpt_neox.final_layer_norm."},
            **{"blocks.": "gpt_neox.layers.", ".attention.": ".attention.", ".o_proj.": ".dense."},
            **dict.fromkeys((".q_proj.", ".k_proj.", ".v_proj."), ".query_key_value."),
            **{".up_proj.": ".dense_h_to_4h.", ".up_bias": ".dense_h_to_4h.bias"},
            **{".down_proj.": ".dense_4h_to_h.", ".down_bias": ".dense_4h_to_h.bias"},
        },
    ),
    "a feed-forward layer next to attention, with the same norm": Case(
        "StableLm",
        {
            **{"norm": "layer", "parallel": "one norm"},
            "heads": PLAIN | {"rotary_share": 0.25, "qkv_bias": True},
        },
        {
            **{"layer_norm_eps": 1e-6, "use_parallel_residual": True, "use_qkv_bias": True},
            "rope_parameters": QUARTER,
        },
    ),
    "LayerNorm of 1 + w": Case(
        "Nemotron",
        {
            **{"norm": "layer", "norm_offset": True, "activation": "relu2"},
            "heads": PLAIN | {"rotary_share": 0.25},
        },
        {"norm_eps": 1e-6, "head_dim": 8, "rope_parameters": QUARTER},
    ),
    "LayerNorm without a bias": Case(
        "Cohere",
        {
            **{"norm": "centred", "parallel": "one norm", "scales": {"logits": 0.25}},
            "heads": PLAIN | {"rotary_pairs": True},
        },
        {"layer_norm_eps": 1e-6, "logit_scale": 0.25, **THETA},
    ),
    "LayerNorm without a bias, and windows": Case(
        "Cohere2",
        {
            **{"norm": "centred", "parallel": "one norm", "scales": {"logits": 0.25}},
            "heads": PLAIN | {"rotary_pairs": True, "unrotated_layers": [1]},
            "windows": {"tokens": 7, "block": 1, "full_layers": [1]},
        },
        {
            **{"layer_norm_eps": 1e-6, "logit_scale": 0.25, "head_dim": 8, **THETA},
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 7,
        },
    ),
    "LayerNorm without a bias and a gain": Case(
        "Olmo", {"norm": "centred", "norm_gain": False, "norm_eps": 1e-5, "heads": PLAIN}, {}
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def their_name(name, case):
    for ours, theirs in (NAMES | (case.names or {})).items():
        where = name.find(ours)
        if where == 0 or (where > 0 and ours.startswith(".")):
            name = name.replace(ours, theirs, 1)
    return name


def theirs_of(name, case, tensors):
    """Return the tensor that our name stands for; it may be a part of theirs."""
    wanted = their_name(name, case)
    if "query_key_value" in wanted:  # three parts for each head
        part = "qkv".index(name.split(".")[3][0])
        return tensors[wanted].unflatten(0, (4, 3, 8))[:, part].flatten(0, 1)
    if wanted in tensors:
        return tensors[wanted]
    both = tensors[re.sub("gate|up", "gate_up", wanted)]
    return both.chunk(2)["up_proj" in wanted]


def models(case):
    """Return our model and theirs, and their parts of the tensors that ours have, by our names."""
    import transformers

    settings = copy.deepcopy(TINY | case.theirs)
    kind = getattr(transformers, f"{case.kind}ForCausalLM")
    theirs = kind(kind.config_class(**settings)).eval()
    randomize(theirs)
    ours = Decoder(tiny_config(**{"norm_eps": 1e-6} | case.ours))
    tensors = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            weight.copy_(theirs_of(name, case, tensors))
    return ours, theirs


def ours_of(case):
    """Return our model with other random weights than 0 and 1."""
    model = Decoder(tiny_config(**case.ours))
    randomize(model)
    return model


@each_case
def test_logits_and_gradients_are_those_of_transformers(case):
    ours, theirs = models(case)
    given, targets = TOKENS[:, :-1], TOKENS[:, 1:]
    logits = theirs(given).logits
    torch.testing.assert_close(ours(given), logits, rtol=1e-5, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    own = ours.loss(given, targets)
    own.backward()
    torch.testing.assert_close(own, loss, rtol=1e-6, atol=1e-6)
    expected = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in ours.named_parameters():
        gradient = theirs_of(name, case, expected)
        largest = gradient.abs().max()
        assert largest > 0, name
        torch.testing.assert_close(weight.grad / largest, gradient / largest, rtol=0, atol=1e-5)


@each_case
@pytest.mark.parametrize("joined", [False, True], ids=["plain", "joined"])
@torch.no_grad()
def test_with_a_cache_at_odd_splits_hidden_states_are_those_of_the_whole(case, joined):
    model = ours_of(case)
    given = TOKENS[:, :-1]
    whole = model.hidden(given)
    model = model.joined() if joined else model
    cache = KVCache(model.config, rows=2)
    parts = [model.hidden(part, cache=cache) for part in given.split((13, 1, 1, 6, 3), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


@each_case
@torch.no_grad()
def test_packed_documents_are_as_each_alone(case):
    model = ours_of(case)
    first, second = TOKENS[:1, :7], TOKENS[1:, :15]
    positions = torch.cat([torch.arange(7), torch.arange(15)])[None]
    documents = torch.tensor([[0] * 7 + [1] * 15])
    packed = model.hidden(torch.cat([first, second], 1), positions=positions, documents=documents)
    alone = torch.cat([model.hidden(first), model.hidden(second)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@each_case
def test_recomputed_gradients_are_the_same(case):
    model, found = ours_of(case), []
    for recompute in (False, True):
        model.zero_grad()
        options = StepOptions(recompute=recompute)
        model.loss(TOKENS[:, :-1], TOKENS[:, 1:], options=options).backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


@each_case
@torch.no_grad()
def test_new_additions_of_lora_change_nothing(case):
    model = ours_of(case)
    expected = model(TOKENS[:, :-1])
    add_lora(model, Lora(), seed=0)
    assert torch.equal(model(TOKENS[:, :-1]), expected)


@torch.no_grad()
def test_documents_in_rows_that_are_not_longer_than_a_window_attend_as_without_windows():
    """On a CPU, they attend one after another in such long rows."""
    found = []
    for windows in (None, {"tokens": 700, "block": 1, "full_layers": [1]}, {"tokens": 1400}):
        model = Decoder(tiny_config(windows=windows and {"block": 7} | windows))
        randomize(model)
        tokens = torch.arange(700)[None]
        found.append(model.hidden(tokens % 61, positions=tokens % 20, documents=tokens // 20 % 34))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@torch.no_grad()
def test_tokens_beyond_a_ring_of_keys_see_what_they_see_in_the_whole_row():
    windows = {"tokens": 7, "block": 1, "full_layers": [1]}
    model = Decoder(tiny_config(seq_len=120, windows=windows))
    randomize(model)
    given = torch.randint(0, 64, (2, 120), generator=torch.Generator().manual_seed(2))
    whole = model.hidden(given)
    cache = KVCache(model.config, rows=2)
    parts = [model.hidden(part, cache=cache) for part in given.split((60, *[1] * 30, 30), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
