"""What a run says of preferences that spoil a model, teach it nothing more, or nothing at all."""

from __future__ import annotations

import pytest

from pion.errors import PionError
from pipeline.training.learning_advice import WINDOW, LearningAdvice
from pipeline.training.preference_advice import STILL_STEPS, require_learning

GOOD = {"chosen_nll": 1.0, "drift": 0.1, "accuracy": 0.9, "saturated": 0.1, "moved": 2.0}


def steps(first, stop, **numbers):
    """Return the rows of these steps: good ones, but for `numbers`."""
    return [
        {"step": step, "loss": 0.5, "lr": 1e-6, **GOOD, **numbers} for step in range(first, stop)
    ]


class Heard(LearningAdvice):
    """Advice whose warnings are kept: (step, name, text)."""

    def __init__(self):
        self.warnings: list[tuple[int, str, str]] = []
        super().__init__(lambda *said: self.warnings.append(said), 60)

    @property
    def names(self):
        return [name for _, name, _ in self.warnings]


AT_THE_LIMITS = {"chosen_nll": 1.5, "drift": 0.3, "accuracy": 0.98, "saturated": 1.0}
WELL = {
    "at the limits": [*steps(1, 100), *steps(100, 200, **AT_THE_LIMITS)],
    "all right and half saturated": steps(1, 100, accuracy=1.0, saturated=0.5),
    "one odd step": [*steps(1, 20), *steps(20, 21, drift=1.0), *steps(21, 40)],
    "another stage": [{"step": step, "loss": 3.0, "lr": 1e-3} for step in range(1, 50)],
    "an evaluation": [{"step": 50, "held_out_loss": 0.6}],
}


@pytest.mark.parametrize("rows", WELL.values(), ids=WELL)
def test_steps_that_go_well_are_not_warned_of(rows):
    heard = Heard()
    heard.trained(rows)
    assert heard.warnings == []


@pytest.mark.parametrize(
    ("numbers", "name", "words"),
    [
        ({"chosen_nll": 1.51}, "fallen", "was 1.00 nats per token in the first steps, and is 1.51"),
        ({"drift": 0.31}, "drift", "0.31 nats per token less likely than in the reference"),
        ({"accuracy": 0.99, "saturated": 0.51}, "learned", "99.0% of the preferences are right"),
    ],
)
def test_each_kind_of_trouble_is_said_once(numbers, name, words):
    heard = Heard()
    heard.trained(steps(1, 1 + WINDOW))
    heard.trained(steps(1 + WINDOW, 100, **numbers))
    ((step, found, text),) = heard.warnings
    assert found == name
    assert step == 2 * WINDOW  # as soon as the mean of the last steps is above the limit
    assert words in text
    assert "prefer.sft_weight=0.2" in text
    if name == "learned":
        assert all(way in text for way in ("Stop earlier", "prefer.beta", "apo-zero"))


def test_all_kinds_may_be_said_in_a_stage():
    heard = Heard()
    heard.trained(steps(1, 20))
    heard.trained(steps(20, 60, chosen_nll=2.0, drift=0.9, accuracy=1.0, saturated=1.0))
    assert sorted(heard.names) == ["drift", "fallen", "learned"]


# ---------------------------------------------------------------- stages that resume


def test_a_stage_that_resumes_does_not_repeat_a_warning():
    heard = Heard()
    warning = {"step": 20, "warning": {"name": "drift", "text": "…"}}
    heard.recall([*steps(1, 21, drift=0.5), warning, *steps(21, 31, drift=0.5)])
    heard.trained(steps(31, 60, drift=0.5))
    assert heard.warnings == []


def test_a_stage_that_resumes_compares_with_its_first_steps_and_with_its_last():
    heard = Heard()
    heard.recall([*steps(1, 40), *steps(40, 40 + WINDOW - 1, chosen_nll=1.6)])
    assert heard.warnings == []
    heard.trained(steps(40 + WINDOW - 1, 40 + WINDOW, chosen_nll=1.6))
    assert heard.names == ["fallen"]


def test_stored_rows_without_their_numbers_are_left_out():
    heard = Heard()
    heard.recall([*steps(1, 40), {**GOOD, "step": 40, "drift": None}, {"step": 41, "drift": 0.1}])
    heard.trained(steps(42, 60))
    assert heard.warnings == []


# ---------------------------------------------------------------- nothing learns


def test_a_model_that_is_still_its_reference_after_twenty_steps_is_an_error():
    require_learning(steps(1, STILL_STEPS + 1, moved=0.0))
    require_learning(steps(STILL_STEPS + 1, 100, moved=1.1e-6))
    with pytest.raises(PionError) as refused:
        require_learning(steps(STILL_STEPS, STILL_STEPS + 2, moved=9e-7))
    said = str(refused.value)
    assert "after 20 steps, the model gives each answer what the reference gives" in said
    assert "prefer.lr (it is 1e-06 now)" in said
    assert "--redo prefer" in said


def test_other_stages_always_learn():
    require_learning([{"step": 100, "loss": 3.0, "lr": 1e-3}, {"step": 100, "held_out_loss": 1.0}])
