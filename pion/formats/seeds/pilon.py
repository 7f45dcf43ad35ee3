"""A checkpoint of the original PILON: {step, model_state_dict, config, …}.

Every layer repeats the banks that it shares, and has a causal mask; read.py leaves these out.
`config` is a pickled object of the seed's class. Fine-tuning adds rows to the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts, Heads
from pion.config.primitives import Primitives
from pion.errors import BadInput
from pion.formats.seeds.read import SeedCheckpoint, State, renamed, sizes, untied

# A logit of a primitive that a layer can't choose: its softmax is 0.
NEVER = -1e4

_NAMES = {
    r"token_embedding\.weight": "embed.weight",
    r"position_embedding\.weight": "positions.weight",
    r"final_norm\.weight": "norm.weight",
    r"lm_head\.weight": "lm_head.weight",
    r"layers\.(\d+)\.norm1\.weight": r"blocks.\1.attention_norm.weight",
    r"layers\.(\d+)\.norm2\.weight": r"blocks.\1.feedforward_norm.weight",
    r"layers\.(\d+)\.attention\.([qkv])_proj\.weight": r"blocks.\1.attention.\2_proj.weight",
    r"layers\.(\d+)\.attention\.out_proj\.weight": r"blocks.\1.attention.o_proj.weight",
    r"layers\.(\d+)\.ffn\.fc1\.weight": r"blocks.\1.feedforward.up_proj.weight",
    r"layers\.(\d+)\.ffn\.fc2\.weight": r"blocks.\1.feedforward.down_proj.weight",
    r"layers\.(\d+)\.ffn\.composition_weights\.fc1_logits": r"blocks.\1.feedforward.up_recipe",
    r"layers\.(\d+)\.ffn\.composition_weights\.fc2_logits": r"blocks.\1.feedforward.down_recipe",
    r"layers\.(\d+)\.ffn\.router\.router\.weight": r"blocks.\1.feedforward.router",
    r"layers\.(\d+)\.exit_gate\.linear\.(weight|bias)": r"blocks.\1.gate.\2",
    r"layers\.(\d+)\.ffn\.subln\.weight": r"blocks.\1.feedforward.sub_norm.weight",
}
_LAYER = re.compile(r"layers\.(\d+)\.")
# A router with one matrix. A seed's router with two has other names.
_ROUTER, _TWO_MATRICES = ".ffn.router.router.weight", ".ffn.router.router.0."
_RECIPES = re.compile(r"layers\.(\d+)\.ffn\.expert_compositions\.fc([12])_logits")
_BANK = re.compile(r"primitive_banks\.fc([12])_banks\.(\w+)\.(.+)")
_BANK_NAMES = {
    "A": "factors",
    "latent_scale": "gain",
    "latent_bias": "bias",
    "input_norm.weight": "input_norm.weight",
}
_MATRIX = {"1": "up", "2": "down"}


def from_pilon(checkpoint: SeedCheckpoint) -> tuple[ModelConfig, State]:
    """Return the model's settings and weights. Raises BadInput for weights of another model.

    Widths come from the tensors, the rest from the recorded config.
    """
    recorded = checkpoint.settings
    if odd := next((name for name in checkpoint.tensors if _TWO_MATRICES in name), None):
        raise BadInput(
            f"the tensor {odd} shows that this is a PILON whose router has two matrices, which "
            "Pion can't import"
        )
    if recorded is None:
        raise BadInput("the file has no config: the number of heads and the bands are unknown")
    tensors, hot = _with_whole_banks(checkpoint.tensors)
    if "token_embedding.weight" not in tensors or "position_embedding.weight" not in tensors:
        raise BadInput("the weights have no token_embedding.weight and position_embedding.weight")
    vocab_size, d_model = sizes(tensors, "token_embedding.weight", 2)
    seq_len, _ = sizes(tensors, "position_embedding.weight", 2)
    described = recorded.get("primitive_config") or {}
    primitives = _primitives(tensors, described)
    experts = _experts(tensors, described.get("moe_config"))
    squared = described.get("use_squared_relu") is True
    config = ModelConfig.from_dict(
        {
            "family": "pilon",
            "d_model": d_model,
            "n_layers": len({match[1] for name in tensors if (match := _LAYER.match(name))}),
            "n_heads": recorded.get("n_heads"),
            "n_kv_heads": recorded.get("n_heads"),
            "d_ff": _d_ff(tensors),
            "vocab_size": vocab_size,
            "seq_len": seq_len,
            "positions": "learned",
            "activation": "relu2" if squared else "gelu",
            "heads": Heads(qk_norm=False),
            "primitives": primitives,
            "experts": experts,
            "gates": any(".exit_gate." in name for name in tensors),
            "init": "uniform",
        }
    )
    state, bands = _translated(tensors, config)
    _choose_only(hot, bands, state, config)
    return config, untied(state)


def _d_ff(tensors: Mapping[str, Tensor]) -> int:
    for name in tensors:
        if name.endswith(".ffn.fc1.weight"):
            return sizes(tensors, name, 2)[0]
        if re.fullmatch(r"primitive_banks\.fc1_banks\.\w+\.B", name):
            return sizes(tensors, name, 3)[2]
    raise BadInput("the weights have no feed-forward layer: this is not a PILON")


def _primitives(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Primitives | None:
    """Return what the banks are, or None for a dense model."""
    names = [name for name in tensors if name.startswith("primitive_banks.")]
    if not names:
        return None
    first = next((name for name in names if name.endswith(".A")), None)
    if first is None:
        raise BadInput("the banks have no A: this is not a PILON")
    n, _, rank = sizes(tensors, first, 3)
    ternary = any(".input_norm." in name for name in names)
    return Primitives(
        n=n,
        rank=rank,
        top_k=described.get("top_k", 0),
        bands=_bands(described.get("bands")),
        ternary=ternary,
        activation_bits=described.get("activation_bits", 0) if ternary else 0,
        sub_norm=any(name.endswith(".subln.weight") for name in tensors),
        # The seed evaluates with a scale over the primitives that a layer has chosen.
        ternary_scale="chosen",
        activation_scale="batch",
        bias_weight="root",
    )


def _experts(tensors: Mapping[str, Tensor], described: object) -> Experts | None:
    """Return how recipes are routed, or None if a layer has one recipe for each matrix."""
    router = next((name for name in tensors if name.endswith(_ROUTER)), None)
    if router is None:
        return None
    if any(name.endswith(".subln.weight") for name in tensors):
        raise BadInput("a PILON with routed recipes and sub-norms can't be imported")
    routing = described if isinstance(described, dict) else {}
    weight = routing.get("aux_loss_weight", 0.0) if routing.get("load_balancing") is True else 0.0
    return Experts(
        n=sizes(tensors, router, 2)[0],
        top_k=routing.get("top_k", 0),
        shared=0,
        balance_weight=weight,
        z_weight=routing.get("router_z_loss_coef", 0.0),
        balance="batch",
    )


def _bands(described: object) -> Any:
    """Return the layers of each band. Anything that is no list of bands is for Primitives."""
    if not isinstance(described, list) or not all(isinstance(band, dict) for band in described):
        return described
    return tuple(band.get("layers") for band in described)


def _translated(tensors: Mapping[str, Tensor], config: ModelConfig) -> tuple[State, dict[str, int]]:
    """Return the tensors by our names, and the number of each band by the seed's name."""
    state: State = {}
    bands = _band_numbers(tensors, config)
    for name, tensor in tensors.items():
        bank, recipes = _BANK.fullmatch(name), _RECIPES.fullmatch(name)
        if bank and bank[3] == "B":  # it is joined with A
            if f"{name.removesuffix('B')}A" not in tensors:
                raise BadInput(f"the weights have no {name.removesuffix('B')}A")
        elif bank and bank[3] in _BANK_NAMES:
            ours = f"bands.{bands[bank[2]]}.{_MATRIX[bank[1]]}.{_BANK_NAMES[bank[3]]}"
            state[ours] = _joined(tensors, name.removesuffix(".A")) if bank[3] == "A" else tensor
        elif recipes:
            where = f"blocks.{recipes[1]}.feedforward.recipes"
            sizes(tensors, name, 2)  # a row for each expert
            ours = f"{_MATRIX[recipes[2]]}_recipe"
            state |= {f"{where}.{number}.{ours}": logits for number, logits in enumerate(tensor)}
        else:
            state |= renamed({name: tensor}, _NAMES, "PILON")
    return state, bands


