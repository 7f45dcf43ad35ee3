"""The settings of a stage of preferences: their defaults, and what is refused."""

import pytest

from pion.errors import BadInput
from pion.train.preference import BETA, Preference


def test_the_default_is_dpo_of_means_with_a_beta_of_5():
    assert (Preference().loss, Preference().strength) == ("dpo-norm", 5.0)


@pytest.mark.parametrize("loss", BETA)
def test_each_loss_has_a_beta_that_can_be_replaced(loss):
    assert Preference(loss).strength == BETA[loss]
    assert Preference(loss, beta=0.3).strength == 0.3


def test_the_margin_of_simpo_is_half_of_beta():
    assert Preference("simpo").least_margin == 1.25
    assert Preference("simpo", beta=2.0).least_margin == 1.0
    assert Preference("simpo", margin=0.0).least_margin == 0.0
    assert Preference("dpo").least_margin == 0.0


def test_apo_zero_may_learn_from_single_answers():
    assert not Preference("apo-zero", unpaired=True).paired
    assert Preference("apo-zero").paired


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"loss": "hinge"}, "loss = 'hinge': must be one of dpo, dpo-norm"),
        ({"beta": 0.0}, "beta = 0.0: must be above 0"),
        ({"beta": float("nan")}, "beta = nan: must be above 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing = 0.5: must be in \[0, 0.5\)"),
        ({"sft_weight": -0.1}, "sft_weight = -0.1: must not be negative"),
        ({"loss": "simpo", "margin": -1.0}, "margin = -1.0: must not be negative"),
        ({"loss": "dpo", "margin": 1.0}, "margin: the loss dpo ignores it. It is for simpo"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing: the loss ipo ignores it"),
        ({"loss": "dpo", "unpaired": True}, "unpaired: the loss dpo ignores it"),
        ({"loss": "dpo", "desirable_weight": 2.0}, "The loss dpo compares pairs, and ignores them"),
        ({"loss": "apo-zero", "undesirable_weight": 2.0}, "The loss apo-zero compares pairs"),
    ],
)
def test_what_makes_no_sense_or_is_ignored_is_refused(fields, told):
    with pytest.raises(BadInput, match=told):
        Preference(**fields)
