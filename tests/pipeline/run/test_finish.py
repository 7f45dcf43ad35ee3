"""The closing summary of a run."""

from pion.files import sha256_file
from pipeline.job import Job
from pipeline.run.finish import summary_rows
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from tests.hostile.hostile_run import CALIBRATION
from tests.pipeline.report.test_cleaning import REPORT
from tests.support.finished_run import make_run
from tests.support.jobs import tiny_dict


def test_the_summary_says_how_far_a_models_probabilities_can_be_trusted(tmp_path):
    run = make_run(tmp_path / "runs")
    claim = claim_run(run, Owner.me())
    measured = {"sft": {"bits_per_byte": 1.5, "calibration": CALIBRATION}}
    claim.finish_stage("evaluate", "d", measured)
    rows = dict(map(tuple, summary_rows(Job.model_validate(tiny_dict()), run)))
    assert rows["sft calibration"] == "31.2 % sure, 30.5 % right (ECE 2.3 %)"
    assert "pretrain calibration" not in rows  # as in the results of an older version


def test_the_summary_says_where_the_published_model_is_and_that_it_is_still_there(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    run = make_run(tmp_path / "runs")
    claim = claim_run(run, Owner.me())
    claim.finish_stage("evaluate", "d", {"sft": {"bits_per_byte": 1.5}, "untrained": {}})
    published = {"path": str(weights.parent), "card": "model/README.md"}
    claim.finish_stage("publish", "d", published | {"sha256": sha256_file(weights)})
    job = Job.model_validate(tiny_dict(publish={"to": "model"}))
    rows = dict(map(tuple, summary_rows(job, run)))
    assert rows["sft bits per byte"] == "1.500"
    assert (rows["model"], rows["card"]) == ("model", "model/README.md")
    weights.write_bytes(b"other weights")
    assert "no longer has this run's model" in dict(map(tuple, summary_rows(job, run)))["model"]


def test_the_summary_says_how_much_of_the_text_was_left_out(tmp_path):
    run = make_run(tmp_path / "runs")
    job = Job.model_validate(tiny_dict())
    assert "cleaning" not in dict(map(tuple, summary_rows(job, run)))
    claim_run(run, Owner.me()).finish_stage("prepare", "d", {"pretrain": REPORT})
    rows = dict(map(tuple, summary_rows(job, run)))
    assert rows["cleaning"].startswith("200 of 1,200 documents were left out (16.7 %): near-copy")
