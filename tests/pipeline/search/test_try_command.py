"""The verdict of a search is a sentence that a person can act on."""

import math

import pytest

from pipeline.search.halving import Choice, Difference
from pipeline.search.trials import settings_of
from pipeline.search.try_command import verdict

RATES = settings_of(["pretrain.lr=1e-3,2e-3,4e-3,8e-3,9e-3"])
OTHERS = ("1e-3", "4e-3", "8e-3", "9e-3")
NATS = "nats per token at step 240"


def lr(value, mean, sem=0.003, *, sure=False):
    return Difference(f"pretrain.lr={value}", 240, mean, sem, sure, diverged=math.isinf(mean))


@pytest.mark.parametrize(
    ("others", "source", "says"),
    [
        (
            [lr("4e-3", -0.002), lr("1e-3", -0.011, sure=True)],
            None,
            f"pretrain.lr=2e-3 is better than 1e-3: −0.011 ± 0.003 {NATS}; "
            f"4e-3 is noise: −0.002 ± 0.003 {NATS}",
        ),
        (
            [lr(value, -0.001 * n) for n, value in enumerate(OTHERS)],
            None,
            f"pretrain.lr=2e-3 is lowest; the other 4 are noise, at most −0.003 ± 0.003 {NATS}",
        ),
        (
            [lr(value, -0.1, sure=True) for value in OTHERS],
            None,
            "pretrain.lr=2e-3 is better than "
            + "; it is better than ".join(f"{v}: −0.100 ± 0.003 {NATS}" for v in OTHERS[:3])
            + "; it is better than 1 more",
        ),
        (  # what diverged has no number, and one seed has no error
            [lr("8e-3", -math.inf, sure=True), lr("1e-3", -0.1, math.inf)],
            None,
            f"pretrain.lr=2e-3 is lowest; 8e-3 diverged; 1e-3 is noise: −0.100 ± unknown {NATS}",
        ),
        (
            [lr(value, -math.inf, sure=True) for value in OTHERS[:3]],
            None,
            "pretrain.lr=2e-3 is lowest; 1e-3, 4e-3 and 8e-3 diverged",
        ),
        (  # on one source, every setting that is better than the chosen one is named
            [lr(value, 0.1, sure=True) for value in OTHERS],
            "qa",
            "on qa: pretrain.lr=2e-3 is worse than "
            + "; it is worse than ".join(f"{v}: +0.100 ± 0.003 {NATS}" for v in OTHERS),
        ),
        (
            [lr("1e-3", 0.001)],
            "qa",
            f"on qa: pretrain.lr=2e-3 is not lowest; 1e-3 is noise: +0.001 ± 0.003 {NATS}",
        ),
    ],
)
def test_what_is_better_and_what_is_noise(others, source, says):
    assert verdict(Choice("pretrain.lr=2e-3", 240, tuple(others)), RATES, source) == says


def test_settings_of_several_keys_have_their_whole_names():
    settings = settings_of(["pretrain.lr=1,2", "pretrain.beta1=0.8,0.9"])
    first, second, *_ = settings
    choice = Choice(first, 240, (Difference(second, 240, -0.2, 0.01, sure=True),))
    says = f"{first} is better than {second}: −0.200 ± 0.010 {NATS}"
    assert verdict(choice, settings) == says
