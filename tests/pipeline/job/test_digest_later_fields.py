"""A field that a later version adds changes no digest until it is used."""

import pytest

from pipeline.job.digest import differences, digest_job
from tests.support import later_version
from tests.support.jobs import tiny_dict, tiny_job
from tests.support.later_version import ChangedConfig, ChangedJob, LaterJob

AFTER_PREPARE = {"pretrain", "sft", "evaluate", "publish"}


@pytest.fixture(scope="module")
def today():
    return digest_job(tiny_job(publish={"to": "out"}))


@pytest.fixture(autouse=True)
def later(today, monkeypatch):
    later_version.install(monkeypatch)


def digests(kind, **changes):
    return digest_job(kind.model_validate(tiny_dict(publish={"to": "out"}, **changes)))


def moved(old, new):
    return {stage for stage in old.stages if old.stages[stage] != new.stages[stage]}


def shown(old, new, stage):
    kept = old.inputs.get(f"data.{stage}", {}) | old.inputs[stage]
    now = new.inputs.get(f"data.{stage}", {}) | new.inputs[stage]
    return [str(d) for d in differences(kept, now, new.before)]


def test_new_fields_everywhere_move_no_digest_and_change_nothing_that_is_recorded(today):
    later = digests(LaterJob)
    assert (later.data, later.stages, later.inputs) == (today.data, today.stages, today.inputs)


def test_a_new_field_that_states_the_value_of_before_moves_no_digest(today):
    stated = digests(
        LaterJob, model__gate=False, pretrain__z_loss=0, data__shuffle="rows", sft__z_loss=0.0
    )
    assert stated.stages == today.stages


@pytest.mark.parametrize(
    ("change", "stages", "stage", "line"),
    [
        ({"pretrain__z_loss": 0.1}, AFTER_PREPARE, "pretrain", "pretrain.z_loss: 0.0 → 0.1"),
        (
            {"pretrain__teacher": None},
            AFTER_PREPARE,
            "pretrain",
            'pretrain.teacher: "none" → (not set)',
        ),
        ({"model__gate": True}, AFTER_PREPARE, "pretrain", "model.gate: false → true"),
        ({"model__window": 8}, AFTER_PREPARE, "sft", "model.window: (not set) → 8"),
        ({"sft__z_loss": 0.1}, {"sft", "evaluate", "publish"}, "sft", "sft.z_loss: 0.0 → 0.1"),
        (
            {"data__shuffle": "shards"},
            {"prepare"} | AFTER_PREPARE,
            "pretrain",
            'data.shuffle: "rows" → "shards"',
        ),
        (
            {"evaluate__judge": {"name": "ann"}},
            {"evaluate", "publish"},
            "evaluate",
            'evaluate.judge.name: (not set) → "ann"',
        ),
    ],
)
def test_a_new_field_in_use_moves_the_digests_and_shows_what_was_computed_before(
    today, change, stages, stage, line
):
    used = digests(LaterJob, **change)
    assert moved(today, used) == stages
    assert shown(today, used, stage) == [line]
    back = line.partition(": ")[0] + ": " + " → ".join(reversed(line.split(": ")[1].split(" → ")))
    assert shown(used, digests(LaterJob), stage) == [back]


def test_a_new_field_of_a_source_is_shown_with_the_source(today):
    (source,) = tiny_dict()["data"]["sources"]
    used = digests(LaterJob, data__sources=[source | {"lowercase": True}])
    assert moved(today, used) == {"prepare"} | AFTER_PREPARE
    assert shown(today, used, "pretrain") == ["data.sources.0.lowercase: false → true"]


def test_a_default_that_changes_later_moves_the_digests_and_is_shown(today, monkeypatch):
    later_version.install(monkeypatch, ChangedJob, ChangedConfig)
    changed = digests(ChangedJob)
    assert moved(today, changed) == AFTER_PREPARE
    assert shown(today, changed, "pretrain") == [
        "model.window: (not set) → 16",
        'pretrain.teacher: "none" → (not set)',
        "pretrain.z_loss: 0.0 → 0.0001",
    ]


def test_to_state_the_value_of_before_keeps_runs_valid_whatever_the_default_is_by_then(
    today, monkeypatch
):
    later_version.install(monkeypatch, ChangedJob)
    stated = digests(ChangedJob, pretrain__z_loss=0.0, pretrain__teacher="none")
    assert stated.stages == today.stages


def test_words_that_explain_a_field_are_in_no_digest(today, monkeypatch):
    for field in LaterJob.model_fields["pretrain"].annotation.__args__[0].model_fields.values():
        monkeypatch.setattr(field, "description", "something else")
    assert digests(LaterJob).stages == today.stages
