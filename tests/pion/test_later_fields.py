"""Models, plans and exports from before a field existed keep their meaning."""

import dataclasses

import pytest

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface.architectures import config_from_transformers, to_transformers
from pion.train.settings import ComputePlan
from tests.support import later_version
from tests.support.later_version import ChangedConfig, LaterConfig, LaterPlan

TODAY = ModelConfig.preset("pion-nano")


def test_a_model_recorded_before_a_field_existed_computes_what_it_did():
    assert LaterConfig.from_dict(TODAY.to_dict()) == LaterConfig.preset("pion-nano")
    changed = ChangedConfig.from_dict(TODAY.to_dict())
    assert changed.window is None
    assert ChangedConfig.preset("pion-nano").window == 16


def test_a_model_that_does_not_use_the_new_field_can_be_read_by_older_versions():
    config = LaterConfig.preset("pion-nano")
    assert config.to_dict() == TODAY.to_dict()
    assert ModelConfig.from_dict(config.to_dict()) == TODAY


def test_an_older_version_refuses_a_model_that_it_would_compute_wrongly():
    with pytest.raises(BadInput, match="unknown model field 'window'"):
        ModelConfig.from_dict(LaterConfig.preset("pion-nano", window=8).to_dict())


@pytest.mark.parametrize("window", [None, 8, 16])
def test_every_value_of_a_new_field_survives_the_round_trip(window):
    config = ChangedConfig.preset("pion-nano", window=window)
    assert ChangedConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("model_type", ["qwen3", "pion"])
def test_an_exported_model_stays_what_it_is(model_type, monkeypatch):
    exported, _ = to_transformers(TODAY, {}, model_type=model_type)
    later_version.install(monkeypatch, config=ChangedConfig)
    again = config_from_transformers(exported)
    assert (type(again), again.window) == (ChangedConfig, None)
    assert again.imported == (model_type == "qwen3")  # ours have all rows that they need
    fields = [f.name for f in dataclasses.fields(ModelConfig) if f.name != "imported"]
    assert [getattr(again, n) for n in fields] == [getattr(TODAY, n) for n in fields]


def test_a_plan_recorded_before_a_field_existed_can_be_used_again():
    plan = ComputePlan(micro_batch=3, threads=2)
    assert LaterPlan.from_dict(plan.to_dict()) == LaterPlan(micro_batch=3, threads=2)
    assert ComputePlan.from_dict(LaterPlan(micro_batch=3).to_dict()) == ComputePlan(micro_batch=3)


def test_a_plan_from_a_newer_version_is_not_used():
    assert ComputePlan.from_dict(LaterPlan(shards=2).to_dict()) is None
