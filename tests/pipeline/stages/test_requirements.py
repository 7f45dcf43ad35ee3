"""Conditions of publish.require name what will be measured, or nothing is started."""

import pytest

from pion.errors import BadInput
from pipeline.stages.requirements import check_names, check_requirements
from tests.support.jobs import tiny_job

RESULTS = {
    "sft": {"bits_per_byte": 2.0},
    "prefer": {
        "accuracy": 0.7,
        "text_change": 0.01,
        "bits_per_byte": 2.01,
        "preferences": {"after": {"normalized": {"accuracy": 0.55}}, "before": {}},
    },
}


def job(*conditions, **changes):
    """Return a job with `prefer`, which is published on these conditions."""
    prefer = {"steps": 5, "sources": [{"kind": "jsonl", "path": "pairs.jsonl"}]}
    publish = {"to": "model", "require": list(conditions)}
    return tiny_job(**{"prefer": prefer, "publish": publish} | changes)


def check(*conditions, **changes):
    made = job(*conditions, **changes)
    check_names(made, made.publish)


def decide(*conditions):
    made = job(*conditions)
    check_requirements(made, made.publish, RESULTS, "It is safe.")


def test_a_condition_that_is_met_blocks_nothing():
    decide("prefer.accuracy > 0.6", "accuracy > 0.6", "prefer.text_change < 0.02")
    decide("prefer.preferences.after.normalized.accuracy > 0.5", "sft.bits_per_byte < 3")


def test_a_condition_on_preferences_that_is_not_met_blocks_the_model():
    with pytest.raises(BadInput, match=r"prefer\.accuracy > 0\.8 \(measured: 0\.7\).*It is safe"):
        decide("prefer.accuracy > 0.8", "prefer.text_change < 0.02")
    with pytest.raises(BadInput, match=r"prefer\.text_change < 0\.005 \(measured: 0\.01\)"):
        decide("prefer.text_change < 0.005")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prefer.preferences", "'preferences' is a table: name a number in it. It has the numbers"),
        ("preferences.after", "'after' is a table: name a number in it. It has the tables raw,"),
        ("prefer.preferences.after.raw", "'raw' is a table: name a number in it. It has the numb"),
        ("prefer.preferences.kind", "'kind' is not a number"),
        ("prefer.preferences.start", "'start' is not a number"),
        ("prefer.preferences.of_means", "'of_means' is not a number"),
        ("prefer.preferences.answers.shown", "'shown' is not a number"),
        ("prefer.preferences.items.x", "'items' is a number, and nothing in it has a name"),
        ("preferences.after.raw.accuracy.x", "'accuracy' is a number, and nothing in it"),
        ("preferences.after.rew.accuracy", "did you mean 'raw'?; 'after' has the tables raw,"),
        ("prefer.accuracy.x", "'accuracy' is a number, and nothing in it has a name; 'prefer' has"),
        ("accuracy.x", "'accuracy' is a number, and nothing in it has a name; 'prefer' has the nu"),
        ("sft.loss.x", "'loss' is a number, and nothing in it has a name; 'sft' has the numbers"),
        ("ngram.order.x", "'order' is a number, and nothing in it has a name; 'ngram' has the num"),
        ("sft", "'sft' is a table: name a number in it. It has the numbers loss,"),
        ("packs", "'packs' is a table: name a number in it"),
        ("lm_eval", "'lm_eval' is a table: name a number in it"),
        ("lm_eval.arc_easy", "'arc_easy' is a table: name a number in it"),
        ("prefer.calibration", "'calibration' is a table: name a number in it. It has the numbers"),
        ("sft.calibration.ecce", "did you mean 'ece'?; 'calibration' has the numbers ece,"),
        ("packs.mine.acuracy", "did you mean 'accuracy'?"),
        ("prefer.acuracy", "did you mean 'accuracy'?"),
        ("acuracy", "did you mean 'accuracy'?"),
        ("prefer.text_chance", "did you mean 'text_change'?"),
        ("prefer.preferences.aftr.raw.accuracy", "did you mean 'after'?"),
        ("prefer.preferences.after.normalised.accuracy", "did you mean 'normalized'?"),
        ("prefer.preferences.after.raw.acuracy", "did you mean 'accuracy'?"),
        ("prefer.preferences.answers.after.stoped", "did you mean 'stopped'?"),
    ],
)
def test_what_is_no_number_is_refused_before_anything_is_started(name, words):
    with pytest.raises(BadInput) as caught:
        check(f"{name} > 0.5")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"publish.require: '{name} > 0.5': ")
    assert str(caught.value).endswith(". Nothing was started.")


@pytest.mark.parametrize(
    "name",
    [
        "sft.calibration.near_70.accuracy",
        "calibration.ece",
        "prefer.tokens",
        "sft.bytes",
        "ngram.train_tokens",
        "untrained.rows",
        "packs.my.pack.accuracy",
        "continuations.accuracy_sem",
        "core.value",
        "drafts.greedy.tokens_per_pass",
        "lm_eval.arc_easy.acc",
        "lm_eval.gsm8k.asked.cut_off",
        *(f"prefer.preferences.{one}" for one in ("items", "rules.longer", "desired")),
        "prefer.preferences.answers.change.tokens_sem",
        *("prefer.accuracy", "accuracy", "prefer.accuracy_sem", "prefer.text_change"),
        *("prefer.response_change", "prefer.bits_per_byte", "prefer.ends", "sft.response_loss"),
        *(f"prefer.preferences.{one}" for one in ("rules.longer_wins", "change.raw.length_bias")),
        *(f"prefer.preferences.{one}.accuracy" for one in ("after.normalized", "after.margin")),
        "prefer.preferences.answers.after.stopped",
    ],
)
def test_a_number_in_a_table_of_a_stage_can_be_required(name):
    check(f"{name} > 0.5")


WEB = [{"kind": "text", "path": "text", "name": "web"}]
MIXED = {"data__sources": WEB, "data__documents": True, "pretrain__phases": [{"mix": {"web": 1}}]}
LONGER = {"data__documents": True, "pretrain__phases": [{"until": 5}, {"seq_len": 128}]}


@pytest.mark.parametrize(
    ("name", "without", "measured_with"),
    [
        ("sources.web.loss", {}, MIXED),
        ("sft.sources.web.loss", {}, MIXED),
        ("long_context.worth", {}, LONGER),
        ("prefer.text.bits_per_byte", {}, None),
        ("response_change", {"sft": None}, {}),
        ("prefer.response_loss_sem", {"sft": None}, {}),
        ("ends", {"sft": None}, {}),
        ("prefer.others", {"sft": None}, {}),
        ("accuracy", {"prefer": None}, {}),
    ],
)
def test_what_the_job_does_not_measure_is_refused(name, without, measured_with):
    missing = name.removeprefix("sft.").removeprefix("prefer.").partition(".")[0]
    with pytest.raises(BadInput, match=f"nothing called '{missing}'"):
        check(f"{name} < 1", **without)
    if measured_with is not None:
        check(f"{name} < 1", **measured_with)
