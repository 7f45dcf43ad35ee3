"""Learning-rate schedules: exact endpoints, and properties of all of them."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pion.config.parts import Windows
from pion.errors import BadInput
from pion.train.schedule import fixed_until, lr_at, momentum_at, plan_at, window_at
from pion.train.settings import TrainSettings
from tests.paths import SEEDS


def make(**fields):
    return TrainSettings(**{"steps": 100, "global_batch": 8, "lr": 3e-4, **fields})


@st.composite
def any_settings(draw):
    lr = draw(st.floats(1e-6, 1.0))
    return make(
        steps=draw(st.integers(1, 400)),
        lr=lr,
        min_lr=lr * draw(st.floats(0, 1)),
        warmup_steps=draw(st.integers(0, 500)),
        schedule=draw(st.sampled_from(["wsd", "cosine", "constant"])),
        decay_shape=draw(st.sampled_from(["cosine", "linear"])),
        decay_fraction=draw(st.floats(0.01, 1.0)),
    )


@given(any_settings())
@hypothesis_settings(max_examples=200, deadline=None)
def test_every_step_moves_and_the_rate_rises_to_the_peak_in_the_warm_up_and_never_afterwards(
    settings,
):
    rates = [lr_at(settings, step) for step in range(settings.steps)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert all(rate > 0 for rate in rates[:-1])  # only the last step reaches a min_lr of 0
    warmup = settings.warmup_steps
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))


@given(any_settings(), st.integers(1, 300))
@hypothesis_settings(max_examples=200, deadline=None)
def test_raising_steps_before_the_decay_changes_no_past_rate(settings, more):
    fields = {**vars(settings), "steps": settings.steps + more}
    longer = TrainSettings(**fields)
    for step in range(fixed_until(settings)):
        assert lr_at(longer, step) == lr_at(settings, step)


COSINE = {"schedule": "cosine", "steps": 3000, "warmup_steps": 100, "lr": 2e-5, "min_lr": 2e-6}
LONG_DECAY = {"steps": 10, "warmup_steps": 5, "decay_fraction": 1.0, "decay_shape": "linear"}
# Settings, and the rates of some of their steps, as shares of the peak.
RATES = {
    **{
        f"the warm-up of {name}": ({"schedule": name, "warmup_steps": 10}, {0: 0.1, 9: 1.0})
        for name in ("wsd", "cosine", "constant")
    },
    **{
        f"wsd decays as {shape}": (
            {"warmup_steps": 10, "min_lr": 3e-5, "decay_shape": shape},
            {**dict.fromkeys(range(10, 80), 1.0), 80: first, 89: 0.55, 99: 0.1},
        )
        for shape, first in (("cosine", 0.55 + 0.45 * math.cos(math.pi / 20)), ("linear", 0.955))
    },
    "cosine, from the end of the warm-up": (COSINE, {99: 1.0, 1549: 0.55, 2999: 0.1}),
    "constant": (
        {"schedule": "constant", "warmup_steps": 4},
        {4: 1.0, 50: 1.0, 99: 1.0, 10_000: 1.0},
    ),
    "past the last step": ({"min_lr": 3e-5}, {5000: 0.1}),
    "a decay longer than the warm-up leaves": (LONG_DECAY, {4: 1.0, 5: 0.8, 9: 0.0}),
}


@pytest.mark.parametrize("name", RATES)
def test_a_schedule_has_these_rates(name):
    fields, rates = RATES[name]
    assert {step: lr_at(make(**fields), step) for step in rates} == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_decays_are_the_daisy_seeds(shape):
    reference = torch.load(SEEDS / "daisy_muon_ref.pt", weights_only=True)[f"{shape}_decay"]
    settings = make(steps=20, decay_fraction=0.4, decay_shape=shape)
    for step in range(20):
        assert math.isclose(lr_at(settings, step), reference[step + 1], abs_tol=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("global_batch", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("min_lr", 4e-4),
        ("warmup_steps", -1),
        ("decay_fraction", 0.0),
        ("schedule", "wsdd"),
        ("beta2", 1.0),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(BadInput, match=field):
        make(**{field: value})


def test_a_cubic_window_is_the_seeds_at_every_twentieth_of_a_run():
    reference = torch.load(SEEDS / "daisy_muon_ref.pt", weights_only=True)["window_blocks_3456"]
    settings = make(steps=20, window_schedule="cubic")
    windows = [window_at(settings, step, Windows(tokens=3456)) for step in range(21)]
    assert windows == [128 * blocks for blocks in reference]


def test_the_momentum_rises_with_the_share_of_the_run_that_is_done():
    settings = make(steps=6, muon_momentum_start=0.85)
    found = [momentum_at(settings, step) for step in range(6)]
    assert found == pytest.approx([0.85 + step / 60 for step in range(6)])


@pytest.mark.parametrize("fields", [{"window_schedule": "cubic"}, {"muon_momentum_start": 0.5}])
def test_a_plan_that_grows_over_the_run_depends_on_steps_from_the_start(fields):
    assert fixed_until(make(schedule="constant", **fields)) == 0


def test_each_role_has_its_rate_and_muons_may_not_decay():
    settings = make(
        optimizer="muon", muon_lr=0.02, muon_decays=False, embedding_lr=0.2, head_lr=1.0
    )
    plan = plan_at(settings, 99)
    assert plan.rates["matrix"] == 0.02
    scale = lr_at(settings, 99)
    assert plan.rates["embedding"] == 0.2 * scale
    assert plan.rates["head"] == scale
    assert plan.rates["vector"] == plan.rates["router"] == plan.lr == 3e-4 * scale
