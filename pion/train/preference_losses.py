"""Losses of preferences: of two answers to a prompt, one is chosen and one is rejected.

For the answers y_w (chosen) and y_l (rejected), a and b are their summed log-probabilities, u and v
the same minus those of the reference model, n_w and n_l the numbers of their tokens, and σ is the
logistic function. All numbers here are fp64: a sum over 2,000 tokens has only 4 digits after its
point in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pion.data.sequences import Sequences, sequence_sums
from pion.data.stream import Batch
from pion.model.decoder import Decoder, LogProbs
from pion.model.forward_pass import AS_THE_MODEL, StepOptions
from pion.train.objective import Measured, Objective
from pion.train.preference import OF_MEANS, WITHOUT_REFERENCE, Loss, Preference

# orpo needs probabilities below 1. This is the most of a mean log-probability.
MOST_MEAN = -1e-6
# A pair with σ(−z) below this teaches almost nothing any more.
SATURATED = 0.02

# ---------------------------------------------------------------- sums


def answer_sums(
    model: Decoder, batch: Batch, options: StepOptions = AS_THE_MODEL
) -> tuple[Tensor, LogProbs]:
    """Return the sum of log-probabilities of each answer, fp64 (B, S) in nats, and the pass.

    The batch is on the model's device, and has S answers in its fullest row.
    """
    assert batch.sequences is not None
    assert batch.documents is not None
    scores = model.log_probs(
        batch.tokens,
        batch.targets,
        positions=batch.positions,
        documents=batch.documents,
        options=options,
    )
    return sequence_sums(scores.log_probs, batch.documents, batch.sequences.side.shape[1]), scores


# ---------------------------------------------------------------- pairs


class Pairs(NamedTuple):
    """The pairs of some rows, each (B, S / 2) in fp64; see this module. `real` is bool.

    Without a reference, u is a and v is b. What is no pair has zeros, and one token.
    """

    a: Tensor
    b: Tensor
    u: Tensor
    v: Tensor
    n_w: Tensor
    n_l: Tensor
    real: Tensor


def _pairs(preference: Preference, sums: Tensor, sequences: Sequences) -> Pairs:
    apart = _apart(preference, sums, sequences)
    tokens = sequences.tokens.clamp(min=1).double()
    # The chosen and the rejected answers alternate.
    (a, b), (u, v), (n_w, n_l) = ((each[:, 0::2], each[:, 1::2]) for each in (sums, apart, tokens))
    return Pairs(a, b, u, v, n_w, n_l, sequences.side[:, 0::2] > 0)


def _apart(preference: Preference, sums: Tensor, sequences: Sequences) -> Tensor:
    """Return how far the model is from the reference, in nats (B, S)."""
    return sums if preference.loss in WITHOUT_REFERENCE else sums - sequences.reference


def _advantage(preference: Preference, p: Pairs) -> Tensor:
    """Return by how much the chosen answer is ahead: of sums, or of means over tokens."""
    return p.u / p.n_w - p.v / p.n_l if preference.loss in OF_MEANS else p.u - p.v


def _margins(preference: Preference, p: Pairs) -> Tensor:
    return preference.strength * _advantage(preference, p) - preference.least_margin


def _logistic(preference: Preference, p: Pairs) -> Tensor:
    """−(1 − ε) log σ(z) − ε log σ(−z): dpo (Rafailov et al. 2023) with z = β(u − v), dpo-norm with
    z = β(u / n_w − v / n_l) (Lambert et al. 2024, "Tulu 3"), simpo with a and b for u and v, minus
    γ (Meng et al. 2024). ε as in Mitchell 2023, "A note on DPO with noisy preferences"."""
    z, smoothing = _margins(preference, p), preference.label_smoothing
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def _ipo(preference: Preference, p: Pairs) -> Tensor:
    """(u / n_w − v / n_l − 1 / 2β)² (Azar et al. 2023)."""
    return (_advantage(preference, p) - 1 / (2 * preference.strength)) ** 2


def _apo_zero(preference: Preference, p: Pairs) -> Tensor:
    """1 − σ(βu) + σ(βv) (D'Oosterlinck et al. 2024)."""
    beta = preference.strength
    return torch.sigmoid(-beta * p.u) + torch.sigmoid(beta * p.v)


def _apo_down(preference: Preference, p: Pairs) -> Tensor:
    """σ(βu) + 1 − σ(β(u − v)) (D'Oosterlinck et al. 2024). It lowers the chosen answer, too."""
    beta = preference.strength
    return torch.sigmoid(beta * p.u) + torch.sigmoid(-beta * (p.u - p.v))


def _orpo(preference: Preference, p: Pairs) -> Tensor:
    """−a / n_w − λ log σ(o), with o the log of the ratio of the odds (Hong et al. 2024)."""
    mean_w, mean_l = p.a / p.n_w, p.b / p.n_l
    return -mean_w - preference.strength * logsigmoid(_log_odds(mean_w) - _log_odds(mean_l))


def _log_odds(mean: Tensor) -> Tensor:
    """Return log(p / (1 − p)) of the probability exp(mean), which is taken to be below 1."""
    below = mean.clamp(max=MOST_MEAN)
    return below - torch.log(-torch.expm1(below))


_OF_PAIRS: dict[Loss, Callable[[Preference, Pairs], Tensor]] = {
    "dpo": _logistic,
    "dpo-norm": _logistic,
    "ipo": _ipo,
    "apo-zero": _apo_zero,
    "apo-down": _apo_down,
    "simpo": _logistic,
    "orpo": _orpo,
}


# ---------------------------------------------------------------- losses


def example_losses(preference: Preference, sums: Tensor, sequences: Sequences) -> Tensor:
    """Return the loss of each pair (B, S / 2), or of each single answer (B, S), in nats, fp64.

    `sums` (B, S) in fp64 are those of the model (`sequence_sums`). What is no pair or no answer has
    a loss of 0. The term of `sft_weight` is not in it: see `sft_loss`.
    """
    if preference.paired:
        pairs = _pairs(preference, sums, sequences)
        return torch.where(pairs.real, _OF_PAIRS[preference.loss](preference, pairs), 0.0)
    z = _single_margins(preference, sums, sequences)
    weights = torch.where(
        sequences.side > 0, preference.desirable_weight, preference.undesirable_weight
    )
    return torch.where(sequences.side == 0, 0.0, weights.double() * torch.sigmoid(-z))


def _single_margins(preference: Preference, sums: Tensor, sequences: Sequences) -> Tensor:
    """Return βu of a desired answer, and −βu of an undesired one."""
    return preference.strength * sequences.side * _apart(preference, sums, sequences)


def sft_loss(sums: Tensor, sequences: Sequences) -> Tensor:
    """Return the cross-entropy of the chosen or desired answers, summed over tokens, fp64."""
    return -(sums * (sequences.side > 0)).sum()


# ---------------------------------------------------------------- metrics

# What `metrics` returns, each a sum over this number of a step: examples (pairs or single answers),
# chosen or rejected answers, or tokens of the chosen answers; or, of pairs, over nothing.
METRICS: dict[str, Literal["step", "examples", "chosen", "rejected", "chosen_tokens"]] = {
    "pairs": "step",
    "margin": "examples",
    "accuracy": "examples",
    "saturated": "examples",
    "chosen": "chosen",
    "rejected": "rejected",
    "chosen_nll": "chosen_tokens",
    "drift": "chosen",
    "moved": "examples",
}


@torch.no_grad()
def metrics(preference: Preference, sums: Tensor, sequences: Sequences) -> dict[str, Tensor]:
    """Return sums over examples, fp64 scalars: a step divides them by the numbers in METRICS.

    The margin is z of the loss, by which the chosen answer is ahead: β(u − v) or, if the loss
    compares means, β(u / n_w − v / n_l) − γ; of single answers, ±βu. The accuracy is the
    share of examples that are ahead of no difference (without γ), where a tie counts ½. saturated
    is the share with σ(−z) < 0.02. chosen and rejected are u and v. chosen_nll is the cross-entropy
    of the chosen answers per token. drift is −u / n_w of the chosen answers: how much less likely a
    token is than in the reference, 0 for a loss without one. pairs is the number of pairs, or of
    single answers. moved is |u| + |v|: 0 of a model that is its reference.
    """
    apart, side = _apart(preference, sums, sequences), sequences.side
    tokens = sequences.tokens.clamp(min=1)
    if preference.paired:
        pairs = _pairs(preference, sums, sequences)
        real, z, ahead = pairs.real, _margins(preference, pairs), _advantage(preference, pairs)
    else:
        real = side != 0
        ahead = z = _single_margins(preference, sums, sequences)
    moved = torch.zeros_like(apart) if preference.loss in WITHOUT_REFERENCE else apart
    right = (ahead > 0).double() + 0.5 * (ahead == 0)
    return {
        "pairs": real.sum().double(),
        "margin": (z * real).sum(),
        "accuracy": (right * real).sum(),
        "saturated": ((torch.sigmoid(-z) < SATURATED) & real).sum().double(),
        "chosen": (apart * (side > 0)).sum(),
        "rejected": (apart * (side < 0)).sum(),
        "chosen_nll": sft_loss(sums, sequences),
        "drift": -(moved / tokens * (side > 0)).sum(),
        "moved": (apart.abs() * (side != 0)).sum(),
    }


# ---------------------------------------------------------------- what a step minimizes


@dataclass(frozen=True)
class PreferenceLoss(Objective):
    """The mean loss per pair or per single answer.

    `counts` has the numbers of a step that METRICS names, fp64 scalars of at least 1.
    """

    preference: Preference
    counts: dict[str, Tensor]

    def measured(self, model: Decoder, batch: Batch, options: StepOptions) -> Measured:
        """Return what a micro-batch on the model's device adds to the step."""
        assert batch.sequences is not None
        sums, scores = answer_sums(model, batch, options)
        losses = example_losses(self.preference, sums, batch.sequences)
        loss = losses.sum() / self.counts["examples"]
        if self.preference.sft_weight:
            per_token = sft_loss(sums, batch.sequences) / self.counts["chosen_tokens"]
            loss = loss + self.preference.sft_weight * per_token
        measures = {
            name: (value / self.counts[METRICS[name]]).float()
            for name, value in metrics(self.preference, sums.detach(), batch.sequences).items()
        }
        return Measured(loss.float(), scores.aux, scores.stats, measures)
