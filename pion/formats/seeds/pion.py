"""A checkpoint of the original Pion: {step, model, optimizer, config, tokens_seen}.

After fine-tuning it is {step, model, config}. `config` is a pickled object of the seed's class.
"""

from __future__ import annotations

from pion.config import ModelConfig
from pion.formats.seeds.names import State, renamed, shape_of, sizes, untied
from pion.formats.seeds.read import SeedCheckpoint

# The context of every Pion seed, for checkpoints that don't record it.
SEQ_LEN = 2048

_FEEDFORWARD = {
    r"ffn\.w1\.weight": "feedforward.gate_proj.weight",
    r"ffn\.w2\.weight": "feedforward.down_proj.weight",
    r"ffn\.w3\.weight": "feedforward.up_proj.weight",
}


def from_pion(checkpoint: SeedCheckpoint) -> tuple[ModelConfig, State]:
    """Return the model's settings and weights.

    Shapes come from the tensors, the rest from the seed's config. Without a config, the rest are
    the values of every Pion seed, without softcap, as in the seed's inference. Raises BadInput for
    weights that are not a Pion's.
    """
    state = renamed(checkpoint.tensors, _FEEDFORWARD)
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
