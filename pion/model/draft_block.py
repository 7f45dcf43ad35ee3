"""A block that guesses the tokens after the next one, from what the model made of the text.

It is one block without attention, used again for each further token, like Hydra's heads (Ankner et
al. 2024, arXiv:2402.05109). With h the hidden states after the model's last norm, E the embeddings
and R a root mean square norm without gain:

    g⁰ = h_t,   z = W [R(gᵏ⁻¹); R(E(x_{t+k}))],   gᵏ = z + SwiGLU(R(z)),   k = 1, 2 …

The model's last norm and head make of gᵏ the logits of x_{t+k+1}. Only the most frequent ids have
logits (Zhao et al. 2025, "FR-Spec", arXiv:2502.14856), because the head takes most of the time.

The block learns from the model and changes nothing in it: none of the gradients of its loss reach
another weight. It never changes a text either: pion/generation/decoding.py says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm

from pion.config.model_config import ModelConfig
from pion.config.parts import Role
from pion.errors import BadInput
from pion.model.feedforward.dense import Stats, SwiGLU
from pion.model.forward_pass import Owner, Passed, SharedPart, State
from pion.model.loss import IGNORED, Cap, cap_logits, cap_of
from pion.model.norm_and_projection import Projection, RMSNorm, compute_dtype, project

# What the model reports of its block: the loss of each step, in nats for each guessed token.
DRAFT_LOSS = "draft_loss"
IDS = "draft.ids"


class Trunk(NamedTuple):
    """What a block reads of its model: the table of embeddings, the last norm, the rows of the head
    (S, d_model) for the ids that the block guesses, and the cap of logits. None gets a gradient."""

    embed: Tensor
    norm: RMSNorm
    head: Tensor
    cap: Cap | None

    def states(self, g: Tensor) -> Tensor:
        """Return the head's input (…, d_model) in fp32."""
        states: Tensor = self.norm(g, learned=False)
        return states

    def logits(self, g: Tensor) -> Tensor:
        """Return the logits (…, ids) of states (…, d_model)."""
        states = self.states(g)
        logits = project(states.to(compute_dtype(states, self.head)), self.head)
        return logits if self.cap is None else cap_logits(logits, self.cap)


