"""A checkpoint of the original Tachyon 2: {step, model, optimizer, config}.

Checkpoints of compiled runs have a prefix before each name. `config` is a pickled object of the
seed's class; without it, what the tensors do not tell has the value of every Tachyon seed.
"""

from __future__ import annotations

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.formats.seeds.names import State, renamed, shape_of, sizes, untied
from pion.formats.seeds.read import SeedCheckpoint
from pion.parts import Experts

# What every Tachyon seed has, for checkpoints that don't record it.
SEQ_LEN, TOP_K = 2048, 2

_FEEDFORWARD = {
    r"moe\.gate\.weight": "feedforward.router",
    r"moe\.w1": "feedforward.gate_proj",
    r"moe\.w2": "feedforward.down_proj",
    r"moe\.w3": "feedforward.up_proj",
    r"moe\.shared_experts\.(\d+)\.w1\.weight": r"feedforward.shared.\1.gate_proj.weight",
    r"moe\.shared_experts\.(\d+)\.w2\.weight": r"feedforward.shared.\1.down_proj.weight",
    r"moe\.shared_experts\.(\d+)\.w3\.weight": r"feedforward.shared.\1.up_proj.weight",
}


def from_tachyon(checkpoint: SeedCheckpoint) -> tuple[ModelConfig, State]:
    """Return the model's settings and weights. Raises BadInput for weights of another model.

    The seed balances its experts over a whole batch, padding included, and so does the model.
    """
    state = renamed(checkpoint.tensors, _FEEDFORWARD)
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
