"""Checkpoints of the original Pion and Tachyon 2: {step, model, optimizer, config, …}.

Both seeds give a decoder's tensors the same names, apart from the feed-forward layers. After
fine-tuning a Pion is {step, model, config}. Checkpoints of compiled runs have a prefix before each
name. `config` is a pickled object of the seed's class. Where it is missing, the values are those of
every seed of the kind.
"""

from __future__ import annotations

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts
from pion.errors import BadInput
from pion.formats.seeds.read import SeedCheckpoint, State, renamed, sizes, untied

# Patterns of their names, and ours.
_NAMES = {
    r"embed\.weight": "embed.weight",
    r"norm\.weight": "norm.weight",
    r"lm_head\.weight": "lm_head.weight",
    r"layers\.(\d+)\.norm1\.weight": r"blocks.\1.attention_norm.weight",
    r"layers\.(\d+)\.attn\.([qkvo])_proj\.weight": r"blocks.\1.attention.\2_proj.weight",
    r"layers\.(\d+)\.attn\.([qk])_norm\.weight": r"blocks.\1.attention.\2_norm.weight",
    r"layers\.(\d+)\.norm2\.weight": r"blocks.\1.feedforward_norm.weight",
}
PION_NAMES = _NAMES | {
    r"layers\.(\d+)\.ffn\.w1\.weight": r"blocks.\1.feedforward.gate_proj.weight",
    r"layers\.(\d+)\.ffn\.w2\.weight": r"blocks.\1.feedforward.down_proj.weight",
    r"layers\.(\d+)\.ffn\.w3\.weight": r"blocks.\1.feedforward.up_proj.weight",
}
_SHARED = r"layers\.(\d+)\.moe\.shared_experts\.(\d+)\."
TACHYON_NAMES = _NAMES | {
    r"layers\.(\d+)\.moe\.gate\.weight": r"blocks.\1.feedforward.router",
    r"layers\.(\d+)\.moe\.w1": r"blocks.\1.feedforward.gate_proj",
    r"layers\.(\d+)\.moe\.w2": r"blocks.\1.feedforward.down_proj",
    r"layers\.(\d+)\.moe\.w3": r"blocks.\1.feedforward.up_proj",
    rf"{_SHARED}w1\.weight": r"blocks.\1.feedforward.shared.\2.gate_proj.weight",
    rf"{_SHARED}w2\.weight": r"blocks.\1.feedforward.shared.\2.down_proj.weight",
    rf"{_SHARED}w3\.weight": r"blocks.\1.feedforward.shared.\2.up_proj.weight",
}
# The context of every Pion and Tachyon seed, and what every Tachyon has, for checkpoints that
# don't record it.
SEQ_LEN, TOP_K = 2048, 2


def shape_of(state: State, kind: str) -> dict[str, int]:
    """Return the settings that the shapes of the tensors tell.

    Raises BadInput if a needed tensor is missing: this is not a model of that `kind`.
    """
    for needed in ("embed.weight", "blocks.0.attention.q_norm.weight"):
        if needed not in state:
            raise BadInput(f"the weights have no {needed}: this is not a {kind} model")
    vocab_size, d_model = sizes(state, "embed.weight", 2)
    (head_dim,) = sizes(state, "blocks.0.attention.q_norm.weight", 1)

    def heads(name: str) -> int:
        return sizes(state, name, 2)[0] // head_dim if name in state else 0

    return {
        "d_model": d_model,
        "n_layers": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "n_heads": heads("blocks.0.attention.q_proj.weight"),
        "n_kv_heads": heads("blocks.0.attention.k_proj.weight"),
        "vocab_size": vocab_size,
        "head_dim": head_dim,
    }


def from_pion(checkpoint: SeedCheckpoint) -> tuple[ModelConfig, State]:
    """Return the model's settings and weights.

    Shapes come from the tensors, the rest from the seed's config. Without a config, the rest are
    the values of every Pion seed, without softcap, as in the seed's inference. Raises BadInput for
    weights that are not a Pion's.
    """
    state = renamed(checkpoint.tensors, PION_NAMES, "seed's model")
    shape = shape_of(state, "Pion")
    recorded = checkpoint.settings or {}
    # Checkpoints from before `use_soft_cap` existed were trained with the cap.
    capped = recorded.get("use_soft_cap", True) and "logit_cap" in recorded
    gate = "blocks.0.feedforward.gate_proj.weight"
    config = ModelConfig.from_dict(
        {
            **shape,
            "d_ff": sizes(state, gate, 2)[0] if gate in state else 0,
            "seq_len": recorded.get("max_seq_len", SEQ_LEN),
            "rope_theta": recorded.get("rope_theta", 10_000.0),
            "softcap": recorded["logit_cap"] if capped else None,
            "tie_embeddings": recorded.get("tie_embeddings", True),
        }
    )
    return config, untied(state) if config.tie_embeddings else state


def from_tachyon(checkpoint: SeedCheckpoint) -> tuple[ModelConfig, State]:
    """Return the model's settings and weights. Raises BadInput for weights of another model.

    The seed balances its experts over a whole batch, padding included, and so does the model.
    """
    state = renamed(checkpoint.tensors, TACHYON_NAMES, "seed's model")
    shape = shape_of(state, "Tachyon")
    recorded = checkpoint.settings or {}
    gate = "blocks.0.feedforward.gate_proj"
    if gate not in state:
        raise BadInput("the weights have no layers.0.moe.w1 of shape (experts, d_ff, d_model)")
    n_experts, d_ff, _ = sizes(state, gate, 3)
    shared = [n for n in state if n.startswith("blocks.0.feedforward.shared.") and "gate" in n]
    experts = Experts(
        n=n_experts,
        top_k=recorded.get("top_k_experts", TOP_K),
        shared=len(shared),
        d_shared=sizes(state, shared[0], 2)[0] if shared else 0,
        balance_weight=recorded.get("balance_loss_coef", 0.01),
        z_weight=recorded.get("z_loss_coef", 0.001),
        balance="batch",
    )
    config = ModelConfig.from_dict(
        {
            **shape,
            "d_ff": d_ff,
            "seq_len": recorded.get("max_seq_len", SEQ_LEN),
            "rope_theta": recorded.get("rope_theta", 10_000.0),
            "family": "tachyon",
            "experts": experts,
        }
    )
    return config, untied(state)
