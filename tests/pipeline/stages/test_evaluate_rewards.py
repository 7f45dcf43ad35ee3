"""What rewards changed is measured on the same prompts, and the divergence on the same answers."""

import json
from contextlib import closing

import pytest
from safetensors.torch import save_file

from pion.train.rewards import answer_nats
from pipeline.data.prepared import open_data
from pipeline.data.prompts import PromptRows
from pipeline.stages.evaluate_rewards import rewards_of
from pipeline.stages.measures import Measures, StageStart, TrainedRun
from tests.pipeline.data.test_prompts import asked, of, prepared
from tests.support.tiny_config import drawn


def test_the_divergence_is_that_of_the_answers_before_training(tmp_path):
    rewards = [{"kind": "regex", "pattern": r"\S+"}]
    job = of(tmp_path, map(asked, range(60)), rewards=rewards, max_tokens=6, answers=2)
    job.hardware.dtype = "float32"
    prepared(job, tmp_path / "data")
    models = {
        name: drawn(job.model_config_resolved(), n) for n, name in enumerate(("sft", "reinforce"))
    }
    for name, model in models.items():
        (tmp_path / name).mkdir()
        save_file(model.state_dict(), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(model.config.to_dict()))
    trained = TrainedRun(
        {"reinforce": tmp_path / "reinforce"},
        {"reinforce": tmp_path / "data"},
        starts={"reinforce": StageStart("sft", tmp_path / "sft")},
    )
    parts = {}
    with closing(Measures(job, trained, lambda: None)) as measures:
        found = rewards_of(measures, lambda name, _, of: parts.setdefault(name, of()), print)
        stream = measures.rows_of("held_out", "reinforce")
    rows = PromptRows.of(open_data(tmp_path / "data"), stream, "held_out")
    ids = parts["sft.sampled"]["ids"]
    assert len(ids) == stream.total_rows
    nats = {
        name: sum(answer_nats(model, rows.ids(row), answer) for row, answer in enumerate(ids))
        for name, model in models.items()
    }
    divergence = (nats["reinforce"] - nats["sft"]) / sum(map(len, ids))
    assert found["rewards"]["change"]["nats"] == pytest.approx(divergence, rel=1e-4)
    assert abs(divergence) > 1e-3
