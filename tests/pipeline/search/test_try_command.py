"""The verdict of a search is a sentence that a person can act on."""

import math

import pytest

from pipeline.search.halving import Choice, Difference
from pipeline.search.trials import settings_of
from pipeline.search.try_command import verdict
from tests.pipeline.search.fake_runs import ROWS

NATS = "nats per token at step 240"


@pytest.mark.parametrize("row", ROWS["verdicts"], ids=lambda row: row["says"][:40])
def test_what_is_better_and_what_is_noise(row):
    others = tuple(
        Difference(f"pretrain.lr={value}", 240, mean, sem, sure, diverged=math.isinf(mean))
        for value, mean, sem, sure in row["others"]
    )
    settings = settings_of(["pretrain.lr=1e-3,2e-3,4e-3,8e-3,9e-3"])
    said = verdict(Choice("pretrain.lr=2e-3", 240, others), settings, row.get("source"))
    assert said == row["says"].replace("NATS", NATS)


def test_settings_of_several_keys_have_their_whole_names():
    settings = settings_of(["pretrain.lr=1,2", "pretrain.beta1=0.8,0.9"])
    first, second, *_ = settings
    choice = Choice(first, 240, (Difference(second, 240, -0.2, 0.01, sure=True),))
    says = f"{first} is better than {second}: −0.200 ± 0.010 {NATS}"
    assert verdict(choice, settings) == says
