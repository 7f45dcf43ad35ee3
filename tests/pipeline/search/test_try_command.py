"""The verdict of a search is a sentence that a person can act on."""

import math

from pipeline.search.halving import Choice, Difference
from pipeline.search.trials import settings_of
from pipeline.search.try_command import verdict

RATES = settings_of(["pretrain.lr=1e-3,2e-3,4e-3,8e-3,9e-3"])


def lr(value, mean, sem=0.003, *, sure, step=240):
    return Difference(f"pretrain.lr={value}", step, mean, sem, sure, diverged=math.isinf(mean))


def said(*others):
    return verdict(Choice("pretrain.lr=2e-3", 240, others), RATES)


def test_what_is_better_and_what_is_noise():
    assert said(lr("4e-3", -0.002, sure=False), lr("1e-3", -0.011, sure=True, step=120)) == (
        "pretrain.lr=2e-3 is better than 1e-3: −0.011 ± 0.003 nats per token at step 120; "
        "4e-3 is noise: −0.002 ± 0.003 nats per token at step 240"
    )


def test_nothing_is_better_if_all_is_noise_and_many_settings_are_counted():
    others = [lr(v, -0.001 * n, sure=False) for n, v in enumerate(("1e-3", "4e-3", "8e-3", "9e-3"))]
    assert said(*others) == (
        "pretrain.lr=2e-3 is lowest; the other 4 are noise, at most −0.003 ± 0.003 nats per token "
        "at step 240"
    )
    worse = [lr(v, -0.1, sure=True) for v in ("1e-3", "4e-3", "8e-3", "9e-3")]
    assert said(*worse).endswith("; it is better than 1 more")


def test_what_diverged_has_no_number_and_one_seed_has_no_error():
    found = said(lr("8e-3", -math.inf, math.inf, sure=True), lr("1e-3", -0.1, math.inf, sure=False))
    assert found == (
        "pretrain.lr=2e-3 is lowest; 8e-3 diverged; 1e-3 is noise: −0.100 ± unknown nats per token "
        "at step 240"
    )


def test_settings_of_several_keys_have_their_whole_names():
    settings = settings_of(["pretrain.lr=1,2", "pretrain.beta1=0.8,0.9"])
    first, *others = (setting.name for setting in settings)
    differences = tuple(Difference(name, 9, -0.2, 0.01, sure=True) for name in others[:1])
    assert verdict(Choice(first, 9, differences), settings) == (
        "pretrain.lr=1 pretrain.beta1=0.8 is better than pretrain.lr=1 pretrain.beta1=0.9: "
        "−0.200 ± 0.010 nats per token at step 9"
    )


def test_on_one_source_every_setting_that_is_better_than_the_chosen_one_is_named():
    others = [lr(v, 0.1, sure=True) for v in ("1e-3", "4e-3", "8e-3", "9e-3")]
    found = verdict(Choice("pretrain.lr=2e-3", 240, tuple(others)), RATES, "qa")
    assert found.startswith("on qa: pretrain.lr=2e-3 is worse than 1e-3: +0.100 ± 0.003 nats")
    assert all(f"; it is worse than {v}: +0.100" in found for v in ("4e-3", "8e-3", "9e-3"))


def test_on_one_source_a_setting_that_is_not_lowest_is_not_said_to_be():
    found = verdict(Choice("pretrain.lr=2e-3", 240, (lr("1e-3", 0.001, sure=False),)), RATES, "qa")
    assert found == (
        "on qa: pretrain.lr=2e-3 is not lowest; 1e-3 is noise: +0.001 ± 0.003 nats per token at "
        "step 240"
    )
