"""Learning from rewards: what a step minimizes, and the memory of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.data.stream import Batch
from pion.evaluation.held_out import evaluating
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.model.loss import IGNORED
from pion.model.params_and_flops import cost_of
from pion.train.objective import Measured, Measures, Objective

# The most answers that are sampled together, and the largest share of the memory that their keys
# and values may take.
MOST_TOGETHER, SHARE_OF_CACHE = 256, 0.25


@dataclass(frozen=True)
class RewardLoss(Objective):
    """Minus the mean of weight · log-probability, of all tokens that were sampled in the step
    (Yu et al. 2025, "DAPO"). `scale` is one by their number.

    Answers are learned once, from the weights that drew them. So the ratio of probabilities, which
    others clip, is 1.
    """

    scale: Tensor

    def measured(self, model: Decoder, batch: Batch, options: StepOptions) -> Measured:
        """Return what a micro-batch on the model's device adds to the step."""
        assert batch.sampled is not None
        scores = model.log_probs(
            batch.tokens,
            batch.targets,
            positions=batch.positions,
            documents=batch.documents,
            branches=batch.sampled.branches,
            options=options,
        )
        loss = -(scores.log_probs * batch.sampled.weights).sum() * self.scale
        apart = (scores.log_probs.detach() - batch.sampled.log_probs).abs().sum()
        # Routers learn from the answers alone, and WITHOUT_LOSS nothing.
        return Measured(loss, torch.zeros_like(loss), {}, {"mismatch": apart})

    def reported(self, loss: Tensor, measures: Measures) -> tuple[Tensor, Measures]:
        """Return minus the mean reward, and the measures as means over tokens."""
        measures["entropy"] = measures.pop("answer_nats") / measures["answer_tokens"]
        measures["mismatch"] /= measures.pop("learned").clamp(min=1)  # of what is learned
        return -measures["reward"], measures


@lru_cache(maxsize=256)
def cache_bytes(config: ModelConfig, dtype: str) -> int:
    """Return the bytes of a token's keys and values in all layers, in a dtype of plans."""
    size = 2 if dtype == "bfloat16" else 4
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * size


def rollout_rows(
    config: ModelConfig, seq_len: int, dtype: str, answers: int, memory_bytes: int
) -> int:
    """Return how many of its `answers` a rank with so much memory samples together."""
    fit = int(SHARE_OF_CACHE * memory_bytes) // (seq_len * cache_bytes(config, dtype))
    return min(max(1, fit), answers, MOST_TOGETHER)


def rollout_bytes(config: ModelConfig, seq_len: int, dtype: str, rows: int) -> int:
    """Return what sampling so many answers together keeps next to training: a copy of the weights
    in bfloat16, and a cache."""
    copied = 2 * cost_of(config).all_params if rows and dtype == "bfloat16" else 0
    return copied + rows * seq_len * cache_bytes(config, dtype)


def answer_nats(model: Decoder, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Return minus the log-probability of an answer after a prompt, in nats."""
    ids = torch.tensor([[*prompt, *answer]], device=model.embed.weight.device)
    targets = ids[:, 1:].clone()
    targets[:, : len(prompt) - 1] = IGNORED
    with evaluating(model):
        return -float(model.log_probs(ids[:, :-1], targets).log_probs.sum())
