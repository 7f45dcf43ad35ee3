"""What the stages of one training process share: waiting for the store, and obeying a stop."""

import os

import pytest
import torch

from pion.errors import Interrupted, Stopped
from pion.train.hardware import device_name
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from pipeline.training.context import TrainingContext
from pipeline.training.train_request import Group
from tests.support.jobs import tiny_job, train_request


@pytest.fixture
def request_here(tmp_path):
    return train_request(tiny_job(sft=None, checkpoint__linger=600.0), tmp_path)


@pytest.fixture
def one_core():
    """Bind this process to one core, as a container does."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


@pytest.mark.skipif(os.cpu_count() == 1, reason="this machine has one core")
@pytest.mark.usefixtures("one_core")
def test_training_has_no_more_threads_than_the_container_lets_it_use(request_here):
    context = TrainingContext(request_here, Group(), lambda message: None, lambda: False)
    context.watchdog.close()
    context.import_torch()
    assert torch.get_num_threads() == 1
    assert device_name(torch.device("cpu")).startswith("CPU, 1 cores")


def never_answers():
    raise StoreError("read", "HEAD.json", "the test says so", outage=True)


@pytest.mark.parametrize(("asked", "error"), [(None, Interrupted), ("pion stop", Stopped)])
def test_training_that_waits_for_its_store_obeys_a_stop(tmp_path, request_here, asked, error):
    context = TrainingContext(request_here, Group(), lambda message: None, lambda: asked is None)
    claim = claim_run(RunState(FileStore(tmp_path / "runs"), "tiny"), Owner.me())
    claim.heartbeat.stop_request = asked
    context.owned = claim
    with pytest.raises(error):
        context.patiently(never_answers)
    context.watchdog.close()
