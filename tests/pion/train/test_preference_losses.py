"""Losses of preferences: their values, their derivatives, and what they must not depend on."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pion.data.sequences import Sequences
from pion.train.preference import Preference
from pion.train.preference_losses import METRICS, example_losses, metrics, sft_loss

LOG_2 = math.log(2)


class Point(NamedTuple):
    """The numbers of one pair. Lengths differ, so that a wrong one is seen."""

    a: float
    b: float
    r_w: float
    r_l: float
    n_w: int = 7
    n_l: int = 3

    @property
    def sequences(self):
        return Sequences(
            torch.tensor([[self.r_w, self.r_l]], dtype=torch.float64),
            torch.tensor([[self.n_w, self.n_l]]),
            torch.tensor([[1, -1]], dtype=torch.int8),
        )

    @property
    def sums(self):
        return torch.tensor([[self.a, self.b]], dtype=torch.float64, requires_grad=True)


def points(count=200):
    random = torch.Generator().manual_seed(0)
    numbers = -40 * torch.rand(count, 4, generator=random) - 0.5
    lengths = torch.randint(1, 30, (count, 2), generator=random)
    return [Point(*row, *own) for row, own in zip(numbers.tolist(), lengths.tolist(), strict=True)]


def loss_and_slopes(preference, point) -> tuple[float, float, float]:
    """Return the loss of a pair, and its derivatives by a and by b."""
    sums = point.sums
    losses = example_losses(preference, sums, point.sequences)
    assert losses.dtype == torch.float64
    assert losses.shape == (1, 1)
    (grad,) = torch.autograd.grad(losses.sum(), sums)
    return losses.item(), grad[0, 0].item(), grad[0, 1].item()


def s(x):
    return 0.5 * (1 + math.tanh(x / 2))


def slope(x):
    """Return the derivative of the logistic function."""
    return s(x) * s(-x)


def by_hand(p, at) -> tuple[float, float]:
    """Return the derivatives by a and by b, as they are worked out on paper."""
    beta, epsilon, (a, b, r_w, r_l, n_w, n_l) = p.strength, p.label_smoothing, at
    u, v = a - r_w, b - r_l
    if p.loss == "dpo":
        c = beta * (epsilon - s(-beta * (u - v)))
        return c, -c
    if p.loss == "dpo-norm":
        c = beta * (epsilon - s(-beta * (u / n_w - v / n_l)))
        return c / n_w, -c / n_l
    if p.loss == "ipo":
        c = 2 * (u / n_w - v / n_l - 1 / (2 * beta))
        return c / n_w, -c / n_l
    if p.loss == "apo-zero":
        return -beta * slope(beta * u), beta * slope(beta * v)
    if p.loss == "apo-down":
        of_both = slope(beta * (u - v))
        return beta * (slope(beta * u) - of_both), beta * of_both
    if p.loss == "simpo":
        c = beta * (epsilon - s(-(beta * (a / n_w - b / n_l) - p.least_margin)))
        return c / n_w, -c / n_l
    assert p.loss == "orpo"
    w, x = math.exp(a / n_w), math.exp(b / n_l)
    c = beta * s(-(math.log(w / (1 - w)) - math.log(x / (1 - x))))
    return -1 / n_w - c / ((1 - w) * n_w), c / ((1 - x) * n_l)


OF_PAIRS = [
    Preference("dpo"),
    Preference("dpo", beta=0.5, label_smoothing=0.2),
    Preference("dpo-norm"),
    Preference("dpo-norm", label_smoothing=0.1),
    Preference("ipo"),
    Preference("apo-zero"),
    Preference("apo-down"),
    Preference("simpo"),
    Preference("simpo", margin=0.3, label_smoothing=0.1),
    Preference("orpo"),
]


@pytest.mark.slow
@pytest.mark.parametrize("preference", OF_PAIRS, ids=str)
def test_derivatives_are_those_worked_out_on_paper(preference):
    for point in points():
        _, by_a, by_b = loss_and_slopes(preference, point)
        expected = by_hand(preference, point)
        assert (by_a, by_b) == pytest.approx(expected, rel=1e-9, abs=1e-13)


# ---------------------------------------------------------------- before anything is learned

AT_THE_REFERENCE = Point(-9.0, -4.0, -9.0, -4.0)


@pytest.mark.parametrize(
    ("preference", "loss", "by_a", "by_b"),
    [
        (Preference("dpo"), LOG_2, -0.05, 0.05),
        (Preference("dpo", label_smoothing=0.2), LOG_2, -0.03, 0.03),
        (Preference("dpo-norm"), LOG_2, -2.5 / 7, 2.5 / 3),
        (Preference("ipo", beta=0.5), 1.0, -2 / 7, 2 / 3),
        (Preference("apo-zero"), 1.0, -0.025, 0.025),
        (Preference("apo-down"), 1.0, 0.0, 0.025),
    ],
)
def test_a_model_that_is_the_reference_has_the_loss_of_a_coin(preference, loss, by_a, by_b):
    found = loss_and_slopes(preference, AT_THE_REFERENCE)
    assert found == pytest.approx((loss, by_a, by_b), abs=1e-12)


# ---------------------------------------------------------------- symmetries


@pytest.mark.parametrize("preference", OF_PAIRS, ids=str)
def test_the_reference_counts_only_in_losses_that_have_one(preference):
    point = Point(-9.0, -4.0, -8.0, -6.0)
    other = point._replace(r_w=-20.0, r_l=-3.0)
    equal = loss_and_slopes(preference, point) == loss_and_slopes(preference, other)
    assert equal == (preference.loss in ("simpo", "orpo"))


def two_rows() -> tuple[Tensor, Sequences]:
    """Return rows of one and of two pairs."""
    numbers = [[-9.0, -4.0, 0.0, 0.0], [-3.0, -8.0, -2.0, -5.0]]
    sums = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    side = torch.tensor([[1, -1, 0, 0], [1, -1, 1, -1]], dtype=torch.int8)
    tokens = torch.tensor([[7, 3, 0, 0], [2, 4, 1, 5]])
    return sums, Sequences(sums.detach() + 0.5 * side * tokens, tokens, side)


@pytest.mark.parametrize("preference", OF_PAIRS, ids=str)
def test_what_is_no_pair_has_no_loss_and_no_gradient(preference):
    sums, sequences = two_rows()
    losses = example_losses(preference, sums, sequences)
    assert (losses != 0).tolist() == [[True, False], [True, True]]
    (grad,) = torch.autograd.grad(losses.sum(), sums)
    assert grad[0, 2:].tolist() == [0, 0]
    alone = (
        sums[:1, :2],
        Sequences(sequences.reference[:1, :2], sequences.tokens[:1, :2], sequences.side[:1, :2]),
    )
    assert torch.equal(example_losses(preference, *alone)[0], losses[0, :1])


# ---------------------------------------------------------------- extremes


@pytest.mark.parametrize("preference", OF_PAIRS, ids=str)
@pytest.mark.parametrize("distance", [-3000.0, 3000.0])
def test_losses_and_gradients_are_finite_and_not_negative_far_away(preference, distance):
    found = loss_and_slopes(preference, Point(-3100.0, -3100.0 + distance, -3100.0, -3100.0))
    assert all(map(math.isfinite, found))
    assert found[0] >= 0


@pytest.mark.parametrize("mean", [0.0, -1e-300, -1e-8, -1e-6])
def test_orpo_has_a_gradient_for_an_answer_that_is_certain(mean):
    """A where() of two branches would have the gradient NaN here."""
    found = loss_and_slopes(Preference("orpo"), Point(7 * mean, 3 * mean, 0, 0))
    assert all(map(math.isfinite, found))
    assert found[1] < 0


# ---------------------------------------------------------------- single answers


def singles(sums, reference, side) -> tuple[Tensor, Sequences]:
    given = torch.tensor([sums], dtype=torch.float64, requires_grad=True)
    return given, Sequences(
        torch.tensor([reference], dtype=torch.float64),
        torch.full((1, len(side)), 3),
        torch.tensor([side], dtype=torch.int8),
    )


def test_the_loss_of_a_single_answer_is_its_formula_times_its_weight():
    sums, sequences = singles([-5.0, -6.0, 0.0], [-8.0, -5.0, 0.0], [1, -1, 0])
    preference = Preference(
        "apo-zero", beta=0.2, desirable_weight=1.5, undesirable_weight=0.5, unpaired=True
    )
    losses = example_losses(preference, sums, sequences)
    assert losses[0].tolist() == pytest.approx([1.5 * (1 - s(0.6)), 0.5 * (1 - s(0.2)), 0])
    (grad,) = torch.autograd.grad(losses.sum(), sums)
    assert grad[0].tolist() == pytest.approx([-0.3 * slope(0.6), 0.1 * slope(0.2), 0])


def test_the_cross_entropy_is_that_of_the_chosen_answers():
    sums, sequences = two_rows()
    assert sft_loss(sums, sequences).item() == 9 + 3 + 2


# ---------------------------------------------------------------- metrics


def measured(preference, sums, sequences):
    found = metrics(preference, sums, sequences)
    assert found.keys() == METRICS.keys()
    assert all(value.dtype == torch.float64 and not value.requires_grad for value in found.values())
    return {name: value.item() for name, value in found.items()}


def test_metrics_are_sums_over_the_pairs():
    sums, sequences = two_rows()  # u is −n_w / 2, and v is n_l / 2
    found = measured(Preference("dpo", beta=0.1), sums, sequences)
    expected = {"pairs": 3, "margin": 0.1 * -(5 + 3 + 3), "accuracy": 0, "saturated": 0}
    expected |= {"chosen": -(3.5 + 1 + 0.5), "rejected": 1.5 + 2 + 2.5, "chosen_nll": 9 + 3 + 2}
    assert found == pytest.approx(expected | {"drift": 3 * 0.5, "moved": 5 + 6})


def test_means_are_compared_where_the_loss_compares_means():
    # u = 4 and v = 3, but per token u is smaller.
    point = Point(-1.0, -1.0, -5.0, -4.0, n_w=8, n_l=2)
    by_sums, by_means = (
        measured(Preference(loss), point.sums, point.sequences) for loss in ("dpo", "dpo-norm")
    )
    assert (by_sums["accuracy"], by_means["accuracy"]) == (1, 0)
    assert by_means["margin"] == pytest.approx(5 * (4 / 8 - 3 / 2))


@pytest.mark.parametrize("loss", ["dpo", "dpo-norm"])
def test_a_model_that_is_its_reference_is_half_right_and_has_not_moved(loss):
    found = measured(Preference(loss), AT_THE_REFERENCE.sums, AT_THE_REFERENCE.sequences)
    assert found["accuracy"] == 0.5
    assert found["moved"] == 0
    point = Point(-9.0, -4.0, -8.0, -5.0)  # u = −1 and v = 1: their sum is 0
    assert measured(Preference("dpo"), point.sums, point.sequences)["moved"] == 2


def test_a_pair_with_nothing_left_to_learn_is_saturated():
    for ahead, expected in ((38.0, 0), (40.0, 1)):  # σ(−z) is 0.02 at z = 3.9
        point = Point(ahead - 50, -50, -50, -50)
        assert measured(Preference("dpo"), point.sums, point.sequences)["saturated"] == expected


def test_a_loss_without_a_reference_drifts_from_nothing():
    found = measured(Preference("simpo"), AT_THE_REFERENCE.sums, AT_THE_REFERENCE.sequences)
    assert found["drift"] == 0
    assert (found["chosen"], found["rejected"]) == (-9, -4)


def test_single_answers_are_right_on_their_side_of_the_reference():
    given = singles([-5.0, -6.0, -2.0, 0.0], [-8.0, -5.0, -2.0, 0.0], [1, -1, -1, 0])
    found = measured(Preference("apo-zero", unpaired=True), *given)
    assert found["accuracy"] == 2.5
    assert found["margin"] == pytest.approx(0.1 * (3 + 1))
    assert (found["chosen"], found["rejected"]) == (3, -1)
