"""Twenty losses of each kind of preference are those of a plain model in fp64, and of TRL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pion.model.decoder import Decoder
from pion.train.preference import Preference
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.support.pair_rows import CONFIG, Loss, PairRows, PlainModel, Sums, random_pairs

STEPS, BATCH, LR = 20, 4, 1e-3


def decoder(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(CONFIG)


def with_reference(rows: PairRows) -> PairRows:
    """Return the rows with the sums of another model, so that no loss begins at its zero."""
    plain = PlainModel(decoder(seed=7), LR)
    with torch.no_grad():
        for row in rows.rows:
            sums = plain.sums(row)
            row[:] = [
                pair._replace(reference=(float(r_w), float(r_l)))
                for pair, r_w, r_l in zip(row, sums.a, sums.b, strict=True)
            ]
    return rows


def our_losses(rows: PairRows, **fields: Any) -> list[float]:
    settings = TrainSettings(
        steps=STEPS,
        global_batch=BATCH,
        lr=LR,
        schedule="constant",
        weight_decay=0.0,
        preference=Preference(**fields),
    )
    trainer = Trainer(decoder(), rows.as_stream(), settings, ComputePlan(micro_batch=3, threads=1))
    for _ in range(STEPS):
        assert trainer.train_step()
    found = [step["loss"] for step in trainer.drain_metrics()]
    trainer.close()
    return found


def plain_losses(rows: PairRows, loss_of: Loss) -> list[float]:
    plain = PlainModel(decoder(), LR)
    steps = [range(step * BATCH, (step + 1) * BATCH) for step in range(STEPS)]
    return [plain.step([pair for i in step for pair in rows.at(i)], loss_of) for step in steps]


def nl(x: Tensor) -> Tensor:
    """−log σ(x), as it is written in papers."""
    return torch.log(1 + torch.exp(-x))


def s(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def dpo(beta: float, epsilon: float = 0.0) -> Loss:
    def loss(p: Sums) -> Tensor:
        z = beta * ((p.a - p.b) - (p.r_w - p.r_l))
        return ((1 - epsilon) * nl(z) + epsilon * nl(-z)).mean()

    return loss


def dpo_norm(p: Sums) -> Tensor:
    return nl(5 * ((p.a - p.r_w) / p.n_w - (p.b - p.r_l) / p.n_l)).mean()


def ipo(p: Sums) -> Tensor:
    return (((p.a - p.r_w) / p.n_w - (p.b - p.r_l) / p.n_l - 0.5) ** 2).mean()


def apo_zero(p: Sums) -> Tensor:
    return (1 - s(0.1 * (p.a - p.r_w)) + s(0.1 * (p.b - p.r_l))).mean()


def apo_down(p: Sums) -> Tensor:
    u, v = p.a - p.r_w, p.b - p.r_l
    return (s(0.1 * u) + 1 - s(0.1 * (u - v))).mean()


def simpo(p: Sums) -> Tensor:
    return nl(2.5 * (p.a / p.n_w - p.b / p.n_l) - 1.25).mean()


def orpo(p: Sums) -> Tensor:
    w, l = torch.exp(p.a / p.n_w), torch.exp(p.b / p.n_l)  # noqa: E741 - as in the paper
    return (-torch.log(w) + 0.1 * nl(torch.log(w / (1 - w)) - torch.log(l / (1 - l)))).mean()


def dpo_and_sft(p: Sums) -> Tensor:
    return dpo(0.1)(p) + 0.2 * (-p.a.sum() / p.n_w.sum())


def apo_zero_single(p: Sums) -> Tensor:
    desired, undesired = 1 - s(0.1 * (p.a - p.r_w)), s(0.1 * (p.b - p.r_l))
    return torch.cat([desired, 2 * undesired]).mean()


VARIANTS: dict[str, tuple[Loss, dict[str, Any]]] = {
    "dpo 0.1": (dpo(0.1), {"loss": "dpo"}),
    "dpo 0.5": (dpo(0.5), {"loss": "dpo", "beta": 0.5}),
    "dpo 0.01": (dpo(0.01), {"loss": "dpo", "beta": 0.01}),
    "dpo smoothed": (dpo(0.1, 0.2), {"loss": "dpo", "label_smoothing": 0.2}),
    "dpo-norm": (dpo_norm, {"loss": "dpo-norm"}),
    "ipo": (ipo, {"loss": "ipo"}),
    "apo-zero": (apo_zero, {"loss": "apo-zero"}),
    "apo-down": (apo_down, {"loss": "apo-down"}),
    "simpo": (simpo, {"loss": "simpo"}),
    "orpo": (orpo, {"loss": "orpo"}),
    "dpo and sft": (dpo_and_sft, {"loss": "dpo", "sft_weight": 0.2}),
    "apo-zero single": (
        apo_zero_single,
        {"loss": "apo-zero", "unpaired": True, "undesirable_weight": 2.0},
    ),
}


# Losses of TRL stand for the others in the suite: see test_objective_trl.py.
IN_SUITE = ("dpo 0.1", "dpo smoothed", "simpo", "orpo")


@pytest.mark.parametrize(
    "name",
    [name if name in IN_SUITE else pytest.param(name, marks=pytest.mark.soak) for name in VARIANTS],
)
def test_twenty_losses_are_those_of_a_plain_model_in_fp64(name: str) -> None:
    loss_of, fields = VARIANTS[name]
    rows = with_reference(PairRows(random_pairs(30), single="unpaired" in fields))
    ours, plain = our_losses(rows, **fields), plain_losses(rows, loss_of)
    assert min(plain[-3:]) < plain[0]
    worst = max(abs(x - y) / max(1, abs(y)) for x, y in zip(ours, plain, strict=True))
    print(f"{name}: {worst:.1e}")
    assert worst < 1e-5