def _joined(tensors: Mapping[str, Tensor], bank: str) -> Tensor:
    """Return the factors of a bank as one tensor: (n, rank, d_in + d_out)."""
    if f"{bank}.B" not in tensors:
        raise BadInput(f"the weights have no {bank}.B")
    n, _, rank = sizes(tensors, f"{bank}.A", 3)
    if sizes(tensors, f"{bank}.B", 3)[:2] != (n, rank):
        shapes = [tuple(tensors[f"{bank}.{factor}"].shape) for factor in "AB"]
        raise BadInput(f"{bank}.A and {bank}.B have shapes {shapes[0]} and {shapes[1]}")
    return torch.cat((tensors[f"{bank}.A"].mT, tensors[f"{bank}.B"]), dim=-1)


def _band_numbers(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, int]:
    """Return the number of each band, by the name it has in the seed."""
    names = dict.fromkeys(match[2] for name in tensors if (match := _BANK.fullmatch(name)))
    bands = () if config.primitives is None else config.primitives.bands
    if len(names) != len(bands):
        raise BadInput(f"the weights have banks of {len(names)} bands, the config {len(bands)}")
    return {name: number for number, name in enumerate(names)}


def _choose_only(
    hot: Mapping[tuple[str, str], Tensor],
    bands: Mapping[str, int],
    state: State,
    config: ModelConfig,
) -> None:
    """Let layers choose only among the hot primitives of tiered banks."""
    if hot and config.experts is not None:
        raise BadInput("a PILON with tiered banks and routed recipes can't be imported")
    for (matrix, name), indices in hot.items():
        assert config.primitives is not None
        for layer in config.primitives.bands[bands[name]]:
            recipe = f"blocks.{layer}.feedforward.{_MATRIX[matrix]}_recipe"
            logits = torch.full_like(state[recipe], NEVER)
            logits[indices] = state[recipe][indices]
            state[recipe] = logits


