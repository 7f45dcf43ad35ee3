"""A card that fails ends a run with one message, and the same command resumes it."""

import json

import pytest

from pion.errors import BadInput, CardFailed
from pipeline.state.stores import FileStore
from pipeline.training import context as contexts
from pipeline.training.context import TrainingContext
from pipeline.training.train_request import Group
from tests.faults.light_job import Process, unbroken_weights
from tests.support.jobs import tiny_job, train_request

XID = "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"


def failing_at(step, store, cache):
    """Return a process whose card fails after this step, counted through all stages."""
    steps = iter(range(1, 1000))

    def between_steps():
        if next(steps) == step:
            raise RuntimeError(XID)

    return Process(store, cache, between_steps=between_steps)


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_driver_that_ends_in_the_middle_of_a_run_loses_nothing_committed(tmp_path, step):
    store = FileStore(tmp_path / "runs")
    with pytest.raises(CardFailed) as failed:
        failing_at(step, store, tmp_path / "cache").go()
    message = str(failed.value)
    assert message.startswith("the GPU or its driver failed: CUDA error: unspecified launch fail")
    assert "Everything committed is safe" in message
    assert "run the same command again" in message
    assert "\n" not in message
    assert failed.value.exit_code == 75
    published = []
    Process(store, tmp_path / "cache", publish=published.append).go()
    assert json.loads(published[-1]) == unbroken_weights()


def test_another_error_of_torch_is_not_taken_for_a_failure_of_the_card(tmp_path):
    def between_steps():
        raise RuntimeError("shapes differ")

    process = Process(FileStore(tmp_path / "runs"), tmp_path, between_steps=between_steps)
    with pytest.raises(RuntimeError, match="shapes differ"):
        process.go()


@pytest.mark.parametrize(
    ("listed", "error", "words"),
    [
        (0, CardFailed, r"had 1 GPU\(s\) when the run began, and the driver no longer lists any"),
        (1, BadInput, r"has a GPU, but torch .* can't use it: .*everything committed is safe"),
    ],
)
def test_a_restart_without_its_card_does_not_train_on_the_cpu(
    tmp_path, monkeypatch, listed, error, words
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(contexts, "gpu_count", lambda: listed)
    request = train_request(tiny_job(sft=None), tmp_path, gpus=1)
    context = TrainingContext(request, Group(), lambda message: None, lambda: False)
    with pytest.raises(error, match=words):
        context.import_torch()
    context.watchdog.close()
