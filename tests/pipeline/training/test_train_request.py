"""A worker reads the same job as the driver that sends it."""

import dataclasses
import json

import pytest

from pipeline.job.digest import digest_job
from pipeline.state.owner import Owner
from pipeline.training.train_request import TrainRequest
from tests.paths import JOBS
from tests.support.jobs import tiny_job
from tests.support.published_models import load_shipped


def received(job):
    request = TrainRequest.of(job, digest_job(job), Owner.me(), job.train_stages)
    return TrainRequest(**json.loads(json.dumps(dataclasses.asdict(request)))).load_job()


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_job_arrives_as_it_was_sent(path):
    job = load_shipped(path)
    assert received(job) == job
    assert received(job).model_config_resolved() == job.model_config_resolved()


def test_a_part_that_the_job_takes_away_stays_away():
    job = tiny_job(model={"preset": "daisy-pico", "windows": None, "values": None})
    config = received(job).model_config_resolved()
    assert config == job.model_config_resolved()
    assert (config.windows, config.values) == (None, None)
