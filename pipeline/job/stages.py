"""The names of a run's stages, in order, and what they have in common."""

from __future__ import annotations

STAGES = ("prepare", "pretrain", "sft", "prefer", "reinforce", "evaluate", "publish")
# These train. Each starts from the model of the one before it.
TRAINING = ("pretrain", "sft", "prefer", "reinforce")
# These train on conversations, so what they leave can be talked to.
CONVERSING = ("sft", "prefer", "reinforce")
# What a model is called after a stage.
AFTER = {
    "pretrain": "pretrained",
    "sft": "fine-tuned",
    "prefer": "preference-tuned",
    "reinforce": "reward-tuned",
}
