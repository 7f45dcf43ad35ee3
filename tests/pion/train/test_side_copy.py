"""What is saved next to a step is the state before this step, bit by bit."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load

from pion.train.side_copy import SideCopy
from pion.train.trainer import ComputePlan, Trainer, TrainSettings, TrainState
from pipeline.state.checkpoints.layout import MODEL, OPTIMIZER
from pipeline.state.checkpoints.snapshot import Snapshot, map_extents
from tests.pion.train.conftest import tiny_decoder
from tests.pion.train.test_trainer import assert_identical
from tests.support.late_streams import LateStreams
from tests.support.whole_state import whole_state


def trainer(stream, streams, **fields):
    """Return a trainer that saves as on a card with these streams."""
    settings = TrainSettings(**{"steps": 6, "global_batch": 6, "lr": 1e-2, **fields})
    found = Trainer(tiny_decoder(), stream, settings, ComputePlan(micro_batch=4, threads=1))
    found.side_copy = SideCopy(streams)
    return found


def begin_save(trainer):
    state, memory = trainer.state(), Snapshot()
    memory.take(state.model, state.optimizer, state.meta, state.side_copy)
    return memory


def saved(memory):
    """Return what the process that uploads would read."""
    files = map_extents(memory.fd, memory.extents)
    tensors = (load(bytes(files[name])) for name in (MODEL, OPTIMIZER))
    return TrainState(*tensors, memory.state)


@pytest.fixture
def streams():
    return LateStreams()


def test_training_continues_to_the_same_bits_with_a_save_next_to_every_step(text, streams):
    saving, other = trainer(text, streams), trainer(text, LateStreams())
    for _ in range(4):
        begin_save(saving)
        saving.train_step()
        other.train_step()
    assert_identical(whole_state(saving), whole_state(other))


def test_the_update_waits_for_the_copies_and_the_host_does_not(text, streams, monkeypatch):
    training = trainer(text, streams)
    gradients, update = training._gradients.add, training.optimizer.step

    def add(*arguments, **options):
        streams.order.append("a micro-batch")
        return gradients(*arguments, **options)

    def step(*arguments):
        streams.order.append("the update")
        update(*arguments)

    monkeypatch.setattr(training._gradients, "add", add)
    monkeypatch.setattr(training.optimizer, "step", step)
    memory = begin_save(training)
    for _ in range(2):
        training.train_step()
    assert streams.order == [
        "the side stream waits for the step",
        "copies begin",
        "a micro-batch",
        "a micro-batch",
        "the card waits for the copies",
        "the update",
        "a micro-batch",
        "a micro-batch",
        "the update",
    ]
    memory.wait()
    assert streams.order[-1] == "the host waits for the copies"


def test_an_abandoned_step_leaves_the_copies_to_the_next_update(text, streams):
    training = trainer(text, streams)
    expected = whole_state(training)
    memory = begin_save(training)
    assert not training.train_step(lambda: True)
    assert "the card waits for the copies" not in streams.order
    training.train_step()
    assert_identical(saved(memory), expected)


def test_a_buffer_that_a_forward_pass_changes_is_saved_as_it_was(text, streams):
    training = trainer(text, streams)
    passes = torch.zeros(())

    def count(*_):
        passes.add_(1)

    training.model.register_buffer("passes", passes)
    training.model.norm.register_forward_pre_hook(count)
    training.train_step()
    memory = begin_save(training)
    training.train_step()
    assert (saved(memory).model["passes"], passes) == (2, 4)


@pytest.mark.parametrize("ends", ["load", "close"])
def test_going_back_and_ending_wait_for_the_copies_too(text, streams, ends):
    training = trainer(text, streams)
    before = whole_state(training)
    training.train_step()
    expected = whole_state(training)
    memory = begin_save(training)
    if ends == "load":
        training.load(before)
    else:
        training.close()
    assert streams.order[-1] == "the card waits for the copies"
    assert_identical(saved(memory), expected)


def test_the_memory_that_copies_read_is_kept_until_the_card_waits(streams):
    side_copy = SideCopy(streams)
    target, source = torch.zeros(3), torch.ones(3)
    alive = weakref.ref(source)
    side_copy.begin([(target, source)])
    side_copy.begin([(torch.zeros(1), torch.ones(1))])  # a save that is tried again
    del source
    assert alive() is not None
    side_copy.before_update()
    assert alive() is None
    assert target.tolist() == [1, 1, 1]


def test_on_a_cpu_the_state_is_copied_at_once(text):
    training = trainer(text, LateStreams())
    training.side_copy = SideCopy()
    training.train_step()
    expected = whole_state(training)
    memory = begin_save(training)
    assert_identical(saved(memory), expected)
    assert json.loads(json.dumps(expected.meta)) == memory.state