def _with_whole_banks(
    tensors: Mapping[str, Tensor],
) -> tuple[State, dict[tuple[str, str], Tensor]]:
    """Return the tensors with tiered banks as whole banks, and the hot primitives of each.

    A tiered bank has its primitives in two parts, and a layer chooses only among the hot ones.
    """
    state = dict(tensors)
    hot_of: dict[tuple[str, str], Tensor] = {}
    for name in tensors:
        bank = _BANK.fullmatch(name)
        if bank is None or bank[3] != "hot_indices":
            continue
        prefix = name.removesuffix("hot_indices")
        hot, warm = state.pop(name), _taken(state, f"{prefix}warm_indices")
        for factor in "AB":
            tiers = [_taken(state, f"{prefix}{factor}_{tier}") for tier in ("hot", "warm")]
            state[f"{prefix}{factor}"] = _whole(name, tiers, [hot, warm])
        hot_of[bank[1], bank[2]] = hot
    return state, hot_of


def _taken(state: State, name: str) -> Tensor:
    if name not in state:
        raise BadInput(f"the weights have no {name}")
    return state.pop(name)


def _whole(name: str, tiers: list[Tensor], indices: list[Tensor]) -> Tensor:
    """Return the primitives of both tiers in the order of their numbers."""
    fits = all(tier.ndim == 3 for tier in tiers) and tiers[0].shape[1:] == tiers[1].shape[1:]
    numbers = [index.flatten() for index in indices]
    counts_fit = [len(tier) for tier in tiers if tier.ndim] == [len(index) for index in numbers]
    order = torch.cat(numbers)
    if not fits or not counts_fit or sorted(order.tolist()) != list(range(len(order))):
        raise BadInput(f"{name} and its warm_indices do not number the primitives of the bank")
    return torch.cat(tiers)[order.argsort()]