class DraftBlock(SharedPart):
    """The block. `ids` (S,) int64 are the ids that it guesses, rising; None: all that there are."""

    roles: ClassVar[dict[str, Role]] = {
        "mix.weight": "draft",
        "feedforward.gate_proj.weight": "draft",
        "feedforward.up_proj.weight": "draft",
        "feedforward.down_proj.weight": "draft",
    }
    last = True
    ids: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        settings = config.draft
        assert settings is not None
        self.steps, self._width, self._eps = settings.steps, config.d_model, config.norm_eps
        self._vocab_size = config.vocab_size
        self.mix = Projection(2 * config.d_model, config.d_model)
        # The width is 8/3 of the model's, in steps of 64.
        self.feedforward = SwiGLU(config.d_model, -(-8 * config.d_model // (3 * 64)) * 64)
        count = settings.ids_of(config.vocab_size)
        # Until they are counted, these are the first ids. A tokenizer learned them first.
        self.register_buffer("ids", torch.arange(count) if count < config.vocab_size else None)

    def forward(self, g: Tensor, tokens: Tensor, trunk: Trunk) -> Tensor:
        """Return gᵏ (…, d_model) in fp32, from gᵏ⁻¹ and the ids x_{t+k} (…)."""
        embedded = embedding(tokens, trunk.embed)
        both = torch.cat([self._normed(g), self._normed(embedded)], dim=-1)
        z = self.mix(both.to(compute_dtype(both, self.mix.weight))).float()
        return z + self.feedforward(self._normed(z))[0]

    def trunk(self, model: Owner) -> Trunk:
        """Return what the block reads of its model."""
        head = model.head()[: self._vocab_size].detach()
        head = head if self.ids is None else head[self.ids]
        return Trunk(model.embed.weight.detach(), model.norm, head, cap_of(model.config))

    @torch.inference_mode()
    def guess(self, states: Tensor, tokens: Tensor, trunk: Trunk, count: int) -> list[list[int]]:
        """Return the likeliest ids after `tokens` (B,), one after the other, of each text.

        `states` (B, d_model) are those that predicted the tokens. These are `count` ids, or as many
        as the block has learned to guess.
        """
        guessed = []
        for _ in range(min(count, self.steps)):
            states = self(states, tokens, trunk)
            tokens = trunk.logits(states).argmax(dim=-1)
            tokens = tokens if self.ids is None else self.ids[tokens]
            guessed.append(tokens)
        ids: list[list[int]] = torch.stack(guessed, dim=1).tolist()
        return ids

    def _normed(self, x: Tensor) -> Tensor:
        return rms_norm(x.float(), (self._width,), None, self._eps)

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates of all steps of training, for one token."""
        weights = sum(weight.numel() for weight in self.parameters())
        ids = self._vocab_size if self.ids is None else len(self.ids)
        return self.steps * (weights + ids * self._width)

    def check_weights(self, blocks: nn.ModuleList, state: Mapping[str, Tensor]) -> None:
        """Raise BadInput for ids that are not rising, or not the model's."""
        ids = state.get(IDS)
        if ids is None:
            return
        if not (ids[1:] > ids[:-1]).all() or ids[0] < 0 or ids[-1] >= self._vocab_size:
            raise BadInput(f"{IDS}: not {len(ids):,} rising ids of 0 … {self._vocab_size - 1:,}")

    def read_rows(self, rows: Callable[[], Tensor]) -> None:
        """Set which ids a new block guesses: those that are the most frequent in these rows."""
        if self.ids is not None:
            self.ids.copy_(most_frequent(rows(), len(self.ids), self._vocab_size))

    def exported(self, rows: int) -> tuple[dict[str, Any], State]:
        """Return settings and tensors, with the ids among the first `rows`; the block guesses no
        others."""
        tensors = self.state_dict()
        ids = tensors.pop("ids", torch.arange(rows))
        exported_ids = ids[ids < rows]
        id_tensors = {"ids": exported_ids} if len(exported_ids) < rows else {}
        return {"steps": self.steps, "ids": len(exported_ids)}, tensors | id_tensors

    def losses(self, model: Owner, passed: Passed) -> tuple[list[Tensor], Stats]:
        """Return the loss of the block, summed over rows, and its report, if the block learns.

        The loss of a row is the cross-entropy of its guesses, divided by T and by the number of
        steps. A target of another document, or one that is not guessed, does not count. The report
        has "draft_loss" (steps,), the mean of each step.
        """
        if not (torch.is_grad_enabled() and self.mix.weight.requires_grad):
            return [], {}  # no backward pass reaches the block
        given, trunk, length = passed.given, self.trunk(model), passed.targets.shape[1]
        zero = passed.hidden.new_zeros((), dtype=torch.float32)
        total = zero
        means = []
        g = passed.hidden.detach()
        for step in range(1, self.steps + 1):
            wanted = passed.targets[:, step:]
            if not wanted.numel():  # the row is too short
                means.append(zero)
                continue
            g = self(g[:, : length - step], given.tokens[:, step:], trunk)
            if given.documents is not None:
                same = given.documents[:, step:] == given.documents[:, : length - step]
                wanted = torch.where(same, wanted, IGNORED)
            wanted = _numbers_of(wanted, self.ids).reshape(-1)
            guessed = trunk.states(g).flatten(0, 1)
            ce = passed.cross_entropy(guessed, trunk.head, wanted, trunk.cap)
            total = total + ce
            means.append(ce.detach() / (wanted != IGNORED).sum().clamp(min=1))
        return [total / (length * self.steps)], {DRAFT_LOSS: torch.stack(means)}


def block_of(model: nn.Module) -> DraftBlock | None:
    """Return the draft block of a model; None: it has none."""
    return next((part for part in model.children() if isinstance(part, DraftBlock)), None)


def _numbers_of(targets: Tensor, ids: Tensor | None) -> Tensor:
    """Return the places of targets among the rising ids, and IGNORED for those that are not."""
    if ids is None:
        return targets
    places = torch.searchsorted(ids, targets.contiguous()).clamp(max=len(ids) - 1)
    return torch.where(ids[places] == targets, places, IGNORED)


@torch.no_grad()
def most_frequent(tokens: Tensor, count: int, vocab_size: int) -> Tensor:
    """Return the `count` most frequent ids of `tokens`, rising; of equals, the lower ids."""
    times = torch.bincount(tokens.reshape(-1), minlength=vocab_size)[:vocab_size]
    return times.sort(descending=True, stable=True).indices[:count].sort().values
