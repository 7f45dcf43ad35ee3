"""What the stages of one training process share: waiting for the store, and obeying a stop."""

import dataclasses
from pathlib import Path

import pytest

from pion.errors import Interrupted, PionError, Stopped
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from pipeline.training.context import TrainingContext
from pipeline.training.train_request import Group, TrainRequest
from tests.support.jobs import tiny_job


def never_answers() -> None:
    raise StoreError("read", "HEAD.json", "the test says so", outage=True)


@pytest.mark.parametrize(("asked", "error"), [(None, Interrupted), ("pion stop", Stopped)])
def test_training_that_waits_for_its_store_obeys_a_stop(
    tmp_path: Path, asked: str | None, error: type[PionError]
) -> None:
    store = str(tmp_path / "runs")
    request = TrainRequest(
        job=tiny_job(sft=None, checkpoint__linger=600.0).model_dump(mode="json"),
        job_folder=str(tmp_path),
        store=store,
        owner=dataclasses.asdict(Owner.me()),
        stages=["pretrain"],
        digests={"pretrain": "d1"},
    )
    context = TrainingContext(request, Group(), lambda message: None, lambda: asked is None)
    claim = claim_run(RunState(FileStore(Path(store)), "tiny"), Owner.me())
    claim.heartbeat.stop_request = asked
    context.owned = claim
    with pytest.raises(error):
        context.patiently(never_answers)
    context.watchdog.close()
